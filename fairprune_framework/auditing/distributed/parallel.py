"""Devices, nodes and strategy of an audit, and the rank of this process, from its environment.

Lightning's `ddp` launches the command line again for each further rank, with LOCAL_RANK set; `torchrun` and SLURM launch all ranks
together. Rank 0 owns the run folder. The others compute their part of the audit and exit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fairprune_framework.auditing.distributed import liveness
from fairprune_framework.auditing.distributed.liveness import Liveness
from fairprune_framework.errors import RankFailed, UserError

SHARDED = ("fsdp", "tensor_parallel")
"""Strategies under which no rank holds the whole model: all ranks compute in lockstep."""
MOST_PROCESSES = 16
"""Processes that one command starts, on a machine with fewer processors or GPUs."""
BY_MULTIPROCESSING = ("ddp_spawn", "ddp_fork", "ddp_notebook")
"""Strategies whose ranks are all children of this process, rank 0 too."""


@dataclass(frozen=True, kw_only=True)
class Parallelism:
    """Devices, nodes and strategy of an audit. Only `tensor_parallel` and `compile` add float noise to a result."""

    accelerator: str = "auto"
    devices: int = 1
    """Per node; -1: all GPUs."""
    nodes: int = 1
    strategy: str = "auto"
    compile: bool = False
    rank_timeout: float = 600.0
    """Seconds that a rank waits for another to start, or to get further."""

    @property
    def is_distributed(self) -> bool:
        """Over more than one process."""
        return self.devices != 1 or self.nodes > 1

    @property
    def sharded(self) -> bool:
        """No rank holds the whole model."""
        return self.is_distributed and self.strategy in SHARDED

    @property
    def tensor_parallel(self) -> bool:
        """Every rank holds a part of the neurons and heads, and computes all micro-batches."""
        return self.is_distributed and self.strategy == "tensor_parallel"

    @property
    def forked(self) -> bool:
        """All ranks are children of this process."""
        return self.is_distributed and self.strategy in BY_MULTIPROCESSING

    @property
    def external(self) -> bool:
        """A launcher, torchrun or SLURM, started all ranks together."""
        return self.is_distributed and not self.forked and (_torchrun() or _slurm())

    @property
    def rank(self) -> int:
        """Global rank of this process; 0 where the audit is not distributed, or not yet."""
        if not self.is_distributed or self.forked:
            return 0
        if _torchrun() or _slurm():
            return launched_ranks()[0]
        return int(os.environ.get("NODE_RANK", 0)) * max(self.devices, 1) + int(os.environ.get("LOCAL_RANK", 0))

    def check(self) -> None:
        """Raise `UserError` for combinations that cannot run."""
        if self.strategy != "auto" and not self.is_distributed:
            raise UserError(f"--strategy {self.strategy} needs more than one device: give --devices or --nodes")
        if self.forked and self.nodes > 1:
            raise UserError(f"--strategy {self.strategy} works on one node: take ddp for {self.nodes} nodes")
        if self.external and not _torchrun() and "SLURM_NTASKS_PER_NODE" not in os.environ:  # Lightning derives ranks from it
            raise UserError("SLURM started the ranks with --ntasks alone: give --ntasks-per-node, as many as --devices")
        if not self.external and self.devices > (most := max(MOST_PROCESSES, os.cpu_count() or 1)):
            raise UserError(f"--devices {self.devices} are more processes than this machine bears: it starts at most {most}")
        if not self.external or self.devices < 1:
            return
        world = launched_ranks()[1]
        if world != self.devices * self.nodes:
            raise UserError(
                f"{'torchrun' if _torchrun() else 'SLURM'} started {world} processes, but --devices {self.devices} times --nodes "
                f"{self.nodes} is {self.devices * self.nodes}"
            )


def launched_ranks() -> tuple[int, int]:
    """(rank, world size) of the ranks that torchrun or SLURM launched together; (0, 1) if neither did."""
    if _torchrun():
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if _slurm():
        return int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    return 0, 1


def is_worker_rank() -> bool:
    """This process was launched as a rank other than 0, which alone prints."""
    rank, ranks = launched_ranks()
    return rank > 0 if ranks > 1 else int(os.environ.get("LOCAL_RANK", 0)) > 0


def _torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _slurm() -> bool:
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1 and not interactive


def init_process_group(parallelism: Parallelism) -> None:
    """Open the process group of ranks that torchrun or SLURM launched together, so that the others can wait for rank 0."""
    import datetime

    import torch
    from torch import distributed

    if not parallelism.external or distributed.is_initialized():
        return
    on_gpu = parallelism.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if _torchrun():
        world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    else:
        from lightning.fabric.plugins.environments import SLURMEnvironment

        cluster = SLURMEnvironment(auto_requeue=False)
        world, local = cluster.world_size(), cluster.local_rank()
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = cluster.main_address, str(cluster.main_port)
    if on_gpu:
        torch.cuda.set_device(local)
    live = Liveness(parallelism.rank, world, parallelism.rank_timeout, external=True).start()
    with _collective():
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            rank=parallelism.rank,
            world_size=world,
            timeout=datetime.timedelta(hours=24),  # who is gone or hangs is noticed by `liveness`; rank 0 may prepare for long
        )
        live.join()


@contextmanager
def _collective() -> Iterator[None]:
    """Raise `RankFailed` for what a collective raises when another rank is gone."""
    try:
        yield
    except RuntimeError as error:
        if (told := liveness.in_words(error)) is None:
            raise
        raise RankFailed(told) from error


def broadcast(parallelism: Parallelism, text: str | None) -> str | None:
    """Broadcast a text from rank 0 to all ranks that a launcher started together."""
    import torch
    from torch import distributed

    if not parallelism.external or not distributed.is_initialized():
        return text
    message = [text]
    with _collective():
        distributed.broadcast_object_list(message, 0, device=torch.device("cpu"))
    return message[0]


def barrier(parallelism: Parallelism) -> None:
    """Wait until every rank that was launched together arrives."""
    import torch
    from torch import distributed

    if parallelism.external and distributed.is_initialized():
        with _collective():
            distributed.all_reduce(torch.zeros(1))  # on the CPU, that is by gloo


def destroy_process_group(parallelism: Parallelism) -> None:
    """Close the process group, and remove what Lightning set in the environment, so that another audit can begin."""
    from torch import distributed

    if (live := liveness.current()) is not None:
        live.stop()
    if parallelism.is_distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
    if parallelism.is_distributed and not parallelism.external and os.environ.get("LOCAL_RANK") == "0":
        for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            if name in _OURS:
                os.environ.pop(name, None)


_OURS = tuple(
    name for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ
)
"""Variables that were not set when this process began."""


def strategy_of(parallelism: Parallelism) -> Any:
    """The `strategy` of a Trainer."""
    if not parallelism.is_distributed:
        return "auto"
    if parallelism.sharded:
        from lightning.pytorch.strategies import ModelParallelStrategy

        world = parallelism.devices * parallelism.nodes
        data, tensor = (1, world) if parallelism.tensor_parallel else (world, 1)
        return ModelParallelStrategy(data_parallel_size=data, tensor_parallel_size=tensor)
    return "ddp" if parallelism.strategy == "auto" else parallelism.strategy


def environments(parallelism: Parallelism) -> list[Any]:
    """Plugins of a Trainer: under SLURM without Lightning's own requeueing, which would save a Trainer's state."""
    if not parallelism.external or _torchrun():
        return []
    from lightning.fabric.plugins.environments import SLURMEnvironment

    return [SLURMEnvironment(auto_requeue=False)]
