"""Several runs side by side: what differs, what stands in the way, and their numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.reporting.comparison import cautions, compare
from fairprune_framework.reporting.run_data import Source


def row(change: float | None = -0.2, **more: Any) -> dict[str, Any]:
    base = {"metric": "next-token-divergence", "split": "heldout", "control": False, "category": None, "layer": None}
    bounds = {"ci_low": None, "ci_high": None} if change is None else {"ci_low": change - 0.1, "ci_high": change + 0.1}
    return {**base, "before": 0.5, "after": 0.4, "change": change, **bounds, **more}


def run(name: str, *rows: dict[str, Any], recipe: Any = None, hashes: Any = None, **more: Any) -> Source:
    record = {"verdict": "fairer", "hashes": {"model": "m", "prompts": "p", "split": "s", "calibration": "c", **(hashes or {})}}
    return Source(folder=Path(name), record=record, recipe=recipe or {"budget": "0.1"}, rows=rows or (row(),), **more)


def test_only_differing_options_are_listed() -> None:
    one = run("one", recipe={"budget": "0.1", "seed": 0, "bias": None})
    two = run("two", recipe={"budget": "0.2", "seed": 0, "bias": {"plugin": "variance"}, "more": 3})
    found = compare([one, two]).recipes
    assert found.columns == ("option", "one", "two")
    assert found.rows == [
        ["budget", "0.1", "0.2"],
        ["bias", "–", "{'plugin': 'variance'}"],
        ["more", "–", "3"],
    ]
    equal = compare([one, one]).recipes
    assert (equal.rows, equal.note) == ([], "The recipes are equal.")


def test_results_are_one_column_a_run() -> None:
    one = run("one", row(), row(0.05, control=True), row(-0.9, category="race"), plan={"sites": {"a": [1, 2], "b": [3]}})
    two = run("two", row(None), row(None, metric="perplexity", split=None, after=None, before=12.3456))
    found = compare([one, two]).results
    assert found.rows == [
        ["verdict", "fairer", "fairer"],
        ["neurons planned", "3", "–"],
        ["next-token-divergence, heldout", "−20.0\u00a0% (−30.0\u00a0% to −10.0\u00a0%)", "0.4"],
        ["next-token-divergence, controls, heldout", "+5.0\u00a0% (−5.0\u00a0% to +15.0\u00a0%)", "–"],
        ["perplexity", "–", "12.35"],
    ]


def test_the_chart_has_a_point_for_each_run_that_was_judged() -> None:
    sources = [run("one", row(-0.2), row(0.01, control=True)), run("two", row(0.1)), run("three", row(None))]
    (chart,) = compare(sources).charts
    judged, controls, *_ = chart.data
    assert list(zip(judged["y"], judged["x"], strict=True)) == [("one", -0.2), ("two", 0.1)]
    assert list(zip(controls["y"], controls["x"], strict=True)) == [("one", 0.01)]
    assert [line[0] for line in chart.table.rows] == ["one", "two", "one"]
    assert compare([run("one", row(None))]).charts == []


def test_equal_names_are_told_apart_by_their_paths() -> None:
    assert compare([run("a/x"), run("b/x"), run("y")]).names == [str(Path("a/x")), str(Path("b/x")), "y"]


@pytest.mark.parametrize(
    ("hashes", "words"),
    [
        ({"model": "n"}, "different models"),
        ({"prompts": "q"}, "different prompt sets"),
        ({"split": "t"}, "different splits"),
        ({"calibration": "d"}, "different calibration texts"),
    ],
)
def test_what_stands_in_the_way_is_said(hashes: dict[str, str], words: str) -> None:
    assert cautions([run("one"), run("two")], ["one", "two"]) == []
    (said,) = cautions([run("one"), run("two", hashes=hashes)], ["one", "two"])
    assert words in said


def test_a_run_that_was_not_evaluated_is_named() -> None:
    bare = Source(folder=Path("two"), record=run("two").record)
    (said,) = cautions([run("one"), bare], ["one", "two"])
    assert said == "two has not been evaluated: run `fairprune evaluate --output two`."
