"""One writer: who holds a lock is named, and a stale one is nobody's."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairprune_framework.errors import RunFolderError
from fairprune_framework.utilities import lock, stopping


@pytest.fixture(autouse=True)
def released() -> Iterator[None]:
    yield
    lock.release_all()


def held_by_another(folder: Path, text: str, kind: int = fcntl.LOCK_EX) -> int:
    """The lock as another process would hold it: through another open file."""
    (folder / lock.FILE).write_text(text)
    handle = os.open(folder / lock.FILE, os.O_RDWR)
    fcntl.flock(handle, kind | fcntl.LOCK_NB)
    return handle


def test_a_lock_names_its_holder_and_goes(tmp_path: Path) -> None:
    assert lock.acquire(tmp_path)
    assert not lock.acquire(tmp_path)  # held already
    held = json.loads((tmp_path / lock.FILE).read_text())
    assert (held["process"], held["host"]) == (os.getpid(), socket.gethostname())
    lock.release(tmp_path)
    lock.release(tmp_path)  # nothing to give back
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "holder"),
    [
        ('{"process": 7, "host": "h", "start": "2026-01-01"}', "by process 7 on h since 2026-01-01"),
        ("", "by another process"),
        ("[1]", "by another process"),
        ("{", "by another process"),
        ('{"process": "a\\u001b[31m", "host": 5}', r"by process 'a\x1b[31m' on 5 since None"),
    ],
)
def test_another_holder_is_named(text: str, holder: str, tmp_path: Path) -> None:
    handle = held_by_another(tmp_path, text)
    try:
        with pytest.raises(RunFolderError) as caught:
            lock.acquire(tmp_path)
    finally:
        os.close(handle)
    assert f"is being written {holder}: wait for it" in str(caught.value)


def test_a_lock_that_a_dead_process_left_is_taken(tmp_path: Path) -> None:
    (tmp_path / lock.FILE).write_text('{"process": 7, "host": "elsewhere", "start": "x"}' + " " * 500)
    assert lock.acquire(tmp_path)
    assert json.loads((tmp_path / lock.FILE).read_text())["process"] == os.getpid()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / lock.FILE).symlink_to(tmp_path / "mine")
    with pytest.raises(RunFolderError, match="is a link: remove it"):
        lock.acquire(tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_folder_in_its_place_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / lock.FILE).mkdir()
    with pytest.raises(IsADirectoryError):
        lock.acquire(tmp_path)


def test_those_who_share_it_leave_it_to_the_last(tmp_path: Path) -> None:
    other = held_by_another(tmp_path, "{}", fcntl.LOCK_SH)
    assert lock.acquire(tmp_path, shared=True)
    lock.release(tmp_path)
    assert (tmp_path / lock.FILE).exists()
    os.close(other)
    assert lock.acquire(tmp_path)
    lock.share(tmp_path)
    other = held_by_another(tmp_path, "{}", fcntl.LOCK_SH)
    os.close(other)
    lock.release(tmp_path)
    assert not (tmp_path / lock.FILE).exists()


def test_a_lock_that_was_removed_in_between_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def flock(handle: int, kind: int) -> None:
        calls.append(kind)
        if len(calls) == 1:
            (tmp_path / lock.FILE).unlink()

    monkeypatch.setattr(fcntl, "flock", flock)
    assert lock.acquire(tmp_path)
    assert len(calls) == 2
    assert (tmp_path / lock.FILE).exists()


@pytest.mark.parametrize(
    ("process", "host", "refused"),
    [
        ("own", None, False),  # left by an earlier life of this number
        ("parent", None, True),
        (2**22 + 5, None, False),  # beyond what the kernel gives out
        (7, "elsewhere", True),
        ("7", None, True),
        (None, None, False),
    ],
)
def test_where_the_file_system_knows_no_locks(
    process: object, host: str | None, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(handle: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    process = {"own": os.getpid(), "parent": os.getppid()}.get(str(process), process)
    data = {} if process is None else {"process": process, "host": host or socket.gethostname()}
    (tmp_path / lock.FILE).write_text(json.dumps(data) if data else "")
    if refused:
        with pytest.raises(RunFolderError, match=r"wait for it, or remove .*\.lock"):
            lock.acquire(tmp_path)
        return
    assert lock.acquire(tmp_path)
    lock.share(tmp_path)
    lock.release(tmp_path)
    assert not (tmp_path / lock.FILE).exists()


def test_a_folder_that_cannot_be_has_no_lock_to_give_back(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    lock.release(tmp_path / "loop")
    lock.release(tmp_path / "a\0b")


def test_a_signal_while_it_is_taken_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = fcntl.flock

    def signalled(handle: int, kind: int) -> None:
        signal.raise_signal(signal.SIGTERM)
        flock(handle, kind)

    with stopping.noted_signals():
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(fcntl, "flock", signalled)
            lock.acquire(tmp_path)
        lock.release_all()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("failures", "stays"), [(1, False), (9, True)])
def test_a_lock_that_cannot_be_removed_is_given_back(
    failures: int, stays: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done under it is done: a file that stays is stale, and goes with the next lock."""
    removed = Path.unlink
    left = [PermissionError(errno.EACCES, "Permission denied")] * failures

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if left:
            raise left.pop()
        removed(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    lock.acquire(tmp_path)
    lock.release(tmp_path)
    assert (tmp_path / lock.FILE).exists() == stays
    left.clear()
    assert lock.acquire(tmp_path)
    lock.release(tmp_path)
    assert not (tmp_path / lock.FILE).exists()
