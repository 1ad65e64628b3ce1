"""What a plugin is given of one site: the sums that it declared, weights, services and its own random generator."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeGuard

import torch
from torch import Tensor

from fairprune_framework.api.interfaces import BiasScorer, ImportanceScorer, Needs, Probe, SiteContext, Statistic, StreamSums
from fairprune_framework.api.types import Site, Stream
from fairprune_framework.auditing.demand import streams_of
from fairprune_framework.auditing.statistics import CALIBRATION, Statistics
from fairprune_framework.errors import FairpruneError
from fairprune_framework.utilities.files import repr_digest


def generator_for(seed: int, *names: str) -> torch.Generator:
    """A CPU generator that depends on the run's seed, the plugin and the site alone."""
    return torch.Generator().manual_seed(int.from_bytes(repr_digest(seed, *names)[:8], "big") >> 1)


@dataclass(frozen=True, kw_only=True)
class Services:
    """What plugins may ask for beside sums and weights; each is made only when a plugin declared it."""

    readout: Callable[[], Callable[[Tensor], Tensor]] | None = None
    """Makes the function from residual vectors to logits."""
    probe: Callable[[str | None], Probe] | None = None
    """Makes the probe of a category, or of all."""
    attribute_tokens: Callable[[], Mapping[str, tuple[tuple[int, ...], ...]]] = dict
    """Gives category -> first tokens of each attribute value."""

    def for_plugin(self, needs: Needs, category: str | None) -> dict[str, Any]:
        """The fields of a `SiteContext` that a plugin declared."""
        if (needs.readout and self.readout is None) or (needs.probe and self.probe is None):
            raise FairpruneError("a plugin declared a readout or a probe, and was given none")
        return {
            "readout": self.readout() if needs.readout and self.readout else None,
            "probe": self.probe(category) if needs.probe and self.probe else None,
            "attribute_tokens": self._first_tokens(category) if needs.readout else (),
        }

    def _first_tokens(self, category: str | None) -> tuple[tuple[int, ...], ...]:
        known = self.attribute_tokens()
        return known.get(category, ()) if category is not None else tuple(chain.from_iterable(known.values()))


def prepares(scorer: BiasScorer | ImportanceScorer) -> TypeGuard[BiasScorer]:
    """Whether categories have something in common that the scorer computes once a site."""
    return isinstance(scorer, BiasScorer) and type(scorer).prepare is not BiasScorer.prepare


class NamedSums(Mapping[str, Tensor]):
    """`<statistic>.<output>` -> (R, K); a name that is not there raises `KeyError` with those that are."""

    def __init__(
        self, sums: Mapping[str, Tensor], stream: Stream, others: Collection[Stream] = (), absent: bool = False
    ) -> None:
        self._sums, self._stream, self._others, self._absent = sums, stream, others, absent

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._sums:
            raise KeyError(
                f"no sums {name!r}: the prompts have no contrasts of the stream {self._stream!r}, look at its `count` first"
                if self._absent
                else f"no sums {name!r} of the stream {self._stream!r}; available: {', '.join(sorted(self._sums)) or 'none'}"
                + "".join(f"; at.of({other!r}) has those of another stream" for other in sorted(self._others))
            )
        return self._sums[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sums)

    def __len__(self) -> int:
        return len(self._sums)


@dataclass(frozen=True)
class _Reader:
    """A `StreamReader` of one site."""

    statistics: Statistics
    site: Site
    own: tuple[Statistic, ...]
    """What the plugin declared: it is given no sums of others."""

    def __call__(self, stream: Stream, category: str | None = None) -> StreamSums:
        declared = streams_of(self.own, 1)
        if stream not in declared:
            raise KeyError(
                f"no statistic was declared for the stream {stream!r}; declared: {', '.join(sorted(declared)) or 'none'}"
            )
        names = self.statistics.categories_of(stream)
        if category is not None and category not in names:
            raise KeyError(f"the stream {stream!r} has no category {category!r}; there are: {', '.join(names) or 'none'}")
        return self.sums(stream, None if category is None else names.index(category))

    def sums(self, stream: Stream, group: int | None) -> StreamSums:
        own = [statistic for statistic in self.own if stream in streams_of([statistic], 1)]
        found = self.statistics.of(stream, self.site.name, group, own)
        return StreamSums(
            sums=NamedSums(
                found,
                stream,
                streams_of(self.own, 1) - {stream},
                absent=bool(own) and not found and self.statistics.count(stream, None) == 0,
            ),
            count=self.statistics.count(stream, group),
            observed=torch.full(
                (self.site.units * self.site.unit_width,),
                self.statistics.observed(stream, self.site.name, group),
                dtype=torch.long,
            ),
        )


def context(
    statistics: Statistics,
    own: Stream,
    group: int | None,
    site: Site,
    needs: Needs,
    weights: Mapping[str, Tensor],
    generator: torch.Generator,
    given: Mapping[str, Any] | None = None,
) -> SiteContext:
    """What a plugin sees of one site.

    Args:
        own: the stream that is at hand as `sums`.
        group: index of its category; None: of all categories together.
        needs: of the plugin; it is given no stream that none of its statistics listens to.
        given: as of `Services.for_plugin`.
    """
    reader = _Reader(statistics, site, needs.statistics)
    at_hand = reader.sums(own, group)
    return SiteContext(
        site=site,
        category=statistics.categories_of(own)[group] if own != CALIBRATION and group is not None else None,
        sums=at_hand.sums,
        count=at_hand.count,
        observed=at_hand.observed,
        weights=weights,
        generator=generator,
        of=reader,
        **{"readout": None, "probe": None, "attribute_tokens": (), **(given or {})},
    )
