"""What the operator `mean` adds to output biases, and models that lack one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fairprune_framework.api.types import Plan
from fairprune_framework.models.architecture import recognise
from fairprune_framework.surgery.biases import empty_bias, name_of_bias, new_biases, shifted, why_no_bias
from fairprune_framework.testing.families import small_model
from fairprune_framework.testing.tiny import FAMILIES, tiny_model


def model_of(family: str) -> Any:
    return tiny_model(family) if family in FAMILIES else small_model(family)


@pytest.mark.parametrize(
    ("family", "fields", "each"),
    [("gpt2", {}, 0), ("llama", {"mlp_bias": True}, 3), ("phi3", {}, 1), ("qwen2", {}, 1)],
)
def test_what_a_model_must_get(family: str, fields: dict[str, bool], each: int) -> None:
    """Nothing where it is there; by the config where one field builds it, with the biases beside it; else the output biases alone."""
    model = model_of(family)
    sites = recognise(model).sites
    found = new_biases(model, sites.values())
    assert found.fields == fields
    assert len(found.parameters) == each * len(sites)
    own = dict(model.named_parameters())
    assert all((name_of_bias(site) in own) != (name_of_bias(site) in found.parameters) for site in sites.values())


@pytest.mark.parametrize(
    ("family", "why"),
    [("llama", None), ("gpt2", None), ("bitnet", "a norm stands between"), ("mixtral", "are those of an expert")],
)
def test_where_there_can_be_none(family: str, why: str | None) -> None:
    model = model_of(family)
    found = {why_no_bias(model, site) for site in recognise(model).sites.values()}
    assert len(found) == 1
    (said,) = found
    assert said is None if why is None else why in str(said)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_bias_takes_over_what_the_neurons_add(family: str) -> None:
    """Against the output of the projection for an input that holds the means alone."""
    model = model_of(family)
    name, site = next(iter(recognise(model).sites.items()))
    plan = Plan(
        model="m",
        fingerprint="f",
        operator="mean",
        sites={name: (2, 5)},
        means={name: ((0.75,), (-1.5,))},
        requested={},
        achieved={},
    )
    projection = model.get_submodule(name_of_bias(site).removesuffix(".bias"))
    held = torch.zeros(1, site.units)
    held[0, [2, 5]] = torch.tensor([0.75, -1.5])
    with torch.no_grad():
        torch.testing.assert_close(shifted(model, plan, site), projection(held)[0])


def test_an_empty_bias_is_as_wide_as_the_output() -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    found = empty_bias(model, "model.layers.0.mlp.down_proj.bias")
    assert (tuple(found.shape), found.dtype, bool(found.any())) == ((model.config.hidden_size,), torch.bfloat16, False)
