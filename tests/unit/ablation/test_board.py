"""The table of a grid: the Pareto front by brute force, controls at equal budget, Holm over all cells."""

from __future__ import annotations

from typing import Any

import numpy as np

from fairprune_framework.ablation.board import completed, pareto, ranked


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
