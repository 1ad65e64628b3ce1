"""Statistics that several plugins share: equal by value, so that one audit computes each of them once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fairprune_framework.api.interfaces import Observation, Pass, Statistic

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SquareSum(Statistic):
    """Per document of calibration text, the sum over its tokens of the squared activation; its root is the activation's 2-norm."""

    name: str = "square-sum"

    def passes(self, layers: int) -> Sequence[Pass]:
        """One forward of the calibration text."""
        return (Pass(stream="calibration"),)

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """See `Statistic.summands`. Output `squares`: (C, 1, N)."""
        acts = obs.acts["neuron"].double() * obs.mask.unsqueeze(-1)
        return {"squares": acts.square().sum((1, 2)).unsqueeze(1)}
