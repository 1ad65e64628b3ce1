"""The audit: statistics of contrasts of the split `select`, and of calibration text if a scorer asks for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fairprune_framework.api.interfaces import Pass
from fairprune_framework.api.types import Stream
from fairprune_framework.auditing.batches import WINDOW
from fairprune_framework.auditing.callback import ActivationStatisticsCallback
from fairprune_framework.auditing.demand import Demand
from fairprune_framework.auditing.distributed.assignment import Work, assigned_batches
from fairprune_framework.auditing.distributed.checkpoint import Checkpoint, Part
from fairprune_framework.auditing.distributed.checkpoint_callback import CheckpointCallback
from fairprune_framework.auditing.distributed.model_parallel import ShardLayers, SplitNeurons
from fairprune_framework.auditing.distributed.parallel import Parallelism
from fairprune_framework.auditing.memory import refuse_large, sums_bytes
from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.auditing.progress_bar import RateBar
from fairprune_framework.auditing.runner import ContrastDataModule, TrunkModule, stream
from fairprune_framework.auditing.statistics import (
    CALIBRATION,
    CLUSTERS,
    CONTRASTS,
    CONTROLS,
    LEGITIMATE,
    OF_PROMPTS,
    Statistics,
    finished,
)
from fairprune_framework.auditing.streams import Held, HeldStreams, Job, Open, Windows
from fairprune_framework.calibration.text import Calibration
from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.errors import FairpruneError
from fairprune_framework.models.architecture import Architecture
from fairprune_framework.surgery.slices import weights_of


def work_of(job: Job, passes: Sequence[Pass], streams: Mapping[str, Windows]) -> list[Work]:
    """The passes of an audit over its streams, ready to be assigned; none over a stream that has nothing."""
    return [
        Work(
            pass_=pass_,
            number=number,
            windows=streams[pass_.stream],
            count=-(-job.sizes[pass_.stream] // WINDOW),
            values=job.largest.get(pass_.stream, 1),
            max_tokens=job.max_tokens,
            share_up_to=job.share_up_to,
        )
        for number, pass_ in enumerate(passes)
        if job.sizes[pass_.stream]
    ]


class AuditDataModule(ContrastDataModule):
    """The micro-batches of one rank, which receives the job from rank 0 once the process group is open."""

    def __init__(
        self,
        job: Job | None,
        open: Open,
        statistics: ActivationStatisticsCallback,
        parallelism: Parallelism,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        super().__init__(self._assigned_batches)
        self.job, self.open, self.statistics, self.parallelism, self.checkpoint = job, open, statistics, parallelism, checkpoint

    def setup(self, stage: str) -> None:
        """Receive the job from rank 0."""
        assert self.trainer is not None
        job: Job | None = self.trainer.strategy.broadcast(self.job)
        if job is None:
            raise FairpruneError("rank 0 has broadcast no job")
        self.job = job
        self.statistics.accumulator.set_categories(job.categories)
        self.statistics.accumulator.before = job.before
        if self.checkpoint is not None:
            self.checkpoint.session, self.checkpoint.binding = job.session, job.facts["binding"]

    def _assigned_batches(self) -> Iterator[MicroBatch]:
        assert self.trainer is not None
        assert self.job is not None
        work = work_of(self.job, self.statistics.passes, self.open(self.job))
        rank, world = self.trainer.global_rank, self.trainer.world_size
        if self.parallelism.tensor_parallel:  # every rank computes all contrasts, for its neurons
            rank, world = 0, 1
        return assigned_batches(work, rank, world, self.job.done, together=self.parallelism.sharded)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of an audit, on rank 0."""

    statistics: Statistics
    seconds: float
    """Of this session, without loading."""
    contrasts: int
    """Contrasts and documents, over all passes and sessions."""
    resumed: int
    """Of them, done by earlier sessions."""
    splits: int
    """Micro-batches computed in halves after running out of memory: if there are any, bits may differ from an audit without."""
    checkpoint_seconds: float
    micro_batch_tokens: int = 0
    limit: float | None = None
    """Tokens per second of bare forwards, measured before; None: too few micro-batches to measure it."""

    def joined(self, later: Outcome) -> Outcome:
        """With a later reading of the same streams."""
        return replace(
            later,
            statistics=self.statistics.joined(later.statistics),
            seconds=self.seconds + later.seconds,
            contrasts=self.contrasts + later.contrasts,
            resumed=self.resumed + later.resumed,
            splits=self.splits + later.splits,
            checkpoint_seconds=self.checkpoint_seconds + later.checkpoint_seconds,
            limit=self.limit or later.limit,
        )

    def to_json(self) -> dict[str, Any]:
        """The entry `audit` of `run.json`."""
        return {
            "contrasts": self.contrasts,
            "resumed": self.resumed,
            "seconds": round(self.seconds, 3),
            "checkpoint_seconds": round(self.checkpoint_seconds, 3),
            "micro_batch_tokens": self.micro_batch_tokens,
            "out_of_memory_splits": self.splits,
            "threads": torch.get_num_threads(),
            "forward_tokens_per_second": None if self.limit is None else round(self.limit, 1),
        }


