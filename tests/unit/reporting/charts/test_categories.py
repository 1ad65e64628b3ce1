"""Matrices between categories against the files that they were drawn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.reporting.charts.categories import overlap, transfer
from fairprune_framework.reporting.run_data import Source

NAMES = ["age", "race", "<b>"]
JACCARD = [[1.0, 0.2, 0.0], [0.2, 1.0, 0.333], [0.0, 0.333, 1.0]]


def source(**more: Any) -> Source:
    return Source(folder=Path("x"), more=more)


def test_overlap_draws_the_matrix_and_lists_each_pair_once() -> None:
    counts, p = [[9, 3, 0], [3, 9, 4], [0, 4, 9]], [[0, 0.01, 1.0], [0.01, 0, 0.2], [1.0, 0.2, 0]]
    found = overlap(source(overlap={"categories": NAMES, "jaccard": JACCARD, "counts": counts, "p_adjusted": p}))
    assert found is not None
    (heat,) = found.data
    assert heat["z"] == JACCARD
    assert heat["x"] == heat["y"] == ["age", "race", "&lt;b&gt;"]
    assert heat["text"][1] == ["0.20", "1.00", "0.33"]
    assert (heat["zmin"], heat["zmax"]) == (0, 1)
    assert found.table.rows == [
        ["race", "age", "3", "0.2", "0.01"],
        ["<b>", "age", "0", "0", "1"],
        ["<b>", "race", "4", "0.333", "0.2"],
    ]


def test_overlap_without_p_values() -> None:
    found = overlap(source(overlap={"categories": NAMES[:2], "jaccard": [r[:2] for r in JACCARD[:2]]}))
    assert found is not None
    assert found.table.rows == [["race", "age", "–", "0.2", "–"]]


def test_transfer_is_symmetric_about_nothing() -> None:
    change = [[-0.4, None, 0.1], [0.05, -0.2, 0.0]]
    content = {"categories": NAMES[:2], "judged": NAMES, "change": change, "ci_low": [[-0.5, None, None], [0, -0.3, -0.1]]}
    found = transfer(source(transfer={**content, "ci_high": [[-0.3, None, None], [0.1, -0.1, 0.1]]}))
    assert found is not None
    (heat,) = found.data
    assert (heat["zmin"], heat["zmax"]) == (-0.4, 0.4)
    assert heat["z"] == change
    assert (heat["y"], heat["x"]) == (["age", "race"], ["age", "race", "&lt;b&gt;"])
    assert heat["text"][0] == ["−40\u00a0%", "–", "+10\u00a0%"]
    assert len(found.table.rows) == 6
    assert found.table.rows[0] == ["age", "age", "−40.0\u00a0%", "−50.0\u00a0% to −30.0\u00a0%"]
    assert found.table.rows[1][2:] == ["–", "–"]


@pytest.mark.parametrize("make", [overlap, transfer])
def test_no_chart_without_the_file(make: Any) -> None:
    assert make(source()) is None
    assert make(source(overlap={}, transfer={})) is None
