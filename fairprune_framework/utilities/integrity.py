"""The files of a stage are what was written: sha256 and size of each, kept in `run.json` and checked before use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fairprune_framework.utilities.files import file_digest

_known: dict[tuple[Any, ...], str] = {}
"""(path, size, times, inode) -> sha256: a file that did not change is read once in a process."""


def cached_digest(path: Path) -> str:
    """sha256 of a file's bytes; read again only where its size, times or inode changed."""
    found = path.stat()
    key = (str(path.absolute()), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
    if key not in _known:
        _known[key] = file_digest(path)
    return _known[key]


def seal(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Name -> sha256 and size of each file; of a folder, of every file in it."""
    sealed: dict[str, dict[str, Any]] = {}
    for name in names:
        path = folder / name
        inside = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
        for each in inside:
            sealed[each.relative_to(folder).as_posix()] = {"sha256": cached_digest(each), "size": each.stat().st_size}
    return sealed


def damage(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What is wrong with the first file that is not as it was written; None: all are."""
    for name, known in files.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != known["size"]:
            return f"{path} is damaged: it has {path.stat().st_size:,} bytes, {known['size']:,} were written"
        if cached_digest(path) != known["sha256"]:
            return f"{path} is damaged or was changed: its sha256 is not that of what was written"
    return None
