"""Answers are read as they were written: matrices with a row for each category, finite numbers, counts not below 0."""

from __future__ import annotations

from typing import Any

import pytest

from fairprune_framework.errors import RunFolderError
from fairprune_framework.utilities.answer_schemas import QUESTIONS
from fairprune_framework.utilities.schemas import check

SQUARE: list[list[Any]] = [[1.0, None], [0.5, 1.0]]
OVERLAP: dict[str, Any] = {
    "categories": ["a", "b"], "units": [1, 2], "population": 9, "counts": [[1, 2], [3, 4]], "jaccard": [[1.0, 0.5], [0.5, 1.0]],
    "p_values": SQUARE, "p_adjusted": SQUARE,
}  # fmt: skip
SPILLOVER = {"cells": 2, "worse": 0, "share_worse": None, "not_harmed": 2, "not_estimable": 0, "margin": 0.02}
WIDE: list[list[Any]] = [[1.0, 2.0, None], [3.0, 4.0, None]]
TRANSFER: dict[str, Any] = {
    "categories": ["a", "b"], "judged": ["a", "b", "c"], "controls": [False, False, True], "split": None, "units": [1, 2],
    "spillover": SPILLOVER, "change": WIDE, "ci_low": WIDE, "ci_high": WIDE, "p_values": WIDE, "p_adjusted": WIDE,
}  # fmt: skip


EFFECT = dict.fromkeys(("before", "after", "change", "ci_low", "ci_high", "p_value"), 0.1)
CAUSAL: dict[str, Any] = {
    "split": None, "units": 3, "operator": "remove", "demographic": EFFECT, "control": None, "random": [{"change": None}], "p_value": 0.5,
}  # fmt: skip
STABILITY: dict[str, Any] = {
    "replicates": 2, "groups": {"a": 3}, "planned": 1, "mean_frequency": 0.5, "stable_75": 1, "mean_jaccard": None,
    "units": [{"site": "s", "unit": 3, "frequency": 0.5, "planned": True}], "units_ever_chosen": 1,
}  # fmt: skip
RIGHT = {"overlap": OVERLAP, "transfer": TRANSFER, "causal": CAUSAL, "stability": STABILITY}


@pytest.mark.parametrize(("question", "right"), list(RIGHT.items()))
def test_what_is_right_is_read(question: str, right: dict[str, Any]) -> None:
    check(right, QUESTIONS[question], "it")


@pytest.mark.parametrize(
    ("question", "change", "expected"),
    [
        ("overlap", {"counts": [[1, 2]]}, "counts must have 2 rows of 2"),
        ("overlap", {"jaccard": [[1.0], [1.0]]}, "jaccard must have 2 rows of 2"),
        ("overlap", {"p_values": [[float("nan"), 1.0], [1.0, 1.0]]}, "'p_values.0.0'"),
        ("overlap", {"population": -1}, "'population'"),
        ("overlap", {"jaccard": SQUARE}, "'jaccard.0.1'"),
        ("causal", {"random": [{"change": "much"}]}, "'random.0.change'"),
        ("causal", {"random": [{}]}, "'random.0.change'"),
        ("causal", {"demographic": EFFECT | {"change": float("inf")}}, "'demographic.change'"),
        ("causal", {"units": 2**63}, "'units'"),
        ("stability", {"units": [{"site": "s"}]}, "'units.0.unit'"),
        ("stability", {"groups": {"a": -1}}, "'groups.a'"),
        ("transfer", {"controls": [True]}, "controls must be as many as judged"),
        ("transfer", {"ci_low": SQUARE}, "ci_low must have 2 rows of 3"),
        ("transfer", {"spillover": 5}, "'spillover'"),
    ],
)
def test_another_size_is_refused(question: str, change: dict[str, Any], expected: str) -> None:
    with pytest.raises(RunFolderError) as caught:
        check(RIGHT[question] | change, QUESTIONS[question], "it")
    assert expected in str(caught.value)
