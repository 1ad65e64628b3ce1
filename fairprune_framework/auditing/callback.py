"""The Lightning callback that turns forwards into statistics; any Trainer can carry it.

It attaches the adapter's taps when predicting starts, hands each site's activations to every statistic as soon as the site has
been seen, keeps only sums, and detaches on every path out, also when a `predict_step` raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from fairprune_framework.auditing.batches import MicroBatch
from fairprune_framework.auditing.observing import Geometry, observe
from fairprune_framework.auditing.sums import CALIBRATION, CONTRASTS, OBSERVED, Statistics, StatisticSums, described, key_of
from fairprune_framework.errors import ContractViolation, FairpruneError, UserError
from fairprune_framework.interfaces import ArchitectureAdapter, Pass, Statistic
from fairprune_framework.types import Site, Tap

WeightsOf = Callable[[nn.Module, Site], Mapping[str, Tensor]]


class ActivationStatisticsCallback(Callback):
    """Sums statistics over all micro-batches of `Trainer.predict`.

    The module must run the transformers model `model` (or its trunk) on the `input_ids` of each batch, a `MicroBatch`.

    Args:
        model: the transformers model whose sites are listened to.
        adapter: knows where its activations pass.
        sites: the sites to listen to.
        statistics: what to sum; equal ones run once.
        categories: all categories of the stream, in the order of the result.
        weights_of: gives statistics the weights of a site, where a scorer declared them.

    Raises:
        UserError: a statistic asks for a gradient or scaled pass, which this version does not run.
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
    ) -> None:
        self.model, self.adapter, self.sites = model, adapter, tuple(sites)
        self.statistics = tuple(dict.fromkeys(statistics))
        self.categories = {category: group for group, category in enumerate(categories)}
        self.sums = StatisticSums(tuple(categories))
        self._weights_of = weights_of
        self._stack = ExitStack()
        self._listening: dict[str, list[tuple[Statistic, Pass]]] = {CONTRASTS: [], CALIBRATION: []}
        layers = len({site.layer for site in sites})
        for statistic in self.statistics:
            for step in statistic.passes(layers):
                if step != Pass(stream=step.stream):
                    raise UserError(
                        f"statistic {statistic.name!r} asks for a pass with an objective, logits, a scale or a layer: "
                        "this version runs plain forwards of the trunk only"
                    )
                self._listening[step.stream].append((statistic, step))
        self._taps = {stream: frozenset(t for s, _ in pairs for t in s.taps) for stream, pairs in self._listening.items()}
        self._counts = {CONTRASTS: [0] * len(self.categories), CALIBRATION: [0]}
        self._seen: dict[str, dict[Tap, Tensor]] = {}
        self._geometry: Geometry | None = None
        self._groups: dict[int, Tensor] = {}

    @property
    def attached(self) -> bool:
        """Hooks are on the model."""
        return self._geometry is not None or bool(self._stack._exit_callbacks)  # type: ignore[attr-defined]

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach."""
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
        self._geometry, self._seen = Geometry(batch), {}
        self._groups = {0: torch.ones(len(batch.ids), dtype=torch.float64)}
        if batch.stream == CONTRASTS:
            group_C = torch.tensor([self.categories[category] for category in batch.categories])
            self._groups = {group: (group_C == group).double() for group in sorted(set(group_C.tolist()))}

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Count the batch."""
        if self._seen:
            site, taps = next(iter(self._seen.items()))
            raise FairpruneError(f"site {site} showed only the taps {', '.join(taps)}: the module did not run the whole model")
        for group, member_C in self._groups.items():
            self._counts[batch.stream][group] += int(member_C.sum())
        self._geometry = None

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
        self._geometry, self._seen = None, {}
        self._stack.close()

    def _handle(self, site: Site, tap: Tap, values: Tensor, rows: Tensor | None) -> None:
        geometry = self._geometry
        if geometry is None:
            raise FairpruneError("a forward ran outside a predict step while statistics were attached")
        pairs = self._listening[geometry.batch.stream]
        wanted = self._taps[geometry.batch.stream] & site.taps
        if tap not in wanted and tap != "neuron":
            return
        seen = self._seen.setdefault(site.name, {})
        seen[tap] = values.detach()
        if wanted | {"neuron"} <= seen.keys():
            self._sum(site, self._seen.pop(site.name), rows, geometry, pairs)

    def _sum(
        self,
        site: Site,
        values: Mapping[Tap, Tensor],
        rows: Tensor | None,
        geometry: Geometry,
        pairs: Sequence[tuple[Statistic, Pass]],
    ) -> None:
        if values["neuron"].device.type == "mps":  # no float64 there
            values = {tap: value.cpu() for tap, value in values.items()}
            rows = None if rows is None else rows.cpu()
            geometry = Geometry(geometry.batch.to("cpu"))
        batch = geometry.batch
        weights = self._weights_of(self.model, site) if self._weights_of else {}
        for statistic, step in pairs:
            shown = {tap: values[tap] for tap in statistic.taps if tap in values}
            observation = observe(site, shown, rows, geometry, step, weights)
            try:
                outputs = statistic.summands(observation)
            except Exception as error:
                raise FairpruneError(f"statistic {statistic.name!r} raised {type(error).__name__}: {error}") from error
            for name, summands_CRK in outputs.items():
                key = key_of(batch.stream, site.name, f"{statistic.name}.{name}")
                self._check(statistic, name, summands_CRK, site, batch)
                if (known := self.sums.shape_of(key)) not in (None, tuple(summands_CRK.shape[1:])):
                    raise ContractViolation(
                        f"statistic {statistic.name!r}, output {name!r}: R, K were {known}, now {tuple(summands_CRK.shape[1:])}"
                    )
                self._add(key, summands_CRK)
        reached_CVS = observe(site, {}, rows, geometry, Pass(), {}).aligned_mask
        self._add(key_of(batch.stream, site.name, OBSERVED), reached_CVS.any(2).any(1).double().reshape(-1, 1, 1))

    def _add(self, key: str, summands_CRK: Tensor) -> None:
        """Sum the contrasts of each category, in their order, and add that to what was there."""
        contrasts, *shape = summands_CRK.shape
        for group, member_C in self._groups.items():
            member = member_C.to(summands_CRK.device).unsqueeze(0)
            self.sums.update(key, group, (member @ summands_CRK.reshape(contrasts, -1)).reshape(shape))

    def _check(self, statistic: Statistic, name: str, summands_CRK: Tensor, site: Site, batch: MicroBatch) -> None:
        if summands_CRK.ndim != 3 or summands_CRK.shape[0] != len(batch.ids) or summands_CRK.dtype != torch.float64:
            raise ContractViolation(
                f"statistic {statistic.name!r}, output {name!r}: expected ({len(batch.ids)}, R, K) float64, "
                f"got {tuple(summands_CRK.shape)} {summands_CRK.dtype}"
            )
        if not torch.isfinite(summands_CRK.sum()):
            bad = next(
                (i for i, row in zip(batch.ids, summands_CRK, strict=True) if not torch.isfinite(row).all()), batch.ids[0]
            )
            raise FairpruneError(f"NaN or Inf in statistic {statistic.name!r} of site {site.name} at contrast {bad!r}")

    def result(self, composition: str) -> Statistics:
        """What was summed, rounded to float64."""
        ran = [f"{step.stream}/{described(statistic)}" for pairs in self._listening.values() for statistic, step in pairs]
        return Statistics(
            sums=self.sums.totals(),
            categories=tuple(self.categories),
            counts={stream: tuple(counts) for stream, counts in self._counts.items()},
            statistics=tuple(sorted(set(ran))),
            composition=composition,
        )
