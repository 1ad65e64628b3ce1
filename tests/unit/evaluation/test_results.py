"""Rows before and after against means by hand, and an evaluation that is written and read back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairprune_framework.errors import RunFolderError
from fairprune_framework.evaluation.fixed_text import TextLoss
from fairprune_framework.evaluation.results import Evaluation, contrast_rows, language_rows, paired, row_json

RNG = np.random.default_rng(0)
LAYERS = (0, 5)


def items(after: bool = True, n: int = 48) -> list[dict[str, Any]]:
    """Two categories of unequal size, held-out and selecting, the last eight controls; two contrasts a template."""
    found = []
    for i in range(n):
        before = RNG.gamma(4, 0.1, 4)
        then = (before * RNG.gamma(30, 0.8 / 30, 4)).tolist()
        before = before.tolist()
        found.append(
            {
                "id": str(i),
                "category": "race" if i % 3 else "age",
                "template_id": f"t{i // 2}",
                "split": "heldout" if i % 4 < 2 else "select",
                "control": i >= n - 8,
                "next-token-divergence_before": before[0],
                "next-token-divergence_after": then[0] if after else None,
                "activation-difference_before": before[1],
                "activation-difference_after": then[1] if after else None,
                "by_layer_before": before[2:],
                "by_layer_after": then[2:] if after else None,
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
    assert len(rows) == 4 * 3 * (2 + 2)  # groups, categories and all, metrics and layers
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


def losses(factor: float) -> tuple[TextLoss, TextLoss]:
    tokens = tuple(RNG.integers(5, 50, 30).tolist())
    nll = RNG.gamma(9, 0.3, 30) * tokens
    after = nll + (math.log(factor) + RNG.normal(0, 0.02, 30)) * tokens
    return TextLoss(nll=tuple(nll), tokens=tokens), TextLoss(nll=tuple(after), tokens=tokens)


def test_perplexity_and_its_cost() -> None:
    before, after = losses(1.1)
    row, kl = language_rows(before, after, 0.02, seed=0)
    assert (row.before, row.after) == (before.perplexity, after.perplexity)
    assert row.change == pytest.approx(after.perplexity / before.perplexity - 1)
    assert row.ci_low is not None
    assert row.ci_high is not None
    assert row.ci_low < 0.1 < row.ci_high
    assert (kl.metric, kl.after, kl.n) == ("kl-to-original", 0.02, 30)
    (alone,) = language_rows(before, None, None, seed=0)
    assert (alone.before, alone.after) == (before.perplexity, None)
    assert len(language_rows(before, after, None, seed=0)) == 1


def evaluation(**more: Any) -> Evaluation:
    values: dict[str, Any] = {
        "rows": tuple(contrast_rows(items(), LAYERS, seed=0)),
        "items": tuple(items()),
        "generations": ({"prompt": "né", "before": "a", "after": "b"},),
        "n_unequal": 3,
        "applied_by": "removal",
    }
    return Evaluation(**{**values, **more})


@pytest.mark.parametrize("samples", [(), ({"id": 1, "metric": "acc", "before": 0.5},)])
def test_there_and_back(tmp_path: Path, samples: Any) -> None:
    made = evaluation(samples=samples, extra={"sets": {"x": 1}})
    made.save(tmp_path)
    assert Evaluation.load(tmp_path) == made
    assert (tmp_path / "evaluation_samples.parquet").exists() is bool(samples)
    data = json.loads((tmp_path / "evaluation.json").read_text())
    assert (data["format"], data["sets"]) == ("fairprune-evaluation/1", {"x": 1})
    (tmp_path / "evaluation.json").write_text(json.dumps({**data, "format": "other/1"}))
    with pytest.raises(RunFolderError, match="must be of format"):
        Evaluation.load(tmp_path)


def test_a_row_is_found_over_all_layers() -> None:
    made = evaluation()
    found = made.find("activation-difference", split="heldout", category="race")
    assert found is not None
    assert (found.layer, found.category, found.control) == (None, "race", False)
    assert made.find("activation-difference", split="nothing") is None
    assert made.find("nothing") is None


def test_infinity_becomes_null() -> None:
    row = language_rows(TextLoss(nll=(9000.0,), tokens=(1,)), None, None, seed=0)[0]
    assert row.before == math.inf
    assert row_json(row)["before"] is None
    json.dumps(row_json(row), allow_nan=False)
