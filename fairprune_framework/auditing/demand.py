"""What the plugins of a run ask an audit to sum, and the contrasts that scores may use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fairprune_framework.api.declared import earlier, needs_of, passes_at
from fairprune_framework.api.interfaces import Pass, Plugin, Statistic
from fairprune_framework.api.types import Stream
from fairprune_framework.auditing.code_digest import digest_in_use
from fairprune_framework.auditing.identity import described
from fairprune_framework.auditing.merging import merged
from fairprune_framework.auditing.statistics import CALIBRATION, CONTRASTS, Statistics
from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.contrasts.schema import stream_of
from fairprune_framework.errors import ContractViolation, UserError

DEEPEST = 16
"""Statistics that come after one another, at most: each wants a reading of the streams."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What the plugins of a run ask the audit to sum."""

    statistics: tuple[Statistic, ...]
    streams: frozenset[Stream]
    """Those that the statistics listen to."""
    weights: bool
    clusters: bool = False
    """Some plugin asks for bootstrap replicates: hashed clusters are summed separately."""

    @property
    def calibration(self) -> bool:
        """Calibration text is wanted."""
        return CALIBRATION in self.streams

    @classmethod
    def of(cls, plugins: Sequence[Plugin], layers: int) -> Demand:
        """The union of the plugins' needs, each of equal statistics once.

        Raises:
            UserError: two different statistics of one plugin have the same name: it could not tell their sums apart.
        """
        wanted = [(plugin, needs_of(plugin)) for plugin in plugins]
        for plugin, needs in wanted:
            names: dict[str, Statistic] = {}
            for statistic in needs.statistics:
                if names.setdefault(statistic.name, statistic) != statistic:
                    raise UserError(
                        f"two statistics of {type(plugin).__name__} are named {statistic.name!r} and differ: "
                        f"{described(names[statistic.name])} and {described(statistic)}. Each needs a name of its own"
                    )
        statistics = with_earlier([statistic for _, needs in wanted for statistic in needs.statistics])
        weights = any(needs.weights and needs.statistics for _, needs in wanted)
        clusters = any(needs.replicates for _, needs in wanted)
        return cls(statistics=statistics, streams=streams_of(statistics, layers), weights=weights, clusters=clusters)

    def readings(self, layers: int) -> list[Demand]:
        """The demand in parts, each to be summed when those before it are finished: one part unless statistics come after others."""
        depths = [depth(statistic) for statistic in self.statistics]
        parts = []
        for number in range(max(depths, default=0) + 1):
            own = tuple(s for s, deep in zip(self.statistics, depths, strict=True) if deep == number)
            parts.append(replace(self, statistics=own, streams=streams_of(own, layers)))
        return parts

    def sources(self, layers: int) -> dict[str, str]:
        """Name, as in `names` -> digest of the source that the statistic is written in."""
        return {
            f"{pass_.stream}/{described(statistic)}": digest_in_use(type(statistic))
            for statistic in self.statistics
            for pass_ in passes_at(statistic, layers)
        }

    def names(self, layers: int) -> set[str]:
        """As `Statistics.statistics` lists them."""
        return {
            f"{pass_.stream}/{described(statistic)}" for statistic in self.statistics for pass_ in passes_at(statistic, layers)
        }

    def missing(self, statistics: Statistics, sources: Mapping[str, str], layers: int) -> str | None:
        """What of this demand an audit does not hold, or holds as an earlier source of it summed; None where it holds all.

        Args:
            sources: of `sources`, when the audit was made.
        """
        if self.clusters and not statistics.cluster_counts:
            return "clusters of templates, which a policy resamples"
        absent = min(self.names(layers) - set(statistics.statistics), default=None)
        edited = (name for name, source in sorted(self.sources(layers).items()) if sources.get(name, source) != source)
        return absent or next((f"{name} of the source that is installed now" for name in edited), None)


def depth(statistic: Statistic) -> int:
    """How many readings of the streams come before the one in which a statistic is summed."""
    return max((1 + depth(each) for each in earlier(statistic)), default=0)


def with_earlier(statistics: Sequence[Statistic]) -> tuple[Statistic, ...]:
    """Statistics and all that they come after, each of equal ones once, the first ones first; raises `ContractViolation` for a circle."""

    def of(statistic: Statistic, later: tuple[Statistic, ...]) -> Iterator[Statistic]:
        if statistic in later or len(later) > DEEPEST:
            raise ContractViolation(
                f"statistic {later[0].name!r} comes after itself, or after more than {DEEPEST} others in a row"
            )
        for each in earlier(statistic):
            yield from of(each, (*later, statistic))
        yield statistic

    return tuple(dict.fromkeys(each for statistic in statistics for each in of(statistic, ())))


def passes_of(statistics: Sequence[Statistic], layers: int) -> list[Pass]:
    """The distinct passes that statistics listen to, merged where one forward serves several; contrasts are passed over in any case, to
    know which sites they reach."""
    passes = dict.fromkeys(pass_ for statistic in statistics for pass_ in passes_at(statistic, layers))
    if not any(pass_.stream == CONTRASTS and pass_.layer is None for pass_ in passes):
        passes = {Pass(): None, **passes}
    return merged(passes)


def streams_of(statistics: Sequence[Statistic], layers: int) -> frozenset[Stream]:
    """The streams that statistics listen to."""
    return frozenset(pass_.stream for statistic in statistics for pass_ in passes_at(statistic, layers))


def selecting(contrasts: Sequence[AlignedContrast], stream: Stream = CONTRASTS) -> list[AlignedContrast]:
    """The contrasts that feed a stream, of the split `select` where there are splits: by default the demographic ones."""
    return [contrast for contrast in contrasts if stream_of(contrast.role, contrast.split) == stream]
