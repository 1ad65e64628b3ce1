"""Whatever stdout and stderr are, a command works, and its exit code says what happened."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from fairprune_framework.cli.main import main
from fairprune_framework.utilities.streams import Lasting, ready


class Full(io.StringIO):
    """A stream on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stderr", [Full, closed, lambda: None])
def test_an_error_that_nobody_can_see_has_its_exit_code(
    stderr: Callable[[], io.StringIO | None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", stderr())
    assert main(["plugins", "show", "no-such-plugin"]) == 2
    assert capsys.readouterr().out == ""


def test_an_answer_that_cannot_be_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    assert main(["plugins", "list"]) == 1
    assert "what the command found cannot be written to stdout: No space left on device" in capsys.readouterr().err


def test_what_can_be_written_is() -> None:
    stream = Lasting(out := io.StringIO())
    assert (stream.write("seen"), out.getvalue(), stream.isatty()) == (4, "seen", False)
    assert Lasting(Full()).write("lost") == 4


def test_a_closed_stream_is_filled() -> None:
    """No file that is opened later becomes stdout."""
    code = (
        "from fairprune_framework.utilities.streams import ready\n"
        "with ready():\n"
        "    print('lost', flush=True)\n"
        "    raise SystemExit(open(__import__('os').devnull).fileno())"
    )
    assert subprocess.run(f'exec "{sys.executable}" -c "{code}" <&- >&- 2>&-', shell=True, check=False).returncode >= 3


def test_streams_are_what_they_were_afterwards() -> None:
    before = sys.stdout, sys.stderr
    with ready():
        assert sys.stderr is not before[1]
    assert (sys.stdout, sys.stderr) == before
