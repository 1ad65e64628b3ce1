"""The callback of a distributed or long audit: checkpoints, SIGTERM, failed ranks, and at the end the reduction over ranks."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed as dist

from fairprune_framework.auditing.callback import ActivationStatisticsCallback
from fairprune_framework.auditing.distributed import liveness
from fairprune_framework.auditing.distributed.checkpoint import Checkpoint, Part
from fairprune_framework.auditing.distributed.liveness import Liveness
from fairprune_framework.auditing.distributed.parallel import Parallelism
from fairprune_framework.auditing.distributed.reduce import gather_columns, reduce_parts
from fairprune_framework.errors import FairpruneError, Interrupted, RankFailed, RunFolderError


class CheckpointCallback(Callback):
    """Saves the sums of `statistics` periodically, and stops after the current micro-batch on SIGTERM.

    Args:
        statistics: whose sums are saved; it must come before this callback in the Trainer.
        checkpoint: where to save; None: nowhere.
        every: contrasts, over all ranks, between two checkpoints; 0: only on SIGTERM, on errors and at the end.
        before: on rank 0, the sums of earlier sessions.
    """

    def __init__(
        self,
        statistics: ActivationStatisticsCallback,
        checkpoint: Checkpoint | None,
        every: int,
        parallelism: Parallelism,
        before: Part | None = None,
    ) -> None:
        self.statistics, self.checkpoint, self.every, self.parallelism = statistics, checkpoint, every, parallelism
        self.before = before
        self.total: Part | None = None
        """On rank 0 after the audit: the sums of all ranks and sessions."""
        self.seconds = 0.0
        """Spent writing checkpoints."""
        self._rank, self._world, self._since = 0, 1, 0
        self._group: Any = None
        self._stop = False
        self._handler: Any = None
        self._live: Liveness | None = None

    def watch(self, trainer: Trainer) -> None:
        """Watch the other ranks, from before the processes are started that this one starts."""
        if not self.parallelism.is_distributed or self.parallelism.forked:
            return
        if (live := liveness.current()) is None:
            world = max(self.parallelism.devices, 1) * self.parallelism.nodes
            live = self._watching(self.parallelism.rank, world, parent=self.parallelism.rank > 0)
            live.children = lambda: self._children(trainer)
            live.start()
        live.reason, live.after = self._reason, f"; {self._progress()}"
        self._live = live

    def _watching(self, rank: int, world: int, *, parent: bool) -> Liveness:
        return Liveness(rank, world, self.parallelism.rank_timeout, parent=parent and not self.parallelism.external)

    # -- what a Trainer calls -------------------------------------------------------------------------------------------

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle SIGTERM, and watch the other ranks."""
        self._rank, self._world = trainer.global_rank, trainer.world_size
        if self._world > 1:
            self._group = dist.new_group(backend="gloo")
            if self._live is None:  # a child of the process that the user started
                self._live = self._watching(self._rank, self._world, parent=True).start()
                self._live.reason, self._live.after = self._reason, f"; {self._progress()}"
            self._live.join()
            self._live.computing = True
        if threading.current_thread() is threading.main_thread():
            # Lightning's own handler broadcasts: a rank that is signalled twice, or alone, would hang in it
            self._handler = signal.signal(signal.SIGTERM, lambda *_: self._terminate(trainer))

    def _terminate(self, trainer: Trainer) -> None:
        first, self._stop = not self._stop, True
        launcher = getattr(trainer.strategy, "launcher", None)
        if first and launcher is not None and getattr(launcher, "procs", None):
            launcher.kill(signal.SIGTERM)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Write a checkpoint if one is due; stop if SIGTERM came."""
        self._since += 0 if batch is None or batch.batch_id is None else len(batch.ids)
        if self._live is not None:
            self._live.steps += 1
            if self._live.dead is not None:
                raise RankFailed(self._live.dead)
        stop = self._stop
        if self.parallelism.sharded:  # all stop after the same batch: none waits for a rank that has exited
            asked = torch.tensor([float(stop)])
            dist.all_reduce(asked, group=self._group)
            stop = bool(asked.item())
        if stop:
            self._save()
            raise Interrupted(f"stopped by SIGTERM; {self._progress()}")
        if self.every and self._since * (1 if self.parallelism.tensor_parallel else self._world) >= self.every:
            self._save()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reduce the sums of all ranks to rank 0."""
        part: Part | None
        if self._live is not None:
            self._live.computing = False
        if self._world > 1:
            self._save()
            part = self._reduced(self._part())
        else:
            part = self._part()
        self._release()
        if self._stop and self._rank == 0:  # it came after the last micro-batch
            self._save()
            raise Interrupted(f"stopped by SIGTERM; {self._progress()}")
        if part is not None and self._rank == 0:
            if self.before is not None:
                self._add_earlier(part, self.before)
            self.total = part
            if self.parallelism.forked and self.checkpoint is not None:  # this process ends: its parent reads the checkpoint
                self.checkpoint.session += 1
                self.checkpoint.begin(part)

    def _add_earlier(self, part: Part, before: Part) -> None:
        if (odd := part.misfit(before)) is not None:
            folder = "nowhere" if self.checkpoint is None else self.checkpoint.folder
            raise RunFolderError(f"the checkpoint in {folder} is of another audit ({odd}): remove it to begin anew")
        part.add(before)

    def _reduced(self, part: Part) -> Part | None:
        try:
            if self.parallelism.tensor_parallel:
                reduced = gather_columns(part, self._units(part), self._rank, self._world, self._group)
            else:
                reduced = reduce_parts(part, self._group)
            dist.barrier(group=self._group)  # no rank exits before rank 0 has everything
        except RuntimeError as error:
            time.sleep(0.5)  # a rank that failed writes its reason down first
            dead = self._live.dead if self._live is not None else None
            raise RankFailed(dead or self._reason() or f"another rank has exited; {self._progress()}") from error
        return reduced

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save complete sums, write the reason down for the other ranks, and restore the signal handler."""
        failed = not isinstance(exception, (Interrupted, KeyboardInterrupt))
        try:
            if not isinstance(exception, Interrupted) and not self.parallelism.tensor_parallel:
                self._save()
        except (OSError, FairpruneError):
            if failed:
                raise
        finally:
            own = not isinstance(exception, RankFailed) and liveness.in_words(exception) is None
            if failed and own and self._world > 1 and self.checkpoint is not None:
                self.checkpoint.write_failure(self._rank, exception)
            if self._rank == 0 and self._world > 1:
                for child in self._children(trainer):
                    child.terminate()
            self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the signal handler, and stop watching."""
        self._release()

    def _release(self) -> None:
        if (
            self._live is not None and not self.parallelism.external
        ):  # what a launcher started is watched until the group closes
            self._live.stop()
            self._live = None
        if self._handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._handler)
            self._handler = None

    # -- checkpoints ----------------------------------------------------------------------------------------------------

    def _part(self) -> Part:
        summed = self.statistics.accumulator
        counts = {stream: list(groups) for stream, groups in summed.counts.items()}
        return Part(words=summed.sums.words(), counts=counts, done=summed.done.copy(), splits=self.statistics.splits)

    def _save(self) -> None:
        if self.checkpoint is None or not self._since or not self.statistics.accumulator.whole:
            return
        began = time.perf_counter()
        part: Part | None = self._part()
        if self.parallelism.tensor_parallel:  # the ranks hold slices for the same contrasts, and save together
            assert part is not None
            part = gather_columns(part, self._units(part), self._rank, self._world, self._group)
        if part is not None:
            self.checkpoint.keep(part, self._rank)
        self._since = 0
        self.seconds += time.perf_counter() - began

    def _units(self, part: Part) -> dict[str, int]:
        return {key: width for key, width in self.statistics.accumulator.sliced.items() if key in part.words}

    def _progress(self) -> str:
        if self.checkpoint is None:
            return "nothing was saved"
        return f"progress is saved in {self.checkpoint.folder}: give the same command again to resume"

    # -- other ranks ----------------------------------------------------------------------------------------------------

    def _reason(self) -> str | None:
        failure = self.checkpoint.other_rank_failure(self._rank) if self.checkpoint is not None else None
        return None if failure is None else f"{failure}; {self._progress()}"

    def _children(self, trainer: Trainer) -> list[Any]:
        """Processes of ranks that this one started, rank 1 first."""
        if self.parallelism.forked:
            return []
        return list(getattr(getattr(trainer.strategy, "launcher", None), "procs", None) or ())
