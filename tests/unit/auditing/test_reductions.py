"""Highest and lowest beside sums, against numpy: groups, merging, clusters, and what was never seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fairprune_framework.auditing.reductions import (
    by_group,
    joined,
    marked,
    merged,
    neutral,
    over,
    reduction_of,
    unmarked,
    weighted_over,
    with_value,
    without_neutral,
)
from fairprune_framework.auditing.replicates import resampled
from fairprune_framework.auditing.statistics import finished
from fairprune_framework.auditing.sums import StatisticSums

OF = {"sum": np.sum, "max": np.max, "min": np.min}
generator = torch.Generator().manual_seed(0)
VALUES = torch.randn(7, 2, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("reduce", ["sum", "max", "min"])
def test_a_key_says_how_it_is_reduced(reduce: str) -> None:
    key = marked("contrasts/a.b/edges.high", reduce)  # type: ignore[arg-type]
    assert (reduction_of(key), unmarked(key)) == (reduce, "contrasts/a.b/edges.high")


@pytest.mark.parametrize("reduce", ["sum", "max", "min"])
def test_rows_in_any_order_and_in_parts(reduce: str) -> None:
    key = marked("x.y", reduce)  # type: ignore[arg-type]
    groups = [0, 2, 0, 2, 2, 0, 0]
    member_GC = torch.zeros(3, 7, dtype=torch.float64)
    member_GC[groups, range(7)] = 1
    mask_CVT = torch.ones(7, 2, 3, dtype=torch.bool)
    whole = by_group(key, member_GC, VALUES, mask_CVT)
    parts = [by_group(key, member_GC[:, some], VALUES[some], mask_CVT[some]) for some in (slice(4, 7), slice(0, 4))]
    torch.testing.assert_close(joined(key, *parts), whole, rtol=1e-15, atol=1e-15)
    for group in (0, 2):
        own = VALUES[[i for i, g in enumerate(groups) if g == group]].numpy()
        np.testing.assert_allclose(whole[group], OF[reduce](own, axis=0), rtol=1e-14)
    assert (without_neutral(key, whole)[1] == 0).all()
    everything = over(key, whole, 0)
    np.testing.assert_allclose(everything, OF[reduce](VALUES.numpy(), axis=0), rtol=1e-14)
    one, two = (with_value(key, neutral(key, (3, 2, 3), VALUES.device), part) for part in parts)
    torch.testing.assert_close(merged(key, torch.stack([one, two])).sum(0), whole, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("reduce", ["max", "min"])
def test_contrasts_that_did_not_reach_a_site_have_no_part(reduce: str) -> None:
    key, seen_C = marked("x.y", reduce), torch.tensor([True, False, True, True, True, True, True])  # type: ignore[arg-type]
    values = VALUES.clone()
    values[1] = 99.0 if reduce == "max" else -99.0
    mask_CVT = torch.zeros(7, 2, 3, dtype=torch.bool)
    mask_CVT[seen_C, 1, 2] = True
    found = by_group(key, torch.ones(1, 7, dtype=torch.float64), values, mask_CVT)
    np.testing.assert_array_equal(found[0], OF[reduce](VALUES[seen_C].numpy(), axis=0))


@pytest.mark.parametrize("reduce", ["max", "min"])
def test_clusters_that_are_left_out_have_no_part(reduce: str) -> None:
    key = marked("contrasts/site/x.y", reduce)  # type: ignore[arg-type]
    values_GBRK = torch.randn(2, 4, 1, 3, generator=generator, dtype=torch.float64)
    weights_GB = torch.tensor([[0.0, 2, 1, 0], [1, 0, 0, 1]])
    found = weighted_over(key, values_GBRK, weights_GB)
    np.testing.assert_array_equal(found[0], OF[reduce](values_GBRK[0, [1, 2]].numpy(), axis=0))
    np.testing.assert_array_equal(found[1], OF[reduce](values_GBRK[1, [0, 3]].numpy(), axis=0))


def test_the_state_keeps_them_beside_sums() -> None:
    sums = StatisticSums()
    high, total = "contrasts/site/x.y:max", "contrasts/site/x.z"
    for part in (VALUES[:4], VALUES[4:]):
        sums.update({high: part.amax(0, keepdim=True), total: part.sum(0, keepdim=True)})
    sums.update({high: torch.full((1, 2, 3), 9.0).double()})
    found = finished(sums.words(), {"contrasts": ("a",)}, {"contrasts": [7]}, 1, ("contrasts/x",), "hash")
    np.testing.assert_array_equal(found.of("contrasts", "site", 0)["x.y"], np.full((2, 3), 9.0))
    np.testing.assert_allclose(found.of("contrasts", "site", None)["x.z"], VALUES.numpy().sum(0), rtol=1e-14)
    assert set(found.by_category("contrasts", "site")) == {"x.y", "x.z"}


def test_resampled_highest_are_those_of_the_clusters_that_were_drawn() -> None:
    values = torch.arange(4, dtype=torch.float64).reshape(4, 1, 1)
    sums = StatisticSums()
    sums.update({"contrasts/site/x.y:max": values})
    found = finished(sums.words(), {"contrasts": ("a",)}, {"contrasts": [1, 1, 1, 1]}, 4, ("contrasts/x",), "hash")
    assert found.sums["contrasts/site/x.y:max"].item() == 3
    drawn = [one.of("contrasts", "site", 0)["x.y"].item() for one in resampled(found, 200, torch.Generator().manual_seed(0))]
    assert set(drawn) <= {0.0, 1.0, 2.0, 3.0}
    assert 0.58 < np.mean([value == 3 for value in drawn]) < 0.78  # 1 - (3/4)^4
