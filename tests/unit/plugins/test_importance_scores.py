"""`max-abs-weight` and `peak-to-peak` against numpy on the weights as transformers holds them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fairprune_framework import discovery
from fairprune_framework.api import ImportanceScorer, SiteContext
from fairprune_framework.models.architecture import recognise
from fairprune_framework.selection.contexts import generator_for
from fairprune_framework.surgery.slices import weights_of
from fairprune_framework.testing.tiny import tiny_model

Array = NDArray[np.float64]


def rows(model: Any, name: str) -> tuple[Array, Array]:
    """Gate and up weights (N, H) of a site, without the code under test."""
    head, _, last = name.rpartition(".")
    if last.isdigit():
        fused = model.get_submodule(head).gate_up_proj[int(last)]
    elif hasattr(model.get_submodule(name), "gate_up_proj"):
        fused = model.get_submodule(name).gate_up_proj.weight
    else:
        fused = torch.cat([model.get_submodule(name).gate_proj.weight, model.get_submodule(name).up_proj.weight])
    gate, up = np.split(fused.detach().double().numpy(), 2)
    return gate, up


def max_abs(row: Array) -> Array:
    return np.abs(row).max(1)


def span(row: Array) -> Array:
    return row.max(1) + np.abs(row.min(1))


@pytest.mark.parametrize(("plugin", "formula"), [("max-abs-weight", max_abs), ("peak-to-peak", span)])
@pytest.mark.parametrize("family", ["llama", "phi3", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_importance_is_numpys(plugin: str, formula: Any, family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family, dtype=dtype)
    scorer = discovery.build("importance", plugin)
    assert isinstance(scorer, ImportanceScorer)
    for name, site in recognise(model).sites.items():
        at = SiteContext(
            site=site,
            category=None,
            sums={},
            count=0,
            observed=torch.zeros(site.units, dtype=torch.long),
            weights=weights_of(model, site),
            readout=None,
            attribute_tokens=(),
            probe=None,
            generator=generator_for(0, name),
        )
        gate, up = rows(model, name)
        np.testing.assert_allclose(scorer.score(at).numpy(), formula(gate) + formula(up), rtol=1e-6)


def test_peak_to_peak_of_a_row_of_one_sign_counts_the_smallest_weight_too() -> None:
    """As published: |min|, although no weight is below zero."""
    assert span(np.array([[1.0, 3.0]])) == 4.0
    model: Any = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.gate_proj.weight.abs_()
        model.model.layers[0].mlp.up_proj.weight.zero_()
    site = recognise(model).sites["model.layers.0.mlp"]
    scorer: Any = discovery.build("importance", "peak-to-peak")
    found = scorer.score(type("At", (), {"weights": weights_of(model, site)})())
    np.testing.assert_allclose(found.numpy(), span(rows(model, site.name)[0]), rtol=1e-6)
