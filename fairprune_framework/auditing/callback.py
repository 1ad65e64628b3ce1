"""The Lightning callback that turns forwards into statistics; any Trainer can carry it.

It attaches the adapter's taps when predicting starts, hands each site's activations to every statistic as soon as the site has
been seen, keeps only sums, and detaches on every path out, also when a `predict_step` raises. A micro-batch enters the sums when all of
it has been computed, or not at all: what is summed can be saved, and a part that failed can be computed again, at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from fairprune_framework.api.interfaces import ArchitectureAdapter, Observation, Pass, Statistic
from fairprune_framework.api.types import Site, Tap
from fairprune_framework.auditing.distributed.completed import CompletedBatches
from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.auditing.objectives import gradients
from fairprune_framework.auditing.observation import Geometry, narrowed, observe
from fairprune_framework.auditing.sums import (
    CALIBRATION,
    CONTRASTS,
    OBSERVED,
    Statistics,
    StatisticSums,
    cluster_of,
    described,
    finished,
    key_of,
)
from fairprune_framework.errors import ContractViolation, FairpruneError, UserError

IN_HALVES = "in halves"
"""What a `predict_step` returns when it has had its batch computed by `ActivationStatisticsCallback.compute_in_halves`."""


class StopForward(Exception):
    """Ends a forward early: what comes after the last site (its output projection, the last norm) is not needed."""


WeightsOf = Callable[[nn.Module, Site], Mapping[str, Tensor]]


def passes_of(statistics: Sequence[Statistic], layers: int) -> list[Pass]:
    """The distinct passes that statistics listen to; contrasts are passed over in any case, to know which sites they reach."""
    passes = dict.fromkeys(pass_ for statistic in statistics for pass_ in statistic.passes(layers))
    if not any(pass_.stream == CONTRASTS and pass_.layer is None for pass_ in passes):
        passes = {Pass(): None, **passes}
    return list(passes)


class ActivationStatisticsCallback(Callback):
    """Sums statistics over all micro-batches of `Trainer.predict`.

    The module must run the transformers model `model` (or its trunk) on the `input_ids` of each batch, a `MicroBatch`. Where the
    batch's pass has an objective, `predict_step` must return its value (C,) with its graph, as `TrunkModule` does.

    Args:
        model: the transformers model whose sites are listened to.
        adapter: knows where its activations pass.
        sites: the sites to listen to.
        statistics: what to sum; equal ones run once.
        categories: all categories of the stream, in the order of the result.
        weights_of: gives statistics the weights of a site, where a scorer declared them.
        clusters: hashed clusters per category that are summed apart, for bootstrap replicates; 1: none.
        early: raise `StopForward` out of a forward without objective when it has passed every site, where forwards before it showed
            each site once. The module must catch it, as `TrunkModule` does; not for forwards that other ranks compute in lockstep.

    Raises:
        UserError: a statistic asks for logits, a scale or a layer without an objective.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        adapter: ArchitectureAdapter,
        sites: Sequence[Site],
        statistics: Sequence[Statistic],
        categories: Sequence[str],
        weights_of: WeightsOf | None = None,
        clusters: int = 1,
        early: bool = False,
    ) -> None:
        self.early = early
        self.model, self.adapter, self.sites = model, adapter, tuple(sites)
        self.statistics = tuple(dict.fromkeys(statistics))
        self.clusters = clusters
        self._weights_of = weights_of
        self._stack = ExitStack()
        self._listening: dict[Pass, list[Statistic]] = {}
        layers = len({site.layer for site in sites})
        for statistic in self.statistics:
            for pass_ in statistic.passes(layers):
                if pass_.objective is None and pass_ != Pass(stream=pass_.stream):
                    raise UserError(
                        f"statistic {statistic.name!r} asks for logits, a scale or a layer without an objective: "
                        "such a pass runs the trunk as it is"
                    )
                self._listening.setdefault(pass_, []).append(statistic)
        self.passes = passes_of(self.statistics, layers)
        self._taps = {pass_: frozenset(t for s in found for t in s.taps) for pass_, found in self._listening.items()}
        self._counting = {pass_.stream: pass_ for pass_ in reversed(self.passes) if pass_.layer is None}
        self.set_categories(categories)
        self.done = CompletedBatches()
        self.splits = 0
        """Micro-batches that were computed in halves."""
        self.sliced: dict[str, int] = {}
        """key -> columns of the whole site, of sums that hold only the neurons of this rank."""
        self._pending: dict[str, Tensor] = {}
        self._adding = False
        self._seen: dict[str, dict[Tap, Tensor]] = {}
        self._geometry: Geometry | None = None
        self._member_GC = torch.zeros(0)
        self._member_of: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._shown = 0
        self._once: set[Pass] = set()
        """Passes of which a whole forward has shown each site once."""
        self._graphs: list[tuple[Site, dict[Tap, Tensor], dict[Tap, Tensor], Tensor | None]] = []

    def set_categories(self, categories: Sequence[str]) -> None:
        """Name all categories of the stream, in the order of the result; the sums begin anew."""
        self.categories = {category: group for group, category in enumerate(categories)}
        self.sums = StatisticSums(tuple(categories))
        self.counts = {CONTRASTS: [0] * len(self.categories) * self.clusters, CALIBRATION: [0]}

    @property
    def whole(self) -> bool:
        """The sums hold whole micro-batches: nothing interrupted adding one."""
        return not self._adding

    @property
    def attached(self) -> bool:
        """Hooks are on the model."""
        return self._geometry is not None or bool(self._stack._exit_callbacks)  # type: ignore[attr-defined]

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach."""
        if torch.is_inference_mode_enabled() and any(pass_.objective for pass_ in self.passes):
            raise FairpruneError("passes with an objective need gradients: Trainer(inference_mode=False)")
        taps = frozenset(tap for taps in self._taps.values() for tap in taps)
        self._stack.enter_context(self.adapter.tap(self.model, self.sites, taps | {"neuron"}, self._handle))

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Look at the batch that is about to be computed."""
        if not isinstance(batch, MicroBatch):
            raise FairpruneError(
                f"ActivationStatisticsCallback needs batches of type MicroBatch. Got {type(batch).__name__} instead."
            )
        unknown = set(batch.categories) - set(self.categories) if batch.stream == CONTRASTS else set()
        if unknown:
            known = ", ".join(self.categories) or "none"
            raise FairpruneError(f"a batch holds the category {min(unknown)!r}, which was not announced: {known}")
        self._pending = {}
        self.begin(batch)

    def begin(self, batch: MicroBatch) -> None:
        """Look at the micro-batch, or the part of one, that is about to be computed."""
        self._geometry, self._seen, self._graphs, self._shown = Geometry(batch), {}, [], 0
        groups = [self._group(batch, i) for i in range(len(batch.categories))]
        self._member_GC = torch.zeros(len(self.counts[batch.stream]), len(groups), dtype=torch.float64)
        self._member_GC[groups, range(len(groups))] = 1
        self._member_of = {}

    def _group(self, batch: MicroBatch, i: int) -> int:
        if batch.stream == CALIBRATION:
            return 0
        category = self.categories[batch.categories[i]]
        if self.clusters == 1:
            return category
        return category * self.clusters + cluster_of(batch.categories[i], batch.clusters[i], self.clusters)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Add the batch to the sums."""
        if outputs is not IN_HALVES:
            try:
                self.complete(batch, outputs)
            except torch.OutOfMemoryError:
                outputs = None
            else:
                outputs = IN_HALVES
            if outputs is None:  # out of the `except`, so that the failed graph is free
                self.compute_in_halves(
                    batch, getattr(pl_module, "compute", lambda part: pl_module.predict_step(part, batch_idx))
                )
        if batch.idle:
            self._pending, self._geometry = {}, None
            return
        self._adding = True
        self.sums.update(self._pending)
        if self._counting.get(batch.stream) == batch.pass_:
            groups = [self._group(batch, i) for i in range(len(batch.categories))]
            for group in groups:
                self.counts[batch.stream][group] += 1
        if batch.batch_id is not None:
            self.done.add(batch.batch_id, len(batch.ids), batch.tokens)
        self._adding = False
        self._pending, self._geometry = {}, None

    def complete(self, batch: MicroBatch, outputs: Any) -> None:
        """The micro-batch, or the part of one, has been computed."""
        if self._seen:
            site, taps = next(iter(self._seen.items()))
            raise FairpruneError(f"site {site} showed only the taps {', '.join(taps)}: the module did not run the whole model")
        if batch.pass_.objective is not None:
            self._differentiate(outputs)
        elif self.early and self._shown == len(self.sites):
            self._once.add(batch.pass_)

    def compute_in_halves(self, batch: MicroBatch, compute: Callable[[MicroBatch], Any]) -> None:
        """Compute a micro-batch in halves, and those in halves, after it ran out of memory; nothing of the failed attempt is kept.

        The sums of the parts differ from those of the whole by float noise: `splits` counts how often it happened.

        Raises:
            torch.OutOfMemoryError: one contrast alone does not fit.
        """
        self._seen, self._graphs, self._pending, self._geometry = {}, [], {}, None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.splits += 1
        queue = batch.halves()
        while queue:
            part = queue.pop(0)
            before = dict(self._pending)
            try:
                self.begin(part)
                self.complete(part, compute(part))
            except torch.OutOfMemoryError:
                halves = part.halves()
            else:
                continue
            self._seen, self._graphs, self._pending = {}, [], before
            queue = [*halves, *queue]
        self._geometry = None

    def _differentiate(self, objective_C: Any) -> None:
        if not isinstance(objective_C, Tensor) or not objective_C.requires_grad:
            raise FairpruneError("the module returned no objective with a graph for a pass that has one")
        geometry, graphs, self._graphs = self._geometry, self._graphs, []
        assert geometry is not None
        leaves = [inside[tap] for _, inside, _, _ in graphs for tap in inside]
        found = iter(gradients(objective_C, leaves))
        for site, inside, shown, rows in graphs:
            self._sum(site, shown, {tap: next(found) for tap in inside}, rows, geometry, objective_C.detach().double())

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detach."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Detach: Lightning calls neither `teardown` nor `on_predict_end` when a `predict_step` raises."""
        self._detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Detach."""
        self._detach()

    def _detach(self) -> None:
        self._geometry, self._seen, self._graphs = None, {}, []
        self._stack.close()

    def _handle(self, site: Site, tap: Tap, values: Tensor, rows: Tensor | None) -> Tensor | None:
        geometry = self._geometry
        if geometry is None:
            raise FairpruneError("a forward ran outside a predict step while statistics were attached")
        pass_ = geometry.batch.pass_
        wanted = self._taps.get(pass_, frozenset()) & site.taps
        if (tap not in wanted and tap != "neuron") or pass_.layer not in (None, site.layer):
            return None
        if pass_.objective is None:
            seen = self._seen.setdefault(site.name, {})
            seen[tap] = values.detach()
            if wanted | {"neuron"} <= seen.keys():
                self._sum(site, self._seen.pop(site.name), {}, rows, geometry)
                self._shown += 1
                if self._shown == len(self.sites) and pass_ in self._once:
                    raise StopForward
            return None
        scale = pass_.scale if tap == "neuron" else 1.0
        inside = values * scale if values.requires_grad else (values.detach() * scale).requires_grad_()
        if not self._graphs or self._graphs[-1][0] is not site:
            self._graphs.append((site, {}, {}, rows))
        self._graphs[-1][1][tap], self._graphs[-1][2][tap] = inside, values.detach()
        return inside

    def _sum(
        self,
        site: Site,
        values: Mapping[Tap, Tensor],
        grads: Mapping[Tap, Tensor],
        rows: Tensor | None,
        geometry: Geometry,
        objective_C: Tensor | None = None,
    ) -> None:
        if values["neuron"].device.type == "mps":  # no float64 there
            values = {tap: value.cpu() for tap, value in values.items()}
            grads = {tap: value.cpu() for tap, value in grads.items()}
            rows = None if rows is None else rows.cpu()
            objective_C = None if objective_C is None else objective_C.cpu()
            geometry = Geometry(geometry.batch.to("cpu"))
        pass_, stream = geometry.batch.pass_, geometry.batch.stream
        weights = self._weights_of(self.model, site) if self._weights_of else {}
        columns = values["neuron"].shape[-1]
        sliced = columns < site.units * site.unit_width
        totals: dict[str, Tensor] = {}
        counts: set[str] = set()

        def add(key: str, total_GRK: Tensor) -> None:
            totals[key] = totals[key] + total_GRK if key in totals else total_GRK

        for part, (member_GC, reached_G11) in zip(geometry.parts(columns), self._members(geometry, columns), strict=True):
            mine_C = objective_C if objective_C is None or part.contrasts is None else objective_C[list(part.contrasts)]
            observation = observe(site, values, rows, part, pass_, weights, grads, mine_C)
            for key, summands_CRK, of_units in self._summands(site, observation, part.batch):
                if summands_CRK is part.slots_shared[1]:  # the same for all sites that see every token: added up once
                    counts.add(key)
                    add(key, reached_G11)
                else:
                    add(key, _grouped(member_GC, summands_CRK))
                if sliced and of_units and summands_CRK.shape[2] == columns:
                    self.sliced[key] = site.units * site.unit_width
            if self._counting.get(stream) == pass_:
                key = key_of(stream, site.name, OBSERVED)
                counts.add(key)
                add(key, reached_G11 if rows is None else _grouped(member_GC, observation.reached))
        for key, value in totals.items():
            if key not in counts and not torch.isfinite(value.sum()):
                self._blame(key, site, values, rows, geometry, weights, grads, objective_C)
            self._pending[key] = self._pending[key] + value if key in self._pending else value

    def _members(self, geometry: Geometry, columns: int) -> list[tuple[Tensor, Tensor]]:
        """For each part of a micro-batch, made once for all sites: (G, C'), 1 where a contrast belongs to a group; and (G, 1, 1), the
        contrasts of each group that reach a site which sees every token."""
        if columns not in self._member_of:
            member_GC = self._member_GC.to(geometry.batch.text.device)
            parts = geometry.parts(columns)
            members = [member_GC if part.contrasts is None else member_GC[:, list(part.contrasts)] for part in parts]
            self._member_of[columns] = [(m, _grouped(m, part.slots_shared[1])) for m, part in zip(members, parts, strict=True)]
        return self._member_of[columns]

    def _blame(
        self, key: str, site: Site, values: Any, rows: Any, geometry: Geometry, weights: Any, grads: Any, objective: Any
    ) -> None:
        """Say which contrast made a sum NaN or Inf."""
        observation = observe(site, values, rows, geometry, geometry.batch.pass_, weights, grads, objective)
        for found, summands_CRK, _ in self._summands(site, observation, geometry.batch):
            finite_C = torch.isfinite(summands_CRK).flatten(1).all(1)
            if found == key and not finite_C.all():
                bad = geometry.batch.ids[finite_C.tolist().index(False)]
                raise FairpruneError(
                    f"NaN or Inf in statistic {key.rpartition('/')[2]!r} of site {site.name} at contrast {bad!r}"
                )
        raise FairpruneError(f"NaN or Inf in statistic {key.rpartition('/')[2]!r} of site {site.name}")

    def _summands(self, site: Site, observation: Observation, batch: MicroBatch) -> Iterator[tuple[str, Tensor, bool]]:
        """Key, summands (C, R, K) and whether the columns are neurons, of every output of every statistic that listens; checked."""
        for statistic in self._listening.get(batch.pass_, ()):
            try:
                outputs = statistic.summands(narrowed(observation, statistic.taps))
            except Exception as error:
                raise FairpruneError(f"statistic {statistic.name!r} raised {type(error).__name__}: {error}") from error
            for name, summands_CRK in outputs.items():
                key = key_of(batch.stream, site.name, f"{statistic.name}.{name}")
                self._check(statistic, name, summands_CRK, site, batch)
                if (known := self.sums.shape_of(key)) not in (None, tuple(summands_CRK.shape[1:])):
                    raise ContractViolation(
                        f"statistic {statistic.name!r}, output {name!r}: R, K were {known}, now {tuple(summands_CRK.shape[1:])}"
                    )
                yield key, summands_CRK, bool(statistic.taps & {"neuron", "gate", "up"})

    def _check(self, statistic: Statistic, name: str, summands_CRK: Tensor, site: Site, batch: MicroBatch) -> None:
        if summands_CRK.ndim != 3 or summands_CRK.shape[0] != len(batch.ids) or summands_CRK.dtype != torch.float64:
            raise ContractViolation(
                f"statistic {statistic.name!r}, output {name!r}: expected ({len(batch.ids)}, R, K) float64, "
                f"got {tuple(summands_CRK.shape)} {summands_CRK.dtype}"
            )

    def result(self, composition: str) -> Statistics:
        """What was summed, rounded to float64."""
        ran = [f"{pass_.stream}/{described(statistic)}" for pass_, found in self._listening.items() for statistic in found]
        return finished(self.sums, self.counts, self.clusters, tuple(sorted(set(ran))), composition)


def _grouped(member_GC: Tensor, summands_CRK: Tensor) -> Tensor:
    """(G, R, K): summands added up by group."""
    return (member_GC @ summands_CRK.flatten(1)).view(-1, *summands_CRK.shape[1:])
