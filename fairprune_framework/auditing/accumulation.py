"""From what a site showed to sums: statistics, checked, added up by category, a whole micro-batch at a time.

What a micro-batch adds is pending until all of it has been computed; then it enters the sums at once, or not at all. So what is summed
can be saved, and a half that failed can be computed again, at any time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from fairprune_framework.api.declared import earlier, passes_at
from fairprune_framework.api.interfaces import Observation, Pass, Statistic, ValueSums
from fairprune_framework.api.types import Site, Stream, Tap
from fairprune_framework.auditing.demand import passes_of
from fairprune_framework.auditing.distributed.completed import CompletedBatches
from fairprune_framework.auditing.identity import described, stored_names
from fairprune_framework.auditing.members import Members
from fairprune_framework.auditing.merging import members_of
from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.auditing.observation import Geometry, narrowed, observe
from fairprune_framework.auditing.reductions import joined, marked, without_neutral
from fairprune_framework.auditing.statistics import (
    CALIBRATION,
    CONTRASTS,
    OBSERVED,
    OF_PROMPTS,
    Statistics,
    cluster_of,
    finished,
    key_of,
)
from fairprune_framework.auditing.sum_blocks import Rows
from fairprune_framework.auditing.sums import StatisticSums
from fairprune_framework.errors import ContractViolation, FairpruneError, PluginError, UserError, shown
from fairprune_framework.surgery.slices import LazyWeights
from fairprune_framework.utilities.aside import plugin_call

WeightsOf = Callable[[nn.Module, Site, torch.device], Mapping[str, Tensor]]


class Accumulator:
    """The sums of all statistics over whole micro-batches.

    Args:
        model: whose sites are seen.
        statistics: what to sum; equal ones run once.
        layers: how many layers have sites.
        categories: stream -> all its categories, in the order of the result.
        weights_of: gives statistics the weights of a site, where a scorer declared them.
        clusters: hashed clusters per category that are summed apart, for bootstrap replicates; 1: none.

    Raises:
        UserError: a statistic asks for logits, a scale or a layer without an objective.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        statistics: Sequence[Statistic],
        layers: int,
        categories: Mapping[Stream, Sequence[str]],
        weights_of: WeightsOf | None = None,
        clusters: int = 1,
    ) -> None:
        self.model, self.clusters = model, clusters
        self._weights_of = weights_of
        self._listening: dict[Pass, list[Statistic]] = {}
        distinct = tuple(dict.fromkeys(statistics))
        self._earlier = {statistic: earlier(statistic) for statistic in distinct}
        self._stored = stored_names(distinct)
        self._keys: dict[tuple[Stream, str, Statistic, str], str] = {}
        for statistic in distinct:
            for pass_ in passes_at(statistic, layers):
                if pass_.objective is None and pass_ != Pass(stream=pass_.stream):
                    raise UserError(
                        f"statistic {statistic.name!r} asks for logits, a scale or a layer without an objective: "
                        "such a pass runs the trunk as it is"
                    )
                self._listening.setdefault(pass_, []).append(statistic)
        self.passes = passes_of(distinct, layers)
        self.taps = {pass_: frozenset(tap for one in every for tap in one.taps) for pass_, every in self._listening.items()}
        for pass_ in self.passes:
            of_members = (self.taps.get(member, frozenset[Tap]()) for member in members_of(pass_))
            self.taps[pass_] = frozenset[Tap]().union(*of_members)
        """Pass -> the taps that its statistics want."""
        every_pass = [member for pass_ in self.passes for member in members_of(pass_)]
        self._counting = {pass_.stream: pass_ for pass_ in reversed(every_pass) if pass_.layer is None}
        self.set_categories(categories)
        self.done = CompletedBatches()
        self.sliced: dict[str, int] = {}
        """key -> columns of the whole site, of sums that hold only the neurons of this rank."""
        self.in_parts: bool | None = None
        """Statistics see groups of contrasts of alike shape, as on a CPU, or whole micro-batches, as on a GPU; None: as the device is."""
        self.before: Statistics | None = None
        """What earlier readings of the streams came to, for statistics that come after others."""
        self._finished: dict[tuple[Statistic, Stream, str], Mapping[str, Tensor]] = {}
        self.geometry: Geometry | None = None
        """Of the micro-batch, or the half of one, that is being computed; None between two."""
        self._pending: dict[str, Tensor] = {}
        self._adding = False
        self._present: list[int] = []
        """Groups that the micro-batch, of which this may be a half, holds contrasts of: pending sums are of these alone."""
        self._rows = Rows((), 1)
        """Of sums by attribute value, the rows that the micro-batch adds to: most values belong to one category."""
        self._member_GC = torch.zeros(0)
        self._members: dict[int, list[Members]] = {}

    def set_categories(self, categories: Mapping[Stream, Sequence[str]]) -> None:
        """Name all categories of each stream, in the order of the result; the sums begin anew."""
        self.categories = {stream: {name: i for i, name in enumerate(names)} for stream, names in categories.items()}
        self.sums = StatisticSums()
        groups = {stream: len(self.categories.get(stream, ())) for stream in OF_PROMPTS}
        self.counts: dict[str, list[int]] = {stream: [0] * count for stream, count in groups.items()}
        self.counts |= {CONTRASTS: [0] * groups[CONTRASTS] * self.clusters, CALIBRATION: [0]}

    @property
    def whole(self) -> bool:
        """The sums hold whole micro-batches: nothing interrupted adding one."""
        return not self._adding

    # -- one micro-batch ------------------------------------------------------------------------------------------------

    def start(self, batch: MicroBatch) -> None:
        """A micro-batch is about to be computed; raises `FairpruneError` for a category that was not set."""
        known = self.categories.get(batch.stream, {})
        unknown = set() if batch.stream == CALIBRATION else set(batch.categories) - set(known)
        if unknown:
            named = ", ".join(known) or "none"
            raise FairpruneError(f"a batch holds the category {min(unknown)!r}, which is not among the categories set: {named}")
        self._pending = {}
        groups = self._groups(batch)
        self._present = sorted(set(groups))
        if batch.attribute.device.type == "cpu":
            pairs = {
                group * batch.values + value
                for group, values in zip(groups, batch.attribute.tolist(), strict=True)
                for value in values
                if value >= 0
            }
            self._rows = Rows(sorted(pairs), batch.values)
        self.look_at(batch)

    def look_at(self, batch: MicroBatch) -> None:
        """Observe this micro-batch, or half of one, from now on."""
        groups = self._groups(batch)
        self.geometry = Geometry(batch, known=self.categories.get(batch.stream, {}), in_parts=self.in_parts)
        places = {group: place for place, group in enumerate(self._present)}
        self._member_GC = torch.zeros(len(self._present), len(groups), dtype=torch.float64)
        self._member_GC[[places[group] for group in groups], range(len(groups))] = 1
        self._members = {}

    def commit(self, batch: MicroBatch) -> None:
        """All of a micro-batch has been computed: what is pending enters the sums.

        Raises:
            UserError: a sum on an accelerator is NaN or Inf. The sums are not `whole` then, and are not saved.
        """
        self._adding = True
        self.sums.update(self._pending, self._present, len(self.counts[batch.stream]), self._rows)
        if self._counting.get(batch.stream) in members_of(batch.pass_):
            for group in self._groups(batch):
                self.counts[batch.stream][group] += 1
        if batch.batch_id is not None:
            self.done.add(batch.batch_id, len(batch.ids), batch.tokens)
        self._refuse_not_finite(
            batch
        )  # last: an accelerator is given the additions while it still computes, and only then waited for
        self._adding = False
        self.discard()

    def _refuse_not_finite(self, batch: MicroBatch) -> None:
        """On an accelerator, where looking at one value waits for all work, sums are looked at once a micro-batch."""
        sums = {key: without_neutral(key, value).sum() for key, value in self._pending.items() if value.device.type != "cpu"}
        if not sums or bool(torch.isfinite(torch.stack(list(sums.values()))).all()):
            return
        key = next(key for key, value in sums.items() if not torch.isfinite(value))
        _, _, place = key.partition("/")
        site, _, statistic = place.rpartition("/")
        raise UserError(
            f"NaN or Inf in statistic {statistic!r} of site {site}, in the {len(batch.ids)} contrasts from {batch.ids[0]!r} on"
        )

    def discard(self) -> None:
        """Forget what is pending, and look at nothing."""
        self._pending, self.geometry = {}, None

    def pending(self) -> dict[str, Tensor]:
        """What the micro-batch has added so far, to go back to."""
        return dict(self._pending)

    def go_back(self, pending: dict[str, Tensor]) -> None:
        """Forget what was added since `pending`."""
        self._pending = pending

    def _groups(self, batch: MicroBatch) -> list[int]:
        """The group that each contrast (or document) is summed in: its category, or its cluster of a category."""
        if batch.stream == CALIBRATION:
            return [0] * len(batch.categories)
        categories = [self.categories[batch.stream][category] for category in batch.categories]
        if self.clusters == 1 or batch.stream != CONTRASTS:
            return categories
        named = zip(categories, batch.categories, batch.clusters, strict=True)
        return [group * self.clusters + cluster_of(category, cluster, self.clusters) for group, category, cluster in named]

    # -- one site of it -------------------------------------------------------------------------------------------------

    def add(
        self,
        site: Site,
        values: Mapping[Tap, Tensor],
        grads: Mapping[Tap, Tensor],
        rows: Tensor | None,
        objective_C: Tensor | None = None,
        whole: frozenset[Tap] = frozenset(),
        pass_: Pass | None = None,
    ) -> None:
        """Sum the statistics of one pass over what one site showed of the current micro-batch.

        Args:
            values: tap -> (M, K) as the adapter showed them.
            grads: tap -> (M, K), d objective / d values; empty without an objective.
            rows: (M,) flat token index of each row; None: all tokens in order.
            objective_C: (C,) float64, value of the pass's objective.
            whole: taps with a row for every token, whatever `rows` says: those of the layer of an expert.
            pass_: the one of those merged in the micro-batch that it is of; None: the micro-batch's own.

        Raises:
            BrokenPlugin: a statistic raised.
            ContractViolation: a statistic returned another shape or dtype than (C, R, K) float64.
            UserError: a sum is NaN or Inf; the contrast is named.
        """
        geometry = self.geometry
        assert geometry is not None
        if values["neuron"].device.type == "mps":  # no float64 there
            values = {tap: value.cpu() for tap, value in values.items()}
            grads = {tap: value.cpu() for tap, value in grads.items()}
            rows = None if rows is None else rows.cpu()
            objective_C = None if objective_C is None else objective_C.cpu()
            geometry = Geometry(geometry.batch.to("cpu"), known=geometry.known)
        pass_, stream = pass_ or geometry.batch.pass_, geometry.batch.stream
        weights: Mapping[str, Tensor] = {}
        if self._weights_of is not None:
            weights = LazyWeights(partial(self._weights_of, self.model, site, values["neuron"].device))
        columns = values["neuron"].shape[-1]
        sliced = columns < site.units * site.unit_width
        totals: dict[str, Tensor] = {}
        counts: set[str] = set()

        def observed(part: Geometry) -> Observation:
            mine_C = objective_C if objective_C is None or part.contrasts is None else objective_C[list(part.contrasts)]
            return observe(site, values, rows, part, pass_, weights, grads, mine_C, whole)

        def add(key: str, total_GRK: Tensor) -> None:
            totals[key] = joined(key, totals[key], total_GRK) if key in totals else total_GRK

        for part, members in zip(geometry.parts(columns), self._members_of(geometry, columns), strict=True):
            observation = observed(part)
            for key, summands_CRK, of_units in self._summands(site, observation, part.batch):
                if isinstance(summands_CRK, ValueSums):
                    add(key, members.of_values(key, summands_CRK, observation))
                else:
                    total_GRK = members.of_contrasts(key, summands_CRK, observation)
                    add(key, total_GRK)
                    if members.knows(total_GRK):
                        counts.add(key)
                if sliced and of_units and summands_CRK.shape[2] in (columns, columns // site.unit_width):
                    self.sliced[key] = site.units * (site.unit_width if summands_CRK.shape[2] == columns else 1)
            if self._counting.get(stream) == pass_:
                key = key_of(stream, site.name, OBSERVED)
                counts.add(key)
                add(key, members.of_contrasts(key, observation.reached, observation))
        looked_at = [key for key, value in totals.items() if key not in counts and value.device.type == "cpu"]
        sums = torch.stack([without_neutral(key, totals[key]).sum() for key in looked_at]) if looked_at else torch.zeros(0)
        if not math.isfinite(sums.sum()):  # a sum of sums may overflow where none of them has
            for key, finite in zip(looked_at, torch.isfinite(sums).tolist(), strict=True):
                if not finite:
                    error = self._not_finite(key, site, observed(geometry), geometry.batch)
                    error.by = next(statistic for (_, _, statistic, _), known in self._keys.items() if known == key)
                    raise error
        for key, value in totals.items():
            self._pending[key] = joined(key, self._pending[key], value) if key in self._pending else value

    def _members_of(self, geometry: Geometry, columns: int) -> list[Members]:
        """For each part of a micro-batch what its contrasts add to, made once for all sites."""
        if columns not in self._members:
            member_GC = self._member_GC.to(geometry.batch.text.device)
            local = {group: place for place, group in enumerate(self._present)}
            rows = [local[place // self._rows.of] * self._rows.of + place % self._rows.of for place in self._rows.places]
            self._members[columns] = [
                Members(part, member_GC if part.contrasts is None else member_GC[:, list(part.contrasts)], rows)
                for part in geometry.parts(columns)
            ]
        return self._members[columns]

    def _not_finite(self, key: str, site: Site, observation: Observation, batch: MicroBatch) -> UserError:
        """Names the contrast that made a sum NaN or Inf."""
        statistic = key.rpartition("/")[2]
        for name, summands_CRK, _ in self._summands(site, observation, batch):
            if isinstance(summands_CRK, ValueSums):
                summands_CRK = summands_CRK.spread()
            finite_C = torch.isfinite(without_neutral(name, summands_CRK)).flatten(1).all(1)
            if name == key and not finite_C.all():
                first = batch.ids[finite_C.tolist().index(False)]
                return UserError(f"NaN or Inf in statistic {statistic!r} of site {site.name} at contrast {first!r}")
        return UserError(f"NaN or Inf in statistic {statistic!r} of site {site.name}")

    def _summands(
        self, site: Site, observation: Observation, batch: MicroBatch
    ) -> Iterator[tuple[str, Tensor | ValueSums, bool]]:
        """Key, summands (C, R, K) and whether the columns are neurons, of every output of every statistic that listens; checked."""
        views: dict[frozenset[Tap], Observation] = {}
        for statistic in self._listening.get(observation.pass_, ()):
            try:
                if statistic.taps not in views:
                    views[statistic.taps] = narrowed(observation, statistic.taps)
                seen = views[statistic.taps]
                if self._earlier[statistic]:
                    seen = replace(seen, before=self._before_of(statistic, batch.stream, site.name, observation.mask.device))
                with plugin_call(f"statistic {statistic.name!r}", passing=(torch.OutOfMemoryError,)):
                    outputs = statistic.summands(seen)
                if not isinstance(outputs, Mapping):
                    raise ContractViolation(
                        f"statistic {statistic.name!r}: summands() must return a mapping from names to tensors. "
                        f"Got {type(outputs).__name__} instead."
                    )
                for name, summands_CRK in outputs.items():
                    _check(statistic, name, summands_CRK, len(batch.ids))
                    place = (batch.stream, site.name, statistic, name)
                    if (key := self._keys.get(place, "")) == "":
                        output = marked(f"{self._stored[statistic]}.{name}", statistic.reduce)
                        key = self._keys[place] = key_of(batch.stream, site.name, output)
                    if (known := self.sums.shape_of(key)) not in (None, tuple(summands_CRK.shape[1:])):
                        raise ContractViolation(
                            f"statistic {statistic.name!r}, output {name!r}: R, K were {known}, now {tuple(summands_CRK.shape[1:])}"
                        )
                    yield key, summands_CRK, bool(statistic.taps & {"neuron", "gate", "up"})
            except PluginError as error:
                error.by = statistic
                raise

    def _before_of(self, statistic: Statistic, stream: Stream, site: str, device: torch.device) -> Mapping[str, Tensor]:
        """What the statistics that one comes after have summed at a site, (G, R, K) each."""
        key = (statistic, stream, site)
        if key not in self._finished:
            found = {} if self.before is None else self.before.by_category(stream, site, self._earlier[statistic])
            self._finished[key] = {name: value.to(device) for name, value in found.items()}
        return self._finished[key]

    def result(self, composition: str) -> Statistics:
        """What was summed, rounded to float64."""
        ran = {f"{pass_.stream}/{described(statistic)}" for pass_, every in self._listening.items() for statistic in every}
        names = {stream: tuple(groups) for stream, groups in self.categories.items()}
        return finished(self.sums.words(), names, self.counts, self.clusters, tuple(sorted(ran)), composition)


def _check(statistic: Statistic, name: object, summands_CRK: Tensor | ValueSums, contrasts: int) -> None:
    if not isinstance(name, str) or {"/", ":"} & set(name):
        raise ContractViolation(
            f"statistic {statistic.name!r}: the output {shown(name)} must be a text with neither '/' nor ':'"
        )
    if isinstance(summands_CRK, ValueSums):
        summands_CRK = summands_CRK.of_variants
    if not isinstance(summands_CRK, Tensor):
        raise ContractViolation(
            f"statistic {statistic.name!r}, output {name!r}: expected a tensor, got {type(summands_CRK).__name__}"
        )
    if summands_CRK.ndim != 3 or summands_CRK.shape[0] != contrasts or summands_CRK.dtype != torch.float64:
        raise ContractViolation(
            f"statistic {statistic.name!r}, output {name!r}: expected ({contrasts}, R, K) float64, "
            f"got {tuple(summands_CRK.shape)} {summands_CRK.dtype}"
        )
