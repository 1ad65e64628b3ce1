"""One writer: a run folder that is being written names its process, host and start, and admits no second one.

The file is locked by the kernel, so that the lock of a process that died is stale at once, on whatever host or container it ran.
Where the file system knows no such locks, the process of the same host is looked for.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from fairprune_framework.errors import RunFolderError, shown
from fairprune_framework.utilities import stopping
from fairprune_framework.utilities.files import parse_json

FILE = ".lock"
_held: dict[Path, int] = {}
"""Folder -> open file: locks of this process, which may open a folder twice."""


def acquire(folder: Path, *, shared: bool = False) -> bool:
    """Take the lock of a folder that exists; returns whether this process did not hold it before.

    Args:
        shared: with others that share it, who write other files of the folder.

    Raises:
        RunFolderError: another process holds it.
        KeyboardInterrupt: a signal came meanwhile; the lock is held then, and `release_all` gives it back.
    """
    with stopping.shielded():  # between making the file and holding it, a signal would leave it
        taken = _acquire(folder.resolve(), shared)
    if taken:
        stopping.check()
    return taken


def _acquire(folder: Path, shared: bool) -> bool:
    if folder in _held:
        return False
    path = folder / FILE
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise RunFolderError(f"{path} is a link: remove it") from None
            raise
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(handle)
            os.close(handle)
            raise RunFolderError(f"{folder} is being written {holder}: wait for it, or choose another --output") from None
        except OSError:  # a file system without locks
            if not shared and _alive(handle):
                holder = _holder(handle)
                os.close(handle)
                raise RunFolderError(f"{folder} is being written {holder}: wait for it, or remove {path}") from None
        try:
            same = os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
        except FileNotFoundError:
            same = False
        if same:
            break
        os.close(handle)  # its holder removed it in between
    text = json.dumps(
        {"process": os.getpid(), "host": socket.gethostname(), "start": datetime.now(UTC).isoformat("T", "seconds")}
    )
    os.ftruncate(handle, 0)
    os.pwrite(handle, text.encode(), 0)
    _held[folder] = handle
    return True


def release(folder: Path) -> None:
    """Give the lock back and remove its file; nothing where this process does not hold it, or the folder could not be made.

    A removal that fails is tried once more. A file that stays then is empty and locks nobody out, and the next writer removes it:
    what was done under the lock is done all the same.
    """
    with stopping.shielded():
        try:
            folder = folder.resolve()
        except (OSError, RuntimeError, ValueError):  # a loop of links, or a name that no file may have: nobody holds it
            return
        if (handle := _held.pop(folder, None)) is not None:
            for _ in range(0 if _is_shared(handle) else 2):
                with contextlib.suppress(OSError):
                    (folder / FILE).unlink(missing_ok=True)
                    break
                with contextlib.suppress(OSError):
                    os.ftruncate(handle, 0)
            os.close(handle)


def share(folder: Path) -> None:
    """Let others share a lock that this process holds."""
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(_held[folder.resolve()], fcntl.LOCK_SH)


def release_all() -> None:
    """Give back every lock of this process: an interrupt may have come between the end of a command and its `release`."""
    for folder in list(_held):
        release(folder)


def _is_shared(handle: int) -> bool:
    """Others hold the lock too; the last of them removes its file."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    return False


def _read(handle: int) -> dict[str, object]:
    try:
        data = parse_json(os.pread(handle, 4096, 0).decode())
    except ValueError:  # half-written, or not ours
        return {}
    return data if isinstance(data, dict) else {}


def _holder(handle: int) -> str:
    data = _read(handle)
    if not data:
        return "by another process"
    return f"by process {shown(data.get('process'))} on {_word(data.get('host'))} since {_word(data.get('start'))}"


def _word(value: object) -> str:
    """A word of the file, which anybody may have written: no control characters, and not long."""
    return shown(value)[1:-1] if isinstance(value, str) else shown(value)


def _alive(handle: int) -> bool:
    """The process in the file runs on this host, or may run on another."""
    data = _read(handle)
    process = data.get("process")
    if type(process) is not int or process <= 0 or data.get("host") != socket.gethostname():
        return bool(data)
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()
