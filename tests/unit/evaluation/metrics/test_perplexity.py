"""Perplexity and KL against cross-entropy and `kl_div` of torch on the untouched forward, document by document."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fairprune_framework.errors import FairpruneError
from fairprune_framework.evaluation.metrics.perplexity import TextLoss, language_cost, perplexity_change, text_loss, windows_of
from fairprune_framework.models.architecture import recognise
from fairprune_framework.surgery.masking import masked
from fairprune_framework.testing.tiny import tiny_model

GENERATOR = torch.Generator().manual_seed(0)
DOCUMENTS = [torch.randint(3, 300, (length,), generator=GENERATOR).tolist() for length in (2, 9, 30, 17, 17, 5, 24)]
"""More than one forward's, and all of other lengths: padding must not count."""


@torch.no_grad()
def log_p(model: Any, ids: list[int]) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    return found


def losses(model: Any) -> list[float]:
    return [nn.functional.nll_loss(log_p(model, ids), torch.tensor(ids[1:]), reduction="sum").item() for ids in DOCUMENTS]


TOKENS = [len(ids) - 1 for ids in DOCUMENTS]


def test_against_another_model() -> None:
    model: Any = tiny_model("llama")
    other: Any = tiny_model("llama", seed=1)
    found = language_cost(model, DOCUMENTS, other=other)
    before, after = losses(model), losses(other)
    assert found.before.perplexity == pytest.approx(math.exp(sum(before) / sum(TOKENS)), rel=1e-5)
    assert found.after.perplexity == pytest.approx(math.exp(sum(after) / sum(TOKENS)), rel=1e-5)
    assert found.increase == pytest.approx(math.exp((sum(after) - sum(before)) / sum(TOKENS)) - 1, rel=1e-4)
    kl = sum(
        nn.functional.kl_div(log_p(other, ids), log_p(model, ids), reduction="sum", log_target=True).item() for ids in DOCUMENTS
    )
    assert found.kl == pytest.approx(kl / sum(TOKENS), rel=1e-4)
    assert found.before.tokens == found.after.tokens == tuple(TOKENS)
    np.testing.assert_allclose([found.before.nll, found.after.nll], [before, after], rtol=1e-5)


def test_against_itself_changed() -> None:
    model: Any = tiny_model("llama")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight[:, [3, 4]] = 0
    architecture = recognise(model)
    found = language_cost(model, DOCUMENTS, change=lambda: masked(model, architecture, {"model.layers.0.mlp": (3, 4)}))
    expected = language_cost(model, DOCUMENTS, other=other)
    assert found.after.nll == pytest.approx(expected.after.nll, rel=1e-5)
    assert found.kl == pytest.approx(expected.kl, rel=1e-3)
    assert found.before == expected.before


@pytest.mark.parametrize("max_tokens", [1, 64, 4096])
def test_a_model_alone_in_forwards_of_any_size(max_tokens: int) -> None:
    model: Any = tiny_model("gemma2")
    found = text_loss(model, DOCUMENTS, max_tokens)
    np.testing.assert_allclose(found.nll, losses(model), rtol=1e-5)
    assert found.tokens == tuple(TOKENS)
    assert found.perplexity == pytest.approx(math.exp(sum(losses(model)) / sum(TOKENS)), rel=1e-5)
    with masked(model, recognise(model), {"model.layers.0.mlp": tuple(range(20))}):
        assert text_loss(model, DOCUMENTS, max_tokens).perplexity != pytest.approx(found.perplexity, rel=1e-4)


@pytest.mark.parametrize("max_tokens", [1, 64])
def test_one_loss_whatever_it_is_asked_for(max_tokens: int) -> None:
    model: Any = tiny_model("llama")
    other: Any = tiny_model("llama", seed=1)
    cost = language_cost(model, DOCUMENTS, other=other, max_tokens=max_tokens)
    assert cost.before == text_loss(model, DOCUMENTS, max_tokens)
    assert cost.after == text_loss(other, DOCUMENTS, max_tokens)


def test_a_long_document_is_summed_in_parts() -> None:
    model: Any = tiny_model("llama")
    ids = torch.randint(3, 300, (600,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.no_grad():
        expected = nn.functional.nll_loss(log_p(model, ids), torch.tensor(ids[1:]), reduction="sum").item()
    assert text_loss(model, [ids]).nll[0] == pytest.approx(expected, rel=1e-6)


def test_damage_is_named() -> None:
    model: Any = tiny_model("llama")
    model.get_output_embeddings().register_forward_hook(lambda _module, _args, out: out * float("nan"))
    with pytest.raises(FairpruneError, match="NaN or Inf"):
        text_loss(model, DOCUMENTS)


def test_nothing_changed_is_exactly_nothing() -> None:
    model: Any = tiny_model("llama")
    found = language_cost(model, DOCUMENTS)
    assert (found.increase, found.kl) == (0.0, 0.0)
    assert found.before == found.after


def test_windows_share_nothing_and_lose_at_most_one_token() -> None:
    ids = list(range(103))
    for size in (2, 10, 17, 102, 103, 500):
        found = windows_of(ids, size)
        joined = [token for window in found for token in window]
        assert joined == ids[: len(joined)]
        assert len(ids) - len(joined) == (1 if len(ids) % size == 1 else 0)
        assert {len(window) for window in found[:-1]} <= {size}
    assert windows_of([5]) == windows_of([]) == []


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
