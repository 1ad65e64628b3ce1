"""Trials of a campaign: one disturbance of one command, and what was found wrong in its wake.

Kinds of findings: `lost` (a finished result or an input is gone, or a signal was), `locked` (the same command is refused afterwards),
`littered` (files that an undisturbed command does not leave), `wrong` (results that are not byte-equal), `crashed` (a traceback, raw
text of a library, another exit code than the documented one, more than one line), `hung`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from commands import Bench, Process, at_write, from_write, leftovers, start

KINDS = ("lost", "locked", "littered", "wrong", "crashed", "hung")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
OF_DEVICES = ("recipe.yaml", "report.html", "run.json")
"""Files that tell how many devices there were."""
RAW = ("gloo", "c10d", "TCPStore", "ProcessGroup", "Connection reset by peer", "terminate called")
"""Text of libraries that says nothing to a user."""


@dataclass
class Trial:
    """What was done, and what was wrong after it."""

    what: str
    found: dict[str, str] = field(default_factory=dict)

    def note(self, kind: str, text: str) -> None:
        """Add a finding; the first of a kind is kept."""
        self.found.setdefault(kind, text)


def _look(trial: Trial, process: Process, allowed: set[int | None], *, lines: int = 1) -> None:
    """What a process said and how it ended."""
    if process.code is None:
        trial.note("hung", f"no end after {process.seconds:.0f} s: {process.text[-500:]}")
    elif process.code not in allowed:
        trial.note("crashed", f"exit code {process.code}, not {sorted(map(str, allowed))}: {process.text[-1500:]}")
    if "Traceback" in process.text or any(raw in process.text for raw in RAW):
        trial.note("crashed", f"raw text: {process.text[-1500:]}")
    if len(process.errors) > lines:
        trial.note("crashed", f"{len(process.errors)} lines: {process.errors[:8]}")
    if any(len(line) > 600 for line in process.errors):
        trial.note("crashed", f"a line of {max(map(len, process.errors))} characters")


def _again(trial: Trial, bench: Bench, name: str, out: Path) -> None:
    """The same command once more: it must end well, and leave what an undisturbed one leaves."""
    if name == "restore" and out.exists():  # it had its name already, and is never replaced
        _compare(trial, bench, name, out)
        return
    process = start(bench.words(name, out), out.parent / "again.txt").wait()
    if process.code in (1, 2):
        trial.note("locked", f"the same command again: {process.text[-1500:]}")
        return
    _look(trial, process, {0}, lines=0)
    _compare(trial, bench, name, out)


def _compare(trial: Trial, bench: Bench, name: str, out: Path) -> None:
    for kind, paths in bench.differences(name, out).items():
        trial.note(kind, paths)
    if left := leftovers(out.parent):
        trial.note("littered", ", ".join(left))


def _end(trial: Trial, bench: Bench, out: Path) -> Trial:
    if bench.inputs_changed():
        trial.note("lost", "an input was changed")
    if not trial.found:
        shutil.rmtree(out.parent, ignore_errors=True)
    return trial


def kill(bench: Bench, name: str, number: int, draw: random.Random) -> Trial:
    """Send a signal to a command, at a random moment or right before a random file operation, and give the command again."""
    bench.expected(name)
    out = bench.place(name)
    moment = draw.uniform(0, bench.seconds[name]) if draw.random() < 0.5 else None
    event = draw.randint(1, max(1, bench.events[name]))
    when = f"after {moment:.3f} s" if moment is not None else f"before file operation {event} of {bench.events[name]}"
    trial = Trial(f"{signal.Signals(number).name} to {name} {when}")
    sent = True
    if moment is None:
        process = start(
            bench.words(name, out),
            out.parent / "err.txt",
            lambda: at_write(out.parent, event, lambda: signal.raise_signal(number)),
        )
    else:
        process = start(bench.words(name, out), out.parent / "err.txt")
        time.sleep(moment)
        sent = process.signal(number)
    process.wait()
    code = {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[signal.Signals(number)]
    late = {0, -number} if moment is not None and number != signal.SIGKILL else {0}  # it may end at that moment
    if sent and moment is None and process.code == 0 and number != signal.SIGKILL:
        trial.note("lost", "the signal was")
    _look(trial, process, {code, *late})
    if number != signal.SIGKILL and (left := leftovers(out.parent)):
        trial.note("littered", f"after {signal.Signals(number).name}: {', '.join(left)}")
    _again(trial, bench, name, out)
    return _end(trial, bench, out)


def kill_a_rank(bench: Bench, world: int, number: int, draw: random.Random, again: int) -> Trial:
    """Kill one of the ranks of a run, or all, at a random moment; the others stop within 30 s; the same again on `again` ranks."""
    bench.expected("run")
    out = bench.place("run")
    moment = draw.uniform(0, 2.0 * bench.seconds["run"])
    victims = draw.choice([[rank] for rank in range(world)] * 2 + [list(range(world))])
    trial = Trial(f"{signal.Signals(number).name} to rank {victims} of {world} after {moment:.3f} s")
    ranks = start_ranks(bench.words("run", out), world, out.parent)
    time.sleep(moment)
    sent = [ranks[rank].signal(number) for rank in victims]
    began = time.monotonic()
    for rank in ranks:
        rank.wait(60)
    took = time.monotonic() - began
    died = all(ranks[rank].code != 0 for rank in victims) and all(sent)
    for rank, process in enumerate(ranks):
        codes: set[int | None] = {0, 1, 130, 143, -number} if rank in victims else {0, 1, 130, 143}
        _look(trial, process, codes)
    if took > 30 and died and any(rank.code != 0 for index, rank in enumerate(ranks) if index not in victims):
        trial.note("hung", f"the others took {took:.0f} s to stop")
    _again_on(trial, bench, out, again)
    return _end(trial, bench, out)


def _again_on(trial: Trial, bench: Bench, out: Path, world: int) -> None:
    ranks = [rank.wait() for rank in start_ranks(bench.words("run", out), world, out.parent)]
    if any(rank.code in (1, 2) for rank in ranks):
        trial.note("locked", "; ".join(rank.text[-500:] for rank in ranks))
        return
    for rank in ranks:
        _look(trial, rank, {0}, lines=0)
    for kind, paths in bench.differences("run", out).items():
        if rest := ", ".join(path for path in paths.split(", ") if kind != "wrong" or path not in OF_DEVICES):
            trial.note(kind, rest)
    if left := leftovers(out.parent):
        trial.note("littered", ", ".join(left))


def start_ranks(words: list[str], world: int, scratch: Path) -> list[Process]:
    """Start a command on every rank over gloo, as torchrun would."""
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = int(found.getsockname()[1])
    common = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1", "GROUP_RANK": 0}
    common |= {"TORCHELASTIC_RUN_ID": "test", "GLOO_SOCKET_IFNAME": "lo"}
    words = [*words, "--accelerator", "cpu"]
    if world == 1:
        return [start(words, scratch / "rank-0.txt")]
    words = [*words, "--devices", str(world)]
    return [
        start(
            words,
            scratch / f"rank-{rank}.txt",
            environment={name: str(value) for name, value in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()},
        )
        for rank in range(world)
    ]


# -- disks -----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(place: Path, size: int) -> Iterator[bool]:
    """A file system of so many bytes at a folder, which is made; gives False where this machine lets nobody mount."""
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, check=False)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "-l", str(place)], check=False)


def fill(bench: Bench, name: str, draw: random.Random) -> Trial | None:
    """A command on a disk that is too small; then on one that is not. None: no disk can be made here."""
    bench.expected(name)
    at = bench.place(name)
    needed = sum(path.stat().st_size for path in (at if at.exists() else bench.root / "run").rglob("*") if path.is_file())
    disk = at.parent / "disk"
    with small_disk(disk, 1 << 30) as made:
        if not made:
            shutil.rmtree(at.parent)
            return None
        out = disk / "o"
        if at.exists():
            shutil.copytree(at, out)
        free = draw.randint(0, needed)
        used = shutil.disk_usage(disk).used
        _resize(disk, used + free)
        trial = Trial(f"{name} with {free:,} bytes free of about {needed:,} that it needs")
        process = start(bench.words(name, out), at.parent / "err.txt").wait()
        _look(trial, process, {0, 1})
        if process.code == 1 and "the disk is full" not in process.text:
            trial.note("crashed", f"not said to be a full disk: {process.text[-1500:]}")
        if left := leftovers(out):
            trial.note("littered", f"on the full disk: {', '.join(left)}")
        _resize(disk, 1 << 30)
        _again_at(trial, bench, name, out, at.parent)
    return _end(trial, bench, at)


def _again_at(trial: Trial, bench: Bench, name: str, out: Path, scratch: Path) -> None:
    """As `_again`, where the folder lies one level deeper than the expected one."""
    if name == "restore" and out.exists():
        _compare(trial, bench, name, out)
        return
    process = start(bench.words(name, out), scratch / "again.txt").wait()
    if process.code in (1, 2):
        trial.note("locked", f"the same command again: {process.text[-1500:]}")
        return
    _look(trial, process, {0}, lines=0)
    for kind, paths in bench.differences(name, out).items():
        if rest := ", ".join(path for path in paths.split(", ") if kind != "wrong" or not path.endswith("run.json")):
            trial.note(kind, rest)  # run.json holds the way to the model
    if left := leftovers(out.parent):
        trial.note("littered", ", ".join(left))


def _resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={max(size, 4096)}", str(disk)], check=True, capture_output=True)


def fail_writes(bench: Bench, name: str, how: str, draw: random.Random) -> Trial:
    """Let one write fail, or all from one on, or every file beyond a size; then the same command without."""
    bench.expected(name)
    out = bench.place(name)
    event = draw.randint(1, max(1, bench.events[name]))
    code = draw.choice([errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EACCES])

    def fail() -> None:
        raise OSError(code, os.strerror(code))

    size = draw.randint(100, 60_000)
    prepare = {
        "once": lambda: at_write(out.parent, event, fail),
        "from": lambda: from_write(out.parent, event // 2 + 1, fail),
        "size": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    }[how]
    what = f"no file beyond {size:,} bytes" if how == "size" else f"{errno.errorcode[code]} {how} file operation {event}"
    trial = Trial(f"{name}: {what}")
    process = start(bench.words(name, out), out.parent / "err.txt", prepare).wait()
    _look(trial, process, {0, 1, 2})
    if how == "once" and (left := leftovers(out.parent)):
        trial.note("littered", ", ".join(left))
    _again(trial, bench, name, out)
    return _end(trial, bench, out)


def pair(bench: Bench, name: str, draw: random.Random) -> Trial:
    """The same command twice into the same folder, the second a moment after the first."""
    bench.expected(name)
    out = bench.place(name)
    wait = draw.uniform(0, bench.seconds[name])
    trial = Trial(f"{name} twice, {wait:.3f} s apart")
    first = start(bench.words(name, out), out.parent / "first.txt")
    time.sleep(wait)
    second = start(bench.words(name, out), out.parent / "second.txt")
    for process in (first, second):
        _look(trial, process.wait(), {0, 2})
    if 0 not in (first.code, second.code):
        trial.note("lost", f"neither finished: {first.text[-500:]} {second.text[-500:]}")
    _compare(trial, bench, name, out)
    return _end(trial, bench, out)
