"""The tensor-parallel plan of a model is that of transformers; what it cannot split is refused before a process starts."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

import fairprune_framework as fp
from fairprune_framework.auditing.distributed.model_parallel import check_tensor_parallel, tensor_plan
from fairprune_framework.errors import UserError
from fairprune_framework.testing.tiny import tiny_model


@pytest.fixture
def model() -> nn.Module:
    return tiny_model("llama")


def sites_of(model: nn.Module) -> tuple[Any, ...]:
    return tuple(fp.recognise(model).sites.values())


def test_projections_into_neurons_are_split_by_columns_and_out_of_them_by_rows(model: nn.Module) -> None:
    plan = tensor_plan(model)
    for layer in range(2):
        for block, name, style in (
            ("mlp", "gate_proj", "colwise"),
            ("mlp", "up_proj", "colwise"),
            ("mlp", "down_proj", "rowwise"),
            ("self_attn", "q_proj", "colwise"),
            ("self_attn", "o_proj", "rowwise"),
        ):
            assert plan[f"model.layers.{layer}.{block}.{name}"] == style
    assert "lm_head" not in plan
    check_tensor_parallel(model, sites_of(model), 2)


@pytest.mark.parametrize(
    ("world", "text"), [(5, "the 48 neurons of model.layers.0.mlp cannot be split over 5 ranks"), (16, "heads")]
)
def test_what_cannot_be_divided_evenly(world: int, text: str, model: nn.Module) -> None:
    with pytest.raises(UserError) as caught:
        check_tensor_parallel(model, sites_of(model), world)
    assert text in str(caught.value)
    assert f"cannot be split over {world} ranks" in str(caught.value)


@pytest.mark.parametrize(
    ("plan", "text"),
    [
        ({}, "transformers has no plan for LlamaForCausalLM"),
        ({"model.embed_tokens": "rowwise"}, "no plan for LlamaForCausalLM, or none for Linear modules: take fsdp"),
        (
            {"model.layers.*.mlp.gate_proj": "sequence"},
            "plans 'sequence' for model.layers.0.mlp.gate_proj, which is not supported",
        ),
        (
            {"model.layers.*.self_attn.q_proj": "colwise"},
            "model.layers.0.mlp.gate_proj is not contiguous per neuron: take fsdp",
        ),
    ],
)
def test_a_plan_that_does_not_serve(plan: dict[str, str], text: str, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = sites_of(model)
    monkeypatch.setattr(type(model), "tp_plan", property(lambda self: plan))
    monkeypatch.setattr(model, "_tp_plan", {})
    with pytest.raises(UserError) as caught:
        check_tensor_parallel(model, sites, 2)
    assert text in str(caught.value)


def test_gate_and_up_in_one_parameter_are_not_contiguous_per_neuron() -> None:
    model = tiny_model("phi3")
    with pytest.raises(UserError, match=r"--strategy tensor_parallel: .*take fsdp"):
        check_tensor_parallel(model, sites_of(model), 2)
