"""From residual-stream vectors to logits, through the model's own final norm, head and logit transformations.

The model itself computes them: its layers are bypassed for one forward pass, and the rows replace the input of its final norm, so soft
caps and logit scales of a family need no code here. The first use is verified against an ordinary forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.api.decoders import text_decoder
from fairprune_framework.errors import FairpruneError

NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f", "final_norm")
LAYERS = ("layers", "h", "blocks")
ROWS = 256
"""Vectors per forward pass: bounds the memory of the logits."""


def readout_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Logits of residual vectors: (R, H) -> (R, vocab) float32 on the CPU.

    Raises:
        FairpruneError: no known final norm or head, or logits that differ from an ordinary forward pass.
    """
    trunk: Any = text_decoder(model)
    norm = next((module for name in NORMS if isinstance(module := getattr(trunk, name, None), nn.Module)), None)
    layers_name = next((name for name in LAYERS if isinstance(getattr(trunk, name, None), nn.ModuleList)), None)
    if norm is None or layers_name is None or model.get_output_embeddings() is None:  # type: ignore[operator]
        raise FairpruneError(
            f"{type(model).__name__} cannot be read out: looked for a final norm ({', '.join(NORMS)}), layers "
            f"({', '.join(LAYERS)}) and an output head"
        )
    weight = next(model.parameters())

    def read(rows_RH: Tensor) -> Tensor:
        parts = torch.split(rows_RH, ROWS)
        logits = [_through(model, trunk, layers_name, norm, part.to(weight)) for part in parts]
        return torch.cat(logits) if logits else rows_RH.new_zeros((0, model.get_output_embeddings().weight.shape[0]))  # type: ignore[operator]

    _confirm(model, norm, read)
    return read


@torch.inference_mode()
def _through(model: nn.Module, trunk: Any, layers_name: str, norm: nn.Module, rows_RH: Tensor) -> Tensor:
    ids = torch.zeros((len(rows_RH), 1), dtype=torch.long, device=rows_RH.device)
    handle = norm.register_forward_pre_hook(lambda _module, _args: (rows_RH.unsqueeze(1),))
    try:
        with _without_layers(trunk, layers_name):
            logits: Tensor = model(input_ids=ids, use_cache=False).logits
    finally:
        handle.remove()
    return logits[:, -1].float().cpu()


@contextmanager
def _without_layers(trunk: Any, layers_name: str) -> Iterator[None]:
    layers = getattr(trunk, layers_name)
    setattr(trunk, layers_name, nn.ModuleList())
    try:
        yield
    finally:
        setattr(trunk, layers_name, layers)


@torch.inference_mode()
def _confirm(model: nn.Module, norm: nn.Module, read: Callable[[Tensor], Tensor]) -> None:
    seen: list[Tensor] = []
    handle = norm.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach()))
    try:
        ids = torch.tensor([[0, 1, 0]], device=next(model.parameters()).device)
        expected = model(input_ids=ids, use_cache=False).logits[0].float().cpu()
    finally:
        handle.remove()
    off = (read(seen[-1][0]) - expected).abs().max() / expected.abs().max().clamp_min(1e-12)
    if not bool(off <= 1e-2 if next(model.parameters()).dtype != torch.float32 else off <= 1e-4):
        raise FairpruneError(
            f"{type(model).__name__} cannot be read out: its final norm and head give different logits ({off:.1e})"
        )
