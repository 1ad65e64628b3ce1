"""Charts as plotly figures, against the numbers of the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fairprune_framework as fp
from fairprune_framework.errors import UserError
from fairprune_framework.reporting.page import CHARTS


def rows(folder: Path, **words: Any) -> list[dict[str, Any]]:
    found = json.loads((folder / "evaluation.json").read_text())["results"]
    return [row for row in found if all(row[key] == value for key, value in words.items())]


def test_activation_by_layer_holds_the_numbers_of_the_evaluation(full: Path) -> None:
    figure = fp.figures.activation_by_layer(full, category="race")
    wanted = rows(full, metric="activation-difference", split="heldout", control=False, category="race")
    wanted = sorted((row for row in wanted if row["layer"] is not None), key=lambda row: row["layer"])
    for trace, when in zip(figure.data, ("before", "after"), strict=False):
        assert trace.name == when
        np.testing.assert_allclose(trace.y, [row[when] for row in wanted], atol=1e-6)


def test_every_name_is_a_function(full: Path) -> None:
    for name in CHARTS:
        make = getattr(fp.figures, name.replace("-", "_"))
        assert type(make(full)).__name__ == "Figure"


def test_a_wrong_choice_is_named(full: Path) -> None:
    with pytest.raises(UserError, match=r"layer must be one of '0', '1'\. Got '7'"):
        fp.figures.token_projection(full, layer=7)
    with pytest.raises(UserError, match="Did you mean 'pareto'"):
        fp.figures.chart("paretto", full)


def test_the_plane_keeps_distances_of_a_flat_cloud(full: Path) -> None:
    """What is drawn are coordinates of the tensors: two tokens that are equal lie on each other, and the layers differ."""
    first, second = (fp.figures.token_projection(full, output="MLP output", layer=layer) for layer in (0, 1))
    assert len(first.data[0].x) == len(second.data[0].x) > 3
    assert not np.allclose(first.data[0].x, second.data[0].x)


def test_chosen_neurons_are_marked(full: Path) -> None:
    plan = json.loads((full / "plan.json").read_text())["sites"]
    figure = fp.figures.layer_neuron_map(full)
    wanted = {(f"layer {site.split('.')[2]}", unit) for site, units in plan.items() for unit in units}
    assert set(zip(figure.data[1].y, figure.data[1].x, strict=True)) == wanted
    assert len(fp.figures.bias_against_importance(full).data[1].x) == len(wanted)
