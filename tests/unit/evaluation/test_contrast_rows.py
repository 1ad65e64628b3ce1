"""Rows of the contrast metrics against means by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from fairprune_framework.evaluation.contrast_rows import contrast_rows, paired

RNG = np.random.default_rng(0)
LAYERS = (0, 5)


def items(after: bool = True, n: int = 48) -> list[dict[str, Any]]:
    """Two categories of unequal size, held-out and selecting, the last eight controls; two contrasts a template."""
    found = []
    for i in range(n):
        before = RNG.gamma(4, 0.1, 5)
        then = (before * RNG.gamma(30, 0.8 / 30, 5)).tolist()
        before = before.tolist()
        found.append(
            {
                "id": str(i),
                "category": "race" if i % 3 else "age",
                "template_id": f"t{i // 2}",
                "split": "heldout" if i % 4 < 2 else "select",
                "control": i >= n - 8,
                "role": "control" if i >= n - 8 else "demographic",
                "valence-gap_before": before[4],
                "valence-gap_after": then[4] if after else None,
                "next-token-divergence_before": before[0],
                "next-token-divergence_after": then[0] if after else None,
                "activation-difference_before": before[1],
                "activation-difference_after": then[1] if after else None,
                "by_layer_before": before[2:4],
                "by_layer_after": then[2:4] if after else None,
            }
        )
    return found


def macro(chosen: list[dict[str, Any]], value: Any) -> float:
    """Over contrasts of a template, templates of a category, categories."""
    groups: dict[str, dict[str, list[float]]] = {}
    for item in chosen:
        groups.setdefault(item["category"], {}).setdefault(item["template_id"], []).append(value(item))
    return float(np.mean([np.mean([np.mean(v) for v in templates.values()]) for templates in groups.values()]))


def test_every_row_is_a_macro_mean_of_its_group() -> None:
    given = items()
    rows = contrast_rows(given, LAYERS, seed=0)
    assert len(rows) == 4 * 3 * (3 + 2)  # groups, categories and all, metrics and layers
    for row in rows:
        chosen = [
            i for i in given if (i["split"], i["control"]) == (row.split, row.control) and row.category in (None, i["category"])
        ]
        for side, found in (("before", row.before), ("after", row.after)):

            def value(item: dict[str, Any], side: str = side, row: Any = row) -> float:
                if row.layer is None:
                    return float(item[f"{row.metric}_{side}"])
                return float(item[f"by_layer_{side}"][LAYERS.index(row.layer)])

            assert found == pytest.approx(macro(chosen, value))
        assert row.change == pytest.approx(row.after / row.before - 1)
        assert row.difference == pytest.approx(row.after - row.before)
        assert (row.ideal, row.n) == (0.0, len(chosen))
        assert row.clusters == len({(i["category"], i["template_id"]) for i in chosen})
        if row.layer is not None:
            assert row.ci_low is row.p_value is row.detectable is row.note is None
        elif row.clusters < 8:
            assert row.ci_low is None
            assert f"{row.clusters} templates are too few" in str(row.note)


def test_one_model_alone_fills_before_alone() -> None:
    for row in contrast_rows(items(after=False), LAYERS, seed=0):
        assert row.before is not None
        assert {row.after, row.difference, row.change, row.ci_low, row.p_value, row.note} == {None}


def test_the_paired_change_of_items() -> None:
    given = items()
    found = paired(given, "next-token-divergence", 0)
    assert found is not None
    assert found.before == pytest.approx(macro(given, lambda item: item["next-token-divergence_before"]))
    assert paired([], "next-token-divergence", 0) is None
    assert paired(items(after=False), "next-token-divergence", 0) is None


def test_categories_of_a_metric_are_one_family() -> None:
    rows = [row for row in contrast_rows(items(n=96), LAYERS, seed=0) if row.layer is None]
    for split, control, metric in {(row.split, row.control, row.metric) for row in rows}:
        family = [row for row in rows if (row.split, row.control, row.metric) == (split, control, metric)]
        (whole,) = [row for row in family if row.category is None]
        tested = [row for row in family if row.category is not None and row.p_value is not None]
        assert whole.p_adjusted is None
        expected = multipletests([row.p_value for row in tested], method="holm")[1] if tested else []
        assert [row.p_adjusted for row in tested] == pytest.approx(list(expected))
    assert any(row.p_adjusted is not None and row.p_adjusted > row.p_value for row in rows)


def test_legitimate_contrasts_have_a_margin_and_no_part_in_other_rows() -> None:
    given = items()
    legitimate = [
        {**item, "id": f"legit-{item['id']}", "control": False, "role": "legitimate", "category": "legit-nation"}
        | {"legitimate-margin_before": 2.0 + i / 50, "legitimate-margin_after": (2.0 + i / 50) * 0.9}
        for i, item in enumerate(items())
    ]
    rows = contrast_rows([*given, *legitimate], LAYERS, seed=0)
    margins = [row for row in rows if row.metric == "legitimate-margin"]
    assert [row for row in rows if row.metric != "legitimate-margin"] == contrast_rows(given, LAYERS, seed=0)
    assert {(row.split, row.category) for row in margins} == {
        (split, category) for split in ("heldout", "select") for category in (None, "legit-nation")
    }
    assert all(row.change == pytest.approx(-0.1) for row in margins)


def test_a_margin_keeps_its_sign() -> None:
    legitimate = [
        {**item, "control": False, "role": "legitimate", "split": "heldout", "category": "turned" if i % 2 else "unknown"}
        | {
            f"legitimate-margin_{when}": value
            for when, value in zip(("before", "after"), (2, -3) if i % 2 else (-1, -2), strict=True)
        }
        for i, item in enumerate(items(40))
    ]
    rows = {row.category: row for row in contrast_rows(legitimate, LAYERS, seed=0)}
    assert rows["turned"].change == pytest.approx(-2.5)
    assert rows["unknown"].change is None
    assert rows["unknown"].difference == pytest.approx(-1)
    assert "not above 0" in str(rows["unknown"].note)
