"""Charts as files without a browser: where points are drawn, and the same bytes twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import fairprune_framework as fp
from fairprune_framework.errors import UserError
from fairprune_framework.reporting import static
from fairprune_framework.reporting.page import charts_of
from fairprune_framework.reporting.run_data import read_source


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
