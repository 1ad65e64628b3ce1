"""What a change of neurons keeps to first order: one linear constraint each for controls, right words, recall and categories."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fairprune_framework.api.interfaces import Needs, PolicyContext, SiteContext, Statistic, StreamSums
from fairprune_framework.api.statistics import ControlSlopes, LegitimateSlopes, RecallSlopes, SparedSlopes

if TYPE_CHECKING:
    from torch import Tensor

    from fairprune_framework.api.types import Scores, Stream

CONTROL, LEGITIMATE, RECALL = ControlSlopes(), LegitimateSlopes(), RecallSlopes()


@dataclass(frozen=True, kw_only=True)
class Held:
    """Options of a policy that holds quantities, and what follows from them; a base class before `SelectionPolicy`. For a relative change
    d of every activation (-1: the neuron is removed) what is held changes by slope . d."""

    specific: bool = True
    """Hold the divergence of control contrasts of `select`, to first order."""
    legitimate: bool = True
    """Let the margin of right words, where the attribute should matter, not fall, to first order."""
    recall: bool = True
    """Make recalled words of the calibration text no less likely, to first order."""
    lift: float = 0.0
    """How far the mean divergence of controls is to rise, nats for each nat of fall of the bias: what is held on the contrasts that chose
    falls on others with it, and less so where it was asked to rise. At least 0."""
    spare: float | None = None
    """Nothing that supports recall is turned down or removed, nothing that opposes it turned up: a unit whose mean slope of recall lies
    more than so many standard errors over documents from 0. Held in sum alone, recall does not carry over to other texts. None: any
    unit may be moved."""
    spare_margin: float | None = None
    """The same for the margin of right words: nothing that supports it is turned down or removed, nothing that opposes it turned up, its
    mean slope more than so many standard errors over legitimate contrasts from 0; 0: by the sign alone. None: any unit may be moved."""
    required: bool = True
    """Whether prompts without contrasts of what is held are an error; otherwise that is not held."""

    def __post_init__(self) -> None:
        if not 0 <= self.lift < float("inf"):
            raise ValueError(f"The 'lift' must be a number of at least 0. Got {self.lift} instead.")
        for name in ("spare", "spare_margin"):
            errors = getattr(self, name)
            if errors is not None and not math.isfinite(errors):
                raise ValueError(f"The {name!r} must be a finite number of standard errors. Got {errors} instead.")

    def statistics(self) -> tuple[Statistic, ...]:
        """What a policy needs for them: a gradient pass over the stream of each."""
        wanted = (
            (CONTROL, self.specific),
            (LEGITIMATE, self.legitimate or self.spare_margin is not None),
            (RECALL, self.recall or self.spare is not None),
        )
        return tuple(statistic for statistic, asked in wanted if asked)

    def needs(self) -> Needs:
        """The statistics, with the streams of contrasts optional where nothing is required."""
        return Needs(
            statistics=self.statistics(),
            optional_streams=frozenset() if self.required else frozenset({"controls", "legitimate"}),
        )

    def may_fall(self, allowed: Mapping[str, Tensor], context: PolicyContext) -> Mapping[str, Tensor]:
        """Of the units that may change, site -> (N,) bool, those that may be removed or turned down."""
        return self._spared(allowed, context, SparedSlopes.supports)

    def may_rise(self, allowed: Mapping[str, Tensor], context: PolicyContext) -> Mapping[str, Tensor]:
        """Of the units that may change, site -> (N,) bool, those that may be turned up."""
        return self._spared(allowed, context, SparedSlopes.opposes)

    def _spared(
        self,
        allowed: Mapping[str, Tensor],
        context: PolicyContext,
        harms: Callable[[SparedSlopes, SiteContext | StreamSums, float], Tensor],
    ) -> Mapping[str, Tensor]:
        """Less the units by which recall or the margin of right words would suffer."""
        if self.spare is not None:
            allowed = {name: may & ~harms(RECALL, context.at(name), self.spare) for name, may in allowed.items()}
        if self.spare_margin is not None:
            sums = self._sums("legitimate", list(allowed), context)
            harmed = {name: harms(LEGITIMATE, at, self.spare_margin) for name, at in sums.items()}
            allowed = {name: may & ~harmed[name] for name, may in allowed.items()} if harmed else allowed
        return allowed

    def control_slopes(self, scores: Scores, names: Sequence[str], context: PolicyContext) -> list[Mapping[str, Tensor]]:
        """At most one row, site -> (N,) float64: slopes of the mean divergence of controls, nats, and `lift` times the bias.

        Raises:
            ValueError: they are held and required, and the prompts have none.
        """
        sums = self._sums("controls", names, context) if self.specific else {}
        width = {name: scores.sites[name].unit_width for name in names}  # a score is the mean over columns, a slope their sum
        of = f"{CONTROL.name}.product"
        row = {name: at.sums[of][0] / at.count + self.lift * width[name] * scores.bias[name] for name, at in sums.items()}
        return [row] if row else []

    def category_slopes(self, scores: Scores, category: str) -> Mapping[str, Tensor]:
        """Slopes of the bias of one category, site -> (N,) float64: a score is the mean over the columns of a unit, a slope their sum.

        0 in a site that the category's contrasts never reached, such as an expert: whatever becomes of it, they do not change.
        """
        seen = scores.by_category[category]
        return {
            name: site.unit_width * seen[name] if name in seen else scores.bias[name].new_zeros(site.units)
            for name, site in scores.sites.items()
        }

    def limits(self, scores: Scores, names: Sequence[str], context: PolicyContext) -> list[Mapping[str, Tensor]]:
        """Rows, site -> (N,) float64, of which row . d must be at most 0: the divergence of each category where there are several, less
        the margin of right words, the loss of recalled words.

        Raises:
            ValueError: legitimate differences are held and required, and the prompts have none.
        """
        categories = sorted(scores.by_category)
        rows: list[Mapping[str, Tensor]] = [
            self.category_slopes(scores, category) for category in categories if len(categories) > 1
        ]
        if self.legitimate:
            sums = self._sums("legitimate", names, context)
            rows += [{name: -at.sums[f"{LEGITIMATE.name}.moments"][0] for name, at in sums.items()}] if sums else []
        if self.recall:
            rows.append({name: context.at(name).sums[f"{RECALL.name}.moments"][0] for name in names})
        return rows

    def _sums(self, stream: Stream, names: Sequence[str], context: PolicyContext) -> Mapping[str, StreamSums]:
        """Site -> sums of a stream of contrasts; none without contrasts that need not be there."""
        found = {name: context.at(name).of(stream) for name in names}
        if any(sums.count for sums in found.values()):
            return found
        if self.required:
            raise ValueError(f"the policy needs contrasts of the stream {stream!r}, and the prompts have none")
        return {}
