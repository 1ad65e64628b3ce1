"""Matrices of an answer have a row for each category."""

from __future__ import annotations

from typing import Any

import pytest

from fairprune_framework.errors import RunFolderError
from fairprune_framework.utilities.answer_schemas import QUESTIONS
from fairprune_framework.utilities.schemas import check

SQUARE: list[list[Any]] = [[1.0, None], [0.5, 1.0]]
OVERLAP: dict[str, Any] = {
    "categories": ["a", "b"], "units": [1, 2], "population": 9, "counts": [[1, 2], [3, 4]], "jaccard": SQUARE, "p_values": SQUARE,
    "p_adjusted": SQUARE,
}  # fmt: skip
SPILLOVER = {"cells": 2, "worse": 0, "share_worse": None, "not_harmed": 2, "not_estimable": 0, "margin": 0.02}
WIDE: list[list[Any]] = [[1.0, 2.0, None], [3.0, 4.0, None]]
TRANSFER: dict[str, Any] = {
    "categories": ["a", "b"], "judged": ["a", "b", "c"], "controls": [False, False, True], "split": None, "units": [1, 2],
    "spillover": SPILLOVER, "change": WIDE, "ci_low": WIDE, "ci_high": WIDE, "p_values": WIDE, "p_adjusted": WIDE,
}  # fmt: skip


@pytest.mark.parametrize(("question", "right"), [("overlap", OVERLAP), ("transfer", TRANSFER)])
def test_what_is_right_is_read(question: str, right: dict[str, Any]) -> None:
    check(right, QUESTIONS[question], "it")


@pytest.mark.parametrize(
    ("question", "change", "expected"),
    [
        ("overlap", {"counts": [[1, 2]]}, "counts must have 2 rows of 2"),
        ("overlap", {"jaccard": [[1.0], [1.0]]}, "jaccard must have 2 rows of 2"),
        ("overlap", {"p_values": [[float("nan"), 1.0], [1.0, 1.0]]}, "'p_values.0.0'"),
        ("overlap", {"population": -1}, "'population'"),
        ("transfer", {"controls": [True]}, "controls must be as many as judged"),
        ("transfer", {"ci_low": SQUARE}, "ci_low must have 2 rows of 3"),
        ("transfer", {"spillover": 5}, "'spillover'"),
    ],
)
def test_another_size_is_refused(question: str, change: dict[str, Any], expected: str) -> None:
    right = OVERLAP if question == "overlap" else TRANSFER
    with pytest.raises(RunFolderError) as caught:
        check(right | change, QUESTIONS[question], "it")
    assert expected in str(caught.value)
