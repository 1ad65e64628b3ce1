"""Maps of neurons against scores in numpy: every value in its place, pooled or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairprune_framework.reporting.charts import neurons
from fairprune_framework.reporting.charts.neurons import bias_against_importance, layer_neuron_map, scaled
from fairprune_framework.reporting.run_data import Source

RNG = np.random.default_rng(0)
SITES = {"model.layers.10.mlp": 30, "model.layers.2.mlp": 20}
SCORES = {f"{kind}/{name}": RNG.gamma(1, 2, units) for kind in ("bias", "importance") for name, units in SITES.items()}
PLAN = {"sites": {"model.layers.2.mlp": [3, 7], "model.layers.10.mlp": [29]}}


def source(scores: Any = SCORES, plan: Any = PLAN) -> Source:
    return Source(folder=Path("x"), scores=scores, plan=plan)


def test_scaling_keeps_order_sign_and_zero() -> None:
    values = np.array([-50.0, -1.0, 0.0, 0.5, 1.0, 9.0, 1e6])
    found = scaled(values, 1.0)
    assert (np.diff(found) > 0).all()
    np.testing.assert_allclose(found, np.sign(values) * np.log10(1 + np.abs(values)))
    assert found[2] == 0


def test_one_cell_for_each_neuron_layers_in_order() -> None:
    found = layer_neuron_map(source())
    assert found is not None
    heat, marks = found.data
    assert heat["y"] == ["layer 2", "layer 10"]
    np.testing.assert_allclose(heat["customdata"][0, :20], SCORES["bias/model.layers.2.mlp"], rtol=1e-6)
    np.testing.assert_allclose(heat["customdata"][1], SCORES["bias/model.layers.10.mlp"], rtol=1e-6)
    assert np.isnan(heat["customdata"][0, 20:]).all()
    assert (heat["x0"], heat["dx"]) == (0, 1)
    assert {*zip(marks["y"], marks["x"], strict=True)} == {("layer 2", 3), ("layer 2", 7), ("layer 10", 29)}
    bias = [SCORES["bias/model.layers.2.mlp"], SCORES["bias/model.layers.10.mlp"]]
    assert found.table.rows == [
        [label, str(len(b)), str(planned), f"{np.median(b):.4g}", f"{b.max():.4g}", str(b.argmax())]
        for label, b, planned in zip(heat["y"], bias, (2, 1), strict=True)
    ]


def test_wide_models_are_pooled_by_the_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neurons, "MOST_CELLS", 20)
    found = layer_neuron_map(source())
    assert found is not None
    heat = found.data[0]
    wide = heat["dx"]
    assert heat["customdata"].size <= 20 + 2
    for row, name in enumerate(("model.layers.2.mlp", "model.layers.10.mlp")):
        bias = SCORES[f"bias/{name}"]
        expected = [bias[i : i + wide].max() for i in range(0, len(bias), wide)]
        np.testing.assert_allclose(heat["customdata"][row, : len(expected)], expected, rtol=1e-6)
    assert heat["x0"] == (wide - 1) / 2  # the centre of the first bin
    assert f"maximum over {wide} neighbouring neurons" in found.caption


def test_negative_scores_get_two_colours_about_zero() -> None:
    signed = {**SCORES, "bias/model.layers.2.mlp": -SCORES["bias/model.layers.2.mlp"]}
    found = layer_neuron_map(source(signed))
    assert found is not None
    heat = found.data[0]
    assert heat["zmin"] == -heat["zmax"]
    assert heat["zmax"] == pytest.approx(float(np.nanmax(np.abs(heat["z"]))), rel=1e-6)
    plain = layer_neuron_map(source())
    assert plain is not None
    assert "zmin" not in plain.data[0]


def test_ticks_stand_where_the_scale_puts_them() -> None:
    for values in (SCORES["bias/model.layers.2.mlp"], np.array([-3.0, 0.0, 2e5]), np.array([1e-9, 5e-8])):
        unit = float(np.median(np.abs(values[values != 0])))
        ticks = neurons._ticks(values, unit)
        shown = np.array([float(text) for text in ticks["ticktext"]])
        np.testing.assert_allclose(scaled(shown, unit), ticks["tickvals"], rtol=1e-9, atol=1e-12)
        assert 0.0 in shown
        assert 2 <= len(shown) <= 15
        assert list(shown) == sorted(shown)


def test_every_neuron_is_counted_in_the_density() -> None:
    found = bias_against_importance(source())
    assert found is not None
    heat, marks = found.data
    assert np.nansum(heat["customdata"]) == 50
    names = ("model.layers.2.mlp", "model.layers.10.mlp")
    bias, importance = (np.concatenate([SCORES[f"{kind}/{name}"] for name in names]) for kind in ("bias", "importance"))
    planned = sorted([3, 7, 20 + 29], key=lambda i: -bias[i])
    np.testing.assert_allclose(marks["y"], scaled(bias, float(np.median(bias)))[planned], rtol=1e-3)
    np.testing.assert_allclose(marks["x"], scaled(importance, float(np.median(importance)))[planned], rtol=1e-3)
    assert [line[3] for line in found.table.rows] == [f"{importance[i]:.4g}" for i in planned]
    share = float((importance > importance[planned].max()).mean())
    assert f"{share:.1%} of the neurons" in found.caption
    assert ("shapes" in found.layout) is (share > 0)


def test_several_sites_of_a_layer_are_named_in_full() -> None:
    scores = {f"bias/model.layers.0.mlp.experts.{i}": np.ones(4) for i in range(2)}
    found = layer_neuron_map(source(scores, None))
    assert found is not None
    assert found.data[0]["y"] == ["model.layers.0.mlp.experts.0", "model.layers.0.mlp.experts.1"]
    assert found.data[1]["x"] == []


def test_no_chart_without_scores() -> None:
    assert layer_neuron_map(source({})) is None
    assert bias_against_importance(source({})) is None
    only_bias = {key: value for key, value in SCORES.items() if key.startswith("bias")}
    assert bias_against_importance(source(only_bias)) is None
