"""The summary in the terminal: verdict first, every number of a run, at most 80 columns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.api.types import Plan
from fairprune_framework.evaluation.results import Evaluation
from fairprune_framework.evaluation.rows import ResultRow
from fairprune_framework.recipes.recipe import Recipe
from fairprune_framework.reporting.summary import WIDTH, summary

RECIPE = Recipe(model="some/model", prompts="builtin:en")
PLAN = Plan(
    model="m",
    fingerprint="f",
    operator="scale",
    factor=0.5,
    sites={"a": (1, 2), "b": (3,)},
    requested={"budget": "0.1"},
    achieved={"fraction": 0.0321},
)


def told(record: dict[str, Any], plan: Plan | None = None, evaluation: Evaluation | None = None) -> list[str]:
    return summary(Path("runs/x"), RECIPE, {"stages": {}, **record}, plan, evaluation).splitlines()


def test_a_whole_run(finished: Path) -> None:
    record = json.loads((finished / "run.json").read_text())
    evaluation = Evaluation.load(finished)
    plan = Plan.from_json(json.loads((finished / "plan.json").read_text()))
    lines = summary(Path("runs/x"), RECIPE, record, plan, evaluation).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert lines[0].startswith(f"VERDICT  {record['verdict']}: ")
    assert lines[-2:] == ["look at  runs/x/report.html", "folder   runs/x"]
    text = "\n".join(lines)
    assert f"{plan.count} neurons" in text
    assert f"{record['removal']['parameters_before']:,} -> {record['removal']['parameters_after']:,} parameters" in text
    assert not any(line.startswith("next:") for line in lines)
    for row in evaluation.rows:
        if row.layer is None and row.category is None:
            (line,) = [line for line in lines if line.startswith(f"{row.metric}, ") and f"{row.before:.4g}" in line][:1]
            if row.change is not None:
                assert f"{row.change:+.1%}" in line


@pytest.mark.parametrize(
    ("done", "following"),
    [
        ((), "audit"),
        (("read",), "audit"),
        (("audit",), "score"),
        (("audit", "score"), "plan"),
        (("plan",), "prune"),
        (("plan", "prune"), "evaluate"),
    ],
)
def test_the_next_stage_is_named(done: tuple[str, ...], following: str) -> None:
    assert f"next: fairprune {following} --output runs/x" in told({"stages": {key: {} for key in done}})


@pytest.mark.parametrize("done", [("plan", "evaluate"), ("evaluate",)])
def test_nothing_is_next_after_an_evaluation(done: tuple[str, ...]) -> None:
    assert not any(line.startswith("next:") for line in told({"stages": {key: {} for key in done}}))


def test_an_abstention_says_why() -> None:
    lines = told({"abstained": True, "abstained_because": "the guard failed: " + "perplexity rises too much " * 5})
    assert lines[0].startswith("ABSTAINED  the guard failed")
    assert lines[1].startswith(" " * 9)
    assert max(map(len, lines)) <= WIDTH


def test_a_plan_with_its_operator_and_factor() -> None:
    assert "plan     3 neurons (3.21%), asked for 0.1, scale x 0.5" in told({}, PLAN)


@pytest.mark.parametrize(
    ("guard", "line"),
    [
        ({"held": True, "increase": 0.0123, "limit": 0.05}, "guard    held: perplexity +1.23%, at most +5.0%"),
        ({"held": False, "increase": None, "limit": 0.05}, "guard    failed: perplexity beyond all numbers, at most +5.0%"),
    ],
)
def test_the_guard(guard: dict[str, Any], line: str) -> None:
    assert line in told({"guard": guard})


def test_prompts_that_were_skipped_or_are_unequal_are_counted() -> None:
    record = {"contrasts": {"used": 10, "skipped": 2}, "n_unequal": 3}
    text = " ".join(" ".join(told(record)).split())
    assert "prompts builtin:en, 10 contrasts (2 skipped: skipped.jsonl), 3 of unequal token counts next:" in text


def test_an_accuracy_that_falls_is_no_gain_of_20_percent() -> None:
    row = ResultRow(
        metric="boolq/acc",
        split=None,
        control=False,
        category=None,
        layer=None,
        before=0.5,
        after=0.4,
        change=0.2,
        ci_low=0.1,
        ci_high=0.3,
        ideal=1.0,
        unit="share of items",
        n=100,
        retention=0.8,
        retention_low=0.71,
        retention_high=0.89,
    )
    perplexity = replace(row, metric="perplexity", ideal=0.0, before=10.0, after=12.0, retention=1.2)
    found = Evaluation(
        rows=(row, perplexity), items=(), samples=(), generations=(), n_unequal=0, applied_by=None, exhibits=None
    )
    lines = told({}, evaluation=found)
    place = next(i for i, line in enumerate(lines) if line.startswith("boolq/acc"))
    assert "0.5       0.4  +20.0% [+10, +30]" in lines[place]
    assert lines[place + 1].strip() == "of the distance from 1; 80.0% kept [71, 89]"
    assert lines[place + 2].startswith("perplexity, judging text")
    assert "kept" not in "".join(lines[place + 2 :])
    assert max(map(len, lines)) <= WIDTH
