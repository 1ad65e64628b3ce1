"""The generalised Jensen-Shannon divergence and Kullback-Leibler's against scipy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr, softmax
from scipy.stats import entropy

from fairprune_framework.functional.divergence import generalised_js, kl_divergence


def logits(*shape: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_two_variants_against_scipy(scale: float) -> None:
    logits = np.random.default_rng(0).normal(0, scale, (20, 2, 50))
    found = generalised_js(torch.from_numpy(logits), torch.ones(20, 2, dtype=torch.bool))
    p = softmax(logits, axis=-1)
    expected = [jensenshannon(*pair) ** 2 for pair in p]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-7, atol=1e-14)


@pytest.mark.parametrize("variants", [3, 5])
def test_more_variants_against_entropies(variants: int) -> None:
    logits = np.random.default_rng(1).normal(0, 2, (10, variants, 40))
    found = generalised_js(torch.from_numpy(logits).float(), torch.ones(10, variants, dtype=torch.bool))
    p = softmax(logits.astype(np.float32).astype(np.float64), axis=-1)
    expected = entropy(p.mean(1), axis=-1) - entropy(p, axis=-1).mean(1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


def test_absent_variants_do_not_count() -> None:
    logits = torch.from_numpy(np.random.default_rng(2).normal(0, 2, (4, 3, 30)))
    present = torch.tensor([[True, True, False]] * 4)
    found = generalised_js(logits, present)
    assert torch.equal(found, generalised_js(torch.where(present.unsqueeze(-1), logits, 1e3), present))
    np.testing.assert_allclose(found.numpy(), generalised_js(logits[:, :2], present[:, :2]).numpy(), rtol=1e-12)


@pytest.mark.parametrize("variants", [3, 5, 6, 7])
def test_weights_are_not_rounded_to_float32(variants: int) -> None:
    """1/3 in float32 is off by 1e-8: as much as the divergence of a small edit."""
    logits = np.random.default_rng(4).normal(0, 2, (1, 1, 500)) + np.random.default_rng(5).normal(0, 1e-4, (10, variants, 500))
    found = generalised_js(torch.from_numpy(logits), torch.ones(10, variants, dtype=torch.bool))
    p = softmax(logits, axis=-1)
    expected = (p * np.log(p / p.mean(1, keepdims=True))).sum(-1).mean(1)
    assert expected.max() < 1e-8
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_equal_variants_have_none_and_disjoint_ones_the_logarithm_of_their_number() -> None:
    logits = torch.randn(1, 1, 9).expand(3, 4, 9)
    assert generalised_js(logits, torch.ones(3, 4).bool()).max() < 1e-15
    apart = torch.full((1, 4, 8), -1e4)
    apart[0, range(4), range(4)] = 0
    assert generalised_js(apart, torch.ones(1, 4).bool()).item() == pytest.approx(np.log(4))


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
