"""The progress of an audit: contrasts and tokens of all ranks, each counted once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from fairprune_framework.auditing.progress_bar import RateBar


@pytest.mark.parametrize(("same_batches", "contrasts", "tokens"), [(False, 3 + 6 + 8, 280), (True, 3 + 3 + 4, 140)])
def test_ranks_that_compute_the_same_batches_count_once(same_batches: bool, contrasts: int, tokens: int) -> None:
    """Of 40 contrasts 3 were done before; this one of two ranks computes micro-batches of 3 and 4."""
    trainer = cast(Any, SimpleNamespace(world_size=2, is_global_zero=True, loggers=[]))
    bar = RateBar(40, done=3, same_batches=same_batches)
    bar.on_predict_start(trainer, cast(Any, None))
    for count, padded in ((3, 60), (4, 80)):
        batch = SimpleNamespace(ids=("id",) * count, tokens=padded)
        bar.on_predict_batch_end(trainer, cast(Any, None), None, batch, 0)
    bar.on_predict_end(trainer, cast(Any, None))
    assert bar.done == contrasts
    assert bar.tokens == tokens
    rates = bar.rates()
    assert rates["contrasts_per_second"] / rates["tokens_per_second"] == pytest.approx((contrasts - 3) / tokens)
