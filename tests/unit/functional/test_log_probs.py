"""Log probabilities of tokens and divergences, against numpy in float64 and scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import entropy

from fairprune_framework.functional.divergence import kl_divergence
from fairprune_framework.functional.log_probs import log_probs, token_log_probs

LOGITS = np.random.default_rng(0).normal(scale=8, size=(3, 5, 40))
TOKENS = np.random.default_rng(1).integers(0, 40, size=(3, 5))
EXPECTED = np.take_along_axis(log_softmax(LOGITS, -1), TOKENS[..., None], -1)[..., 0]


@pytest.mark.parametrize(("dtype", "wide"), [(torch.float64, torch.float64), (torch.float32, torch.float32)])
def test_log_probs_of_tokens(dtype: torch.dtype, wide: torch.dtype) -> None:
    found = log_probs(torch.tensor(LOGITS, dtype=dtype), torch.tensor(TOKENS))
    assert found.dtype == wide
    np.testing.assert_allclose(found.numpy(), EXPECTED, rtol=1e-5 if wide == torch.float32 else 1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_before_it_is_normalised(dtype: torch.dtype) -> None:
    logits, tokens = torch.tensor(LOGITS).to(dtype), torch.tensor(TOKENS)
    found = log_probs(logits, tokens)
    assert found.dtype == torch.float32
    exact = np.take_along_axis(log_softmax(logits.double().numpy(), -1), TOKENS[..., None], -1)[..., 0]
    np.testing.assert_allclose(found.numpy(), exact, rtol=1e-5)


def test_gradients_are_those_of_autograd_on_the_plain_formula() -> None:
    logits = torch.tensor(LOGITS, requires_grad=True)
    (found,) = torch.autograd.grad(log_probs(logits, torch.tensor(TOKENS)).sum(), logits)
    expected = np.eye(40)[TOKENS] - np.exp(log_softmax(LOGITS, -1))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)


def test_kl_divergence_and_its_zero() -> None:
    log_p, log_q = (torch.log_softmax(torch.tensor(logits), -1) for logits in (LOGITS, LOGITS[::-1].copy()))
    np.testing.assert_allclose(kl_divergence(log_p, log_q).numpy(), entropy(log_p.exp(), log_q.exp(), axis=-1), rtol=1e-10)
    assert kl_divergence(log_p, log_p).abs().max() == 0
    assert torch.equal(token_log_probs(log_p, torch.tensor(TOKENS)), log_probs(torch.tensor(LOGITS), torch.tensor(TOKENS)))
