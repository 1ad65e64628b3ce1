"""Several scorers from one audit: their numbers are those of runs of their own, and their ranks are compared."""

from __future__ import annotations

import json

import pytest
import torch
from scipy.stats import spearmanr

import fairprune_framework as fp
from fairprune_framework import discovery
from fairprune_framework.analysis.scorers import render
from fairprune_framework.errors import UserError
from fairprune_framework.runs.run import Run
from fairprune_framework.testing.planted import Planted


def test_ranks_are_those_of_runs_of_their_own(run: Run, case: Planted) -> None:
    found = fp.score_many(run, ["attribution", "variance"], top=12)
    assert found["scorers"] == ["attribution", "variance"]
    own = run.read_scores()
    other = fp.score(
        fp.audit(model=case.model, tokenizer=case.tokenizer, prompts=case.contrasts, bias="variance", budget="4/layer")
    ).read_scores()
    joined = [torch.cat([scores.bias[name] for name in sorted(scores.bias)]).numpy() for scores in (own, other)]
    assert found["rank_correlation"][0][1] == pytest.approx(spearmanr(*joined).statistic, abs=1e-3)
    planted = {(site, int(unit)) for site, units in case.planted.items() for unit in units}
    assert {(each["site"], each["unit"]) for each in found["top"]["attribution"]} == planted
    assert json.loads((run.folder / "scorers.json").read_text()) == found


def test_all_that_are_installed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found = fp.score_many(run)
    names = [entry.name for entry in discovery.entries("bias")]
    assert sorted([*found["scorers"], *found["skipped"]]) == names
    assert set(found["skipped"]) <= {"specificity"}
    assert len(found["rank_correlation"]) == len(found["scorers"]) >= 18
    text = render(found)
    assert all(name in text for name in names)
    assert max(map(len, text.split("\n"))) <= 80


def test_what_cannot_be_asked(run: Run) -> None:
    with pytest.raises(UserError, match="Did you mean 'variance'"):
        fp.score_many(run, ["varience"])
    with pytest.raises(UserError, match="at least 1"):
        fp.score_many(run, ["variance"], top=0)
