"""Log probabilities of tokens against scipy and torch's own cross-entropy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from fairprune_framework.functional.log_probs import log_probs, token_log_probs


def drawn(*shape: int) -> torch.Tensor:
    return 4 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4)])
def test_against_scipy(shape: tuple[int, ...]) -> None:
    logits = drawn(*shape, 11)
    tokens = torch.randint(0, 11, shape, generator=torch.Generator().manual_seed(1))
    expected = np.take_along_axis(log_softmax(logits.numpy(), -1), tokens.numpy()[..., None], -1)[..., 0]
    found = log_probs(logits, tokens)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_it_is_the_cross_entropy_that_models_are_trained_on() -> None:
    logits, tokens = drawn(9, 11).float(), torch.arange(9)
    expected = torch.nn.functional.cross_entropy(logits, tokens, reduction="none")
    torch.testing.assert_close(-log_probs(logits, tokens), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_narrow_logits_are_widened_first(dtype: torch.dtype) -> None:
    logits = drawn(5, 400).to(dtype)
    found = log_probs(logits, torch.arange(5))
    assert found.dtype == torch.float32
    assert found.equal(log_probs(logits.float(), torch.arange(5)))


def test_large_logits_do_not_overflow() -> None:
    found = log_probs(torch.tensor([[3e4, 0.0, -3e4]], dtype=torch.float64).expand(3, 3), torch.arange(3))
    assert found.tolist() == [0.0, -3e4, -6e4]


def test_picking_keeps_the_dtype_and_the_gradient() -> None:
    values = drawn(4, 6).to(torch.bfloat16).requires_grad_()
    found = token_log_probs(values, torch.tensor([5, 0, 0, 2]))
    assert found.tolist() == [values[i, j].item() for i, j in enumerate((5, 0, 0, 2))]
    assert found.dtype == torch.bfloat16
    (grad,) = torch.autograd.grad(found.sum(), values)
    assert grad.nonzero().tolist() == [[0, 5], [1, 0], [2, 0], [3, 2]]
