"""Scores of one category, and tables as text."""

from __future__ import annotations

import pytest
import torch

from fairprune_framework.analysis.common import as_set, matrix, narrowed, opened_run, ratio, square, wrapped
from fairprune_framework.api.types import Plan, Scores
from fairprune_framework.errors import UserError
from fairprune_framework.runs.run import Run


def test_scores_of_one_category() -> None:
    ones = torch.ones(2, dtype=torch.float64)
    seen = torch.tensor([True, False])
    scores = Scores(
        sites={},
        bias={"a": ones, "b": 2 * ones},
        importance={"a": ones, "b": ones},
        by_category={"age": {"a": 5 * ones}},
        observed={"a": seen, "b": seen},
    )
    found = narrowed(scores, "age")
    assert found.bias["a"].equal(5 * ones)
    assert found.bias["b"].abs().max() == 0  # age never reached it
    assert found.observed["a"].equal(seen)
    assert not found.observed["b"].any()
    assert found.importance is scores.importance


def test_plans_as_sets() -> None:
    plan = Plan(model="m", fingerprint="f", operator="zero", sites={"a": (1, 2), "b": (1,)}, requested={}, achieved={})
    assert as_set(plan) == {("a", 1), ("a", 2), ("b", 1)}
    assert (ratio(1, 4), ratio(0, 0)) == (0.25, None)


def test_a_square_is_symmetric_with_nothing_on_its_diagonal() -> None:
    assert square(3, [(1, 0), (2, 0), (2, 1)], [0.1, 0.2, 0.3]) == [[None, 0.1, 0.2], [0.1, None, 0.3], [0.2, 0.3, None]]


def test_columns_line_up() -> None:
    assert matrix(["a", "long"], ["x", "wide"], [["1", "2"], ["333", "4"]]) == [
        "        x  wide",
        "a       1     2",
        "long  333     4",
    ]


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_wide_table_goes_on_below(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As wide as the terminal at most; every cell stands beside its row and under its column."""
    monkeypatch.setenv("COLUMNS", str(columns))
    rows = [f"{number} scorer-with-a-name" for number in range(1, 20)]
    names = [str(number) for number in range(1, 20)]
    cells = [["" if i == j else f"{(19 * i + j) / 400:.2f}" for j in range(19)] for i in range(19)]
    lines = matrix(rows, names, cells)
    assert max(map(len, lines)) <= columns
    blocks = [block.splitlines() for block in "\n".join(lines).split("\n\n")]
    assert (len(blocks) == 1) == (columns == 200)
    assert [name for block in blocks for name in block[0].split()] == names
    for i, row in enumerate(rows):
        assert all(block[i + 1].startswith(row) for block in blocks)
        assert [cell for block in blocks for cell in block[i + 1][len(row) :].split()] == [cell for cell in cells[i] if cell]


def test_long_lines_are_broken_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    assert wrapped("  name: model.layers.1.mlp:12, model.layers.2.mlp:7") == [
        "  name: model.layers.1.mlp:12,",
        "    model.layers.2.mlp:7",
    ]


def test_a_folder_that_is_not_there_or_lacks_a_stage(run: Run) -> None:
    assert opened_run(run, print, "plan") is run
    with pytest.raises(UserError, match="there is no run folder nowhere"):
        opened_run("nowhere", print, "plan")
    with pytest.raises(UserError, match="holds no result of the stage 'prune'"):
        opened_run(run, print, "prune")
