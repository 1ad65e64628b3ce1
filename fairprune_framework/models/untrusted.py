"""What a model's folder may not bring with it: pickles, kernels and shards from elsewhere, unless they were asked for by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairprune_framework.errors import RunFolderError, UserError, shown
from fairprune_framework.models.uneven import check_uneven_shapes
from fairprune_framework.utilities.files import read_json, unreadable

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")
_KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
"""Fields of a config that transformers takes for the name of a hub repository with compiled code, where they hold a slash."""

_SIZES = (
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_local_experts",
    "num_experts",
    "moe_intermediate_size",
)
_LAYER = re.compile(r"(?:layers|h|blocks|blk)\.(\d{1,18})\.")


def refuse_code(folder: Path, name: str, *, trust_remote_code: bool, allow_pickle: bool) -> None:
    """Look at a model's folder before transformers does.

    Raises:
        UserError: its only weights are pickles, its index names files that are no safetensors of this folder, or its config, or a part
            of it, asks for a kernel from the hub; and the option that allows it was not given. Or one of the two files is no JSON.
    """
    weights = list(folder.glob("*.safetensors"))
    if not weights and not allow_pickle:
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickles:
            raise UserError(
                f"the weights of {name!r} are a pickle ({pickles[0]}), which can run code: convert them to safetensors, or give "
                "--allow-pickle if you trust their source"
            )
    for file in _shards(folder / "model.safetensors.index.json", name):
        if not isinstance(file, str) or "/" in file or "\\" in file or not file.endswith(".safetensors"):
            raise UserError(f"the index of the weights of {name!r} names {shown(file)}, which is no safetensors file beside it")
    parts: list[Any] = [_json(folder / "config.json", name)]
    for part in parts:
        fields = part.items() if isinstance(part, dict) else ()
        for field, value in fields:
            if field in _KERNELS and not trust_remote_code and isinstance(value, (str, dict)) and "/" in str(value):
                raise UserError(
                    f"the config of {name!r} asks for compiled code from the hub ({field}: {shown(value)}): remove that field, or give "
                    "--trust-remote-code if you trust its source"
                )
            parts.append(value)


def refuse_oversized(folder: Path, name: str) -> None:
    """Compare the sizes in a config with the weights that are there, before a model of that size is made.

    Raises:
        UserError: a weights file is missing, cannot be read or is damaged, or the config asks for more layers or larger ones than its
            weights hold.
    """
    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        shapes |= _shapes(path, name)
    if not shapes:
        return
    for file in _shards(folder / "model.safetensors.index.json", name):
        if (reason := unreadable(folder / file)) is not None:
            raise UserError(f"cannot load the model {name!r}: {file}, which its index names, {reason}")
    config = _json(folder / "config.json", name)
    text = config.get("text_config")
    total = sum(math.prod(shape) for shape in shapes.values())
    check_uneven_shapes(config, total, name)
    refuse_larger(config | (text if isinstance(text, dict) else {}), shapes, name)


def refuse_larger(config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], name: str) -> None:
    """Raise `UserError` where sizes of a config ask for more layers, or larger ones, than weights of these shapes hold."""
    total = sum(math.prod(shape) for shape in shapes.values())
    layers = 1 + max((int(found[1]) for key in shapes if (found := _LAYER.search(key))), default=len(shapes))
    limits = {"num_hidden_layers": layers, **dict.fromkeys(_SIZES, total)}
    for field, most in limits.items():
        value = config.get(field)
        if isinstance(value, int) and value > most:
            raise UserError(f"the config of {name!r} says {field}: {shown(value)}, more than its weights hold ({most:,})")
    hidden = config.get("hidden_size")
    for field in ("vocab_size", "intermediate_size"):
        if isinstance(hidden, int) and isinstance(config.get(field), int) and hidden * config[field] > total:
            raise UserError(
                f"the config of {name!r} says {field}: {config[field]} and hidden_size: {hidden}, more than its weights hold "
                f"({total:,} numbers)"
            )


def _shapes(path: Path, name: str) -> dict[str, list[int]]:
    """Name -> shape, of the header alone."""
    from safetensors import SafetensorError, safe_open

    if (reason := unreadable(path)) is not None:
        raise UserError(f"cannot load the model {name!r}: {path.name} {reason}")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"cannot load the model {name!r}: {path.name} is damaged: {' '.join(str(error).split())}") from error


def _shards(index: Path, name: str) -> list[Any]:
    found = _json(index, name).get("weight_map")
    return list(found.values()) if isinstance(found, dict) else []


def _json(path: Path, name: str) -> dict[str, Any]:
    """The JSON object that transformers will read there, NaN and Infinity included; empty where there is no file.

    Raises:
        UserError: no JSON, no object, or a key occurs twice: what is looked at here would not be what is loaded.
    """
    if not path.exists():
        return {}
    try:
        return read_json(path, constants="keep")
    except RunFolderError as error:
        raise UserError(f"cannot load the model {name!r}: {error}") from error
