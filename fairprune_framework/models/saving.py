"""Saving a changed model so that other readers understand it: as its original lies in its folder, with what was changed alone.

With an original on disk every file of it is kept: `config.json` with the new widths, each tensor under its own name, in its own dtype and
shard, the tokenizer and everything else byte for byte. A model without one (GGUF, in memory) is saved by transformers 5, whose files then
get the fields that transformers 4 reads.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.api.widths import read_field, write_field
from fairprune_framework.errors import UserError
from fairprune_framework.models.quiet import quietly
from fairprune_framework.utilities.files import read_json, temporary_folder
from fairprune_framework.utilities.schemas import Inside, Schema, read_checked

CONFIG, README, KEPT_README = "config.json", "README.md", "ORIGINAL_README.md"
INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
WEIGHTS = frozenset(
    {
        ".safetensors",
        ".bin",
        ".pt",
        ".pth",
        ".ckpt",
        ".h5",
        ".msgpack",
        ".onnx",
        ".onnx_data",
        ".gguf",
        ".npz",
        ".pkl",
        ".tflite",
        ".ot",
    }
)
"""Suffixes of files with weights: those of the original are written anew, and its other formats would not be of the changed model."""
OURS = frozenset({"plan.json", "restoration.safetensors"})
"""Files that belong to one pruning, not to a model."""
NEW, GONE = "new", "gone"
_TEXT_CONFIGS = ("text_config", "llm_config", "language_config", "decoder")


def shards(folder: Path) -> list[Path]:
    """The safetensors files that transformers reads from a folder; empty where it has none. Raises `UserError` for a broken index."""
    if (folder / INDEX).is_file():
        named = read_checked(folder / INDEX, WeightsIndex)["weight_map"].values()
        return [folder / name for name in sorted(set(named))]
    return [folder / WHOLE] if (folder / WHOLE).is_file() else []


def save_new(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save a model that has no original on disk, for transformers 5 and 4."""
    with quietly():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    config = _read(folder / CONFIG)
    _write(folder / CONFIG, with_older_fields(config))
    tokens = folder / "tokenizer_config.json"
    if tokens.is_file() and (content := _read(tokens)).get("tokenizer_class") == "TokenizersBackend":
        content["tokenizer_class"] = "PreTrainedTokenizerFast"
        splitting = _read(folder / "tokenizer.json").get("pre_tokenizer") or {}
        if "add_prefix_space" in splitting:  # transformers 4 sets it to its own default where the config is silent
            content.setdefault("add_prefix_space", splitting["add_prefix_space"])
        _write(tokens, content)


