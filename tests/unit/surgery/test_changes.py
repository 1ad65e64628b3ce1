"""A plan carried out in place against an untouched model of the smaller size."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fairprune_framework.api.types import Plan
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.weights import fingerprint
from fairprune_framework.surgery.changes import pruned_in_place
from fairprune_framework.surgery.equality import logits_of
from fairprune_framework.surgery.widths import stored_widths
from fairprune_framework.testing.tiny import tiny_model

IDS = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))


def plan(sites: dict[str, tuple[int, ...]], operator: Any = "remove", factor: float | None = None) -> Plan:
    return Plan(model="m", fingerprint="f", operator=operator, factor=factor, sites=sites, requested={}, achieved={})


def test_a_model_cut_in_place_has_the_shapes_of_a_smaller_one() -> None:
    model: Any = tiny_model("llama", width=48)
    smaller: Any = tiny_model("llama", width=45)
    sites = recognise(model).sites
    before = {name: id(value) for name, value in model.named_parameters()}
    logits = logits_of(model, IDS)
    chosen = plan(dict.fromkeys(sites, (0, 10, 47)))
    kept = [i for i in range(48) if i not in (0, 10, 47)]
    expected = [layer.mlp.gate_proj.weight[kept].clone() for layer in model.model.layers]
    with pruned_in_place(model, chosen, sites, stored_widths(chosen, sites, 1)):
        assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in smaller.named_parameters()}
        assert model.config.intermediate_size == 45
        smaller.load_state_dict(model.state_dict())
        assert logits_of(smaller, IDS).equal(logits_of(model, IDS))
        for layer, weight in zip(model.model.layers, expected, strict=True):
            assert layer.mlp.gate_proj.weight.equal(weight)
    assert {name: id(value) for name, value in model.named_parameters()} == before
    assert model.config.intermediate_size == 48
    assert logits_of(model, IDS).equal(logits)


def test_what_cannot_be_cut_away_is_zero() -> None:
    model: Any = tiny_model("llama", width=48)
    sites = recognise(model).sites
    chosen = plan({"model.layers.0.mlp": (2, 3, 4), "model.layers.1.mlp": (7,)})
    with pruned_in_place(model, chosen, sites, stored_widths(chosen, sites, 1)):
        assert model.config.intermediate_size == 47
        gate = model.model.layers[0].mlp.gate_proj.weight
        out = model.model.layers[0].mlp.down_proj.weight
        assert gate.shape[0] == out.shape[1] == 47
        assert (gate == 0).all(1).nonzero().flatten().tolist() == [2, 3]
        assert (out == 0).all(0).nonzero().flatten().tolist() == [2, 3]
        assert not (model.model.layers[1].mlp.gate_proj.weight == 0).all(1).any()


def test_scaling_touches_output_weights_alone() -> None:
    model: Any = tiny_model("phi3")
    sites = recognise(model).sites
    chosen = plan({"model.layers.0.mlp": (5,)}, "scale", 0.5)
    before = {name: value.clone() for name, value in model.named_parameters()}
    with pruned_in_place(model, chosen, sites, stored_widths(chosen, sites, 1)):
        for name, value in model.named_parameters():
            if name == "model.layers.0.mlp.down_proj.weight":
                assert value[:, 5].equal(before[name][:, 5] * 0.5)
                assert torch.cat([value[:, :5], value[:, 6:]], 1).equal(
                    torch.cat([before[name][:, :5], before[name][:, 6:]], 1)
                )
            else:
                assert value.equal(before[name])
    assert all(value.equal(before[name]) for name, value in model.named_parameters())


def test_all_is_put_back_when_the_block_fails() -> None:
    model: Any = tiny_model("llama")
    sites = recognise(model).sites
    found = fingerprint(model)
    chosen = plan(dict.fromkeys(sites, (1, 2)))
    with pytest.raises(RuntimeError, match="stop"), pruned_in_place(model, chosen, sites, stored_widths(chosen, sites, 1)):
        raise RuntimeError("stop")
    assert fingerprint(model) == found
    assert model.config.intermediate_size == 48
    assert {layer.mlp.down_proj.in_features for layer in model.model.layers} == {48}
