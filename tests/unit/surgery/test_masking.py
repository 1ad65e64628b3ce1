"""Masks against models of which the same weights are set to zero by hand, and no trace of them afterwards."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from fairprune_framework.api.types import Held, Plan
from fairprune_framework.errors import UserError
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.weights import fingerprint
from fairprune_framework.surgery.masking import applied, check_plan, masked
from fairprune_framework.testing.tiny import tiny_model

IDS = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def plan_for(model: Any, **changes: Any) -> Plan:
    sites = {"model.layers.0.mlp": (3, 20), "model.layers.1.mlp": (0,)}
    values = {
        "model": "m",
        "fingerprint": fingerprint(model),
        "operator": "remove",
        "sites": sites,
        "requested": {},
        "achieved": {},
    }
    return Plan(**{**values, **changes})


@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_mask_is_scaled_output_weights(family: str, factor: float) -> None:
    model: Any = tiny_model(family)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight[:, [0, 7, 47]] *= factor
    plain = logits(model)
    with masked(model, recognise(model), {"model.layers.1.mlp": (0, 7, 47), "model.layers.0.mlp": ()}, factor):
        found = logits(model)
    torch.testing.assert_close(found, logits(other), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, plain)
    assert logits(model).equal(plain)


@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_a_mask_of_an_expert(factor: float) -> None:
    model: Any = tiny_model("mixtral")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.layers[0].mlp.experts.down_proj[2, :, [5, 6]] *= factor
    with masked(model, recognise(model), {"model.layers.0.mlp.experts.2": (5, 6)}, factor):
        found = logits(model)
    torch.testing.assert_close(found, logits(other), rtol=1e-4, atol=1e-5)


def test_nothing_stays_when_a_forward_fails() -> None:
    model: Any = tiny_model("llama")
    plain, names = logits(model), [sorted(vars(module)) for module in model.modules()]
    with pytest.raises(RuntimeError, match="stop"), masked(model, recognise(model), {"model.layers.0.mlp": (1,)}):
        raise RuntimeError("stop")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert [sorted(vars(module)) for module in model.modules()] == names
    assert logits(model).equal(plain)


def test_an_applied_plan_is_its_mask() -> None:
    model: Any = tiny_model("llama")
    plan = plan_for(model, operator="scale", factor=0.3)
    with masked(model, recognise(model), plan.sites, 0.3):
        expected = logits(model)
    with applied(plan, model) as same:
        assert same is model
        assert logits(model).equal(expected)
    with applied(replace(plan, operator="zero", factor=None), model):
        assert not torch.allclose(logits(model), expected)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fingerprint": "0" * 64}, "the plan is for another model: made for m (000000000000)"),
        ({"sites": {"model.layers.9.mlp": (1,)}}, "names the site 'model.layers.9.mlp', which the model does not have"),
        ({"sites": {"model.layers.0.mlp": (1, 48)}}, "names unit 48 of model.layers.0.mlp, which has 48"),
        ({"sites": {"model.layers.0.mlp": tuple(range(48))}}, "leaves no unit of model.layers.0.mlp"),
    ],
)
def test_a_plan_that_does_not_fit(changes: dict[str, Any], words: str) -> None:
    model: Any = tiny_model("llama")
    architecture = recognise(model)
    check_plan(plan_for(model), model, architecture)
    with pytest.raises(UserError) as caught:
        check_plan(plan_for(model, **changes), model, architecture)
    assert words in str(caught.value)


def test_units_are_held_at_their_means_or_scaled_by_a_factor_each() -> None:
    model: Any = tiny_model("llama")
    architecture, name = recognise(model), "model.layers.1.mlp"
    down = model.model.layers[1].mlp.down_proj
    seen: list[torch.Tensor] = []
    handle = down.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach().clone()))
    logits(model)
    with masked(model, architecture, {name: (2, 9)}, Held(means={name: ((0.5,), (-2.0,))})):
        logits(model)
    with masked(model, architecture, {name: (2, 9)}, {name: (0.5, 3.0)}):
        logits(model)
    handle.remove()
    plain, held, scaled = seen
    assert held[..., 2].unique().tolist() == [0.5]
    assert held[..., 9].unique().tolist() == [-2.0]
    torch.testing.assert_close(scaled[..., 2], plain[..., 2] * 0.5)
    torch.testing.assert_close(scaled[..., 9], plain[..., 9] * 3.0)
    others = [unit for unit in range(plain.shape[-1]) if unit not in (2, 9)]
    assert held[..., others].equal(plain[..., others])
    assert scaled[..., others].equal(plain[..., others])


def test_means_of_another_width_do_not_fit() -> None:
    model: Any = tiny_model("llama")
    plan = plan_for(model, operator="mean", sites={"model.layers.0.mlp": (3,)}, means={"model.layers.0.mlp": ((1.0, 2.0),)})
    with pytest.raises(UserError, match=r"must name 1 means for each unit of model\.layers\.0\.mlp"):
        check_plan(plan, model, recognise(model))
