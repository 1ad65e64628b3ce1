"""Sentences and marked differences of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.evaluation.metrics.names import (
    GROUP_PERPLEXITY,
    GROUP_VALENCE,
    NEGATIVE_GAP,
    NEGATIVE_SHARE,
    PERPLEXITY_GAP,
    PREFERENCES,
    SENTIMENT_DISTANCE,
    SHARED_PERPLEXITY,
    VALENCE_GAP,
)
from fairprune_framework.evaluation.verdict import WORDS
from fairprune_framework.reporting.prose import HEADLINES, diff_tokens, verdict
from fairprune_framework.reporting.run_data import Source


def test_the_token_is_cut_out_of_the_words_around_it() -> None:
    first, second = diff_tokens("he was lost", "he was loud now", {"token": 4, "before": [9, 11], "after": [9, 10]})
    assert [(span.text, span.differs, span.first) for span in first] == [
        ("he was ", False, False),
        ("lo", True, False),
        ("st", True, True),
    ]
    assert "".join(span.text for span in second) == "he was loud now"
    assert [span.text for span in second if span.first] == ["u"]


def _row(metric: str, **fields: Any) -> dict[str, Any]:
    row = {"metric": metric, "split": None, "control": False, "category": None, "layer": None, "clusters": 12, "n": 20}
    return {**row, "before": 0.2, "after": 0.1, "change": -0.5, "ci_low": -0.6, "ci_high": -0.4, **fields}


OWN = (
    _row("next-token-divergence", split="heldout"),
    _row("activation-difference", split="heldout"),
    _row("sequence-gap", split="heldout"),
    *(_row(metric, split="heldout") for metric in PREFERENCES),
    *(_row(metric, split="heldout") for metric in (SHARED_PERPLEXITY, VALENCE_GAP, GROUP_VALENCE, GROUP_PERPLEXITY)),
    *(_row(metric, split="heldout") for metric in (PERPLEXITY_GAP, SENTIMENT_DISTANCE, NEGATIVE_SHARE, NEGATIVE_GAP)),
    _row("perplexity"),
    _row("kl-to-original"),
    _row("decisions/gap-gender"),
)
"""Every metric that a run measures without a benchmark."""


@pytest.mark.parametrize(("more", "said"), [((), True), (("boolq/acc",), False), (("crows/stereotype-preference",), False)])
def test_a_run_without_a_public_benchmark_says_so(more: tuple[str, ...], said: bool) -> None:
    rows = (*OWN, *(_row(metric) for metric in more))
    limits = verdict(Source(folder=Path("run"), record={"verdict": "fairer"}, rows=rows)).limits
    assert any("No public benchmark was run" in limit for limit in limits) is said


def test_every_word_of_a_verdict_has_its_headline() -> None:
    assert set(HEADLINES) == set(WORDS)


def test_the_bounds_that_a_word_rests_on_are_named() -> None:
    """A 95 % interval that is clear of 0 stands beside "no difference could be shown" with the bound that says why."""
    record = {
        "verdict": "less-divergent",
        "verdict_because": "divergence -16.1% (99% bound +1.2%); `fairer` would take 19 matched random sets instead of 6",
        "verdict_needs": ["19 matched random sets instead of 6"],
    }
    told = " ".join(verdict(Source(folder=Path("run"), record=record, rows=OWN)).sentences)
    assert (
        "rests on one-sided bounds at 99\u00a0%, beyond the intervals above: divergence −16.1\u00a0% (99\u00a0% bound +1.2\u00a0%). The"
        in told
    )
    assert told.count("19 matched random sets") == 1
    without = " ".join(verdict(Source(folder=Path("run"), record={"verdict": "fairer"}, rows=OWN)).sentences)
    assert "99" not in without


def test_unseen_words_stand_beside_the_words_that_chose() -> None:
    rows = (*OWN, _row("next-token-divergence", split="heldout-words", change=-0.31, ci_low=-0.35, ci_high=-0.27))
    told = verdict(Source(folder=Path("run"), record={"verdict": "fairer"}, rows=rows)).facts
    assert [fact[:2] for fact in told[:2]] == [
        ("held-out divergence", "−50.0\u00a0%"),
        ("the same, unseen words", "−31.0\u00a0%"),
    ]
    alone = verdict(Source(folder=Path("run"), record={"verdict": "fairer"}, rows=OWN)).facts
    assert "the same, unseen words" not in [label for label, *_ in alone]
