"""Rows of Hugging Face datasets: on the hub, in a folder of data files, or in a folder that `save_to_disk` left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fairprune_framework.contrasts.formats import Row, first_line
from fairprune_framework.errors import PromptError, did_you_mean

_SAVED = ("dataset_dict.json", "state.json")
"""Files by which a folder of `DatasetDict.save_to_disk` or `Dataset.save_to_disk` is known."""


def dataset_rows(name: str, chosen: Sequence[str] = ()) -> Iterator[Row]:
    """Stream the rows of a dataset.

    Class labels are given by their names. Code that comes with a dataset is never run. Without a network `HF_HUB_OFFLINE=1`
    spares the half minute in which the hub is called again and again.

    Args:
        name: `name` or `owner/name` of one on the hub, or a folder.
        chosen: nothing, a configuration or a split, or both in this order. What is not chosen must be the only one.

    Raises:
        PromptError: it cannot be loaded, has no such configuration or split, or has several and none was chosen.
    """
    import datasets

    datasets.disable_progress_bars()
    if any((Path(name) / file).is_file() for file in _SAVED):
        loaded, split = _saved(name), _one_word(name, chosen)
    else:
        loaded, split = _loaded(name, chosen)
    found = list(loaded)
    if split is None and len(found) > 1:
        raise PromptError(
            f"the dataset {name!r} has the splits {', '.join(found)}: choose one, as in {_named(name, chosen, found[0])!r}"
        )
    split = split or found[0]
    if split not in found:
        raise PromptError(f"the dataset {name!r} has no split {split!r}, only {', '.join(found)}.{did_you_mean(split, found)}")
    data = loaded[split]
    labels = {column: feature for column, feature in data.features.items() if isinstance(feature, datasets.ClassLabel)}
    for number, record in enumerate(data, start=1):
        named = {column: feature.int2str(record[column]) for column, feature in labels.items() if record[column] is not None}
        yield Row(where=f"{name}[{split}], row {number}", number=number, data={**record, **named}, table=True)


def _loaded(name: str, chosen: Sequence[str]) -> tuple[dict[str, Any], str | None]:
    """The splits of a dataset, and which of them was chosen."""
    import datasets

    try:
        configuration, split = _resolved(name, chosen, datasets.get_dataset_config_names(name)) if chosen else (None, None)
        return datasets.load_dataset(name, configuration), split
    except PromptError:
        raise
    except Exception as error:  # whatever hub, file system or parser raise: the user needs one line of it
        if not chosen and isinstance(error, ValueError) and len(known := _configurations(name)) > 1:
            raise PromptError(
                f"the dataset {name!r} has the configurations {', '.join(known)}: choose one, as in {_named(name, (), known[0])!r}"
            ) from error
        raise PromptError(f"{_failed(name)} {name!r}: {type(error).__name__}: {first_line(error)}") from error


def _resolved(name: str, chosen: Sequence[str], known: Sequence[str]) -> tuple[str | None, str | None]:
    """Configuration and split; one word alone is a configuration where there is one of that name, and otherwise a split."""
    first, split = (chosen[0], chosen[1]) if len(chosen) > 1 else (chosen[0], None)
    if first in known:
        return first, split
    if split is None and (len(known) < 2 or "default" in known):
        return None, first
    raise PromptError(
        f"the dataset {name!r} has no configuration {first!r}, only {', '.join(known)}.{did_you_mean(first, known)}"
    )


def _saved(name: str) -> dict[str, Any]:
    """What `save_to_disk` left: the splits, or the one dataset under the name of its split."""
    import datasets

    try:
        loaded = datasets.load_from_disk(name)
    except Exception as error:
        raise PromptError(f"{_failed(name)} {name!r}: {type(error).__name__}: {first_line(error)}") from error
    return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {str(loaded.split or "train"): loaded}


def _configurations(name: str) -> list[str]:
    import datasets

    try:
        return list(datasets.get_dataset_config_names(name))
    except Exception:
        return []


def _one_word(name: str, chosen: Sequence[str]) -> str | None:
    if len(chosen) > 1:
        raise PromptError(
            f"the dataset {name!r} was saved without configurations: name a split alone. Got {':'.join(chosen)!r} instead."
        )
    return chosen[0] if chosen else None


def _named(name: str, chosen: Sequence[str], word: str) -> str:
    return ":".join([name, *chosen, word])


def _failed(name: str) -> str:
    return "cannot load the dataset" if Path(name).exists() else "there is no such file or folder, nor can a dataset be loaded:"
