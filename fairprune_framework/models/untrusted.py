"""What a model's folder may not bring with it: pickles, kernels and shards from elsewhere, unless they were asked for by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fairprune_framework.errors import UserError, shown

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")
_KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
"""Fields of a config that transformers takes for the name of a hub repository with compiled code, where they hold a slash."""


def refuse_code(folder: Path, name: str, *, trust_remote_code: bool, allow_pickle: bool) -> None:
    """Look at a model's folder before transformers does.

    Raises:
        UserError: its only weights are pickles, its index names files that are no safetensors of this folder, or its config
            asks for a kernel from the hub; and the option that allows it was not given.
    """
    weights = list(folder.glob("*.safetensors"))
    if not weights and not allow_pickle:
        pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
        if pickles:
            raise UserError(
                f"the weights of {name!r} are a pickle ({pickles[0]}), which can run code: convert them to safetensors, or give "
                "--allow-pickle if you trust their source"
            )
    for file in _shards(folder / "model.safetensors.index.json"):
        if not isinstance(file, str) or "/" in file or "\\" in file or not file.endswith(".safetensors"):
            raise UserError(f"the index of the weights of {name!r} names {shown(file)}, which is no safetensors file beside it")
    config = _json(folder / "config.json")
    for field in _KERNELS:
        value = config.get(field)
        if not trust_remote_code and isinstance(value, (str, dict)) and "/" in str(value):
            raise UserError(
                f"the config of {name!r} asks for compiled code from the hub ({field}: {shown(value)}): remove that field, or give "
                "--trust-remote-code if you trust its source"
            )


def _shards(index: Path) -> list[Any]:
    found = _json(index).get("weight_map")
    return list(found.values()) if isinstance(found, dict) else []


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none, and where transformers will say what is wrong with it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
