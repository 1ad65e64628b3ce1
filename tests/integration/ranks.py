"""Ranks as real processes, forked from this one so that nothing is imported again: what torchrun starts, on one machine."""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMPORTED = (
    "fairprune_framework.stages.audit",
    "fairprune_framework.reporting.summary",
    "lightning.pytorch.strategies",
    "rich.progress",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
)
LIMIT = 300.0
"""Seconds that any of these processes may take on a busy machine."""


@dataclass
class Rank:
    """One process, and where its output goes."""

    process: Any
    out: Path

    @property
    def text(self) -> str:
        return self.out.read_text() if self.out.exists() else ""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(world: int, words: list[str], scratch: Path, prepare: Callable[[int], None] | None = None) -> list[Rank]:
    """Start the command line on every rank, as torchrun would."""
    for name in IMPORTED:  # here, and not again in every rank
        importlib.import_module(name)
    port, context = free_port(), multiprocessing.get_context("fork")
    scratch.mkdir(parents=True, exist_ok=True)
    number = next(i for i in itertools.count() if not (scratch / f"{i}-0.txt").exists())
    found = []
    for rank in range(world):
        out = scratch / f"{number}-{rank}.txt"
        out.touch()
        process = context.Process(target=_run, args=(rank, world, port, words, out, prepare), daemon=True)
        process.start()
        found.append(Rank(process, out))
    return found


def _run(rank: int, world: int, port: int, words: list[str], out: Path, prepare: Callable[[int], None] | None) -> None:
    from fairprune_framework.cli.main import main

    os.setsid()
    if world > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", TORCHELASTIC_RUN_ID="test", GROUP_RANK="0", GLOO_SOCKET_IFNAME="lo")
        words = [*words, "--devices", str(world)]
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with out.open("w", buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        if prepare is not None:
            prepare(rank)
        try:
            code = main(words)
        except SystemExit as error:
            code = int(error.code or 0)
        file.flush()
    os._exit(code)


def finish(ranks: list[Rank], limit: float = LIMIT) -> list[int]:
    """Wait for all; returns exit codes, negative for signals. What does not end is killed."""
    until = time.monotonic() + limit
    for rank in ranks:
        rank.process.join(max(0.1, until - time.monotonic()))
        if rank.process.is_alive():
            rank.process.kill()
            rank.process.join()
    return [rank.process.exitcode for rank in ranks]


def run(world: int, words: list[str], scratch: Path, prepare: Callable[[int], None] | None = None) -> tuple[list[int], str]:
    """Start, wait; exit codes and all output."""
    ranks = start(world, words, scratch, prepare)
    codes = finish(ranks)
    return codes, "\n".join(rank.text for rank in ranks)


def after_batches(count: int, act: Callable[[int], Any], only: int | None = None) -> Callable[[int], None]:
    """To be run in a rank before it starts: `act(rank)` after so many micro-batches."""

    def prepare(rank: int) -> None:
        from fairprune_framework.auditing.distributed.checkpoint_callback import CheckpointCallback

        if only is not None and rank != only:
            return
        seen = io.BytesIO()
        usual = CheckpointCallback.on_predict_batch_end

        def counted(self: Any, *words: Any, **more: Any) -> None:
            usual(self, *words, **more)
            seen.write(b".")
            if seen.tell() == count:
                act(rank)

        CheckpointCallback.on_predict_batch_end = counted  # type: ignore[method-assign]

    return prepare


def die(_: int) -> None:
    """As kill -9."""
    os.kill(os.getpid(), signal.SIGKILL)


def record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text()))


def alone(scratch: Path, words: Callable[..., list[str]]) -> Path:
    """The folder of an audit on one rank, never interrupted."""
    codes, text = run(1, words(scratch / "run"), scratch / "log")
    assert codes == [0], text
    return scratch / "run"


def same(one: Path, other: Path) -> None:
    """Both audits came to the same, bit for bit, and no checkpoint is left."""
    for name in ("statistics.safetensors", "statistics.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert not (other / "checkpoint").exists()
