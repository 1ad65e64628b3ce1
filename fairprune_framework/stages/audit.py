"""The stage `audit` of a run: what rank 0 prepares, what further ranks join, and what a checkpoint is bound to."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fairprune_framework.auditing import audit as auditing
from fairprune_framework.auditing import autotune
from fairprune_framework.auditing.audit import Outcome
from fairprune_framework.auditing.batches import WINDOW, BatchSpec, batch_specs
from fairprune_framework.auditing.code_digest import code_digest
from fairprune_framework.auditing.demand import Demand, passes_of
from fairprune_framework.auditing.distributed import parallel
from fairprune_framework.auditing.distributed.checkpoint import Checkpoint
from fairprune_framework.auditing.distributed.model_parallel import check_tensor_parallel
from fairprune_framework.auditing.runner import loggers_of
from fairprune_framework.auditing.streams import FiledStreams, Job
from fairprune_framework.auditing.sums import CALIBRATION, CONTRASTS
from fairprune_framework.errors import FairpruneError, Interrupted, RankFailed, UserError
from fairprune_framework.runs.folder import CHECKPOINT as FOLDER
from fairprune_framework.utilities import files as provenance
from fairprune_framework.utilities.progress import silent
from fairprune_framework.utilities.versions import versions

if TYPE_CHECKING:
    from fairprune_framework.runs.run import Run


def audit_run(run: Run, demand: Demand) -> Outcome:
    """Do what is left of the audit of a run, as rank 0."""
    parallelism = run.parallelism
    calibration = run.calibration if demand.calibration else None
    passes = passes_of(demand.statistics, len({site.layer for site in run.architecture.sites.values()}))
    if calibration is not None and not (run.folder / "calibration.jsonl").exists():  # a text in memory: all ranks read it there
        calibration.save(run.folder / "calibration.jsonl", run.tokenizer)
    max_tokens = run.micro_batch_tokens
    streams = FiledStreams(run.folder, run.encoder)
    job = Job(
        categories=tuple(sorted(run.categories)),
        values=run.values,
        contrasts=run.alignment.selecting,
        documents=len(calibration.scoring) if calibration is not None else 0,
        max_tokens=max_tokens,
        share_up_to=run.sharing.up_to,
        tokens=run.alignment.selecting_tokens,
        facts={"vocabularies": run.contrasts.vocabularies},
    )
    checkpoint = Checkpoint(run.folder / FOLDER, binding(run, demand, job), run.notify)
    if run.overwrite and checkpoint.folder.is_dir():
        try:
            checkpoint.load()
        except FairpruneError as error:
            run.notify(f"{error}: it is removed")
            checkpoint.clear()
        checkpoint.session = 0
    before = checkpoint.load()
    checkpoint.begin(before)
    checkpoint.clear_failures()
    facts = {**job.facts, "binding": checkpoint.binding}
    job = replace(job, done=before.done, session=checkpoint.session, facts=facts)
    limit = _announce(run, job, passes, streams)
    outcome = auditing.perform(
        run.model,
        run.architecture,
        demand,
        job,
        streams,
        parallelism=parallelism,
        checkpoint=checkpoint,
        before=before if before.done.bits else None,
        every=run.recipe.checkpoint_every,
        loggers=loggers_of(run.recipe.log, run.folder),
        limit=limit,
    )
    assert outcome is not None
    if outcome.splits:
        run.notify(
            f"{outcome.splits} micro-batches ran out of memory and were computed in halves: bits may differ from a run without"
        )
    return outcome


def run_worker_rank(run: Run, demand: Callable[[], Demand]) -> int:
    """Compute this rank's part of the audit of a run, as a rank that is not 0; returns the exit code.

    Writes its own checkpoints alone, and prints nothing; the reason of a failure is written where rank 0 finds it.
    """
    checkpoint = Checkpoint(run.folder / FOLDER, {})
    run.notify = silent
    try:
        parallel.init_process_group(run.parallelism)
        if parallel.broadcast(run.parallelism, None) == "leave":
            return 0
        auditing.perform(
            run.model,
            run.architecture,
            demand(),
            None,
            FiledStreams(run.folder, run.encoder),
            parallelism=run.parallelism,
            checkpoint=checkpoint,
            every=run.recipe.checkpoint_every,
        )
    except Interrupted:
        return 0  # rank 0 reports it: its exit code counts
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get("FAIRPRUNE_DEBUG"):
            raise
        if not isinstance(error, RankFailed):
            checkpoint.write_failure(run.parallelism.rank, error)
        return 1
    finally:
        parallel.destroy_process_group(run.parallelism)
    return 0


def check_parallelism(run: Run) -> None:
    """Raise `UserError` for what an audit over several processes cannot have."""
    parallelism = run.parallelism
    if run._temporary is not None and not parallelism.forked:
        raise UserError("an audit over several processes needs a run folder that all of them can read: give an output folder")
    if run._given_model is not None and not parallelism.forked:
        raise UserError(
            "a model in memory cannot be shared with processes of its own: name a model or folder, or take the strategy ddp_spawn"
        )
    if parallelism.tensor_parallel:
        check_tensor_parallel(run.model, tuple(run.architecture.sites.values()), parallelism.devices * parallelism.nodes)


def binding(run: Run, demand: Demand, job: Job) -> dict[str, Any]:
    """All that partial sums depend on, in words."""
    installed = versions()
    layers = len({site.layer for site in run.architecture.sites.values()})
    found = {
        "model": run.fingerprint,
        "prompt set": provenance.file_digest(run.folder / "contrasts.jsonl"),
        "calibration text": run.calibration.hash if demand.calibration else None,
        "set of statistics": [*sorted(demand.names(layers)), "clusters" if demand.clusters else "no clusters"],
        "composition of micro-batches": [
            job.max_tokens,
            job.share_up_to,
            WINDOW,
            run.recipe.chat_template,
            sorted(job.values.items()),
        ],
        "architecture": run.architecture.name,
        "code version": code_digest([*demand.statistics, run.architecture.adapter]),
        "version of torch": installed["torch"],
        "version of transformers": installed["transformers"],
        "kind of device": run.device.type,
    }
    if run.parallelism.compile:
        found["way to compute"] = "compiled"
    if run.parallelism.tensor_parallel:
        found["way to compute"] = "tensor parallel"
    return found


def _announce(run: Run, job: Job, passes: Any, streams: FiledStreams) -> float | None:
    """Say what there is to do; returns the measured limit in tokens per second."""
    sizes = {CONTRASTS: job.contrasts, CALIBRATION: job.documents}
    planned: list[autotune.Planned] = []
    first: list[BatchSpec] = []
    for work in auditing.work_of(job, passes, streams(job)):
        _, window = next(work.windows(lambda number: number == 0))
        found = list(batch_specs(window, work.max_tokens, work.pass_, work.share_up_to))
        first = first or found
        planned.append(autotune.Planned.of(found, sizes[work.pass_.stream] / len(window), work.pass_.objective is not None))
    rate = None if run.parallelism.sharded else autotune.limit_of(run.model, first, run.device)
    ranks = max(run.parallelism.devices, 1) * run.parallelism.nodes
    left = 1 - job.done.contrasts / max(sum(sizes[pass_.stream] for pass_ in passes), 1)
    text = autotune.announcement(job.contrasts, job.tokens, planned, rate, ranks, job.done.contrasts, left)
    run.notify(f"audit of {text}; {autotune.memory_used(run.device) / 1e9:.1f} GB in use")
    return rate * ranks if rate else None
