"""The stage `audit`: contrasts of the split `select` + model -> `statistics.*`. What rank 0 does, and what further ranks join."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from fairprune_framework.api.declared import needs_of
from fairprune_framework.api.interfaces import Statistic
from fairprune_framework.api.statistics import SquareSum
from fairprune_framework.auditing import autotune
from fairprune_framework.auditing.audit import Outcome, perform, work_of
from fairprune_framework.auditing.batches import WINDOW, BatchSpec, batch_specs
from fairprune_framework.auditing.callback import ActivationStatisticsCallback
from fairprune_framework.auditing.code_digest import code_digest
from fairprune_framework.auditing.demand import Demand, passes_of, streams_of
from fairprune_framework.auditing.distributed import liveness, parallel
from fairprune_framework.auditing.distributed.checkpoint import Checkpoint
from fairprune_framework.auditing.distributed.model_parallel import check_tensor_parallel
from fairprune_framework.auditing.distributed.parallel import Parallelism
from fairprune_framework.auditing.memory import in_words, refuse_large, sums_bytes
from fairprune_framework.auditing.merging import merged
from fairprune_framework.auditing.prefix_sharing import Sharing, prefix_sharing
from fairprune_framework.auditing.runner import cannot_compile, logger_class, loggers_of
from fairprune_framework.auditing.statistics import CALIBRATION, CONTRASTS, CONTROLS, LEGITIMATE, OF_PROMPTS
from fairprune_framework.auditing.streams import FiledStreams, Job, largest_of
from fairprune_framework.errors import FairpruneError, Interrupted, RankFailed, UserError
from fairprune_framework.runs.folder import CHECKPOINT
from fairprune_framework.runs.run import Run
from fairprune_framework.utilities.files import file_digest
from fairprune_framework.utilities.versions import versions


def prefixes_of(run: Run) -> Sharing:
    """Whether prefixes that texts share are computed once, and why."""
    if run.recipe.prefix_sharing == "never":
        return Sharing(up_to=0, because="--prefix-sharing never")
    passes = [pass_ for pass_ in merged(run.plugins.passes()) if pass_.stream != CALIBRATION]
    if passes and all(pass_.objective for pass_ in passes):
        return Sharing(
            up_to=0, because="every pass over the contrasts has an objective: each text carries a gradient of its own"
        )
    return prefix_sharing(run.loaded.model)


def demand_of(run: Run) -> Demand:
    """What the plugins want summed; and the norms that random sets are matched by, where calibration text is computed in any case."""
    layers = len(run.loaded.layers)
    demand = run.plugins.demand(layers)
    if not run.recipe.random_sets or CALIBRATION not in demand.readings(layers)[0].streams:
        return demand
    return replace(demand, statistics=tuple(dict.fromkeys((*demand.statistics, SquareSum()))))


def check(run: Run) -> None:
    """Raise `UserError` for plugins that cannot be served, a way to compute that cannot be had, or nothing to audit."""
    if run.recipe.log is not None:
        logger_class(run.recipe.log)
    run.plugins.check_needs()
    loaded = run.loaded
    ActivationStatisticsCallback(
        model=loaded.model,
        adapter=loaded.architecture.adapter,
        sites=list(loaded.architecture.sites.values()),
        statistics=demand_of(run).statistics,
        categories={},
    )
    check_parallelism(run)
    budget, longest = run.recipe.micro_batch_tokens, run.prompts.alignment.longest
    if 0 < budget < longest:
        raise UserError(
            f"--micro-batch-tokens {budget} is less than the longest text of the prompts, {longest} tokens: give at least as many"
        )
    feeds = run.prompts.alignment.feeds
    refuse_large(_sums_of(run), loaded.device)
    if not feeds[CONTRASTS].contrasts:
        raise UserError("no contrast may feed scores: all are controls or legitimate differences, or held out")
    for stream, (kind, mark) in {
        CONTROLS: ("control contrasts", "`control: true`"),
        LEGITIMATE: ("legitimate contrasts", "`legitimate: true` and their right words"),
    }.items():
        for plugin in run.plugins.all if not feeds[stream].contrasts else ():
            needs, name = needs_of(plugin), type(plugin).__name__
            if stream not in streams_of(needs.statistics, len(loaded.layers)):
                continue
            none = f"{kind}, and the prompt set has none that may feed scores: contrasts with {mark} in the split `select`"
            if stream not in needs.optional_streams:
                raise UserError(f"{name} compares with {none}")
            run.notify(f"{name} would compare with {none}; it goes without them")


def check_parallelism(run: Run) -> None:
    """Raise `UserError` for what an audit over several processes cannot have."""
    parallelism, loaded = run.parallelism, run.loaded
    if not parallelism.is_distributed:
        return
    if run.folder.temporary and not parallelism.forked:
        raise UserError("an audit over several processes needs a run folder that all of them can read: give an output folder")
    if loaded.in_memory and not parallelism.forked:
        raise UserError(
            "a model in memory cannot be shared with processes of its own: name a model or folder, or take the strategy ddp_spawn"
        )
    if parallelism.sharded and len(demand_of(run).readings(len(loaded.layers))) > 1:
        raise UserError(
            f"--strategy {parallelism.strategy} reads the streams once, and a statistic of these plugins comes after another: take ddp"
        )
    if parallelism.tensor_parallel:
        sites = tuple(loaded.architecture.sites.values())
        check_tensor_parallel(loaded.model, sites, parallelism.devices * parallelism.nodes)


def run(run: Run) -> list[str]:
    """Do the stage; returns the files that it left. What is summed is kept in `checkpoint/` until they are there."""
    sharing = prefixes_of(run)
    demand = demand_of(run)
    sources = demand.sources(len(run.loaded.layers))
    outcome = _audit(run, demand, sharing)
    if run.parallelism.sharded:
        run.loaded.release()
    else:
        run.loaded.to_device()
    run.folder.begin("audit")
    outcome.statistics.save(run.folder.path)
    shutil.rmtree(run.folder / CHECKPOINT, ignore_errors=True)
    how = {"prefixes": sharing.up_to > 0, "because": sharing.because}
    run.record["statistic_sources"] = sources
    run.folder.note(hashes={"composition": outcome.statistics.composition}, audit=outcome.to_json() | {"sharing": how})
    return ["statistics.safetensors", "statistics.json"]


def _audit(run: Run, demand: Demand, sharing: Sharing) -> Outcome:
    """Do what is left of the audit, as rank 0."""
    loaded, prompts, folder = run.loaded, run.prompts, run.folder
    calibration = run.calibration if demand.calibration else None
    if calibration is not None and not (folder / "calibration.jsonl").exists():  # a text in memory: all ranks read it there
        calibration.save(folder / "calibration.jsonl", loaded.tokenizer)
    wanted = demand.streams | {CONTRASTS}
    feeds = {stream: prompts.alignment.feeds[stream] for stream in OF_PROMPTS if stream in wanted}
    job = Job(
        categories={stream: tuple(sorted(feed.categories)) for stream, feed in feeds.items()},
        values=prompts.values,
        sizes={
            **{stream: feed.contrasts for stream, feed in feeds.items()},
            CALIBRATION: len(calibration.scoring) if calibration is not None else 0,
        },
        max_tokens=run.micro_batch_tokens,
        share_up_to=sharing.up_to,
        tokens=feeds[CONTRASTS].tokens,
        facts={"vocabularies": prompts.contrasts.vocabularies},
    )
    outcome: Outcome | None = None
    readings, parallelism = demand.readings(len(loaded.layers)), _what_compiles(run)
    for number, part in enumerate(readings):
        job = replace(job, before=None if outcome is None else outcome.statistics)
        found = _reading(run, part, number, job, parallelism, keep=number + 1 < len(readings))
        outcome = found if outcome is None else outcome.joined(found)
    assert outcome is not None
    if outcome.splits:
        run.notify(
            f"{outcome.splits} micro-batches ran out of memory and were computed in halves: bits may differ from a run without"
        )
    return outcome


def _checkpoint_of(run: Run, number: int) -> Path:
    """Where a reading of the streams keeps its sums."""
    return run.folder / CHECKPOINT / (f"reading-{number}" if number else "")


def _reading(run: Run, demand: Demand, number: int, job: Job, parallelism: Parallelism, *, keep: bool) -> Outcome:
    """Do what is left of one reading of the streams."""
    loaded, folder = run.loaded, run.folder
    streams = FiledStreams(folder.path, loaded.encoder)
    checkpoint = Checkpoint(_checkpoint_of(run, number), binding(run, demand, job), run.notify)
    if folder.overwrite and checkpoint.folder.is_dir():
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
    limit = _announce(run, job, passes_of(demand.statistics, len(loaded.layers)), streams, parallelism)
    outcome = perform(
        loaded.model,
        loaded.architecture,
        demand,
        job,
        streams,
        parallelism=parallelism,
        checkpoint=checkpoint,
        before=before if before.done.bits else None,
        every=run.recipe.checkpoint_every,
        loggers=loggers_of(run.recipe.log, folder.path),
        limit=limit,
        keep=keep,
    )
    assert outcome is not None
    return outcome


def _what_compiles(run: Run) -> Parallelism:
    """The way to compute, without compiling where that fails; said to who asked for it."""
    parallelism = run.parallelism
    if not parallelism.compile or (because := cannot_compile()) is None:
        return parallelism
    run.notify(f"--compile: torch.compile fails here ({because}); the audit goes on without it")
    return replace(parallelism, compile=False)


def run_worker_rank(run: Run) -> int:
    """Compute this rank's part of the audit of a run, as a rank that is not 0; returns the exit code.

    Writes its own checkpoints alone, and prints nothing; the reason of a failure is written where rank 0 finds it.
    """
    checkpoint = Checkpoint(run.folder / CHECKPOINT, {})
    parallelism, loaded = run.parallelism, run.loaded
    try:
        parallel.init_process_group(parallelism)
        if parallel.broadcast(parallelism, None) == "leave":
            return 0
        compiling = _what_compiles(run)
        for number, part in enumerate(demand_of(run).readings(len(loaded.layers))):
            checkpoint = Checkpoint(_checkpoint_of(run, number), {})
            perform(
                loaded.model,
                loaded.architecture,
                part,
                None,
                FiledStreams(run.folder.path, loaded.encoder),
                parallelism=compiling,
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
        if isinstance(error, RankFailed) or liveness.in_words(error) is not None:
            _last_words(error)
        else:
            checkpoint.write_failure(parallelism.rank, error)
        return 1
    finally:
        parallel.destroy_process_group(parallelism)
    return 0


def _last_words(error: Exception) -> None:
    """Give the watch time to see which rank is gone; where it is rank 0, that is said here, since nobody else can."""
    if (live := liveness.current()) is None:
        return
    until = time.monotonic() + 2 * liveness.SILENCE
    while live.dead is None and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(liveness.GRACE + 1)  # it ends the process


def binding(run: Run, demand: Demand, job: Job) -> dict[str, Any]:
    """All that partial sums depend on, in words."""
    installed, parallelism, loaded = versions(), run.parallelism, run.loaded
    found = {
        "model": run.fingerprint,
        "prompt set": file_digest(run.folder / "contrasts.jsonl"),
        "calibration text": run.calibration.hash if demand.calibration else None,
        "set of statistics": [
            *sorted(demand.names(len(loaded.layers))),
            "clusters" if demand.clusters else "no clusters",
        ],
        "composition of micro-batches": [
            job.max_tokens,
            job.share_up_to,
            WINDOW,
            run.recipe.chat_template,
            sorted(job.values.items()),
        ],
        "architecture": loaded.architecture.name,
        "code version": code_digest([*demand_of(run).statistics, *loaded.architecture.parts]),
        "version of torch": installed["torch"],
        "version of transformers": installed["transformers"],
        "kind of device": loaded.device.type,
    }
    if job.before is not None:
        found["earlier reading"] = [job.before.composition, *job.before.statistics]
    if parallelism.compile:
        found["way to compute"] = "compiled"
    if parallelism.tensor_parallel:
        found["way to compute"] = "tensor parallel"
    return found


def _sums_of(run: Run) -> dict[Statistic, int]:
    """Statistic -> bytes of its sums."""
    loaded, alignment = run.loaded, run.prompts.alignment
    groups = {stream: len(alignment.feeds[stream].categories) for stream in OF_PROMPTS}
    sites = list(loaded.architecture.sites.values())
    values = {stream: largest_of(run.prompts.values, alignment.feeds[stream].categories) for stream in OF_PROMPTS}
    return sums_bytes(demand_of(run), loaded.model, sites, groups, values)


def _announce(run: Run, job: Job, passes: Any, streams: FiledStreams, parallelism: Parallelism) -> float | None:
    """Say what there is to do; returns the measured limit in tokens per second."""
    planned: list[autotune.Planned] = []
    first: list[BatchSpec] = []
    for work in work_of(job, passes, streams(job)):
        _, window = next(work.windows(lambda number: number == 0))
        specs = list(batch_specs(window, work.max_tokens, work.pass_, work.share_up_to))
        first = first or specs
        planned.append(autotune.Planned.of(specs, job.sizes[work.pass_.stream] / len(window), work.pass_.objective is not None))
    device = run.loaded.device
    rate = None if parallelism.sharded else autotune.limit_of(run.loaded.model, first, device)
    ranks = max(parallelism.devices, 1) * parallelism.nodes
    left = 1 - job.done.contrasts / max(sum(job.sizes[pass_.stream] for pass_ in passes), 1)
    text = autotune.announcement(job.sizes[CONTRASTS], job.tokens, planned, rate, ranks, job.done.contrasts, left)
    run.notify(f"audit of {text}; {autotune.memory_used(device) / 1e9:.1f} GB in use, the sums take {in_words(_sums_of(run))}")
    return rate * ranks if rate else None
