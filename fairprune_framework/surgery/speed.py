"""Tokens per second of two models, measured in turns in one process: A B A B ..., so that what else the machine does hits both."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.models import work

SECONDS = 4.0
"""After so long no further pair is measured ..."""
LEAST_PAIRS, MOST_PAIRS = 6, 20
"""... but so many at least, and at most; with fewer than 6 no interval of a median has 95 %."""
LONGEST = 15.0
"""Seconds: where the least number of pairs would take longer than this, nothing is measured."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What was measured, as `run.json` tells it: on this machine, while it did whatever else it did."""

    before: float
    """Tokens per second of whole forwards of one text, at the median of their times."""
    after: float
    ratio: float
    """Median over pairs of after / before."""
    low: float
    """Ends of a distribution-free interval of that median, of at least 95 % (order statistics)."""
    high: float
    pairs: int
    tokens: int
    """Of the text."""
    device: str
    dtype: str

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


@torch.no_grad()
def compare_speed(
    before: nn.Module, after: nn.Module, ids: Tensor, clock: Callable[[], float] = time.perf_counter
) -> Speed | None:
    """Time forwards of two models in turns, for a few seconds; the first of each is not counted.

    Args:
        before, after: on one device.
        ids: (1, T) token ids.
        clock: seconds.

    Returns:
        None where it would take too long.
    """
    device = next(before.parameters()).device

    def seconds(model: nn.Module) -> float:
        began = clock()
        model(input_ids=ids.to(device), use_cache=False)
        if device.type != "cpu":
            getattr(torch, device.type).synchronize()
        return clock() - began

    with work.uncounted():
        pairs = _pairs(partial(seconds, before), partial(seconds, after), clock)
    if not pairs:
        return None
    ratio, low, high = median_with_interval([old / new for old, new in pairs])
    tokens = ids.shape[1]
    old, new = (tokens / statistics.median(times) for times in zip(*pairs, strict=True))
    return Speed(
        before=old,
        after=new,
        ratio=ratio,
        low=low,
        high=high,
        pairs=len(pairs),
        tokens=tokens,
        device=device.type,
        dtype=str(next(before.parameters()).dtype).removeprefix("torch."),
    )


def _pairs(before: Callable[[], float], after: Callable[[], float], clock: Callable[[], float]) -> list[tuple[float, float]]:
    """Seconds of both in turns, after one pair that is not counted; empty where it would take too long."""
    began = clock()
    if (before() + after()) * (LEAST_PAIRS + 1) > LONGEST:
        return []
    pairs: list[tuple[float, float]] = []
    while len(pairs) < LEAST_PAIRS or (len(pairs) < MOST_PAIRS and clock() - began < SECONDS):
        pairs.append((before(), after()))
    return pairs


def speed_in_words(record: Mapping[str, Any]) -> str:
    """What `run.json` tells of a `Speed`."""
    ratio = f"ratio {record['ratio']:.2f} [{record['low']:.2f}, {record['high']:.2f}]"
    where = f"on this machine's {record['device']}, {record['dtype']}"
    pairs = f"{record['pairs']} paired forwards of {record['tokens']} tokens"
    return f"{record['before']:,.0f} -> {record['after']:,.0f} tokens/s, {ratio} (95 %), {pairs} {where}"


def median_with_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """The median, and the narrowest pair of order statistics, equally far from both ends, that covers it with probability `level`.

    >>> median_with_interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0])
    (3.5, 1.0, 6.0)

    Args:
        values: independent; with fewer than 6 the ends are the lowest and the highest, at less than 95 %.
    """
    ordered, count = sorted(values), len(values)
    cut, tail = 0, 1.0  # of 2^count sequences of sides, those with at most `cut` values below
    while 2 * (tail + math.comb(count, cut + 1)) <= (1 - level) * 2**count:
        cut += 1
        tail += math.comb(count, cut)
    return statistics.median(ordered), ordered[cut], ordered[count - 1 - cut]
