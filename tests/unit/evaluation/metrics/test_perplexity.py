"""Perplexity and KL against cross-entropy and `kl_div` of torch on the untouched forward, document by document."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fairprune_framework.evaluation.metrics.perplexity import language_cost, perplexity
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
    assert found.perplexity_before == pytest.approx(math.exp(sum(before) / sum(TOKENS)), rel=1e-5)
    assert found.perplexity_after == pytest.approx(math.exp(sum(after) / sum(TOKENS)), rel=1e-5)
    assert found.increase == pytest.approx(math.exp((sum(after) - sum(before)) / sum(TOKENS)) - 1, rel=1e-4)
    kl = sum(
        nn.functional.kl_div(log_p(other, ids), log_p(model, ids), reduction="sum", log_target=True).item() for ids in DOCUMENTS
    )
    assert found.kl == pytest.approx(kl / sum(TOKENS), rel=1e-4)
    assert (found.tokens, found.tokens_by_document) == (sum(TOKENS), tuple(TOKENS))
    np.testing.assert_allclose([loss.nll for loss in found.losses], [before, after], rtol=1e-5)
    assert [loss.perplexity for loss in found.losses] == pytest.approx([found.perplexity_before, found.perplexity_after])


def test_against_itself_changed() -> None:
    model: Any = tiny_model("llama")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight[:, [3, 4]] = 0
    architecture = recognise(model)
    found = language_cost(model, DOCUMENTS, change=lambda: masked(model, architecture, {"model.layers.0.mlp": (3, 4)}))
    expected = language_cost(model, DOCUMENTS, other=other)
    assert found.perplexity_after == pytest.approx(expected.perplexity_after, rel=1e-5)
    assert found.kl == pytest.approx(expected.kl, rel=1e-3)
    assert found.perplexity_before == expected.perplexity_before


def test_a_model_alone() -> None:
    model: Any = tiny_model("gemma2")
    assert perplexity(model, DOCUMENTS) == pytest.approx(math.exp(sum(losses(model)) / sum(TOKENS)), rel=1e-5)
    with masked(model, recognise(model), {"model.layers.0.mlp": tuple(range(20))}):
        assert perplexity(model, DOCUMENTS) != pytest.approx(
            math.exp(sum(losses(tiny_model("gemma2"))) / sum(TOKENS)), rel=1e-4
        )


def test_nothing_changed_is_exactly_nothing() -> None:
    model: Any = tiny_model("llama")
    found = language_cost(model, DOCUMENTS)
    assert (found.increase, found.kl) == (0.0, 0.0)
    assert found.nll_before == found.nll_after
