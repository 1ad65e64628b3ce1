"""Progress on stderr: silent unless wanted and seen, and never a part of what is counted."""

from __future__ import annotations

import io
import pickle
import sys

import pytest

from fairprune_framework.utilities import progress


class Terminal(io.StringIO):
    """A stderr that is a terminal."""

    def isatty(self) -> bool:
        return True


def test_it_is_shown_inside_of_the_context_alone() -> None:
    assert not progress.is_shown()
    with progress.shown():
        assert progress.is_shown()
        with progress.shown(False):
            assert not progress.is_shown()
        assert progress.is_shown()
    with pytest.raises(ValueError, match="stop"), progress.shown():
        raise ValueError("stop")
    assert not progress.is_shown()


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_drawn_for_a_terminal_that_wants_it(monkeypatch: pytest.MonkeyPatch, allowed: bool, terminal: bool) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", err := Terminal() if terminal else io.StringIO())
    with progress.shown(allowed), progress.bar("scoring", 4, "sites") as advance:
        advance(1)
        advance(3)
    assert ("scoring" in err.getvalue()) is (allowed and terminal)
    assert ("4/4" in err.getvalue()) is (allowed and terminal)


def test_a_bar_may_say_its_own_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", err := Terminal())
    with progress.shown(), progress.bar("search", 2, "cells", text=lambda: "best so far 0.31") as advance:
        advance(2)
    assert "best so far 0.31" in err.getvalue()
    assert "2/2" not in err.getvalue()


def test_items_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    items = list("abc")
    assert list(progress.counted(items, "x", "letters")) == items
    monkeypatch.setattr(sys, "stderr", err := Terminal())
    with progress.shown():
        assert list(progress.counted(items, "x", "letters")) == items
    assert "3/3" in err.getvalue()


def test_notes_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    progress.notifier("audit")("128 contrasts")
    progress.notifier("audit", quiet=True)("nothing")
    assert capsys.readouterr() == ("", "[audit] 128 contrasts\n")


def test_silence_can_go_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(progress.notifier("audit", quiet=True))) is progress.silent
