"""Statistics that plugins share, on observations in numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fairprune_framework.api.interfaces import Observation, Pass
from fairprune_framework.api.statistics import (
    ControlSlopes,
    RecallSlopes,
    SquareSum,
    ValueDeviation,
    deviations,
    shared_slots,
    slot_means,
    value_of_variants,
)
from fairprune_framework.api.types import Site
from fairprune_framework.auditing.observation import narrowed, slots_shared


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_squares_of_tokens_that_are_there(dtype: torch.dtype, observed: Callable[..., Observation]) -> None:
    acts = torch.randn(3, 1, 5, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    mask = torch.arange(5).expand(3, 1, 5) < torch.tensor([5, 2, 0])[:, None, None]
    found = SquareSum().summands(observed(acts, mask))["squares"]
    assert (found.dtype, found.shape) == (torch.float64, (3, 1, 7))
    values = acts.double().numpy()
    expected = np.stack([(values[c, 0, :length] ** 2).sum(0) for c, length in enumerate((5, 2, 0))])
    np.testing.assert_allclose(found.squeeze(1).numpy(), expected, rtol=1e-12)


def test_it_listens_to_calibration_text_and_is_equal_by_value() -> None:
    assert list(SquareSum().passes(3)) == [Pass(stream="calibration")]
    assert SquareSum() == SquareSum()
    assert len({SquareSum(), SquareSum()}) == 1


def aligned(observed: Callable[..., Observation], seed: int = 0) -> Observation:
    """Four contrasts of three variants and five slots; the second lacks a variant, the third two slots, the last one all of them."""
    acts_CVSK = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(seed)).double()
    mask_CVS = torch.ones(4, 3, 5, dtype=torch.bool)
    mask_CVS[1, 2], mask_CVS[2, :, 3:], mask_CVS[3] = False, False, False
    weight_CS, reached_C11 = slots_shared(mask_CVS)
    attribute_CV = torch.tensor([[0, 1, 2], [3, 0, -1], [1, 2, 3], [0, 1, 2]])
    given: dict[str, Any] = {"aligned": {"neuron": acts_CVSK}, "attribute": attribute_CV, "reached": reached_C11}
    made = observed(torch.zeros(0), torch.zeros(0), aligned_mask=mask_CVS, slot_weight=weight_CS, **given)
    return replace(made, values=4)


def test_deviations_of_values_against_numpy(observed: Callable[..., Observation]) -> None:
    obs = aligned(observed)
    acts, mask = obs.aligned["neuron"].numpy(), obs.aligned_mask.numpy()
    expected = np.zeros((4, 4, 6))
    for c in range(4):
        slots = mask[c].any(0)
        shown = [v for v in range(3) if mask[c, v].any()]
        means = {v: acts[c, v, slots].mean(0) for v in shown}
        for v in shown:
            expected[c, int(obs.attribute[c, v])] += means[v] - np.mean(list(means.values()), 0)
    found = ValueDeviation().summands(obs)
    np.testing.assert_allclose(found["sum"].numpy(), expected, atol=1e-12)
    assert found["count"].sum(1).flatten().tolist() == [3, 2, 3, 0]


def test_what_statistics_share_is_made_once(observed: Callable[..., Observation]) -> None:
    obs, calls = aligned(observed), []

    def counted(one: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return one + 1

    assert obs.once(counted, obs.attribute) is narrowed(obs, frozenset({"neuron"})).once(counted, obs.attribute)
    assert len(calls) == 1
    for function in (shared_slots, slot_means, deviations, value_of_variants):
        assert function(obs) is function(replace(obs, category=obs.category))  # type: ignore[operator]


def test_other_values_or_masks_are_computed_anew(observed: Callable[..., Observation]) -> None:
    obs, other = aligned(observed), aligned(observed, seed=1)
    before = slot_means(obs).clone()
    assert slot_means(replace(obs, aligned=other.aligned)).equal(slot_means(other))
    fewer = obs.aligned_mask.clone()
    fewer[0, :, 0] = False
    assert not slot_means(replace(obs, aligned_mask=fewer)).equal(before)
    assert slot_means(obs).equal(before)


def test_slopes_are_of_whole_units(observed: Callable[..., Observation]) -> None:
    generator = torch.Generator().manual_seed(0)
    acts, grads = (torch.randn(3, 1, 5, 6, generator=generator) for _ in range(2))
    plain = Site(name="s", layer=0, units=6, slices=(), config_fields={}, width_group="w", taps=frozenset({"neuron"}))
    narrow = replace(observed(acts, torch.ones(3, 1, 5).bool()), grads={"neuron": grads}, site=plain)
    wide = replace(narrow, site=replace(plain, units=2, unit_width=3))
    columns_C1K = ControlSlopes().summands(narrow)["product"]
    expected_CN = columns_C1K.reshape(3, 2, 3).sum(2)
    assert torch.allclose(ControlSlopes().summands(wide)["product"].squeeze(1), expected_CN)
    slope_CN, square_CN, one_CN = RecallSlopes().summands(wide)["moments"].unbind(1)
    assert torch.allclose(slope_CN, expected_CN)
    assert torch.allclose(square_CN, expected_CN.square())
    assert bool((one_CN == 1).all())
