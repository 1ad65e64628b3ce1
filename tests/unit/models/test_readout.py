"""Logits of residual vectors against the untouched forward of transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fairprune_framework.errors import FairpruneError
from fairprune_framework.models.readout import ROWS, readout_of
from fairprune_framework.testing.tiny import tiny_model


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "mixtral"])
def test_a_readout_says_what_the_model_says(family: str) -> None:
    model: Any = tiny_model(family)
    read = readout_of(model)
    ids = torch.arange(4, 16).unsqueeze(0)
    with torch.no_grad():
        entering = model(input_ids=ids, output_hidden_states=True)
        before_norm: list[torch.Tensor] = []
        handle = model.model.norm.register_forward_pre_hook(lambda _module, args: before_norm.append(args[0]))
        model(input_ids=ids)
        handle.remove()
    torch.testing.assert_close(read(before_norm[0][0]), entering.logits[0], rtol=1e-4, atol=1e-5)
    assert read(torch.zeros(0, before_norm[0].shape[-1])).shape == (0, entering.logits.shape[-1])
    assert len(model.model.layers) > 0


def test_many_rows_are_read_in_parts() -> None:
    model: Any = tiny_model("llama")
    rows = torch.randn(ROWS + 3, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.lm_head(model.model.norm(rows))
    torch.testing.assert_close(readout_of(model)(rows), expected, rtol=1e-4, atol=1e-5)


def test_a_soft_cap_is_the_models_own() -> None:
    model: Any = tiny_model("gemma2", final_logit_softcapping=3.0)
    found = readout_of(model)(100 * torch.ones(1, model.config.hidden_size))
    assert found.abs().max() <= 3.0


def test_a_model_that_cannot_be_read_out_is_left_as_it_was() -> None:
    """A norm that does another thing when the layers are away: the readout is refused, and hooks and layers are in place."""

    class Moody(nn.Module):
        def __init__(self, inner: nn.Module, trunk: Any) -> None:
            super().__init__()
            self.inner, self.trunk = inner, [trunk]

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.inner(values)
            return out if len(self.trunk[0].layers) else out + 1

    model: Any = tiny_model("llama")
    layers = model.model.layers
    model.model.norm = Moody(model.model.norm, model.model)
    with pytest.raises(FairpruneError, match="cannot be read out: its final norm and head give different logits"):
        readout_of(model)
    assert model.model.layers is layers
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_model_without_a_known_norm_is_refused_by_name() -> None:
    model: Any = tiny_model("llama")
    model.model.tail = model.model.norm
    del model.model.norm
    with pytest.raises(FairpruneError, match=r"LlamaForCausalLM cannot be read out: looked for a final norm \(norm, "):
        readout_of(model)
