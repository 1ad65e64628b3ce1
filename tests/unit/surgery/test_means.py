"""Means of neurons against those of a hook on the output projection."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fairprune_framework.models.architecture import recognise
from fairprune_framework.surgery.means import mean_activations
from fairprune_framework.testing.tiny import tiny_model

TEXTS = [[5, 6, 7, 8], [9], [10, 11]]


def test_of_every_token_once_whatever_the_lengths() -> None:
    model: Any = tiny_model("llama")
    seen: list[torch.Tensor] = []
    layer = model.model.layers[1].mlp.down_proj
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].flatten(0, 1).double()))
    with torch.no_grad():
        for text in TEXTS:
            model(input_ids=torch.tensor([text]), use_cache=False)
    handle.remove()
    expected = torch.cat(seen).mean(0)
    found = mean_activations(model, recognise(model), TEXTS)["model.layers.1.mlp"]
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected.unsqueeze(1), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("texts", [[], [[5]]])
def test_an_expert_without_tokens_is_held_at_zero(texts: list[list[int]]) -> None:
    model: Any = tiny_model("mixtral")
    found = mean_activations(model, recognise(model), texts)
    reached = {name for name, mean in found.items() if bool(mean.any())}
    assert len(reached) == (4 if texts else 0), "two experts of each of two layers take one token"
    assert all(bool(torch.isfinite(mean).all()) for mean in found.values())
