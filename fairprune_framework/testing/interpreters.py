"""What a plugin gives in other interpreters, whose sets of words are in other orders: two of them, kept for further questions.

`python -m fairprune_framework.testing.interpreters` is one of them: it reads pickled questions from stdin and answers on stdout.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import struct
import subprocess
import sys
import threading
from functools import cache
from typing import IO, Any

from torch import Tensor

from fairprune_framework import discovery
from fairprune_framework.testing.report import CheckFailed, CheckSkipped

SEEDS = ("1", "2")
"""Of the hashes of words, `PYTHONHASHSEED`."""
_LENGTH = struct.Struct("<Q")
_asking = threading.Lock()


def answers(kind: discovery.Kind, plugin: Any) -> list[dict[Any, Tensor]]:
    """What a plugin gives in each interpreter: (site, category) -> scores, or site -> the chosen units in their order.

    Raises:
        CheckSkipped: another interpreter cannot import the plugin.
        CheckFailed: the plugin raised there.
    """
    try:
        question = pickle.dumps((kind, plugin))
    except Exception as error:
        raise CheckSkipped(f"it cannot be sent to another interpreter: {type(error).__name__}: {error}") from error
    found = []
    with _asking:
        for seed in SEEDS:
            state, answer = _interpreter(seed, os.getpid()).ask(question)
            if state == "unknown":
                raise CheckSkipped(f"another interpreter cannot import it: {answer}")
            if state == "raised":
                raise CheckFailed(f"in another interpreter: {answer}")
            found.append(answer)
    return found


class _Interpreter:
    def __init__(self, seed: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        atexit.register(self.close)

    def ask(self, question: bytes) -> tuple[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            _write(self._process.stdin, pickle.dumps((sys.path, question)))
            state, answer = pickle.loads(_read(self._process.stdout))
        except (OSError, EOFError):
            _interpreter.cache_clear()
            return "raised", f"it ended with the code {self._process.wait()}"
        return state, answer

    def close(self) -> None:
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._process.wait()


@cache
def _interpreter(seed: str, owner: int) -> _Interpreter:
    """One for each seed and each process: a fork does not use those of its parent."""
    return _Interpreter(seed)


def _write(stream: IO[bytes], data: bytes) -> None:
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def _read(stream: IO[bytes]) -> bytes:
    head = stream.read(_LENGTH.size)
    data = stream.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else b""
    if not data:
        raise EOFError
    return data


def _answered(question: bytes) -> tuple[str, Any]:
    try:
        kind, plugin = pickle.loads(question)
    except Exception as error:
        return "unknown", f"{type(error).__name__}: {error}"
    try:
        return "ok", _given(kind, plugin)
    except Exception as error:
        return "raised", f"{type(error).__name__}: {error}"


def _given(kind: discovery.Kind, plugin: Any) -> dict[Any, Tensor]:
    if kind == "policy":
        from fairprune_framework.api.types import Budget
        from fairprune_framework.testing.policy_contract import PolicyBench

        at = PolicyBench(plugin, "llama")
        return dict(at.choose(at.scores, Budget.parse("0.2"))[1])
    assert kind in ("bias", "importance")
    from fairprune_framework.testing.scorer_bench import Bench

    return Bench(kind, plugin, "llama").baseline


def _serve() -> None:
    questions, out, own = sys.stdin.buffer, os.fdopen(os.dup(1), "wb"), list(sys.path)
    os.dup2(2, 1)  # what a plugin prints is no answer
    while True:
        try:
            path, question = pickle.loads(_read(questions))
        except EOFError:
            return
        sys.path[:] = [*path, *own]
        _write(out, pickle.dumps(_answered(question)))


if __name__ == "__main__":
    _serve()