def perform(
    model: nn.Module,
    architecture: Architecture,
    demand: Demand,
    job: Job | None,
    open: Open,
    *,
    parallelism: Parallelism,
    checkpoint: Checkpoint | None = None,
    before: Part | None = None,
    every: int = 0,
    loggers: Sequence[Any] = (),
    limit: float | None = None,
    keep: bool = False,
) -> Outcome | None:
    """Compute the rest of one reading of the streams on this rank, and reduce over ranks. None on every rank but 0.

    Args:
        job: on rank 0; None on the others, which receive it.
        open: returns the streams of a job.
        checkpoint: rank 0 has begun its session, with `before`.
        before: on rank 0, the sums of earlier sessions.
        limit: tokens per second of a bare forward, if it was measured.
        keep: write the sums of all ranks to the checkpoint: another reading follows.
    """
    callback = ActivationStatisticsCallback(
        model=model,
        adapter=architecture.adapter,
        sites=list(architecture.sites.values()),
        statistics=demand.statistics,
        categories=job.categories if job else {},
        weights_of=weights_of if demand.weights else None,
        clusters=CLUSTERS if demand.clusters else 1,
        early=not parallelism.sharded and not parallelism.compile,
        compiled=parallelism.compile,
    )
    checkpointing = CheckpointCallback(callback, checkpoint, every, parallelism, before)
    total = 0
    if job is not None:
        total = sum(job.sizes[pass_.stream] for pass_ in callback.passes)
    done = before.done.contrasts if before else 0
    bar = RateBar(total, done=done, limit=limit, same_batches=parallelism.tensor_parallel)
    module = TrunkModule(model, compile=parallelism.compile)
    if parallelism.sharded:
        sites = tuple(architecture.sites.values())
        module.parallelize = SplitNeurons(model, callback) if parallelism.tensor_parallel else ShardLayers(model, sites)
        module.lockstep = True
    gradients = any(pass_.objective for pass_ in callback.passes)
    data = AuditDataModule(job, open, callback, parallelism, checkpoint)
    began = time.perf_counter()
    stream(module, data, [callback, checkpointing, bar], parallelism=parallelism, loggers=loggers, gradients=gradients)
    elapsed = time.perf_counter() - began
    if parallelism.forked and checkpoint is not None:
        checkpointing.total = Checkpoint(checkpoint.folder, checkpoint.binding).load()
    if parallelism.rank or job is None or checkpointing.total is None:
        return None
    part = checkpointing.total
    if lost := [
        f"pass {work.number}, window {window}"
        for work in work_of(job, callback.passes, dict.fromkeys((*OF_PROMPTS, CALIBRATION), _nothing))
        for window in range(work.count)
        if not part.done.is_complete(work.number, window)
    ]:
        raise FairpruneError(f"micro-batches are missing from the sums: {lost[0]} and {len(lost) - 1} more")
    if keep and checkpoint is not None and not parallelism.forked:  # forked ranks have written it
        checkpoint.session += 1
        checkpoint.begin(part)
    ran = tuple(sorted(demand.names(len({site.layer for site in architecture.sites.values()}))))
    return Outcome(
        statistics=finished(part.words, job.categories, part.counts, callback.accumulator.clusters, ran, part.done.composition),
        seconds=elapsed if parallelism.forked else bar.seconds,  # this process has no bar of its own
        contrasts=part.done.contrasts,
        resumed=done,
        splits=part.splits,
        checkpoint_seconds=checkpointing.seconds,
        micro_batch_tokens=job.max_tokens,
        limit=limit,
    )


def _nothing(wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[AlignedContrast]]]:
    return iter(())


def audit(
    model: nn.Module,
    architecture: Architecture,
    contrasts: Sequence[AlignedContrast],
    values: Mapping[str, int],
    demand: Demand,
    *,
    controls: Sequence[AlignedContrast] = (),
    legitimate: Sequence[AlignedContrast] = (),
    calibration: Calibration | None = None,
    micro_batch_tokens: int = 512,
    share_up_to: int = 0,
    accelerator: str = "auto",
) -> tuple[Statistics, Outcome]:
    """Stream contrasts in memory through a model on one device; `values` gives the size of each category's vocabulary."""
    documents = calibration.as_contrasts() if calibration is not None else []
    given: dict[Stream, Sequence[AlignedContrast]] = {CONTRASTS: contrasts, CONTROLS: controls, LEGITIMATE: legitimate}
    job = Job(
        categories={
            stream: tuple(sorted({contrast.category for contrast in every}))
            for stream, every in given.items()
            if stream == CONTRASTS or stream in demand.streams
        },
        values=values,
        sizes={**{stream: len(every) for stream, every in given.items()}, CALIBRATION: len(documents)},
        max_tokens=micro_batch_tokens,
        share_up_to=share_up_to,
    )
    groups = {stream: len(names) for stream, names in job.categories.items()}
    sizes = sums_bytes(demand, model, list(architecture.sites.values()), groups, job.largest)
    refuse_large(sizes, next((parameter.device for parameter in model.parameters()), torch.device("cpu")))
    streams = HeldStreams(Held(contrasts), Held(controls), Held(documents), Held(legitimate))
    outcome: Outcome | None = None
    for part in demand.readings(len({site.layer for site in architecture.sites.values()})):
        job = replace(job, before=None if outcome is None else outcome.statistics)
        found = perform(model, architecture, part, job, streams, parallelism=Parallelism(accelerator=accelerator))
        assert found is not None
        outcome = found if outcome is None else outcome.joined(found)
    assert outcome is not None
    return outcome.statistics, outcome
