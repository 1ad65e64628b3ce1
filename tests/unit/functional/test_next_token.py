"""Margins, valences and odds against numpy on the full distributions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairprune_framework.functional.next_token import expected_valence, legitimate_margin, log_odds, log_probability_of

LOGITS = np.random.default_rng(0).normal(size=(3, 11)) * 2
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
LOG_PROBS = torch.tensor(LOGITS).log_softmax(1)


def test_the_margin_by_hand() -> None:
    right = [(0, 3), (5,), (7, 8, 9)]
    expected = []
    for v, tokens in enumerate(right):
        of_right = np.log(PROBABILITIES[:, list(tokens)].sum(1))
        expected.append(of_right[v] - np.mean([of_right[u] for u in range(3) if u != v]))
    assert legitimate_margin(LOG_PROBS, right) == pytest.approx(np.mean(expected), rel=1e-12)


def test_a_model_that_cannot_tell_the_variants_apart_has_no_margin() -> None:
    same = LOG_PROBS[:1].expand(3, -1)
    assert legitimate_margin(same, [(0,), (1,), (2,)]) == pytest.approx(0, abs=1e-12)


@given(st.floats(0.2, 5.0))
def test_temperature_moves_the_margin_of_two_variants_with_the_logits(factor: float) -> None:
    """With two words, a margin is a difference of logits, so that a temperature divides it."""
    logits = torch.tensor([[1.0, -0.5], [-2.0, 0.25]], dtype=torch.float64)
    sharp = legitimate_margin(logits.log_softmax(1), [(0,), (1,)])
    scaled = legitimate_margin((logits / factor).log_softmax(1), [(0,), (1,)])
    assert np.sign(scaled) == np.sign(sharp)
    assert (abs(scaled) < abs(sharp)) == (factor > 1) or factor == pytest.approx(1)


@pytest.mark.parametrize("right", [[(0,), (1,)], [(0,), (), (1,)], [(0,)]])
def test_every_variant_needs_right_tokens(right: list[tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="right tokens for each of 3 variants"):
        legitimate_margin(LOG_PROBS, right)


def test_valence_and_odds_by_hand() -> None:
    valence = np.array([0, 1.5, 0, -2, 0, 0, 0, 0, 0.25, 0, 0])
    expected = PROBABILITIES @ valence
    np.testing.assert_allclose(expected_valence(LOG_PROBS, torch.tensor(valence)).numpy(), expected, rtol=1e-12)
    yes, no = (1, 2), (4,)
    expected = np.log(PROBABILITIES[:, yes].sum(1)) - np.log(PROBABILITIES[:, no[0]])
    np.testing.assert_allclose(log_odds(LOG_PROBS, yes, no).numpy(), expected, rtol=1e-12)


def test_what_is_added_up_is_added_up_in_float64() -> None:
    narrow = LOG_PROBS.to(torch.bfloat16)
    exact = narrow.double().exp()
    summed = log_probability_of(narrow, (0, 3, 7))
    assert summed.dtype == torch.float64
    torch.testing.assert_close(summed, exact[:, [0, 3, 7]].sum(1).log(), rtol=1e-12, atol=0)
    valence = torch.zeros(11)
    valence[[2, 5]] = torch.tensor([0.1, -0.3])
    found = expected_valence(narrow, valence)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, exact[:, [2, 5]] @ valence[[2, 5]].double(), rtol=1e-12, atol=0)
    assert expected_valence(narrow, torch.zeros(11)).tolist() == [0.0] * 3
    assert log_odds(narrow, (0,), (0,)).tolist() == [0.0] * 3


def test_the_margin_of_two_variants_by_hand() -> None:
    """After the first, its word has 1/2 and 1/8 after the other; the other word 1/4 and 1/16 after the first."""
    p = torch.tensor([[1 / 2, 1 / 16, 7 / 16], [1 / 8, 1 / 4, 5 / 8]], dtype=torch.float64)
    assert legitimate_margin(p.log(), [(0,), (1,)]) == pytest.approx(np.log(4))
    with pytest.raises(ValueError, match=r"right tokens for each of 1 variants. Got \[1\]"):
        legitimate_margin(p[:1].log(), [(0,)])
