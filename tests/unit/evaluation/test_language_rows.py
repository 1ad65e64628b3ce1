"""Rows of perplexity and of KL to the original."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from fairprune_framework.evaluation.language_rows import language_rows
from fairprune_framework.evaluation.metrics.perplexity import TextLoss

RNG = np.random.default_rng(0)


def losses(factor: float) -> tuple[TextLoss, TextLoss]:
    tokens = tuple(RNG.integers(5, 50, 30).tolist())
    nll = RNG.gamma(9, 0.3, 30) * tokens
    after = nll + (math.log(factor) + RNG.normal(0, 0.02, 30)) * tokens
    return TextLoss(nll=tuple(nll), tokens=tokens), TextLoss(nll=tuple(after), tokens=tokens)


def test_perplexity_and_its_cost() -> None:
    before, after = losses(1.1)
    row, kl = language_rows(before, after, 0.02, seed=0)
    assert (row.before, row.after) == (before.perplexity, after.perplexity)
    assert row.change == pytest.approx(after.perplexity / before.perplexity - 1)
    assert row.ci_low is not None
    assert row.ci_high is not None
    assert row.ci_low < 0.1 < row.ci_high
    assert (kl.metric, kl.after, kl.n) == ("kl-to-original", 0.02, 30)
    (alone,) = language_rows(before, None, None, seed=0)
    assert (alone.before, alone.after) == (before.perplexity, None)
    assert len(language_rows(before, after, None, seed=0)) == 1


def test_infinity_becomes_null() -> None:
    row = language_rows(TextLoss(nll=(9000.0,), tokens=(1,)), None, None, seed=0)[0]
    assert row.before == math.inf
    assert row.to_json()["before"] is None
    json.dumps(row.to_json(), allow_nan=False)
