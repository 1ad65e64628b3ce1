"""The source of an installed plugin: the files whose edit makes another plugin of it. Nothing is imported."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from fairprune_framework.discovery import OWN, Entry, every_entry, normalised

NOT_INSTALLED = frozenset(
    {"tests", "test", "docs", "doc", "benchmarks", "examples", "build", "dist", "setup", "conftest", "noxfile"}
)
"""What stands beside the modules of a project without being one of them."""


def source_digest(entry: Entry) -> str:
    """sha256 over the distribution, its version, and all Python files of the top-level package or module of an entry point, and of
    the others that its distribution lists among its files.

    An edited or upgraded plugin has another one. Nothing is imported; a package without files counts by its version alone.
    """
    digest = hashlib.sha256(f"{entry.distribution} {entry.version} {entry.value}".encode())
    for path in (path for module in _modules_of(entry) for path in python_files(module)):
        digest.update(f"{path.name} {_file_digest(path, path.stat().st_mtime_ns, path.stat().st_size)}".encode())
    return digest.hexdigest()


def beside(module: str) -> list[str]:
    """The other top-level packages and modules of the distributions whose plugins are in this one: it may call them."""
    offering = [entry for found in every_entry().values() for entry in found if entry.top == module]
    return sorted({name for entry in offering for name in _modules_of(entry)} - {module})


def _modules_of(entry: Entry) -> list[str]:
    """That of the entry point, then the others that its distribution lists; of this distribution, whose parts are plugins of their own,
    the first alone."""
    own = entry.top
    if normalised(entry.distribution) == normalised(OWN):
        return [own]
    try:
        tops = set(_listed(metadata.distribution(entry.distribution)))
    except Exception:  # no such name, or files that nobody can list
        tops = set()
    return [own, *sorted(tops - {own})]


def _listed(distribution: metadata.Distribution) -> Iterator[str]:
    """The top-level packages and modules among the files of a distribution; of an editable installation, which lists none of them,
    those that its build backend names, or that lie where it points to."""
    files = distribution.files or []
    yield from (distribution.read_text("top_level.txt") or "").split()
    for file in files:
        if file.suffix == ".py" and file.parts[1:] in ((), ("__init__.py",)) and not file.name.startswith("__editable__"):
            yield file.parts[0].removesuffix(".py")
        elif file.suffix == ".pth" and len(file.parts) == 1:
            for line in Path(str(file.locate())).read_text(encoding="utf-8").splitlines():
                yield from _modules_in(Path(line.strip())) if line.strip() and not line.startswith(("import ", "#")) else ()


def _modules_in(folder: Path) -> Iterator[str]:
    for path in folder.glob("*"):
        if path.stem not in NOT_INSTALLED and (path.suffix == ".py" or (path / "__init__.py").is_file()):
            yield path.stem


def python_files(package: str) -> list[Path]:
    """All Python files of a top-level package or module; none where it cannot be found."""
    try:
        spec = find_spec(package) if package else None
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if folders:
        return sorted(path for folder in folders for path in folder.rglob("*.py"))
    return [Path(spec.origin)] if spec.origin and Path(spec.origin).is_file() else []


@cache
def _file_digest(path: Path, mtime_ns: int, size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
