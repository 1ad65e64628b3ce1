"""Probes: what masking a choice of units would do, measured on what may select, and on nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from fairprune_framework.api.interfaces import Probe
from fairprune_framework.api.types import Choice, Held, Measurement, Scaling
from fairprune_framework.evaluation.masked_evaluator import MaskedEvaluator


def probe_of(
    evaluator: MaskedEvaluator,
    factor: float = 0.0,
    category: str | None = None,
    means: Callable[[], Mapping[str, Tensor]] | None = None,
) -> Probe:
    """A probe that looks at the contrasts of one category, or of all.

    Args:
        evaluator: of the contrasts of `select`, no controls (the same as feed the scores), and of the scoring half of the
            calibration text.
        factor: what units are multiplied by, where the choice names no factor of its own.
        means: site -> (N, width) mean activations, at which units are held in place of that.
    """

    def probe(choice: Choice, *, cost: bool = True) -> Measurement:
        units = {name: chosen.tolist() for name, chosen in choice.units.items()}
        scaling: Scaling = factor if choice.factor is None else choice.factor
        if choice.factors:
            scaling = {name: factors.tolist() for name, factors in choice.factors.items()}
        elif means is not None:
            scaling = Held({name: means()[name][chosen].tolist() for name, chosen in units.items()})
        measured = evaluator.measure(units, scaling, category=category, perplexity=cost)
        increase = evaluator.cost(measured) if cost else math.nan
        return Measurement(
            divergence=evaluator.mean(measured),
            cost=increase,
            retention=1 / (1 + increase),
            by_category=evaluator.means(measured),
        )

    return probe
