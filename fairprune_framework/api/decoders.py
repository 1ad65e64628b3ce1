"""Reading the text decoder of a model: its config, and its modules.

A model may carry more than its decoder: towers for images or sound, an encoder, heads. Adapters look at the decoder alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from fairprune_framework.api.taps import layer_index

_TEXT_INPUTS = ("input_ids", "inputs_embeds", "decoder_input_ids")
_TOWER = re.compile(r"(^|_)(vision|visual|image|audio|speech)(_|$)")
"""Names of modules that read something else than text."""


def text_config(model: nn.Module) -> Any:
    """The config of the text model, also of a multimodal one; None where a model has none."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def text_decoder(model: nn.Module) -> nn.Module:
    """What turns token ids into the vectors that the head reads, as `get_decoder` of transformers finds it.

    Where that finds no layers, the base model; where it finds a model with a head of its own, what is below that head.
    """
    find: Any = getattr(model, "get_decoder", None)
    found: Any = find() if find is not None else model
    if not _has_layers(found):
        found = getattr(model, "base_model", model)
    while getattr(found, "get_output_embeddings", lambda: None)() is not None:
        inner = next((part for part in found.children() if _has_layers(part) and hasattr(part, "get_input_embeddings")), None)
        if inner is None:
            break
        found = inner
    decoder: nn.Module = found
    return decoder


def _has_layers(module: nn.Module) -> bool:
    return any(isinstance(inner, nn.ModuleList) and len(inner) for inner in module.modules())


def decoder_path(model: nn.Module) -> str:
    """Path of the text decoder; empty where it is the model itself."""
    decoder = text_decoder(model)
    return next((name for name, module in model.named_modules() if module is decoder), "")


def other_modalities(model: nn.Module) -> tuple[str, ...]:
    """Paths of the towers inside a model: what reads images or sound, and does not hold the text decoder."""
    path = decoder_path(model)
    return tuple(
        name
        for name, module in model.named_modules()
        if name
        and (getattr(module, "main_input_name", "input_ids") not in _TEXT_INPUTS or _TOWER.search(name.rpartition(".")[2]))
        and not below(path, name)
    )


def decoder_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, int]]:
    """(path, module, layer) of every module inside the layers of the text decoder, in order."""
    path, towers = decoder_path(model), other_modalities(model)
    for name, module in model.named_modules():
        layer = layer_index(name)
        if layer is not None and below(name, path) and not any(below(name, tower) for tower in towers):
            yield name, module, layer


def below(name: str, path: str) -> bool:
    """Whether a module or parameter is, or lies in, the module at `path`."""
    return not path or name == path or name.startswith(f"{path}.")
