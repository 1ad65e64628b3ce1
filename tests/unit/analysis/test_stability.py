"""How often resampled templates choose the planted neurons."""

from __future__ import annotations

import numpy as np
import pytest

import fairprune_framework as fp
from fairprune_framework.analysis.stability import render
from fairprune_framework.errors import UserError
from fairprune_framework.runs.run import Run
from fairprune_framework.testing.planted import Planted


def test_stability_of_planted_neurons(run: Run, case: Planted) -> None:
    found = fp.stability(run, replicates=20)
    assert found["planned"] == 12
    assert 0.5 < found["mean_frequency"] <= 1
    every = {(each["site"], each["unit"]): each["frequency"] for each in found["units"]}
    planted = [every.get((site, unit), 0.0) for site, units in case.planted.items() for unit in units]
    assert np.mean(planted) > 0.5
    assert sum(every.values()) == pytest.approx(12)  # each replicate chooses 12
    with pytest.raises(UserError, match="at least 2"):
        fp.stability(run, replicates=1)


def test_the_seed_alone_decides(run: Run) -> None:
    assert fp.stability(run, replicates=4) == fp.stability(run, replicates=4)


def test_as_text() -> None:
    answer = {"planned": 12, "stable_75": 5, "replicates": 40, "mean_frequency": 0.613, "mean_jaccard": 0.204}
    assert "of 12 planned neurons, 5 are selected by at least 75 % of 40 replicates" in " ".join(render(answer).split())
    assert "61%" in render(answer)
    assert render({"planned": 0}) == "the plan is empty: there is no stability to measure"
