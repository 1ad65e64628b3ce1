"""Why an operator cannot be carried out on a model, said before anything is computed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fairprune_framework.api.types import Site, Slice
from fairprune_framework.errors import UserError
from fairprune_framework.models.architecture import recognise
from fairprune_framework.surgery.obstacles import obstacle, refuse_obstacles
from fairprune_framework.testing.tiny import tiny_model

OPERATORS: tuple[Any, ...] = ("remove", "zero", "scale", "mean")


def first(family: str) -> tuple[Any, Site]:
    model = tiny_model(family)
    return model, next(iter(recognise(model).sites.values()))


def refused(model: Any, site: Site, operator: Any, widths: Any = "uniform") -> str | None:
    try:
        refuse_obstacles(model, [site], operator, widths)
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("operator", OPERATORS)
def test_nothing_stands_in_the_way_of_an_ordinary_mlp(operator: Any) -> None:
    model, _ = first("llama")
    refuse_obstacles(model, recognise(model).sites.values(), operator)


def test_a_width_that_no_field_holds_is_cut_beside_the_config_or_not_at_all() -> None:
    model, site = first("llama")
    bare = replace(site, config_fields={})
    said = refused(model, bare, "remove")
    assert said is not None
    assert said.startswith(f"{site.name} cannot be cut: no config field holds its width, 48: --widths exact")
    assert refused(model, bare, "remove", "exact") is None
    assert refused(model, bare, "zero") is refused(model, bare, "scale") is None
    assert obstacle(bare, "exact") is obstacle(site, "uniform") is None


def test_a_site_that_says_why_it_cannot_be_cut() -> None:
    model, site = first("llama")
    stiff = replace(site, surgery="its rows are shared with another layer")
    for widths in ("uniform", "exact"):
        assert refused(model, stiff, "remove", widths) == f"{site.name} cannot be cut: its rows are shared with another layer"
    assert refused(model, stiff, "zero") is None


def test_a_norm_behind_the_neurons_undoes_a_factor_and_takes_no_bias() -> None:
    model, site = first("llama")
    norm = Slice(parameter=f"{site.name}.norm.weight", role="inner_norm", axis=0, start=0, step=1, width=1)
    normed = replace(site, slices=(*site.slices, norm))
    assert refused(model, normed, "scale") == (
        f"{site.name} cannot be scaled: a norm between its neurons and its output weights would undo it"
    )
    assert refused(model, normed, "mean") == (
        f"{site.name} cannot be held at its mean: a norm stands between its neurons and its output weights"
    )
    assert refused(model, normed, "zero") is None


def test_experts_have_no_bias_of_their_own() -> None:
    model, site = first("mixtral")
    assert "its output weights are those of an expert" in str(refused(model, site, "mean"))
    assert refused(model, site, "zero") is None


def test_a_bias_that_no_field_of_the_config_gives_is_stored_beside_it() -> None:
    model, site = first("phi3")
    said = str(refused(model, site, "mean"))
    assert said.startswith("model.layers.0.mlp.down_proj.bias is absent, and no config field gives Phi3ForCausalLM one")
    assert refused(model, site, "mean", "exact") is None
    with pytest.raises(UserError, match="--widths exact stores it beside the config"):
        refuse_obstacles(model, recognise(model).sites.values(), "mean")
