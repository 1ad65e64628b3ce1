"""log p of continuations against lm-eval's own model class, shared contexts and single ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM

from fairprune_framework.evaluation.metrics.continuations import Request, score, shares, tokens_of
from fairprune_framework.testing.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def requests(size: int) -> list[Request]:
    """Questions of several lengths, each with choices of one to five tokens; one choice alone; one request twice."""
    draw = torch.Generator().manual_seed(1)
    found: list[Request] = []
    for length in (1, 3, 9, 17, 30):
        context = tuple(torch.randint(0, size, (length,), generator=draw).tolist())
        for choice in (1, 2, 5, 3):
            found.append((context, tuple(torch.randint(0, size, (choice,), generator=draw).tolist())))
    return [*found, found[6], ((1, 2, 3, 4, 5, 6, 7, 8, 9), (10, 11))]


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "qwen3"])
@pytest.mark.parametrize("max_tokens", [16, 512])
def test_the_same_answers_as_lm_eval(family: str, max_tokens: int, tokenizer: Any) -> None:
    model = tiny_model(family).eval()
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
    asked = requests(model.config.get_text_config().vocab_size)
    expected = lm._loglikelihood_tokens([(("", ""), list(a), list(b)) for a, b in asked], disable_tqdm=True)
    found = score(model, asked, max_tokens)
    np.testing.assert_allclose([v for v, _ in found], [v for v, _ in expected], rtol=2e-5, atol=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_greedy_continuations_are_seen(tokenizer: Any) -> None:
    model = tiny_model("llama").eval()
    context = torch.arange(5, 17).unsqueeze(0)
    chosen = model.generate(context, max_new_tokens=3, do_sample=False, pad_token_id=0)[0, 12:].tolist()
    other = [(chosen[0] + 1) % 50, *chosen[1:]]
    ids = tuple(context[0].tolist())
    assert [greedy for _, greedy in score(model, [(ids, tuple(chosen)), (ids, tuple(other))])] == [True, False]


def test_a_context_is_computed_once() -> None:
    assert shares(tiny_model("llama"))
    context = tuple(range(20))
    asked: list[Request] = [(context, (1, 2, 3)), (context, (4, 5)), (context, (6,))]
    assert tokens_of(asked) == 20 + 2 + 1
    assert tokens_of(asked, shared=False) == 22 + 21 + 20


def test_a_model_that_cannot_share_is_asked_one_by_one() -> None:
    model = tiny_model("llama").eval()
    forward = model.forward

    def plain(input_ids: Any, attention_mask: Any = None, use_cache: bool = False) -> Any:
        assert attention_mask is None or attention_mask.dim() == 2
        return forward(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    asked = requests(100)
    expected = score(model, asked)
    del model._fairprune_shares_contexts
    model.forward = plain
    assert not shares(model)
    np.testing.assert_allclose([v for v, _ in score(model, asked)], [v for v, _ in expected], rtol=2e-5)