def with_older_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` of transformers 5 with the fields beside it that transformers 4 reads: the base of the rotary embedding, its
    scaling, and the dtype. Without them transformers 4 takes its defaults and says nothing.

    >>> with_older_fields({"dtype": "bfloat16", "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}})["rope_theta"]
    500000.0
    """
    found = {key: with_older_fields(value) if key in _TEXT_CONFIGS and value else value for key, value in config.items()}
    if "dtype" in found:
        found.setdefault("torch_dtype", found["dtype"])
    rope = found.get("rope_parameters") or {}
    by_kind = {kind: value for kind, value in rope.items() if isinstance(value, Mapping)}
    if by_kind and not str(found.get("model_type")).startswith(
        "gemma3"
    ):  # younger than transformers 4, and read otherwise by 5
        return found
    if local := by_kind.get("sliding_attention"):
        found.setdefault("rope_local_base_freq", local.get("rope_theta"))
    rope = by_kind.get("full_attention", rope)
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in rope:
            found.setdefault(name, rope[name])
    scaling = {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
    if rope.get("rope_type", "default") != "default":
        found.setdefault("rope_scaling", scaling)
    return found


def save_like(
    original: Path,
    folder: Path,
    model: Any,
    *,
    parameters: Iterable[str],
    fields: Mapping[str, int | None],
    dtype: torch.dtype | None = None,
    back: bool = False,
    added: Collection[str] = (),
    dropped: Collection[str] = (),
) -> list[str]:
    """Write the files of `original` to `folder`, with the changed parameters and config fields of `model`.

    Args:
        original: a folder with `config.json` that the model was loaded from.
        parameters: names of the changed parameters, as the model has them.
        fields: field of the text config -> its new value.
        dtype: of every floating-point tensor; None: each keeps its own.
        back: `original` is a pruned model's folder and `model` what it was before.
        added: those of `parameters` that the original lacks: biases, each of which is written beside its weight.
        dropped: parameters that the original has and the model lacks.

    Returns:
        Sentences about what could not be kept as it was.

    Raises:
        UserError: the model is a part of what the original holds, and its tensors are not found there: the rest would be lost.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder) as scratch:
        with quietly():  # under the names of the files, which transformers knows
            values = {name: model.get_parameter(name).detach() for name in parameters}
            model.save_pretrained(scratch, state_dict={name: value for name, value in values.items() if name not in added})
            for kind, names in ((NEW, added), (GONE, dropped)):
                if names:
                    model.save_pretrained(scratch / kind, state_dict={name: values.get(name, torch.zeros(1)) for name in names})
        changed, new, gone = (
            {name: file for file in shards(place) for name in names_in(file)}
            for place in (scratch, scratch / NEW, scratch / GONE)
        )
        known = [name for file in shards(original) for name in names_in(file)]
        partners = partners_of([*changed, *map(_weight_of, new), *gone], known)
        if partners is not None:
            notes = _write_tensors(
                original,
                folder,
                {partners[ours]: (file, ours) for ours, file in changed.items()},
                dtype,
                beside={partners[_weight_of(ours)]: (file, ours) for ours, file in new.items()},
                dropped={partners[ours] for ours in gone},
            )
            if (whole := class_of(original)) not in (None, type(model).__name__):
                notes.append(f"the other parts of the {whole} are kept as they are")
        else:
            refuse_part(original, model)
            with quietly():
                model.save_pretrained(scratch)
            notes = _write_anew(scratch, folder, dtype)
    write_beside(original, folder, model.config, fields=fields, dtype=dtype, back=back)
    return notes


def write_beside(
    original: Path,
    folder: Path,
    config: Any,
    *,
    fields: Mapping[str, int | None],
    dtype: torch.dtype | None = None,
    back: bool = False,
) -> None:
    """Write what lies beside the weights of `original`: its `config.json` with other fields, and every other file byte for byte.

    Args:
        config: of the model; the others as `save_like`.
    """
    _write(folder / CONFIG, _config(_read(original / CONFIG), config, fields, dtype))
    for file, name in kept_files(original, back=back).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(original / file, folder / name)


def check_savable(original: Path, model: nn.Module, parameters: Iterable[str]) -> None:
    """What `save_like` would refuse, before anything is computed.

    Raises:
        UserError: as `save_like`.
    """
    if partners_of(parameters, [name for file in shards(original) for name in names_in(file)]) is None:
        refuse_part(original, model)


def refuse_part(original: Path, model: nn.Module) -> None:
    """Raise `UserError` where the original holds another class than the model: the text half of a model with a vision tower."""
    if (whole := class_of(original)) not in (None, type(model).__name__):
        raise UserError(
            f"{original.name} is a {whole}, of which {type(model).__name__} was loaded, and its tensors are not found in the files: the "
            "rest of the model would be lost. Save the text model to a folder of its own, and prune that one"
        )


def class_of(folder: Path) -> str | None:
    """The class that `config.json` names."""
    found = _read(folder / CONFIG).get("architectures")
    return str(found[0]) if isinstance(found, list) and found and found[0] is not None else None


def kept_files(original: Path, *, back: bool = False) -> dict[str, str]:
    """What is copied byte for byte: file -> its new name, both relative to the folder.

    All but weights, `config.json`, hidden files and links that lead outside. `README.md` is the card of one model: beside a pruned one the
    original's is `ORIGINAL_README.md`.
    """
    root = original.resolve()
    if root.parent.name == "snapshots":  # the hub's cache links to blobs of the same repository
        root = root.parent.parent
    found = {}
    for path in sorted(original.rglob("*")):
        relative = path.relative_to(original)
        hidden = any(part.startswith(".") for part in relative.parts)
        other = path.suffix in WEIGHTS or path.name.endswith(".index.json") or str(relative) in (CONFIG, *OURS)
        if path.is_file() and not hidden and not other and path.resolve().is_relative_to(root):
            found[str(relative)] = str(relative)
    if back or KEPT_README in found:
        found.pop(README, None)
    if README in found:
        found[README] = KEPT_README
    elif back and KEPT_README in found:
        found[KEPT_README] = README
    return found


def names_in(file: Path) -> list[str]:
    """The tensors of a safetensors file."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def partners_of(ours: Iterable[str], theirs: Iterable[str]) -> dict[str, str] | None:
    """Our tensor -> theirs: the same name, or one that differs in its beginning, alike for all. None where one has no partner.

    >>> partners_of(["model.layers.0.mlp.up"], ["model.language_model.layers.0.mlp.up", "model.visual.layers.0.mlp.fc"])
    {'model.layers.0.mlp.up': 'model.language_model.layers.0.mlp.up'}
    """
    wanted, known = list(ours), set(theirs)
    if known.issuperset(wanted):
        return {name: name for name in wanted}
    parts = wanted[0].split(".")
    layer = next((place for place, part in enumerate(parts) if part.isdecimal()), 1)
    for place in range(layer):  # `layers.0` and what follows are never cut off
        begin, end = "".join(f"{part}." for part in parts[:place]), ".".join(parts[place:])
        for candidate in sorted(name for name in known if name == end or name.endswith(f".{end}")):
            other = candidate.removesuffix(end)
            found = {name: other + name.removeprefix(begin) for name in wanted if name.startswith(begin)}
            if len(found) == len(wanted) and known.issuperset(found.values()):
                return found
    return None


def _weight_of(bias: str) -> str:
    return bias.removesuffix("bias") + "weight"


def _write_tensors(
    original: Path,
    folder: Path,
    changed: Mapping[str, tuple[Path, str]],
    dtype: torch.dtype | None,
    *,
    beside: Mapping[str, tuple[Path, str]],
    dropped: Collection[str],
) -> list[str]:
    """The original's shards with some tensors replaced: name there -> (file, name in it). Tensors that the model lacks stay, unless they
    are dropped; a new bias stands beside its weight there."""
    from safetensors import safe_open

    def read(place: tuple[Path, str]) -> Tensor:
        with safe_open(place[0], framework="pt") as other:
            return other.get_tensor(place[1])  # type: ignore[no-any-return]

    rounded: list[tuple[torch.dtype, torch.dtype]] = []
    held: dict[str, str] = {}
    size = 0
    for shard in shards(original):
        tensors: dict[str, Tensor] = {}
        with safe_open(shard, framework="pt") as file:
            metadata = file.metadata() or {"format": "pt"}
            for name in file.keys():  # noqa: SIM118 - not a mapping
                kept = file.get_tensor(name)
                if name in changed:
                    value = read(changed[name])
                    if dtype is None and is_coarser(value.dtype, kept.dtype):
                        rounded.append((kept.dtype, value.dtype))
                    kept = value.to(kept.dtype)
                kept = kept.to(dtype) if dtype is not None and kept.is_floating_point() else kept
                if name in beside:
                    tensors[f"{name.removesuffix('weight')}bias"] = read(beside[name]).to(kept.dtype)
                if name not in dropped:
                    tensors[name] = kept
        held |= dict.fromkeys(tensors, shard.name)
        size += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        _save(tensors, folder / shard.name, metadata)
    write_index(original, folder, size, held)
    return rounding_note(rounded)


def write_index(original: Path, folder: Path, size: int, held: dict[str, str] | None = None) -> None:
    """Write the index of the original's shards, where it has one, for tensors of `size` bytes in all.

    Args:
        held: tensor -> shard; None: the original's.
    """
    if (original / INDEX).is_file():
        index = _read(original / INDEX)
        places = (
            index["weight_map"] if held is None else {name: held[name] for name in index["weight_map"] if name in held} | held
        )
        _write(folder / INDEX, index | {"metadata": {"total_size": size}, "weight_map": places})


def is_coarser(computed: torch.dtype, stored: torch.dtype) -> bool:
    """Whether values that are stored in one dtype were rounded to be computed with in another."""
    return torch.finfo(computed).eps > torch.finfo(stored).eps


def rounding_note(rounded: Sequence[tuple[torch.dtype, torch.dtype]]) -> list[str]:
    """A sentence about changed tensors of which (stored, computed) dtypes made rounding necessary; none where there are none."""
    if not rounded:
        return []
    stored, computed = (str(each).removeprefix("torch.") for each in rounded[0])
    return [
        f"{len(rounded)} of the changed tensors are stored in {stored} and were computed in {computed}: they are rounded. "
        f"--dtype {stored} keeps them"
    ]


def _write_anew(scratch: Path, folder: Path, dtype: torch.dtype | None) -> list[str]:
    from safetensors.torch import load_file

    for shard in shards(scratch):
        tensors = load_file(shard)
        if dtype is not None:
            tensors = {name: value.to(dtype) if value.is_floating_point() else value for name, value in tensors.items()}
        _save(tensors, folder / shard.name, {"format": "pt"})
    if (scratch / INDEX).is_file():
        shutil.copyfile(scratch / INDEX, folder / INDEX)
    return [
        "the weights are saved under the names that transformers gives them: the original has no safetensors with these names"
    ]


def _save(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    from safetensors.torch import save_file

    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata=dict(metadata))


def _config(
    content: dict[str, Any], config: Any, fields: Mapping[str, int | None], dtype: torch.dtype | None
) -> dict[str, Any]:
    """The original's `config.json` with new values of the text config's fields, under the names that it has there."""
    inner = next((content[name] for name in _TEXT_CONFIGS if isinstance(content.get(name), dict)), content)
    renamed = getattr(config.get_text_config(), "attribute_map", {})
    for field, value in fields.items():
        first, _, rest = field.partition(".")
        name = renamed.get(first, first)
        part = inner if name in inner or name not in content else content
        if rest.isdecimal():  # an item of a list, which the file may hold as one number
            part[name] = list(read_field(config.get_text_config(), first))
        else:
            write_field(part, f"{name}.{rest}" if rest else name, value)
    if dtype is not None:
        for part in (content, inner):
            for name in {"dtype", "torch_dtype"} & part.keys() or ({"torch_dtype"} if part is content else set()):
                part[name] = str(dtype).removeprefix("torch.")
    return content


class WeightsIndex(Schema):
    """`model.safetensors.index.json`."""

    weight_map: dict[str, Inside]


def _read(path: Path) -> dict[str, Any]:
    return read_json(path)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
