"""Which weights sites must cover, and what else may stand in a decoder layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from fairprune_framework.errors import ContractViolation
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.coverage import coverage_gap
from fairprune_framework.testing.families import small_model
from fairprune_framework.testing.tiny import tiny_model


def test_every_matrix_of_an_mlp_must_belong_to_a_site() -> None:
    model: Any = tiny_model("llama")
    sites = list(recognise(model).sites.values())
    assert coverage_gap(model, sites) is None
    without = [replace(site, slices=site.slices[1:]) for site in sites]
    assert coverage_gap(model, without) == f"no site covers {sites[0].slices[0].parameter} (48, 32)"
    assert coverage_gap(model, sites[:1]) == "no site covers model.layers.1.mlp.gate_proj.weight (48, 32)"


@pytest.mark.parametrize(
    ("more", "gap"),
    [
        (nn.Linear(32, 1, bias=False), None),  # a gate on the whole block
        (nn.LayerNorm(32), None),
        (nn.LayerNorm(48), "(48,)"),  # as long as the site is wide: it would have to be cut
        (nn.Linear(32, 7, bias=False), "(7, 32)"),
    ],
)
def test_what_else_may_stand_in_an_mlp(more: nn.Module, gap: str | None) -> None:
    model: Any = tiny_model("llama")
    sites = list(recognise(model).sites.values())
    model.model.layers[0].mlp.more = more
    found = coverage_gap(model, sites)
    assert found is None if gap is None else found == f"no site covers model.layers.0.mlp.more.weight {gap}"


def test_a_router_of_as_many_rows_as_experts_is_no_gap() -> None:
    model: Any = tiny_model("mixtral")
    sites = list(recognise(model).sites.values())
    assert coverage_gap(model, sites) is None
    without = [site for site in sites if not site.name.endswith(".3")]
    assert coverage_gap(model, without) == "the sites cover 9216 of 12288 weights of model.layers.0.mlp.experts.gate_up_proj"


def test_two_sites_of_one_name() -> None:
    model = tiny_model("llama")
    sites = list(recognise(model).sites.values())
    with pytest.raises(ContractViolation, match="the same name"):
        coverage_gap(model, [*sites, sites[0]])


def test_an_mlp_beside_the_sites_is_found_by_its_name() -> None:
    """Granite's shared MLP stands beside the block of experts, in no block with a site."""
    model = small_model("granitemoeshared")
    sites = [site for site in recognise(model).sites.values() if site.kind == "expert"]
    assert coverage_gap(model, sites) == "no site covers model.layers.0.shared_mlp.input_linear.weight (80, 32)"


def test_one_mlp_in_two_layers_is_no_two_sites() -> None:
    model: Any = tiny_model("llama")
    sites = list(recognise(model).sites.values())
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    assert "are one tensor: several layers share an MLP" in str(coverage_gap(model, sites))


def test_layers_of_two_stacks_have_no_numbers_of_their_own() -> None:
    model: Any = tiny_model("llama")
    model.model.more = nn.ModuleDict({"layers": nn.ModuleList([model.model.layers[1]])})
    sites = list(recognise(model).sites.values())
    again = replace(sites[1], name="model.more.layers.0.mlp")
    assert "model.layers and model.more.layers, whose numbers do not tell the layers apart" in str(
        coverage_gap(model, [sites[0], again])
    )


def test_a_square_matrix_may_stand_alone_in_an_mlp() -> None:
    """RWKV gates the output of its MLP; two of them could be an MLP as wide as the hidden dimensions."""
    model: Any = tiny_model("llama")
    sites = list(recognise(model).sites.values())
    model.model.layers[0].mlp.receptance = nn.Linear(32, 32, bias=False)
    assert coverage_gap(model, sites) is None
    model.model.layers[0].mlp.second = nn.Linear(32, 32, bias=False)
    assert coverage_gap(model, sites) == "no site covers model.layers.0.mlp.second.weight (32, 32)"


def test_a_vision_tower_is_no_gap() -> None:
    model = small_model("gemma3", "wrapper")
    sites = list(recognise(model).sites.values())
    assert coverage_gap(model, sites) is None
    assert all(site.name.startswith("model.language_model.layers.") for site in sites)
    with torch.no_grad():
        assert any("vision_tower" in name and "fc1" in name for name, _ in model.named_parameters())
