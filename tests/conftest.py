"""What many tests share: a tiny saved model, a prompt set, the command line in this process, and pictures of folders."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import io
import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as the command line does; read once, when a test module imports torch


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """SIGINT as a terminal gives it: a shell that starts the tests in the background has it ignored, and children inherit that."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def pytest_collection_finish() -> None:
    """What is imported by now stays: collections of garbage, which surgery asks for, need not go through it every time."""
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class Answer:
    """What a command gave back."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """Lines of stderr that are no progress."""
        return [line for line in self.err.splitlines() if not line.startswith("[")]


@pytest.fixture(scope="session")
def fairprune() -> Callable[..., Answer]:
    """The command line, called in this process: `fairprune("run", folder, ...)`. Generations are cut short, to save time."""
    from fairprune_framework.cli.main import main

    def call(*words: object) -> Answer:
        out, err = io.StringIO(), io.StringIO()
        short = mock.patch("fairprune_framework.evaluation.metrics.generation.NEW_TOKENS", 3)
        with short, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([str(word) for word in words])
        return Answer(code, out.getvalue(), err.getvalue())

    return call


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama and its tokenizer. Read only."""
    from fairprune_framework.models.quiet import quietly
    from fairprune_framework.testing.tiny import save_tiny

    with quietly():
        return save_tiny(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="session")
def write_prompts() -> Callable[[Path, Iterable[Mapping[str, Any]]], Path]:
    """Write rows to a JSONL file."""

    def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory, write_prompts: Callable[..., Path]) -> Path:
    """The dozen tiny contrasts as a file. Read only."""
    from fairprune_framework.testing.tiny import tiny_contrasts

    return write_prompts(tmp_path_factory.mktemp("prompts") / "tiny.jsonl", [c.to_json() for c in tiny_contrasts()])


@pytest.fixture(scope="session")
def snapshot() -> Callable[..., dict[str, Any] | None]:
    """Every file below a path with its hash (and with `times`, when it was written); None where there is nothing."""

    def take(path: Path, *, times: bool = False) -> dict[str, Any] | None:
        if not path.exists():
            return None
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        return {
            str(file.relative_to(path)): (
                hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "folder",
                file.stat().st_mtime_ns if times else None,
            )
            for file in files
        }

    return take


QUICK = (
    "--recipe",
    "relative-variance",
    "--budget",
    "0.1",
    "--calibration-tokens",
    "16",
    "--calibration-documents",
    "8",
    "--force",
)


@pytest.fixture(scope="session")
def quick() -> tuple[str, ...]:
    """Options that make a whole run on a tiny model short, and make it prune."""
    return QUICK


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, fairprune: Callable[..., Answer], llama: Path, prompts: Path) -> Path:
    """A run folder with all stages done. Read only: copy it to work on it."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    answer = fairprune("run", llama, "--prompts", prompts, "--output", folder, *QUICK)
    assert answer.code == 0, answer.err
    return folder
