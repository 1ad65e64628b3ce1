"""Statistics that plugins share, on observations in numpy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fairprune_framework.api.interfaces import Observation, Pass
from fairprune_framework.api.observations import Lasting, ValueSums
from fairprune_framework.api.statistics import (
    ControlSlopes,
    RecallSlopes,
    SquareSum,
    ValueDeviation,
    deviations,
    mean_variance,
    pair_gaps,
    pairs_of,
    shared_slots,
    slot_means,
    slot_share,
    value_of_variants,
    value_sums,
    variants_seen,
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
    slots_CVSK = acts_CVSK * mask_CVS.unsqueeze(-1)
    given: dict[str, Any] = {
        "aligned": {"neuron": acts_CVSK},
        "slots": {"neuron": slots_CVSK},
        "attribute": attribute_CV,
        "reached": reached_C11,
    }
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
    assert isinstance(found["sum"], ValueSums)
    np.testing.assert_allclose(found["sum"].spread().numpy(), expected, atol=1e-12)
    assert isinstance(found["count"], torch.Tensor)
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
    assert slot_means(replace(obs, slots=other.slots)).equal(slot_means(other))
    fewer = obs.aligned_mask.clone()
    fewer[0, 0] = False
    assert not value_of_variants(replace(obs, aligned_mask=fewer)).equal(value_of_variants(obs))
    assert slot_means(obs).equal(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_gaps_are_means_over_the_pairs_that_count(dtype: torch.dtype, observed: Callable[..., Observation]) -> None:
    values_CVSK = torch.randn(4, 3, 5, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight_CS, _ = slots_shared(torch.arange(5).expand(4, 3, 5) < torch.tensor([5, 4, 1, 0])[:, None, None])
    seen_CV = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 1]]).bool()
    found_CK = pair_gaps(aligned(observed), values_CVSK, weight_CS, pairs_of(seen_CV))
    values = values_CVSK.double().numpy()
    expected = np.zeros((4, 6))
    for c, slots in ((0, 5), (1, 4)):  # the third has no pair, the fourth no slot
        pairs = [(i, j) for i in range(3) for j in range(i + 1, 3) if seen_CV[c, i] and seen_CV[c, j]]
        expected[c] = np.mean([np.abs(values[c, i, :slots] - values[c, j, :slots]).mean(0) for i, j in pairs], axis=0)
    assert found_CK.dtype == torch.float64
    np.testing.assert_allclose(found_CK.numpy(), expected, rtol=1e-14 if dtype == torch.float64 else 1e-6)


def test_sums_of_values_against_numpy(observed: Callable[..., Observation]) -> None:
    obs = aligned(observed)
    values_CVK = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(1)).double()
    expected = np.zeros((4, 4, 6))
    for c in range(3):  # nothing is shared in the last one
        for v in range(3):
            if obs.attribute[c, v] >= 0:
                expected[c, int(obs.attribute[c, v])] += values_CVK[c, v].numpy()
    found = value_sums(obs, values_CVK)
    assert found.shape == (4, 4, 6)
    np.testing.assert_allclose(found.spread().numpy(), expected, atol=1e-15)


def test_what_depends_on_masks_alone_is_made_once_for_all_sites(observed: Callable[..., Observation]) -> None:
    """Of two sites whose masks are the same tensors; another mask, as of an expert, is looked at anew."""
    one, calls = aligned(observed), []

    def counted(mask: torch.Tensor, further: torch.Tensor | None = None) -> tuple[torch.Tensor]:
        calls.append(1)
        return (mask.any(2),)

    one = replace(one, lasting=Lasting({id(one.aligned_mask): one.aligned_mask}))
    other = replace(one, slots={"neuron": one.slots["neuron"] + 1}, made={})
    assert other.once(counted, one.aligned_mask) is one.once(counted, one.aligned_mask)
    (seen,) = one.once(counted, one.aligned_mask)
    assert len(calls) == 1
    assert one.once(slot_share, seen.double()) is not other.once(slot_share, seen.double())
    assert replace(other, made={}).once(variants_seen, one.aligned_mask) is one.once(variants_seen, one.aligned_mask)
    assert other.once(counted, one.aligned_mask, one.slots["neuron"]) is not one.once(
        counted, one.aligned_mask, one.slots["neuron"]
    )
    assert other.once(counted, one.aligned_mask.clone()) is not one.once(counted, one.aligned_mask)


def test_room_is_given_again_by_name(observed: Callable[..., Observation]) -> None:
    obs = aligned(observed)
    large = obs.room("x", (4, 6), torch.float32)
    small = obs.room("x", (2, 3), torch.float32)
    assert (small.shape, small.data_ptr()) == ((2, 3), large.data_ptr())
    assert obs.room("y", (4, 6), torch.float32).data_ptr() != large.data_ptr()
    assert obs.room("x", (9, 9), torch.float32).shape == (9, 9)
    assert obs.room("x", (4, 6), torch.float64).dtype == torch.float64


def test_the_mean_variance_is_over_shared_slots_and_made_once(observed: Callable[..., Observation]) -> None:
    obs = aligned(observed)
    variance_CSK = torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(2))
    obs = replace(obs, aligned_variance={"neuron": variance_CSK})
    found = mean_variance(obs)
    assert mean_variance(replace(obs, category=obs.category)) is found
    expected = np.stack(
        [variance_CSK[c, :slots].double().mean(0).numpy() if slots else np.zeros(6) for c, slots in enumerate((5, 5, 3, 0))]
    )
    assert (found.dtype, found.shape) == (torch.float64, (4, 1, 6))
    np.testing.assert_allclose(found[:, 0].numpy(), expected, rtol=1e-6)


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
