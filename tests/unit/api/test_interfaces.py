"""What plugins are handed computes what it says; the lazy package of names holds what it lists."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fairprune_framework import api
from fairprune_framework.api.interfaces import BiasScorer, Needs, Observation
from fairprune_framework.api.outputs import Outputs


def outputs(dtype: torch.dtype) -> Outputs:
    generator = torch.Generator().manual_seed(0)
    return Outputs(
        logits=torch.randn(2, 3, 5, 11, generator=generator).to(dtype),
        tokens=torch.randint(0, 11, (2, 3, 5), generator=generator),
        mask=torch.ones(2, 3, 5).bool(),
        attribute=torch.zeros(2, 3).long(),
        lean=torch.zeros(2, 3).long(),
        rare=torch.zeros(2, 3, 5).bool(),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_log_p_of_tokens_is_shifted_by_one(dtype: torch.dtype) -> None:
    given = outputs(dtype)
    found = given.token_log_p()
    wide = given.logits.to(torch.promote_types(dtype, torch.float32))
    loss = torch.nn.functional.cross_entropy(
        wide[:, :, :-1].reshape(-1, 11), given.tokens[:, :, 1:].reshape(-1), reduction="none"
    )
    torch.testing.assert_close(found, -loss.view(2, 3, 4))
    assert found.dtype == wide.dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_zero_outside_the_mask(dtype: torch.dtype, observed: Callable[..., Observation]) -> None:
    acts, grads = (torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(i)).to(dtype) for i in (0, 1))
    mask = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(2)) > 0.5
    found = observed(acts, mask, grads={"neuron": grads})
    product = found.products()
    assert product.dtype == torch.float32
    torch.testing.assert_close(product, acts.float() * grads.float() * mask.unsqueeze(-1))
    product.zero_()
    assert not found.products().equal(product)
    assert acts.abs().max() > 0


def test_a_plugin_needs_nothing_by_default_and_must_score() -> None:
    with pytest.raises(TypeError, match="abstract"):
        BiasScorer()  # type: ignore[abstract]

    class Scorer(BiasScorer):
        def score(self, at: Any) -> torch.Tensor:
            raise NotImplementedError

    assert Scorer().needs() == Needs()
    assert not Scorer.signed


def test_every_listed_name_is_there_and_no_other() -> None:
    for name in api.__all__:
        assert getattr(api, name) is not None
    assert set(api._EXPORTS) == set(api.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = api.nothing


def test_budgets_need_no_torch() -> None:
    code = "import sys; from fairprune_framework.api import Budget; Budget.parse('16/layer'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
