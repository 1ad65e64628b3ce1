"""What plugins print goes to stderr, what they raise becomes one error, and answers alone stand on stdout."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fairprune_framework.errors import BrokenPlugin
from fairprune_framework.utilities.aside import answer, answers_alone, plugin_call, prints_aside


def test_prints_go_to_stderr_and_back(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), prints_aside():
        print("by the way")
        raise KeyError
    print("the answer")
    out, err = capsys.readouterr()
    assert (out, err) == ("the answer\n", "by the way\n")


def test_an_answer_alone_stands_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    answer("before")
    with answers_alone():
        print("by the way")
        with prints_aside():
            print("another word")
            answer("the answer", end="")
        print("and on")
    print("after")
    out, err = capsys.readouterr()
    assert (out, err) == ("before\nthe answerafter\n", "by the way\nanother word\nand on\n")


def test_stdout_is_as_before_after_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), answers_alone():
        raise KeyError
    answer("said")
    assert capsys.readouterr().out == "said\n"


LOUD = """
import os, sys
from fairprune_framework.utilities.aside import answer, answers_alone
print("first")
with answers_alone():
    os.system("echo of a program")
    os.write(1, b"of a library\\n")
    print("of the original", file=sys.__stdout__)
    answer("the \\u00e4nswer")
print("last")
"""


@pytest.mark.parametrize("closed", [False, True])
def test_what_libraries_and_programs_print_goes_to_stderr(closed: bool) -> None:
    """Where there is no stderr, all there is remains stdout, and nothing fails."""
    command = f"exec '{sys.executable}' -c \"$0\"{' 2>&-' if closed else ''}"
    done = subprocess.run(["bash", "-c", command, LOUD], capture_output=True, text=True, encoding="utf-8", check=True)
    if closed:
        assert {"first", "the \u00e4nswer", "last"} <= set(done.stdout.splitlines())
    else:
        assert done.stdout.splitlines() == ["first", "the \u00e4nswer", "last"]
        assert set(done.stderr.splitlines()) == {"of a program", "of a library", "of the original"}


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ZeroDivisionError("by nought"), "it raised ZeroDivisionError: by nought"),
        (SystemExit(0), "it raised SystemExit: 0"),
        (GeneratorExit(), "it raised GeneratorExit"),
        (Unprintable(), "it raised Unprintable: its text cannot be read"),
        (BrokenPlugin("another"), "it raised BrokenPlugin: another"),
    ],
)
def test_whatever_a_plugin_raises_is_one_error(error: BaseException, words: str) -> None:
    with pytest.raises(BrokenPlugin) as caught, plugin_call("it"):
        raise error
    assert (str(caught.value), caught.value.__cause__) == (words, error)


def test_what_the_caller_deals_with_and_interrupts_pass() -> None:
    with pytest.raises(KeyboardInterrupt), plugin_call("it"):
        raise KeyboardInterrupt
    with pytest.raises(MemoryError), plugin_call("it", passing=(MemoryError, KeyError)):
        raise MemoryError
