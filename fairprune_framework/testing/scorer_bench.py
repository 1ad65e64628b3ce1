"""A tiny model with text, on which a scorer under test runs in several ways, with the real callback and Trainer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from fairprune_framework.api.interfaces import (
    BiasScorer,
    ImportanceScorer,
    Observation,
    Pass,
    Reduction,
    SiteContext,
    Statistic,
    ValueSums,
)
from fairprune_framework.api.types import Choice, Measurement, Tap
from fairprune_framework.auditing.batches import compose
from fairprune_framework.auditing.callback import ActivationStatisticsCallback
from fairprune_framework.auditing.demand import Demand, passes_of, streams_of, with_earlier
from fairprune_framework.auditing.merging import members_of
from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.auditing.runner import stream
from fairprune_framework.auditing.statistics import CALIBRATION, CONTRASTS, CONTROLS, LEGITIMATE, Statistics
from fairprune_framework.calibration.text import Calibration
from fairprune_framework.contrasts.alignment import AlignedContrast, align_all, attribute_tokens, vocabularies
from fairprune_framework.models.architecture import Architecture, recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.models.readout import readout_of
from fairprune_framework.selection.contexts import Services, context, generator_for, prepares
from fairprune_framework.surgery.slices import weights_of
from fairprune_framework.testing.report import require
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_legitimate, tiny_model, tiny_tokenizer

Scorer = BiasScorer | ImportanceScorer
Found = TypeVar("Found")
SiteScores = dict[tuple[str, str], Tensor]
"""(site, category, or "" for importance) -> the returned scores."""

TOKENS = 192
"""Padded tokens of a micro-batch: several contrasts of unequal length together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Wrapped(Statistic):
    """Stands for another statistic, under its name."""

    inner: Statistic

    @property
    def reduce(self) -> Reduction:  # type: ignore[override]
        """As the wrapped statistic."""
        return self.inner.reduce

    def after(self) -> Sequence[Statistic]:
        """As the wrapped statistic."""
        return self.inner.after()

    def passes(self, layers: int) -> Sequence[Pass]:
        """As the wrapped statistic."""
        return self.inner.passes(layers)


@dataclass(frozen=True, kw_only=True, eq=False)
class Watched(Wrapped):
    """Wraps a statistic and records whether it modifies its observation or is not deterministic."""

    faults: list[str] = field(default_factory=list)

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """As the wrapped statistic."""
        before = {name: value.clone() for name, value in _shown(obs, self.taps).items()}
        first = {name: value.clone() for name, value in _spread(self.inner.summands(obs)).items()}
        second = _spread(self.inner.summands(obs))
        for name, value in _shown(obs, self.taps).items():
            if not torch.equal(value, before[name]):
                self.faults.append(f"statistic {self.name!r} changes {name} of its observation")
        for (function, *_), (inputs, result) in (*obs.made.items(), *obs.lasting.made.items()):
            if not _alike(function(*inputs), result):
                self.faults.append(
                    f"statistic {self.name!r} changes {function.__name__.lstrip('_')}, which others are given too"
                )
        if any(not torch.equal(first[name], value) for name, value in second.items()):
            self.faults.append(f"statistic {self.name!r} gives different summands for the same observation")
        return second


@dataclass(frozen=True, kw_only=True, eq=False)
class Poisoned(Wrapped):
    """Wraps a statistic and gives it large numbers wherever the masks are False, others for each variant: differences do not cancel."""

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """As the wrapped statistic."""
        poison_V11 = 1e4 * torch.arange(1, obs.mask.shape[1] + 1).reshape(-1, 1, 1)

        def poisoned(values: Mapping[Tap, Tensor], mask: Tensor) -> dict[Tap, Tensor]:
            return {tap: value.where(mask.unsqueeze(-1), poison_V11.to(value)) for tap, value in values.items()}

        acts, aligned = poisoned(obs.acts, obs.mask), poisoned(obs.aligned, obs.aligned_mask)
        shared = obs.aligned_mask.any(1).unsqueeze(-1)
        variance = {tap: value.masked_fill(~shared, 1e4) for tap, value in obs.aligned_variance.items()}
        return _spread(self.inner.summands(replace(obs, acts=acts, aligned=aligned, aligned_variance=variance)))


def _alike(one: Any, other: Any) -> bool:
    """Equal tensors, or tuples of them."""
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(one == other)


def _spread(outputs: Mapping[str, Tensor | ValueSums]) -> dict[str, Tensor]:
    """All as tensors."""
    return {name: value.spread() if isinstance(value, ValueSums) else value for name, value in outputs.items()}


