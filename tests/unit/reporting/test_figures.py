"""Charts as plotly figures and as files, against the numbers of the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fairprune_framework as fp
from fairprune_framework.errors import UserError
from fairprune_framework.reporting import static
from fairprune_framework.reporting.page import CHARTS, charts_of
from fairprune_framework.reporting.run_data import read_source


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


@pytest.mark.parametrize("format", static.FORMATS)
def test_files_are_drawn_without_a_browser_and_are_the_same_twice(full: Path, tmp_path: Path, format: str) -> None:
    charts = charts_of(read_source(full))
    if format != "svg":
        charts = [chart for chart in charts if chart.name in ("layer-neuron-map", "token-projection")]
    first = static.save(charts, tmp_path / "one", format)
    second = static.save(charts, tmp_path / "two", format)
    assert [path.name for path in first] == [f"{chart.name}.{format}" for chart in charts]
    start = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}[format]
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()
        assert a.read_bytes().startswith(start)
        assert a.stat().st_size > 3000


def test_static_points_are_where_the_chart_says(full: Path) -> None:
    chart = fp.figures.chart("pareto", full)
    axes = static.drawn(chart).axes[0]
    drawn = np.concatenate(
        [np.asarray(c.get_offsets()) for c in axes.collections if len(np.asarray(c.get_offsets())) and c.get_zorder() == 3]
    )
    cells = [cell for cell in json.loads((full / "ablation.json").read_text())["cells"] if "bias_change" in cell]
    assert {tuple(point) for point in drawn} == {(cell["perplexity_change"], cell["bias_change"]) for cell in cells}


def test_without_matplotlib_it_says_what_to_install(full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"fairprune_framework\[figures\]"):
        static.save(charts_of(read_source(full))[:1], tmp_path, "svg")
    with pytest.raises(UserError, match=r"must be one of svg, png, pdf\. Got 'gif'"):
        static.save([], tmp_path, "gif")
