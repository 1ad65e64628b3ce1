"""The guard: a plan that costs more than allowed on judging text is not applied."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from fairprune_framework.api.types import Scaling
from fairprune_framework.calibration.text import Calibration
from fairprune_framework.evaluation.metrics.perplexity import LanguageCost, language_cost, perplexity_change
from fairprune_framework.functional.paired_bootstrap import BOUND_LEVEL
from fairprune_framework.models.architecture import Architecture
from fairprune_framework.surgery.equality import in_float32
from fairprune_framework.surgery.masking import masked


@dataclass(frozen=True, kw_only=True)
class Guard:
    """What the guard saw. Stored in `run.json` under `guard`."""

    increase: float
    """Relative increase of perplexity, masked against original, float32."""
    limit: float
    held: bool
    bound_high: float | None
    """One-sided 99 % upper bound of the increase, over documents; None: not estimable."""
    perplexity_before: float
    perplexity_after: float
    kl: float
    tokens: int
    text_hash: str

    def to_json(self) -> dict[str, Any]:
        """JSON form; null where a perplexity is too large for a number."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


def guard(
    model: nn.Module,
    architecture: Architecture,
    units: Mapping[str, Sequence[int]],
    calibration: Calibration,
    limit: float,
    factor: Scaling = 0.0,
    max_tokens: int = 512,
) -> tuple[Guard, LanguageCost]:
    """Mask the units and compare perplexity on the judging half, in float32.

    Args:
        max_tokens: padded tokens per forward.

    Returns:
        The judgement, and the losses that it rests on.
    """
    with in_float32(model):
        cost = language_cost(
            model, calibration.judging, change=lambda: masked(model, architecture, units, factor), max_tokens=max_tokens
        )
    change = perplexity_change(cost.before, cost.after, level=2 * BOUND_LEVEL - 1).change
    judged = Guard(
        increase=cost.increase,
        limit=limit,
        held=bool(cost.increase <= limit),
        bound_high=None if change is None else change.high,
        perplexity_before=cost.before.perplexity,
        perplexity_after=cost.after.perplexity,
        kl=cost.kl,
        tokens=sum(cost.before.tokens),
        text_hash=calibration.hash,
    )
    return judged, cost