def _shown(obs: Observation, taps: frozenset[Any]) -> dict[str, Tensor]:
    values = {f"acts[{tap!r}]": obs.acts[tap] for tap in taps if tap in obs.acts}
    values |= {f"aligned[{tap!r}]": obs.aligned[tap] for tap in taps if tap in obs.aligned}
    values |= {f"slots[{tap!r}]": obs.slots[tap] for tap in taps if tap in obs.slots}
    values |= {f"aligned_variance[{tap!r}]": obs.aligned_variance[tap] for tap in taps if tap in obs.aligned_variance}
    values |= {f"weights[{role!r}]": value for role, value in obs.weights.items()}
    for name in ("mask", "aligned_mask", "slot_weight", "attribute", "equal_length"):
        values[name] = getattr(obs, name)
    return values


def in_pairs(architecture: Architecture) -> Architecture:
    """The same with every two adjacent neurons as one unit, as a head is a unit of several columns."""
    sites = {
        name: replace(
            site,
            units=site.units // 2,
            unit_width=2,
            slices=tuple(replace(slice_, step=2, width=2) for slice_ in site.slices),
        )
        for name, site in architecture.sites.items()
    }
    return replace(architecture, sites=sites)


class Bench:
    """A tiny model with contrasts and calibration text, to run a scorer in several ways."""

    def __init__(
        self,
        kind: Literal["bias", "importance"],
        scorer: Scorer,
        family: str,
        dtype: torch.dtype = torch.float32,
        *,
        pairs: bool = False,
    ) -> None:
        self.kind, self.scorer = kind, scorer
        self.model = tiny_model(family, dtype=dtype)
        found = recognise(self.model)
        self.architecture: Architecture = in_pairs(found) if pairs else found
        tokenizer = tiny_tokenizer()
        every, encoder = tiny_contrasts(), Encoder(tokenizer)
        self.contrasts, self.controls = (
            align_all([contrast for contrast in every if contrast.control is control], encoder)[0] for control in (False, True)
        )
        self.legitimate = align_all(tiny_legitimate(), encoder)[0]
        self.values = {category: len(names) for category, names in vocabularies([*every, *tiny_legitimate()]).items()}
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(4, 20, (16,), generator=generator).tolist()
        documents = tuple(tuple(torch.randint(3, len(tokenizer), (n,), generator=generator).tolist()) for n in lengths)
        self.documents = Calibration(documents=documents, source="contract").as_contrasts()

    @cached_property
    def baseline(self) -> SiteScores:
        """The scores of the unmodified setting."""
        return self.scores()

    @cached_property
    def whole(self) -> SiteScores:
        """The scores where statistics see whole micro-batches with their padding, as on an accelerator."""
        return self.scores(in_parts=False)

    def batches(self, contrasts: Sequence[AlignedContrast] | None = None, tokens: int = TOKENS) -> list[MicroBatch]:
        """All micro-batches of all streams."""
        shown = {
            CONTRASTS: self.contrasts if contrasts is None else contrasts,
            CONTROLS: self.controls,
            LEGITIMATE: self.legitimate,
            CALIBRATION: self.documents,
        }
        batches: list[MicroBatch] = []
        passes = passes_of(with_earlier(self.scorer.needs().statistics), len(self.architecture.sites))
        for pass_ in (member for each in passes for member in members_of(each)):
            texts = shown[pass_.stream]
            values = {each.category: self.values.get(each.category, 1) for each in texts}
            batches += compose(texts, values, tokens, pass_=pass_)
        return batches

    def scores(
        self,
        batches: Sequence[MicroBatch] | None = None,
        *,
        model: nn.Module | None = None,
        statistics: Sequence[Statistic] | None = None,
        backwards: bool = False,
        changed: list[str] | None = None,
        in_parts: bool | None = None,
    ) -> SiteScores:
        """Run the scorer like the core, but without the core's checks.

        Args:
            model: another model of the same shape.
            statistics: a replacement of the declared statistics.
            backwards: visit the sites, and the categories of each, in reverse order.
            changed: collects descriptions of mutations by the scorer.
            in_parts: statistics see groups of alike contrasts, as on a CPU, or (False) whole micro-batches, as on an accelerator.
        """
        model = self.model if model is None else model
        needs, sites = self.scorer.needs(), list(self.architecture.sites.values())
        sums = self._summed(
            model,
            needs.statistics if statistics is None else statistics,
            self.batches() if batches is None else batches,
            in_parts,
        )
        groups = list(enumerate(sums.categories)) if self.kind == "bias" else [(0, "")]
        source = CONTRASTS if self.kind == "bias" else CALIBRATION
        services = self._services(model)

        def at_site(name: str, group: int | None, category: str) -> SiteContext:
            site = self.architecture.sites[name]
            weights = weights_of(model, site) if needs.weights else {}
            generator = generator_for(0, "contract", name)
            return context(sums, source, group, site, needs, weights, generator, services.for_plugin(needs, category or None))

        scores: SiteScores = {}
        found: dict[str, dict[str, Tensor]] = {category: {} for _, category in groups}
        for site in reversed(sites) if backwards else sites:
            seen = {}
            for group, category in reversed(groups) if backwards else groups:
                at = at_site(site.name, group, category)
                if self.kind == "importance" or not needs.statistics or int(at.observed.max()) > 0:
                    seen[category] = at
            if seen and prepares(self.scorer):
                of_all = at_site(site.name, None, "")
                prepared = _watched("prepare", partial(self.scorer.prepare, of_all), of_all, changed)
                seen = {category: replace(at, prepared=prepared) for category, at in seen.items()}
            for category, at in seen.items():
                found[category][site.name] = _watched("score", partial(self.scorer.score, at), at, changed)
        for group, category in groups:
            finished = self.scorer.finish(found[category], partial(at_site, group=group, category=category))
            kept = isinstance(finished, Mapping) and finished.keys() == found[category].keys()
            require(kept, "finish() must return a mapping of the sites that it was given, and no others")
            scores |= {(name, category): score for name, score in finished.items()}
        return scores

    def _summed(
        self, model: nn.Module, statistics: Sequence[Statistic], batches: Sequence[MicroBatch], in_parts: bool | None
    ) -> Statistics:
        """What statistics come to, in as many readings as they ask for."""
        sites = list(self.architecture.sites.values())
        every = with_earlier(statistics)
        demand = Demand(statistics=every, streams=streams_of(every, len(sites)), weights=self.scorer.needs().weights)
        sums: Statistics | None = None
        for part in demand.readings(len(sites)):
            callback = ActivationStatisticsCallback(
                model=model,
                adapter=self.architecture.adapter,
                sites=sites,
                statistics=part.statistics,
                categories={
                    stream: sorted({contrast.category for contrast in shown})
                    for stream, shown in ((CONTRASTS, self.contrasts), (CONTROLS, self.controls), (LEGITIMATE, self.legitimate))
                },
                weights_of=weights_of if part.weights else None,
            )
            callback.accumulator.before, callback.accumulator.in_parts = sums, in_parts
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The ``compute`` method of metric")  # nothing to sum: weights only
                if statistics:
                    asked = {member for pass_ in callback.passes for member in members_of(pass_)}
                    stream(model, [batch for batch in batches if batch.pass_ in asked], [callback], "cpu")
                found = callback.result("")
            sums = found if sums is None else sums.joined(found)
        assert sums is not None
        return sums

    def _services(self, model: nn.Module) -> Services:
        """The readout of the model, and a probe that says which units it was asked for, in place of a measurement."""

        def probe(choice: Choice, *, cost: bool = True) -> Measurement:
            size = sum(
                float(torch.linalg.vector_norm(weights_of(model, self.architecture.sites[name])["out"][units].double()))
                for name, units in choice.units.items()
            )
            return Measurement(divergence=1 / (1 + size), cost=0.001 * size, retention=1 / (1 + 0.001 * size))

        return Services(
            readout=lambda: readout_of(model),
            probe=lambda category: probe,
            attribute_tokens=lambda: attribute_tokens(self.contrasts),
        )


def _watched(method: str, call: Callable[[], Found], at: SiteContext, changed: list[str] | None) -> Found:
    """What a method of a scorer returns; that it modified its context goes into `changed`."""
    given = {**at.sums, **at.weights} | {f"prepared{place}": value for place, value in _tensors(at.prepared)}
    before = {name: value.clone() for name, value in given.items()}
    found = call()
    for name, value in given.items():
        if changed is not None and not torch.equal(value, before[name]):
            changed.append(f"{method}() modifies {name!r} of its context")
    return found


def _tensors(value: Any, place: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested containers, with where they are."""
    if isinstance(value, Tensor):
        yield place, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _tensors(inner, f"{place}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from _tensors(inner, f"{place}[{number}]")
