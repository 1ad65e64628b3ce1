"""Units that categories share, against sets and scipy."""

from __future__ import annotations

import json

import pytest
from scipy.stats import hypergeom

import fairprune_framework as fp
from fairprune_framework.analysis.overlap import render
from fairprune_framework.runs.run import Run


def test_overlap_against_sets_and_scipy(run: Run) -> None:
    found = fp.overlap(run)
    assert found == json.loads((run.folder / "overlap.json").read_text())
    scores = run.read_scores()
    sets = {}
    for category in found["categories"]:
        flat = {(n, i): v for n, values in scores.by_category[category].items() for i, v in enumerate(values.tolist()) if v > 0}
        sets[category] = set(sorted(flat, key=lambda at: (-flat[at], at))[:12])
    assert found["population"] == sum(site.units for site in scores.sites.values())
    for i, a in enumerate(found["categories"]):
        for j, b in enumerate(found["categories"]):
            shared = len(sets[a] & sets[b])
            assert found["counts"][i][j] == shared
            if i != j:
                expected = hypergeom(found["population"], len(sets[a]), len(sets[b])).sf(shared - 1)
                assert found["p_values"][i][j] == pytest.approx(expected)
                assert found["p_adjusted"][i][j] >= found["p_values"][i][j]
            else:
                assert found["p_values"][i][i] is None


def test_as_text() -> None:
    answer = {
        "categories": ["age", "race"],
        "population": 12345,
        "counts": [[9, 3], [3, 9]],
        "p_adjusted": [[None, 0.05], [0.05, None]],
    }
    head, _, names, *rows = render(answer).splitlines()
    assert "of 12,345" in head
    assert names.split() == ["age", "race"]
    assert [row.split() for row in rows] == [["age", "9", "3*"], ["race", "3*", "9"]]
    answer["p_adjusted"] = [[None, 0.051], [0.051, None]]
    assert "*" not in "".join(render(answer).splitlines()[1:])
