"""An interrupt is noted wherever its exception goes, and the handlers of before come back."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fairprune_framework.utilities import lock, stopping
from fairprune_framework.utilities.files import write_json


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_swallowed_is_noted(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stopping.noted_signals():
        assert stopping.received() is None
        stopping.check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        assert stopping.received() == number
        with pytest.raises(KeyboardInterrupt):
            stopping.check()
    assert signal.getsignal(number) is before


def test_a_later_call_in_the_same_process_is_not_interrupted(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), stopping.noted_signals():
        signal.raise_signal(signal.SIGINT)
    assert stopping.received() is None
    write_json(tmp_path / "later.json", {})
    assert lock.acquire(tmp_path)
    lock.release(tmp_path)
    with stopping.noted_signals():
        assert stopping.received() is None


def test_clearing_up_is_not_cut_short() -> None:
    with stopping.noted_signals():
        with stopping.shielded():
            signal.raise_signal(signal.SIGINT)
            done = True
        assert done
        assert stopping.received() == signal.SIGINT


def test_what_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping.noted_signals():
            signal.raise_signal(signal.SIGINT)
            assert stopping.received() is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_rank_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    before = signal.getsignal(signal.SIGTERM)
    with stopping.noted_signals():
        assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_changes_no_handler() -> None:
    found: list[Any] = []

    def inside() -> None:
        with stopping.noted_signals():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]


def test_an_interrupt_that_python_ignores_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    interrupt, other = (SimpleNamespace(exc_type=kind) for kind in (KeyboardInterrupt, ValueError))
    with stopping.noted_signals():
        sys.unraisablehook(interrupt)  # type: ignore[arg-type]
        with stopping.shielded():
            signal.raise_signal(signal.SIGINT)
        sys.unraisablehook(interrupt)  # type: ignore[arg-type]
        sys.unraisablehook(other)  # type: ignore[arg-type]
    assert told == [interrupt, other]  # the first came of itself, without a signal


def test_a_forked_process_has_the_handlers_of_before() -> None:
    with stopping.noted_signals():
        with stopping.shielded():
            signal.raise_signal(signal.SIGTERM)
        pid = os.fork()
        if not pid:
            fine = stopping.received() is None and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            os._exit(0 if fine and signal.getsignal(signal.SIGINT) is signal.default_int_handler else 1)
        assert os.waitpid(pid, 0)[1] == 0
