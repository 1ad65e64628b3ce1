"""Datasets: folders of data files, folders that `save_to_disk` left, and what is chosen of them by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.contrasts import hub
from fairprune_framework.contrasts.readers import content_hash, read
from fairprune_framework.errors import PromptError

PAIR = {"id": "p1", "category": "age", "prompt_1": "An old cat", "prompt_2": "An odd cat"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def jsonl(path: Path, *ids: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({**PAIR, "id": name}) + "\n" for name in ids), "utf-8")
    return path


def ids(source: str | Path) -> list[str]:
    return [contrast.id for contrast in read(source).contrasts]


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    jsonl(tmp_path / "set" / "train.jsonl", "t1", "t2")
    jsonl(tmp_path / "set" / "test.jsonl", "u1")
    return tmp_path / "set"


@pytest.fixture
def configurations(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    jsonl(folder / "a" / "train.jsonl", "a1")
    jsonl(folder / "b" / "train.jsonl", "b1")
    jsonl(folder / "b" / "test.jsonl", "b2")
    files = "".join(f"- config_name: {name}\n  data_dir: {name}\n" for name in "ab")
    (folder / "README.md").write_text(f"---\nconfigs:\n{files}---\n", "utf-8")
    return folder


def test_one_split_needs_no_name(tmp_path: Path) -> None:
    jsonl(tmp_path / "set" / "train.jsonl", "p1", "p2")
    result = read(tmp_path / "set")
    assert [contrast.id for contrast in result.contrasts] == ["p1", "p2"]
    assert result.sha256 == content_hash(result.contrasts)


def test_a_split_is_chosen_behind_the_name(splits: Path) -> None:
    assert ids(f"{splits}:train") == ["t1", "t2"]
    assert ids(f"{splits}:test") == ["u1"]
    with pytest.raises(PromptError, match=r"has the splits train, test: choose one, as in '.*set:train'"):
        read(splits)
    with pytest.raises(PromptError, match=r"has no split 'tests', only train, test\. Did you mean 'test'"):
        read(f"{splits}:tests")


def test_a_configuration_and_a_split_are_chosen_behind_the_name(configurations: Path) -> None:
    assert ids(f"{configurations}:a") == ["a1"]
    assert ids(f"{configurations}:a:train") == ["a1"]
    assert ids(f"{configurations}:b:test") == ["b2"]
    with pytest.raises(PromptError, match=r"has the configurations a, b: choose one, as in '.*set:a'"):
        read(configurations)
    with pytest.raises(PromptError, match=r"has the splits train, test: choose one, as in '.*set:b:train'"):
        read(f"{configurations}:b")
    with pytest.raises(PromptError, match=r"has no configuration 'c', only a, b"):
        read(f"{configurations}:c:train")
    with pytest.raises(PromptError, match=r"has no configuration 'test', only a, b"):
        read(f"{configurations}:test")


def test_what_save_to_disk_left_is_read(tmp_path: Path) -> None:
    import datasets

    one = datasets.Dataset.from_list([PAIR])
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(str(tmp_path / "many"))
    assert ids(tmp_path / "one") == ["p1"]
    assert ids(f"{tmp_path / 'many'}:test") == ["p1"]
    with pytest.raises(PromptError, match=r"has the splits train, test: choose one"):
        read(tmp_path / "many")
    with pytest.raises(PromptError, match=r"was saved without configurations: name a split alone. Got 'default:test'"):
        read(f"{tmp_path / 'many'}:default:test")
    (tmp_path / "many" / "train" / "dataset_info.json").write_text("{")
    with pytest.raises(PromptError, match=r"cannot load the dataset"):
        read(f"{tmp_path / 'many'}:train")


def test_a_file_has_no_split(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "set.jsonl", "p1")
    assert ids(file) == ["p1"]
    with pytest.raises(PromptError, match=r"set.jsonl is a file, which has no split 'train' to choose"):
        read(f"{file}:train")


def test_a_colon_in_the_name_of_a_file_chooses_nothing(tmp_path: Path) -> None:
    assert ids(jsonl(tmp_path / "a:b" / "set:one.jsonl", "p1")) == ["p1"]


def test_class_labels_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    features = datasets.Features(
        {"kind": datasets.ClassLabel(names=["age", "race"]), "a": datasets.Value("string"), "b": datasets.Value("string")}
    )
    made = datasets.Dataset.from_dict({"kind": [1, None], "a": ["x 1", "x 2"], "b": ["y 1", "y 2"]}, features=features)
    asked: list[tuple[str, str | None]] = []

    def load(name: str, configuration: str | None) -> Any:
        asked.append((name, configuration))
        return datasets.DatasetDict({"train": made, "test": made})

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: ["plain", "raw"])
    result = read("someone/some-set:raw:test", columns={"category": "kind", "prompt_1": "a", "prompt_2": "b"})
    assert set(asked) == {("someone/some-set", "raw")}
    assert [contrast.category for contrast in result.contrasts] == ["race", "all"]


def test_a_dataset_that_cannot_be_loaded_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(name: str, configuration: str | None = None) -> Any:
        raise ConnectionError("Couldn't reach the hub.\nA long story.")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_config_names", load)
    said = "there is no such file or folder, nor can a dataset be loaded: 'promts': ConnectionError: Couldn't reach the hub"
    for name in ("promts", "promts:train"):
        with pytest.raises(PromptError) as caught:
            read(name)
        assert str(caught.value) == said
    with pytest.raises(PromptError, match="cannot load the dataset"):
        read(tmp_path)


def test_rows_know_their_place(splits: Path) -> None:
    assert [row.where for row in hub.dataset_rows(str(splits), ["train"])] == [f"{splits}[train], row {i}" for i in (1, 2)]
