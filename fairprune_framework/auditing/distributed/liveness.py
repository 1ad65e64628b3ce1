"""Whether the other ranks live: a thread in each rank, before the process group stands and as long as it does.

Before, processes are watched that were started beside this one with the same command, or by this one. After, every rank leaves a heartbeat
in the store of the process group. A rank whose heartbeat stands still has exited; one that lives, computes and gets no further is hung.
Then this process ends with the reason in one line, also where it waits in a collective, which Python cannot interrupt.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fairprune_framework.errors import RankFailed

SILENCE = 15.0
"""Seconds without a heartbeat after which a rank has exited."""
PERIOD = 0.5
"""Seconds between two heartbeats."""
GRACE = 3.0
"""Seconds for a rank to notice by itself that another has exited; then its process is ended."""
TOGETHER = 5.0
"""Seconds within which a launcher starts the ranks of a machine."""
_OF_COLLECTIVES = re.compile(
    r"gloo|nccl|c10d|Connection (closed|reset|refused)|Broken pipe|TCPStore|[Ss]ocket|process group", re.I
)
_current: Liveness | None = None
_siblings: dict[int, float] = {}
"""Process -> its start, of those that a launcher started beside this one with the same command."""


def look_for_siblings() -> None:
    """Begin to look, in a thread, which processes are started beside this one with the same command: ranks, if a launcher started them.

    Linux alone; elsewhere a rank that never comes is noticed after the timeout.
    """

    def look() -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until and (_current is None or not _current.joined):
            _look()
            time.sleep(0.2)

    threading.Thread(target=look, daemon=True, name="fairprune-siblings").start()


def _look() -> None:
    own_pid, parent = os.getpid(), os.getppid()
    if (own := _process(own_pid)) is None:
        return
    for path in Path("/proc").glob("[0-9]*"):
        pid = int(path.name)
        if pid == own_pid or (found := _process(pid)) is None or found.parent != parent or found.name != own.name:
            continue
        if found.ended:  # before it was seen; its launcher has not asked for its exit code yet
            if abs(found.start - own.start) < TOGETHER:
                _siblings.setdefault(pid, found.start)
        elif _command(pid) == _command(own_pid):
            _siblings[pid] = found.start


class _Process(NamedTuple):
    """What the kernel says of a process."""

    name: str
    ended: bool
    parent: int
    start: float
    """Seconds since the machine started."""


def _process(pid: int) -> _Process | None:
    """A process; None: there is none, or this is not Linux."""
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").partition("(")[2].rpartition(")")
    except OSError:
        return None
    fields = rest.split()
    return _Process(name, fields[0] in "ZX", int(fields[1]), int(fields[19]) / os.sysconf("SC_CLK_TCK"))


def _command(pid: int) -> bytes | None:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it ended in between
        return None


def _has_ended(pid: int, start: float) -> bool:
    found = _process(pid)
    return found is None or found.ended or found.start != start


def in_words(error: BaseException) -> str | None:
    """What an error of a collective means; None: it is none."""
    if isinstance(error, RuntimeError) and not isinstance(error, RankFailed) and _OF_COLLECTIVES.search(str(error)):
        return (_current.dead if _current is not None else None) or "another rank has exited"
    return None


def current() -> Liveness | None:
    """The watch of this process."""
    return _current


class Liveness:
    """The watch over the other ranks of an audit.

    Args:
        timeout: seconds to wait for the others to start, and for a computing one to get further.
        reason: what another rank has written down of its failure.
        children: processes of ranks that this one started, rank 1 first.
        parent: this process ends with its parent.
        external: a launcher started all ranks together.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        timeout: float,
        *,
        reason: Callable[[], str | None] = lambda: None,
        children: Callable[[], list[Any]] = list,
        parent: bool = False,
        external: bool = False,
    ) -> None:
        self.rank, self.world, self.timeout, self.reason, self.children = rank, world, timeout, reason, children
        self.dead: str | None = None
        """Why this rank must stop; None: all live."""
        self.after = ""
        """What a user can do then."""
        self.computing, self.steps = False, 0
        self._parent, self._external = os.getppid() if parent else None, external
        self._store: Any = None
        self._ended, self._joined = threading.Event(), 0.0
        self._seen: dict[int, tuple[bytes, float, float]] = {}
        """Rank -> its last heartbeat, when it changed, and when it got further."""

    def start(self) -> Liveness:
        """Begin to watch, in a thread; it becomes the watch of this process."""
        global _current
        _current = self
        threading.Thread(target=self._watch, daemon=True, name="fairprune-watch").start()
        return self

    def join(self) -> None:
        """The process group stands: heartbeats begin."""
        from torch.distributed import distributed_c10d

        if self._store is None:
            store: Any = distributed_c10d._get_default_store()
            self._joined = time.monotonic()
            self._store = store.clone()

    @property
    def joined(self) -> bool:
        """The process group stands, or stood."""
        return self._store is not None

    def stop(self) -> None:
        """All that needs the others is done."""
        global _current
        self._ended.set()
        if _current is self:
            _current = None

    # -- in the thread -------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        began, number = time.monotonic(), 0
        while not self._ended.wait(PERIOD):
            number += 1
            if self._parent is not None and os.getppid() != self._parent:
                os._exit(1)
            for rank, child in enumerate(self._children(), start=1):
                if child.poll():
                    how = (
                        f"was killed by signal {-child.returncode}"
                        if child.returncode < 0
                        else f"ended with exit code {child.returncode}"
                    )
                    return self._leave(f"rank {rank} {how}", rank)
            if self._store is not None:
                found = self._beat(number)
            else:
                found = self._before(time.monotonic() - began)
            if found is not None:
                return self._leave(*found)
        return None

    def _children(self) -> list[Any]:
        children = self.children()
        for thread in threading.enumerate() if children else ():
            if thread.name == "child-process-observer" and hasattr(thread, "_child_processes"):
                thread._child_processes = []  # Lightning's observer would kill this process within 5 s, without a message
        return children

    def _before(self, waited: float) -> tuple[str, int | None] | None:
        """What is wrong before the process group stands: what, and with which rank."""
        if self._external and any(_has_ended(pid, start) for pid, start in list(_siblings.items())):
            return "another rank has exited before all had started", None
        if waited > self.timeout:
            return f"not all ranks have started within {self.timeout:.0f} s (--rank-timeout)", None
        return None

    def _beat(self, number: int) -> tuple[str, int | None] | None:
        """Leave a heartbeat and look at those of the others."""
        try:
            self._store.set(f"fairprune/{self.rank}", f"{number} {int(self.computing)} {self.steps}")
            others = [rank for rank in range(self.world) if rank != self.rank]
            beats = {rank: self._store.get(key) for rank in others if self._store.check([key := f"fairprune/{rank}"])}
        except RuntimeError:  # its process held the store
            return "rank 0 has exited", 0
        now = time.monotonic()
        for rank in others:
            beat = beats.get(rank, b"")
            last, changed, further = self._seen.get(rank, (beat, self._joined, now))
            if beat != last:
                changed = now
            if beat.split()[1:] != last.split()[1:] or not beat or beat.split()[1] == b"0":
                further = now
            self._seen[rank] = (beat, changed, further)
            if now - max(changed, self._joined) > SILENCE:
                return f"rank {rank} has exited", rank
            if now - further > self.timeout:
                return f"rank {rank} hangs: it has computed nothing for {self.timeout:.0f} s (--rank-timeout)", rank
        return None

    def _leave(self, what: str, rank: int | None) -> None:
        """Let the main thread stop by itself; where it does not, end the process."""
        self.dead = self.reason() or f"{what}{self.after}"
        if self._ended.wait(GRACE):
            return
        from fairprune_framework.utilities import lock

        if self.rank == 0 or rank in (0, None):  # rank 0 speaks for all
            print(f"fairprune: error: {self.dead}", file=sys.stderr, flush=True)
        lock.release_all()
        os._exit(1)
