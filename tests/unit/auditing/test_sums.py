"""Sums of statistics over micro-batches, against double-doubles added one by one."""

from __future__ import annotations

import pytest
import torch

from fairprune_framework.auditing import sum_blocks as module
from fairprune_framework.auditing.sums import StatisticSums
from fairprune_framework.functional.compensated import add_value


def test_the_metric_keeps_its_axes_and_its_dtype() -> None:
    sums = StatisticSums()
    assert sums.shape_of("contrasts/a/x.y") is None
    sums.update({"contrasts/a/x.y": torch.ones(1, 1, 1, dtype=torch.float64)})
    assert sums.shape_of("contrasts/a/x.y") == (1, 1)
    assert sums.totals()["contrasts/a/x.y"].shape == (1, 1, 1)
    sums = StatisticSums()
    sums.update({"contrasts/a/x.y": torch.tensor([0.0, 2.0], dtype=torch.float64)[:, None, None].expand(2, 2, 3)})
    sums.update({"contrasts/a/x.y": torch.tensor([0.0, 0.5], dtype=torch.float64)[:, None, None].expand(2, 2, 3)})
    found = sums.totals()["contrasts/a/x.y"]
    assert found.dtype == torch.float64
    assert found.tolist() == [[[0.0] * 3] * 2, [[2.5] * 3] * 2]


@pytest.mark.parametrize("together", [1, 100, 2**18])
def test_sums_that_are_added_together_are_as_those_added_alone(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit: of one and of several rows, of other columns, in some groups, and rows of zeros in between."""
    monkeypatch.setattr(module, "TOGETHER", together)
    generator = torch.Generator().manual_seed(0)
    shapes = {"contrasts/a/x.y": (3, 5), "contrasts/a/x.z": (1, 5), "contrasts/a/w.y": (2, 1), "contrasts/b/x.y": (4, 5)}
    sums = StatisticSums()
    words = {key: torch.zeros(2, 4, *shape, dtype=torch.float64) for key, shape in shapes.items()}
    for groups in ([0, 3], [1], [0, 1, 2, 3], [3]):
        values = {
            key: torch.randn((len(groups), *shape), generator=generator, dtype=torch.float64) * 10.0 ** len(groups)
            for key, shape in shapes.items()
        }
        values["contrasts/b/x.y"][:, 1:3] = 0
        sums.update(values, groups, 4)
        for key, value in values.items():
            words[key][:, groups] = add_value(words[key][:, groups], value)
    assert sums.words().keys() == words.keys()
    for key, expected in words.items():
        assert sums.words()[key].equal(expected), key
