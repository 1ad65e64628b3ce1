"""The Lightning callback that turns forwards into statistics; any Trainer can carry it.

It attaches the adapter's taps when predicting starts, hands each site's activations to an `Accumulator` as soon as the site has been
seen, and detaches on every path out, also when a `predict_step` raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from fairprune_framework.api.interfaces import ArchitectureAdapter, Pass, Statistic
from fairprune_framework.api.types import Site, Stream, Tap
from fairprune_framework.auditing.accumulation import Accumulator, WeightsOf
from fairprune_framework.auditing.merging import members_of
from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.auditing.objectives import gradients
from fairprune_framework.auditing.statistics import Statistics
from fairprune_framework.errors import ContractViolation, FairpruneError
from fairprune_framework.errors import shown as in_words

SHARED: frozenset[Tap] = frozenset({"layer_input", "attention", "norm", "mlp_input", "mlp", "layer"})
"""Taps that a layer shows once, with its first expert: every expert of the layer that lists them is given them."""
IN_HALVES = "in halves"
"""What a `predict_step` returns when it has had its batch computed by `ActivationStatisticsCallback.compute_in_halves`."""


class StopForward(Exception):
    """Ends a forward early: what comes after the last site (its output projection, the last norm) is not needed."""


class ActivationStatisticsCallback(Callback):
    """Sums statistics over all micro-batches of `Trainer.predict`.

    The module must run the transformers model `model` (or its trunk) on the `input_ids` of each batch, a `MicroBatch`. Where the
    batch's pass has an objective, `predict_step` must return its value (C,) with its graph, or one of each of the passes that are merged
    in it, as `TrunkModule` does.

    Args:
        model: the transformers model whose sites are listened to.
        adapter: knows where its activations pass.
        sites: the sites to listen to.
        statistics: what to sum; equal ones run once.
        categories: stream -> all its categories, in the order of the result; calibration text has none.
        weights_of: gives statistics the weights of a site, where a scorer declared them.
        clusters: hashed clusters per category that are summed apart, for bootstrap replicates; 1: none.
        early: raise `StopForward` out of a forward without objective when it has passed every site, where forwards before it showed
            each site once. The module must catch it, as `TrunkModule` does; not for forwards that ranks compute in lockstep.
        compiled: forwards are compiled around what is listened to.

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
        categories: Mapping[Stream, Sequence[str]],
        weights_of: WeightsOf | None = None,
        clusters: int = 1,
        early: bool = False,
        compiled: bool = False,
    ) -> None:
        self.model, self.adapter, self.sites, self.early = model, adapter, tuple(sites), early
        self._take: Callable[..., Tensor | None] = self._handle
        if compiled:
            self._take = torch.compiler.disable(self._handle)  # type: ignore[no-untyped-call]
        self.accumulator = Accumulator(
            model=model,
            statistics=statistics,
            layers=len({site.layer for site in sites}),
            categories=categories,
            weights_of=weights_of,
            clusters=clusters,
        )
        heads = {site.layer for site in sites if site.kind == "heads"}
        self._mixed = frozenset(site.layer for site in sites if site.kind != "heads" and site.layer in heads)
        """Layers with neurons and heads."""
        self.splits = 0
        """Micro-batches that were computed in halves."""
        self._stack = ExitStack()
        self._seen: dict[str, dict[Tap, Tensor]] = {}
        """Site -> what it has shown so far of the current forward, of its own."""
        self._rows: dict[str, Tensor | None] = {}
        """Site -> rows of its own taps."""
        self._of_layer: dict[int, dict[Tap, Tensor]] = {}
        """Layer of several sites -> what the layer has shown so far of the current forward."""
        self._complete_sites = 0
        self._shown_once: set[Pass] = set()
        """Passes of which a whole forward has shown each site once."""
        self._leaves: list[tuple[Site, Tap, Tensor | None, Tensor]] = []
        """Under an objective: site, tap, leaf of the graph where a gradient is wanted, value."""
        self._sloped: dict[Pass, frozenset[Tap]] = {}
        """Pass -> the taps whose gradients are wanted."""

    @property
    def passes(self) -> list[Pass]:
        """The distinct passes that the statistics listen to."""
        return self.accumulator.passes

    @property
    def attached(self) -> bool:
        """Hooks are on the model."""
        return self.accumulator.geometry is not None or bool(self._stack._exit_callbacks)  # type: ignore[attr-defined]

    def result(self, composition: str) -> Statistics:
        """What was summed, rounded to float64. `composition`: `composition_hash` of the micro-batches."""
        return self.accumulator.result(composition)

    # -- what a Trainer calls -------------------------------------------------------------------------------------------

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach."""
        if torch.is_inference_mode_enabled() and any(pass_.objective for pass_ in self.passes):
            raise FairpruneError("passes with an objective need gradients: Trainer(inference_mode=False)")
        taps = frozenset(tap for taps in self.accumulator.taps.values() for tap in taps)
        self._stack.enter_context(self.adapter.tap(self.model, self.sites, taps | {"neuron"}, self._take))

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Look at the batch that is about to be computed."""
        if not isinstance(batch, MicroBatch):
            raise FairpruneError(
                f"ActivationStatisticsCallback needs batches of type MicroBatch. Got {type(batch).__name__} instead."
            )
        self._forget_forward()
        self.accumulator.start(batch)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Add the batch to the sums."""
        if outputs is not IN_HALVES:
            try:
                self._complete(batch, outputs)
            except torch.OutOfMemoryError:
                outputs = None
            else:
                outputs = IN_HALVES
            if outputs is None:  # out of the `except`, so that the failed graph is free
                self.compute_in_halves(
                    batch, getattr(pl_module, "compute", lambda half: pl_module.predict_step(half, batch_idx))
                )
        if batch.idle:
            self.accumulator.discard()
        else:
            self.accumulator.commit(batch)

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
        self._forget_forward()
        self.accumulator.discard()
        self._stack.close()

    def _forget_forward(self) -> None:
        self._seen, self._rows, self._of_layer, self._leaves, self._complete_sites = {}, {}, {}, [], 0

    # -- one forward ----------------------------------------------------------------------------------------------------

    def compute_in_halves(self, batch: MicroBatch, compute: Callable[[MicroBatch], Any]) -> None:
        """Compute a micro-batch in halves, and those in halves, after it ran out of memory; nothing of the failed attempt is kept.

        The sums of the halves differ from those of the whole by float noise: `splits` counts how often it happened.

        Raises:
            torch.OutOfMemoryError: one contrast alone does not fit.
        """
        self._forget_forward()
        self.accumulator.discard()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.splits += 1
        queue = batch.halves()
        while queue:
            half = queue.pop(0)
            before = self.accumulator.pending()
            try:
                self._forget_forward()
                self.accumulator.look_at(half)
                self._complete(half, compute(half))
            except torch.OutOfMemoryError:
                halves = half.halves()
            else:
                continue
            self._forget_forward()
            self.accumulator.go_back(before)
            queue = [*halves, *queue]
        self.accumulator.geometry = None

    def _complete(self, batch: MicroBatch, outputs: Any) -> None:
        """The micro-batch, or the half of one, has been computed."""
        if self._seen:
            site, taps = next(iter(self._seen.items()))
            raise FairpruneError(f"site {site} showed only the taps {', '.join(taps)}: the module did not run the whole model")
        if batch.pass_.objective is not None:
            self._differentiate(batch.pass_, outputs)
        elif self.early and self._complete_sites == len(self.sites):
            self._shown_once.add(batch.pass_)

    def _differentiate(self, pass_: Pass, outputs: Any) -> None:
        objectives = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
        wanted = [each for each in members_of(pass_) if each.objective is not None]
        if len(objectives) != len(wanted) or not all(isinstance(each, Tensor) for each in objectives):
            raise FairpruneError("the module returned no objective for a pass that has one")
        for each, value in zip(wanted, objectives, strict=True):
            if not value.requires_grad:
                error = ContractViolation(
                    f"objective {in_words(each.objective)} returned what has no gradient: a value without a graph"
                )
                error.by = each.objective
                raise error
        shown, self._leaves = self._leaves, []
        values: dict[Any, dict[Tap, Tensor]] = {}
        sites: dict[str, Site] = {}
        for site, tap, _, value in shown:
            values.setdefault(self._key(site, tap), {})[tap] = value
            if self._key(site, tap) == site.name:
                sites[site.name] = site

        def add(member: Pass, slopes: Mapping[Any, Mapping[Tap, Tensor]], objective_C: Tensor | None) -> None:
            for name, site in sites.items():
                shared = values.get(site.layer, {})
                grads = {**slopes.get(name, {}), **slopes.get(site.layer, {})}
                self.accumulator.add(
                    site, {**values[name], **shared}, grads, self._rows[name], objective_C, frozenset(shared), member
                )

        leaves = [(self._key(site, tap), tap, leaf) for site, tap, leaf, _ in shown if leaf is not None]
        for number, (member, objective_C) in enumerate(zip(wanted, objectives, strict=True)):
            slopes: dict[Any, dict[Tap, Tensor]] = {}
            grads = gradients(objective_C, [leaf for _, _, leaf in leaves], keep=number + 1 < len(wanted))
            for (key, tap, _), grad in zip(leaves, grads, strict=True):
                slopes.setdefault(key, {})[tap] = grad
            del grads
            add(member, slopes, objective_C.detach().double())
        for member in members_of(pass_):
            if member.objective is None:
                add(member, {}, None)

    def _handle(self, site: Site, tap: Tap, values: Tensor, rows: Tensor | None) -> Tensor | None:
        """What the adapter calls at each tap of each site; returns what the model shall go on with, None: what it had."""
        if self.accumulator.geometry is None:
            raise FairpruneError("a forward ran outside a predict step while statistics were attached")
        pass_ = self.accumulator.geometry.batch.pass_
        wanted = self.accumulator.taps.get(pass_, frozenset()) & site.taps
        if (tap not in wanted and tap != "neuron") or pass_.layer not in (None, site.layer):
            return None
        shared = self._is_shared(site, tap)
        if not shared:
            self._rows[site.name] = rows
        if pass_.objective is not None and tap not in self._taps_with_slopes(pass_):
            self._leaves.append((site, tap, None, values.detach()))
            return None
        if pass_.objective is not None:
            scale = pass_.scale if tap == "neuron" else 1.0
            if values.requires_grad and tap == "neuron" and scale == 1.0:
                leaf = values  # the output projection reads it: no copy is needed
            else:
                leaf = values * scale if values.requires_grad else (values.detach() * scale).requires_grad_()
            self._leaves.append((site, tap, leaf, values.detach()))
            return leaf
        if shared:
            self._of_layer.setdefault(site.layer, {})[tap] = values.detach()
            waiting = [each for each in self.sites if each.layer == site.layer and each.name in self._seen]
        else:
            self._seen.setdefault(site.name, {})[tap] = values.detach()
            waiting = [site]
        for each in waiting:
            self._add_if_complete(each, (self.accumulator.taps.get(pass_, frozenset()) & each.taps) | {"neuron"})
        if self._complete_sites == len(self.sites) and pass_ in self._shown_once:
            raise StopForward
        return None

    def _add_if_complete(self, site: Site, wanted: frozenset[Tap]) -> None:
        whole = self._of_layer.get(site.layer, {})
        if wanted <= self._seen[site.name].keys() | whole.keys():
            values = {**self._seen.pop(site.name), **whole}
            self.accumulator.add(site, values, {}, self._rows[site.name], whole=frozenset(whole))
            self._complete_sites += 1

    def _taps_with_slopes(self, pass_: Pass) -> frozenset[Tap]:
        if pass_ not in self._sloped:
            each = [self.accumulator.taps.get(one, frozenset()) for one in members_of(pass_) if one.objective is not None]
            self._sloped[pass_] = frozenset[Tap]({"neuron"}).union(*each)
        return self._sloped[pass_]

    def _key(self, site: Site, tap: Tap) -> str | int:
        """What a tap is shown of: the layer or the site."""
        return site.layer if self._is_shared(site, tap) else site.name

    def _is_shared(self, site: Site, tap: Tap) -> bool:
        """Whether a tap is given once for the several sites of a layer."""
        return tap in SHARED and (site.kind == "expert" or site.layer in self._mixed)
