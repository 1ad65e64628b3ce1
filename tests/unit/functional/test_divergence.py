"""The generalised Jensen-Shannon divergence and Kullback-Leibler's against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr, softmax
from scipy.stats import entropy

from fairprune_framework.functional.divergence import generalised_js, kl_divergence


def logits(*shape: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_two_variants_are_scipys_jensen_shannon() -> None:
    values = logits(5, 2, 40)
    p = softmax(values.numpy(), axis=-1)
    expected = [jensenshannon(first, second) ** 2 for first, second in p]
    np.testing.assert_allclose(generalised_js(values, torch.ones(5, 2).bool()).numpy(), expected, rtol=1e-10)


def test_many_variants_are_the_entropy_of_the_mean_less_the_mean_entropy() -> None:
    values = logits(4, 5, 30)
    p = softmax(values.numpy(), axis=-1)
    expected = entropy(p.mean(1), axis=-1) - entropy(p, axis=-1).mean(1)
    np.testing.assert_allclose(generalised_js(values, torch.ones(4, 5).bool()).numpy(), expected, rtol=1e-10)


def test_absent_variants_have_no_part() -> None:
    values = logits(2, 4, 30)
    present = torch.tensor([[True, True, False, True], [True, False, False, True]])
    found = generalised_js(values, present)
    for row in range(2):
        alone = values[row, present[row]].unsqueeze(0)
        assert found[row].item() == pytest.approx(generalised_js(alone, torch.ones(alone.shape[:2]).bool()).item(), rel=1e-12)


def test_its_bounds() -> None:
    """0 where the variants agree, log V where they share nothing."""
    same = logits(1, 1, 20).expand(3, 4, 20)
    assert generalised_js(same, torch.ones(3, 4).bool()).abs().max() < 1e-12
    apart = torch.full((1, 3, 3), -400.0).diagonal_scatter(torch.zeros(1, 3), dim1=1, dim2=2)
    assert generalised_js(apart, torch.ones(1, 3).bool()).item() == pytest.approx(math.log(3))


def test_low_precision_is_computed_in_float64() -> None:
    values = logits(3, 2, 30).to(torch.bfloat16)
    found = generalised_js(values, torch.ones(3, 2).bool())
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, generalised_js(values.double(), torch.ones(3, 2).bool()), rtol=0, atol=0)


def test_its_gradient_is_that_of_finite_differences() -> None:
    values = logits(2, 3, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: generalised_js(x, torch.tensor([[1, 1, 1], [1, 0, 1]]).bool()), (values,))


def test_kullback_leibler_is_scipys() -> None:
    values = logits(2, 5, 40)
    p, q = softmax(values.numpy(), axis=-1)
    found = kl_divergence(*values.log_softmax(-1))
    np.testing.assert_allclose(found.numpy(), rel_entr(p, q).sum(-1), rtol=1e-9)
    assert kl_divergence(values[0].log_softmax(-1), values[0].log_softmax(-1)).abs().max() == 0
