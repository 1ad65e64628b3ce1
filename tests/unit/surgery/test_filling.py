"""Uneven models filled up with zeros: all layers as wide as the config says, the answers as before."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fairprune_framework.api.types import Plan
from fairprune_framework.errors import UserError
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.uneven import FIELD, forget
from fairprune_framework.models.weights import fingerprint
from fairprune_framework.surgery.changes import carry_out
from fairprune_framework.surgery.equality import logits_of
from fairprune_framework.surgery.filling import fill_in_place
from fairprune_framework.surgery.widths import stored_sites, stored_widths
from fairprune_framework.testing.families import small_model
from fairprune_framework.testing.tiny import FAMILIES, tiny_model

IDS = torch.randint(3, 300, (1, 9), generator=torch.Generator().manual_seed(0))


def uneven(family: str) -> Any:
    """A model of which the layers lost different numbers of neurons."""
    model: Any = tiny_model(family) if family in FAMILIES else small_model(family)
    found = recognise(model).sites
    planned = {name: tuple(range(1, 3 + 2 * site.layer)) for name, site in found.items()}
    plan = Plan(model="m", fingerprint=fingerprint(model), operator="remove", sites=planned, requested={}, achieved={})
    sites = stored_sites(found, "exact")
    carry_out(model, plan, sites, stored_widths(plan, sites, 1))
    forget(model, {slice_.parameter for site in found.values() for slice_ in site.slices})
    return model


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "bitnet"])
def test_it_answers_as_before_in_plain_shapes(family: str) -> None:
    model = uneven(family)
    before, shapes = logits_of(model, IDS), dict(getattr(model.config, FIELD))
    assert set(fill_in_place(model)) == set(shapes)
    assert not hasattr(model.config, FIELD)
    with torch.device("meta"):
        plain = type(model)(model.config)
    assert {name: value.shape for name, value in model.named_parameters()} == {
        name: value.shape for name, value in plain.named_parameters()
    }
    torch.testing.assert_close(logits_of(model, IDS), before, rtol=0, atol=1e-5)
    assert fill_in_place(model) == []


def test_a_bias_that_the_family_lacks_has_no_place() -> None:
    model: Any = tiny_model("llama")
    linear = model.model.layers[0].mlp.down_proj
    linear.bias = torch.nn.Parameter(torch.zeros(linear.out_features))
    setattr(model.config, FIELD, {"model.layers.0.mlp.down_proj.bias": [linear.out_features]})
    with pytest.raises(UserError, match=r"down_proj\.bias is a bias that no field .*: --format vllm keeps it"):
        fill_in_place(model)


def test_what_holds_no_neurons_is_not_filled_up() -> None:
    model: Any = tiny_model("llama")
    setattr(model.config, FIELD, {"model.norm.weight": [3]})
    with pytest.raises(UserError, match=r"model\.norm\.weight is narrower .* holds no neurons"):
        fill_in_place(model)
