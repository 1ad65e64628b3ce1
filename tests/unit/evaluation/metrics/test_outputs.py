"""Outputs of attention and MLP against hooks of PyTorch's own on each text alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fairprune_framework.auditing.batches import compose
from fairprune_framework.contrasts.alignment import AlignedContrast, align_all, vocabularies
from fairprune_framework.evaluation.metrics import outputs as module
from fairprune_framework.evaluation.metrics.contrasts import measure_contrasts
from fairprune_framework.evaluation.metrics.outputs import OutputReader
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_model, tiny_tokenizer

CONTRASTS = tiny_contrasts()
ALIGNED, _ = align_all(CONTRASTS, Encoder(tiny_tokenizer()))
VALUES = {category: len(names) for category, names in vocabularies(CONTRASTS).items()}


@torch.no_grad()
def by_hand(model: Any, contrast: AlignedContrast, most: int) -> dict[str, list[torch.Tensor]]:
    """tap -> of each layer `(R, H)`."""
    seen: dict[str, list[list[torch.Tensor]]] = {"attention": [], "mlp": []}
    for tokens in contrast.variants:
        for tap, name in (("attention", "self_attn"), ("mlp", "mlp")):
            own: list[torch.Tensor] = []
            handles = [
                getattr(layer, name).register_forward_hook(
                    lambda _m, _a, out, own=own: own.append((out[0] if isinstance(out, tuple) else out)[0, :most])
                )
                for layer in model.model.layers
            ]
            model(input_ids=torch.tensor([tokens.ids]))
            for handle in handles:
                handle.remove()
            seen[tap].append(own)
    return {tap: [torch.cat(layer) for layer in zip(*variants, strict=True)] for tap, variants in seen.items()}


@pytest.mark.parametrize("share_up_to", [0, 512])
@pytest.mark.parametrize("most", [64, 3])
def test_outputs_are_those_of_each_text_alone(share_up_to: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TOKENS", most)
    model: Any = tiny_model("llama")
    reader = OutputReader(ALIGNED[::2])
    batches = list(compose(ALIGNED, VALUES, 64, share_up_to=share_up_to))
    measure_contrasts(model, recognise(model), batches, taps=frozenset(), outputs=reader)
    assert reader.outputs.keys() == {one.id for one in ALIGNED[::2]}
    assert reader.lacks(ALIGNED) == list(ALIGNED[1::2])
    for contrast in ALIGNED[::2]:
        found = reader.outputs[contrast.id]
        assert found.cut == 0
        for tap, layers in by_hand(model, contrast, most).items():
            stacked = found.stacked()[tap]  # type: ignore[index]
            assert stacked.shape == (len(layers), *layers[0].shape)
            torch.testing.assert_close(torch.from_numpy(stacked).float(), torch.stack(layers), rtol=2e-3, atol=1e-4)


def test_what_float16_cannot_hold_is_cut_and_counted() -> None:
    model: Any = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1e9)
    reader = OutputReader(ALIGNED[:1])
    batches = list(compose(ALIGNED[:1], VALUES, 64))
    measure_contrasts(model, recognise(model), batches, taps=frozenset(), outputs=reader)
    found = reader.outputs[ALIGNED[0].id]
    values = torch.from_numpy(found.stacked()["mlp"][1]).abs()
    assert found.cut == int((values == torch.finfo(torch.float16).max).sum()) > 0
    assert torch.isfinite(values).all()
