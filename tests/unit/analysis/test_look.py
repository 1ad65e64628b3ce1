"""A look at finished scores: the neurons, the neighbours among the scorers, and what masking does; nothing is audited or written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr

import fairprune_framework as fp
from fairprune_framework.analysis.look import render
from fairprune_framework.errors import UserError
from fairprune_framework.runs.run import Run
from fairprune_framework.testing.planted import Planted


def test_the_planted_neurons_are_shown_and_matter(run: Run, case: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairprune_framework.analysis.scorers.audit", None)
    files = {path.name: path.stat().st_mtime_ns for path in Path(run.folder).iterdir()}
    found = fp.look(run, top=12, budget=12)
    planted = {(site, unit) for site, units in case.planted.items() for unit in units}
    assert {(each["site"], each["unit"]) for each in found["top"]} == planted
    assert [each["score"] for each in found["top"]] == sorted((each["score"] for each in found["top"]), reverse=True)
    assert found["masked"] < -0.9  # they carry at least 96 % of the divergence
    assert abs(found["random"]) < 0.5
    assert {path.name: path.stat().st_mtime_ns for path in Path(run.folder).iterdir()} == files


def test_scorers_that_the_audit_serves_stand_beside(case: Planted) -> None:
    run = fp.score(
        fp.audit(model=case.model, tokenizer=case.tokenizer, prompts=case.contrasts, bias="eta-squared", budget="4/layer")
    )
    found = fp.look(run, budget=12)
    assert set(found["others"]) == {"d-prime"}  # of the same sums
    other = fp.score(run, bias="d-prime", overwrite=True).read_scores()
    own = fp.score(run, bias="eta-squared", overwrite=True).read_scores()
    joined = [torch.cat([scores.bias[name] for name in sorted(scores.bias)]).numpy() for scores in (own, other)]
    assert found["others"]["d-prime"]["rank_correlation"] == pytest.approx(spearmanr(*joined).statistic, abs=1e-9)
    best = [set(values.argsort()[-12:]) for values in joined]
    assert found["others"]["d-prime"]["overlap"] == pytest.approx(len(best[0] & best[1]) / 12)
    text = render(found)
    assert "d-prime" in text
    assert "only held-out ones, in a run, can say whether it helps" in text


def test_what_cannot_be_asked(run: Run) -> None:
    with pytest.raises(UserError, match="at least 1 neuron"):
        fp.look(run, budget=0)


def test_on_the_command_line(fairprune: Any, finished: Path) -> None:
    answer = fairprune("score", finished, "--look", "--quiet")
    assert answer.code == 0, answer.err
    assert answer.out.startswith("fairprune_framework:variance: the highest neurons")
    answer = fairprune("score", finished, "--look", "--json", "--quiet")
    assert json.loads(answer.out)["format"] == "fairprune-look/1"
