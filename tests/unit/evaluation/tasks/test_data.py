"""Suites, limits and items: what runs, on which items, and what is missing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from fairprune_framework.errors import UnknownName, UserError
from fairprune_framework.evaluation.tasks.data import (
    LOCAL,
    SUITES,
    check_data,
    drawn,
    files_of,
    limits_of,
    read_items,
    tasks_of,
)


def test_items_are_drawn_once_and_by_stratum(data: Path) -> None:
    few, more = read_items("bbq", data, 3), read_items("bbq", data, 5)
    assert set(few.ids) < set(more.ids)
    assert read_items("bbq", data, 3) == few
    counts: dict[tuple[str, str], int] = {}
    for row in few.rows:
        key = (row["category"], row["context_condition"])
        counts[key] = counts.get(key, 0) + 1
    assert counts == {(category, context): 3 for category in ("Age", "Religion") for context in ("ambig", "disambig")}
    assert drawn(["a"] * 5, None, "x") == [0, 1, 2, 3, 4]


def test_names_and_limits() -> None:
    assert tasks_of(["capability", "winogender,boolq"]) == ["lambada_openai", "boolq", "wikitext", "winogender_all"]
    assert limits_of("7", ["a", "b"]) == {"a": 7, "b": 7}
    for bad in ("x", "0", "a=", "-1"):
        with pytest.raises(UserError, match="must be a number"):
            limits_of(bad, ["a"])
    with pytest.raises(UnknownName, match="Did you mean 'boolq'"):
        limits_of("bolq=3", ["boolq"])


def test_what_is_missing_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"are absent: put .*nyu-mll/BBQ.* into .*bbq"):
        check_data(["bbq"], tmp_path)
    with pytest.raises(UserError, match="no folder"):
        check_data(["bbq"], tmp_path / "none")
    with pytest.raises(UserError, match="knows no layout for the task 'arc_easy'"):
        check_data(["arc_easy"], data)


def test_a_limit_is_a_prefix_of_every_larger_one_in_each_stratum() -> None:
    strata = [f"s{i % 3}" for i in range(60)]
    everything = {limit: set(drawn(strata, limit, "x")) for limit in (1, 4, 20)}
    assert everything[1] < everything[4] < everything[20] == set(range(60))
    assert Counter(strata[i] for i in everything[4]) == {"s0": 4, "s1": 4, "s2": 4}
    assert drawn(strata, 4, "x") == sorted(everything[4])
    assert drawn(strata, 4, "y") != drawn(strata, 4, "x")


def test_items_are_spread_over_the_whole_set() -> None:
    """A draw by hash is uniform: places of 200 of 2,000 have the mean of all, within four standard errors."""
    places = drawn(["one"] * 2000, 200, "x")
    assert abs(sum(places) / 200 - 999.5) < 4 * (2000**2 / 12 / 200) ** 0.5


def test_every_task_of_a_suite_has_a_layout(data: Path) -> None:
    for suite, tasks in SUITES.items():
        assert tasks_of(suite) == list(tasks)
        check_data(tasks, data)
        for task in tasks:
            assert len(read_items(task, data, None).rows) == len(read_items(task, data, None).ids) > 5
    check_data(["anything"], None)


def test_the_hash_is_of_all_files_of_a_task(data: Path) -> None:
    import hashlib

    joined = b"".join(path.read_bytes() for path in sorted((data / "bbq").glob("*.jsonl")))
    assert read_items("bbq", data, 2).sha256 == hashlib.sha256(joined).hexdigest()
    assert [path.name for path in files_of(LOCAL["bbq"], data)] == ["Age.jsonl", "Religion.jsonl"]


def test_an_item_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "boolq").mkdir()
    (tmp_path / "boolq" / "x.jsonl").write_text('{"question": "a", "passage": "b", "label": 1}\n{broken\n')
    with pytest.raises(UserError, match=r"x\.jsonl, line 2: not JSON"):
        read_items("boolq", tmp_path, None)


@pytest.mark.parametrize("missing", ["question", "passage", "label"])
def test_a_missing_field_is_named_before_anything_runs(missing: str, tmp_path: Path) -> None:
    (tmp_path / "boolq").mkdir()
    item = {"question": "a", "passage": "b", "label": 1}
    lines = [item, {name: value for name, value in item.items() if name != missing}]
    (tmp_path / "boolq" / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=rf"x.jsonl, line 2: the field '{missing}' is missing"):
        check_data(["boolq"], tmp_path)
