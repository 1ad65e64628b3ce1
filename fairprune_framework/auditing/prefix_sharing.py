"""Whether a model may compute shared prefixes once: tested on the model itself, by a packed forward against plain ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.api.decoders import text_decoder
from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.auditing.packing import Packer, tree_mask

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
COARSE = 6e-2
"""Largest difference of a hidden state, over the largest hidden state: float32, and bfloat16 or float16. A mask that is not obeyed
moves them by more than 0.1."""
WINDOWS = ("sliding_window", "attention_chunk_size", "local_attention_window_size", "attention_window_size", "window_size")
"""Fields of configurations that bound what a token attends to; a tree mask replaces the model's own, which knew the bound."""


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """The answer, as `run.json` records it."""

    up_to: int
    """Longest text that may stand in a packed row; 0: rows are plain."""
    because: str
    """Why so, in words."""


def forward_inputs(model: nn.Module, input_ids: Tensor, position_ids: Tensor, paths: Tensor) -> dict[str, Any]:
    """What the trunk is given for packed rows: mask and positions of the tree."""
    mask = tree_mask(paths, *input_ids.shape)
    config: Any = model.config
    if config.get_text_config()._attn_implementation != "sdpa":
        dtype = next(model.parameters()).dtype
        mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)
    return {"input_ids": input_ids, "attention_mask": mask, "position_ids": position_ids, "use_cache": False}


def inputs_of(model: nn.Module, batch: MicroBatch) -> dict[str, Any]:
    """What a model with its head is given for a micro-batch, of plain or of packed rows."""
    if batch.paths is None:
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    assert batch.position_ids is not None
    return forward_inputs(model, batch.input_ids, batch.position_ids, batch.paths)


@torch.inference_mode()
def prefix_sharing(model: nn.Module) -> Sharing:
    """Compare three texts in one packed row with each of them alone, and with a row whose mask is wrong on purpose.

    The model's mode is left as it was. A model that cannot take the mask or the positions, or answers otherwise, gets plain rows.
    """
    window = _window(model)
    training = model.training
    model.eval()
    try:
        off, wrong, tolerance = _differences(model)
    except Exception as error:  # whatever a model raises when it is given a tree: the plain forward is always there
        return Sharing(up_to=0, because=f"the model takes no tree mask ({type(error).__name__})")
    finally:
        model.train(training)
    if not off <= tolerance:
        return Sharing(up_to=0, because=f"a packed row differs from plain ones by {off:.1g} of the largest hidden state")
    if not wrong > 2 * tolerance:
        return Sharing(up_to=0, because=f"a wrong mask moves the hidden states by {wrong:.1g} only: inconclusive")
    return Sharing(up_to=window, because=f"a packed row equals plain ones within {off:.1g}; a wrong mask is off by {wrong:.1g}")


def _window(model: nn.Module) -> int:
    config: Any = model.config
    text = config.get_text_config()
    bounds = [getattr(text, name, None) for name in WINDOWS]
    return min([2**31, *(value for value in bounds if isinstance(value, int) and value > 0)])


def _differences(model: nn.Module) -> tuple[float, float, float]:
    """Largest difference of packed rows from plain ones; the same under a wrong mask; and what is allowed."""
    trunk: Any = text_decoder(model)
    config: Any = model.config
    weight = next(model.parameters())
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randperm(int(config.get_text_config().vocab_size), generator=generator)[:12].tolist()
    texts = [tuple(drawn[:4] + drawn[4:7]), tuple(drawn[:4] + drawn[7:12]), tuple(drawn[:2] + drawn[5:7])]
    packer = Packer(width=64)
    packer.add(texts)
    layout = packer.layout(0)
    inputs = forward_inputs(model, *(t.to(weight.device) for t in (layout.input_ids, layout.position_ids, layout.paths)))
    packed = trunk(**inputs).last_hidden_state.flatten(0, 1)
    seen = torch.ones_like(inputs["attention_mask"][0, 0], dtype=torch.bool).tril()
    mask = inputs["attention_mask"]
    wrong_mask = (
        seen if mask.dtype == torch.bool else torch.zeros_like(mask[0, 0]).masked_fill(~seen, torch.finfo(mask.dtype).min)
    )
    wrong = trunk(**{**inputs, "attention_mask": wrong_mask.expand(mask.shape)}).last_hidden_state.flatten(0, 1)
    off = astray = largest = 0.0
    for ids, path in zip(texts, layout.paths, strict=True):
        plain = trunk(input_ids=torch.tensor([ids], device=weight.device), use_cache=False).last_hidden_state[0]
        largest = max(largest, float(plain.abs().max()))
        off = max(off, float((packed[path[: len(ids)]] - plain).abs().max()))
        astray = max(astray, float((wrong[path[: len(ids)]] - plain).abs().max()))
    return off / largest, astray / largest, TOLERANCE.get(weight.dtype, COARSE)
