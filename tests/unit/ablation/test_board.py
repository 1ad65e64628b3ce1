"""The table of a grid: the Pareto front by brute force, controls at equal budget, Holm over all cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from fairprune_framework.ablation.board import completed, pareto, ranked, render, save


def row(divergence: float | None, perplexity: float, **more: Any) -> dict[str, Any]:
    base = {"bias_change": divergence, "perplexity_change": perplexity, "units": 3, "control": False, "guard_held": True}
    axes = {"operator": "zero", "factor": None, "budget": "3n", "p_value": 0.01, "cell": "x"}
    return {**base, **axes, **more}


def test_the_front_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    rows = [row(float(d), float(p)) for d, p in rng.normal(size=(40, 2)).round(1)]
    rows += [row(-9.0, -9.0, control=True), row(-9.0, -9.0, units=0), row(None, 0.0)]
    points = [(r["bias_change"], r["perplexity_change"]) for r in rows[:40]]
    for found, mine in zip(pareto(rows)[:40], points, strict=True):
        beaten = any((a <= mine[0] and b < mine[1]) or (a < mine[0] and b <= mine[1]) for a, b in points)
        assert found is not beaten
    assert pareto(rows)[40:] == [False, False, False]


def test_controls_at_equal_budget_and_holm_over_all_cells() -> None:
    rows = [
        row(-0.4, 0.01, p_value=0.01),
        row(-0.3, 0.2, p_value=0.03, guard_held=False),
        row(-0.1, 0.0, control=True, p_value=0.001),
        row(-0.05, 0.0, control=True),
        row(-0.6, 0.0, control=True, budget="9n"),
    ]
    done = completed(rows)
    assert [each["best_control"] for each in done[:2]] == [-0.1, -0.1]
    assert [each["p_adjusted"] for each in done] == [0.02, 0.03, None, None, None]
    assert [each["bias_change"] for each in ranked(done)] == [-0.4]


def shown(cell: str, change: float | None, **more: Any) -> dict[str, Any]:
    wide: dict[str, Any] = {
        "cell": cell,
        "what": "w" * 80,
        "pareto": False,
        "ci_low": None,
        "ci_high": None,
        "control_change": None,
    }
    return row(change, 0.01, **{**wide, **more})


CELLS = [
    shown("c1", -0.4, pareto=True, ci_low=-0.5, ci_high=-0.3, control_change=0.02),
    shown("c2", -0.2),
    shown("c3", -0.9, guard_held=False),
    shown("c4", None, units=0),
    shown("k1", 0.05, control=True),
    shown("k2", -0.01, control=True),
]
JUDGED = {"judged_by": "contrast-divergence", "judged_on": {"contrasts": 9, "templates": 3, "controls": 0}}


def test_the_table_as_text() -> None:
    lines = render({"cells": CELLS, **JUDGED}, most=1).splitlines()
    assert lines[0].startswith("6 cells (2 of them controls), judged on 9 contrasts of select with 3 templates")
    assert lines[3].split() == ["c1", "-40.0%", "[-50.0%,", "-30.0%]", "+2.0%", "+1.00%", "3", "*"]
    assert lines[4].strip() == "w" * 63 + "..."
    assert "... 1 more in results.parquet" in lines
    assert "1 cells cost more perplexity than --max-perplexity-increase allows" in lines
    assert "1 cells planned nothing: see the reasons in results.parquet" in lines
    assert "controls, random neurons: -1.0% to +5.0%, 2 cells" in lines
    assert lines[-1] == "held-out contrasts were not looked at: --confirm K does so, once"


def test_the_text_where_nothing_is_left_and_after_a_confirmation() -> None:
    confirmed = {"cells_looked_at": 6, "results": [{"cell": "c1", "verdict": "fairer", "because": "so"}]}
    lines = render({"cells": [CELLS[3]], **JUDGED, "confirmed": confirmed}).splitlines()
    assert "no cell is within the guard's limit and reduces the metric" in lines
    assert lines[-2:] == ["confirmed once on held-out contrasts, after a look at 6 cells:", "c1          fairer: so"]


def test_files_hold_every_cell(tmp_path: Path) -> None:
    save(tmp_path, [{**CELLS[0], "options": {"relative": True}}], JUDGED)
    (stored,) = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert (stored["cell"], json.loads(stored["options"])) == ("c1", {"relative": True})
    record = json.loads((tmp_path / "ablation.json").read_text())
    assert (record["format"], record["cells"][0]["options"]) == ("fairprune-ablation/1", {"relative": True})
