"""The audit: contrasts of the split `select`, and calibration text where a scorer asks for it, into statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from fairprune_framework.architecture import Architecture
from fairprune_framework.auditing.batches import MicroBatch, compose, composition_hash
from fairprune_framework.auditing.calibration import Calibration
from fairprune_framework.auditing.callback import ActivationStatisticsCallback
from fairprune_framework.auditing.runner import RateBar, stream
from fairprune_framework.auditing.sums import CALIBRATION, Statistics, described
from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.errors import UserError
from fairprune_framework.interfaces import Pass, Plugin, Statistic
from fairprune_framework.surgery.slices import weights_of


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What the plugins of a run want the audit to sum."""

    statistics: tuple[Statistic, ...]
    calibration: bool
    weights: bool

    @classmethod
    def of(cls, plugins: Sequence[Plugin], layers: int) -> Demand:
        """The union of what plugins declare; equal statistics once.

        Raises:
            UserError: two statistics that differ bear one name.
        """
        statistics = tuple(dict.fromkeys(s for plugin in plugins for s in plugin.needs().statistics))
        names: dict[str, Statistic] = {}
        for statistic in statistics:
            if names.setdefault(statistic.name, statistic) is not statistic:
                raise UserError(
                    f"two statistics are named {statistic.name!r} and differ: {described(names[statistic.name])} and "
                    f"{described(statistic)}. One audit cannot sum both; a statistic with options needs a name for each"
                )
        streams = {step.stream for statistic in statistics for step in statistic.passes(layers)}
        weights = any(plugin.needs().weights and plugin.needs().statistics for plugin in plugins)
        return cls(statistics=statistics, calibration=CALIBRATION in streams, weights=weights)

    def names(self, layers: int) -> set[str]:
        """As `Statistics.statistics` lists them."""
        return {f"{step.stream}/{described(statistic)}" for statistic in self.statistics for step in statistic.passes(layers)}


def selecting(contrasts: Sequence[AlignedContrast]) -> list[AlignedContrast]:
    """The contrasts that may feed scores: no controls, and of the split `select` where there are splits."""
    return [contrast for contrast in contrasts if not contrast.control and contrast.split in (None, "select")]


def batches_of(
    contrasts: Sequence[AlignedContrast],
    values: Mapping[str, int],
    calibration: Calibration | None,
    budget: int,
    passes: Sequence[Pass] = (Pass(),),
    share_up_to: int = 0,
) -> list[MicroBatch]:
    """The micro-batches of every pass of an audit, longest texts first."""
    batches: list[MicroBatch] = []
    for step in passes:
        if step.stream == CALIBRATION:
            assert calibration is not None
            batches += compose(calibration.as_contrasts(), {"": 1}, budget, step=step)
        else:
            batches += compose(contrasts, values, budget, step=step, share_up_to=share_up_to)
    return batches


def audit(
    model: nn.Module,
    architecture: Architecture,
    contrasts: Sequence[AlignedContrast],
    values: Mapping[str, int],
    demand: Demand,
    *,
    calibration: Calibration | None = None,
    micro_batch_tokens: int = 512,
    share_up_to: int = 0,
    accelerator: str = "auto",
) -> tuple[Statistics, RateBar]:
    """Stream contrasts through the model; returns the statistics, and the bar with the time that it took."""
    callback = ActivationStatisticsCallback(
        model=model,
        adapter=architecture.adapter,
        sites=list(architecture.sites.values()),
        statistics=demand.statistics,
        categories=sorted({contrast.category for contrast in contrasts}),
        weights_of=weights_of if demand.weights else None,
    )
    batches = batches_of(contrasts, values, calibration, micro_batch_tokens, callback.passes, share_up_to)
    bar = RateBar(sum(len(batch.ids) for batch in batches))
    stream(model, batches, [callback, bar], accelerator)  # also without statistics: which experts were reached is an answer
    return callback.result(composition_hash(batches)), bar
