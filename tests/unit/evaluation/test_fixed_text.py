"""Perplexity of a text in windows against cross-entropy of the untouched forward."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from fairprune_framework.evaluation.fixed_text import TextLoss, perplexity_change, text_loss, windows_of
from fairprune_framework.testing.tiny import tiny_model

IDS = torch.randint(3, 300, (103,), generator=torch.Generator().manual_seed(0)).tolist()


@torch.no_grad()
def nll(model: Any, window: tuple[int, ...]) -> float:
    logits = model(input_ids=torch.tensor([window])).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(window[1:]), reduction="sum").item()


def test_windows_share_nothing_and_lose_at_most_one_token() -> None:
    for size in (2, 10, 17, 102, 103, 500):
        found = windows_of(IDS, size)
        joined = [token for window in found for token in window]
        assert joined == IDS[: len(joined)]
        assert len(IDS) - len(joined) == (1 if len(IDS) % size == 1 else 0)
        assert {len(window) for window in found[:-1]} <= {size}
    assert windows_of([5]) == windows_of([]) == []


@pytest.mark.parametrize("max_tokens", [1, 64, 4096])
def test_the_loss_is_the_models_cross_entropy(max_tokens: int) -> None:
    model: Any = tiny_model("llama")
    windows = windows_of(IDS, 20)
    found = text_loss(model, windows, max_tokens)
    np.testing.assert_allclose(found.nll, [nll(model, window) for window in windows], rtol=1e-5)
    assert found.tokens == (19, 19, 19, 19, 19, 2)
    assert found.perplexity == pytest.approx(math.exp(sum(found.nll) / 97))


def test_beyond_all_numbers() -> None:
    assert TextLoss(nll=(800.0,), tokens=(1,)).perplexity == math.inf
    assert TextLoss(nll=(0.0, 0.0), tokens=(1, 5)).perplexity == 1.0


def test_the_change_is_of_the_pooled_perplexity() -> None:
    rng = np.random.default_rng(0)
    tokens = tuple(rng.integers(5, 50, 40).tolist())
    before = TextLoss(nll=tuple(rng.gamma(9, 0.3, 40) * tokens), tokens=tokens)
    after = TextLoss(nll=tuple(np.array(before.nll) + math.log(1.2) * np.array(tokens)), tokens=tokens)
    found = perplexity_change(before, after)
    assert (found.before, found.after) == pytest.approx((before.perplexity, after.perplexity))
    assert found.change is not None
    assert found.change.value == pytest.approx(0.2)  # every window by 20 %: the interval has no width
    assert (found.change.low, found.change.high) == pytest.approx((0.2, 0.2))
    assert found.clusters == 40
