"""Progress of long work on stderr: done, rate and time left. Silent unless the command line shows it, and where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")
Notify = Callable[[str], None]
"""Takes one line on what is being done."""
_SHOWN: ContextVar[bool] = ContextVar("fairprune_progress", default=False)


def silent(text: str) -> None:
    """The `Notify` that says nothing. Unlike a lambda it can be pickled for other processes."""


def notifier(command: str, quiet: bool = False) -> Notify:
    """The `Notify` of a command: lines on stderr, `[command] text`; with `quiet` none."""

    def notify(text: str) -> None:
        print(f"[{command}] {text}", file=sys.stderr, flush=True)

    return silent if quiet else notify


@contextmanager
def shown(allowed: bool = True) -> Iterator[None]:
    """Show bars inside this context."""
    token = _SHOWN.set(allowed)
    try:
        yield
    finally:
        _SHOWN.reset(token)


def is_shown() -> bool:
    """The command line wants progress on stderr."""
    return _SHOWN.get()


@contextmanager
def bar(
    label: str, total: int, unit: str, *, done: int = 0, text: Callable[[], str] | None = None
) -> Iterator[Callable[[int], None]]:
    """Give a function that counts what is done: `with bar("audit", 190, "contrasts") as advance: ... advance(8)`.

    Args:
        done: done before.
        text: says what stands behind the bar, instead of count, rate and time left.
    """
    if not is_shown():
        yield lambda done: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        """Units per second since the start."""

        def render(self, task: Task) -> Text:
            speed = task.completed / task.elapsed if task.elapsed else 0.0
            return Text(f"{unit}, {speed:.3g}/s" if speed else unit)

    class CallerText(ProgressColumn):
        """The text of the caller."""

        def render(self, task: Task) -> Text:
            return Text("" if text is None else text())

    right = (MofNCompleteColumn(), Rate(), TimeRemainingColumn()) if text is None else (CallerText(),)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), *right)
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(label, total=total, completed=done)
        yield lambda more: progress.advance(task, more)


def counted(items: Sequence[Item], label: str, unit: str) -> Iterator[Item]:
    """Go through items with a bar."""
    with bar(label, len(items), unit) as advance:
        for item in items:
            yield item
            advance(1)
