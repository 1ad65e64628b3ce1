"""The source of an installed plugin: the files whose edit makes another plugin of it. Nothing is imported."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from weakref import WeakKeyDictionary

from fairprune_framework.discovery import OWN, Entry, every_entry, normalised
from fairprune_framework.errors import UserError

NOT_INSTALLED = frozenset(
    {
        "tests",
        "test",
        "docs",
        "doc",
        "benchmarks",
        "examples",
        "scripts",
        "build",
        "dist",
        "setup",
        "conftest",
        "noxfile",
        "tasks",
    }
)
"""What stands beside the modules of a project without being one of them."""


def source_digest(entry: Entry) -> str:
    """sha256 over the distribution, its version, and all files of the top-level package or module of an entry point, and of the
    others that its distribution lists among its files: code, and what code may read there, such as a list of words.

    An edited or upgraded plugin has another one. Nothing is imported; a package without files counts by its version alone.
    """
    digest = hashlib.sha256(f"{entry.distribution} {entry.version} {entry.value}".encode())
    for path in (path for module in _modules_of(entry) for path in files_of(module)):
        digest.update(f"{path.name} {_file_digest(path, path.stat().st_mtime_ns, path.stat().st_size)}".encode())
    return digest.hexdigest()


_imported: WeakKeyDictionary[type, str] = WeakKeyDictionary()
"""Class of a plugin -> `source_digest` when this process imported it."""


def remember(plugin: type, digest: str) -> None:
    """Remember which source a class that was just imported is of; a module that is loaded again makes another class."""
    _imported.setdefault(plugin, digest)


def digest_in_use(entry: Entry) -> str:
    """`source_digest` of what this process imported, whatever its files hold by now: what it computes is of that. Before an import, of
    the files."""
    plugin = _in_memory(entry)
    known = _imported.get(plugin) if isinstance(plugin, type) else None
    return source_digest(entry) if known is None else known


def refuse_edited(entry: Entry) -> None:
    """Raise `UserError` for a plugin whose files were edited after this process imported it."""
    if digest_in_use(entry) != source_digest(entry):
        raise UserError(f"{entry.label} was edited after this process imported it: start Python anew, or a notebook's kernel")


def _in_memory(entry: Entry) -> object:
    """What an entry point names, if its module was imported; None otherwise."""
    module, _, attribute = (part.strip() for part in entry.value.partition(":"))
    try:
        return attrgetter(attribute)(sys.modules[module])
    except (KeyError, AttributeError):
        return None


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
    tops: set[str] = set()
    with contextlib.suppress(Exception):  # no such name, or files that nobody can list: what was found until then
        tops |= {top for top in _listed(metadata.distribution(entry.distribution)) if top.isidentifier()}
    return [own, *sorted(tops - {own})]


def _listed(distribution: metadata.Distribution) -> set[str]:
    """The top-level packages and modules among the files of a distribution; of an editable installation, which lists none of them,
    those that its build backend names, or that lie where it points to."""
    files = distribution.files or []
    modules = [file for file in files if file.suffix == ".py" and not file.name.startswith("__editable__")]
    found = {file.parts[0].removesuffix(".py") for file in modules if file.parts[1:] in ((), ("__init__.py",))}
    found |= set((distribution.read_text("top_level.txt") or "").split())
    for file in files:
        if file.suffix == ".pth" and len(file.parts) == 1:
            with contextlib.suppress(OSError, ValueError):  # gone, closed to this process, or no text
                found |= set(_pointed_to(Path(str(file.locate()))))
    return found


def _pointed_to(file: Path) -> Iterator[str]:
    """The modules in the folders that a `.pth` file adds to the path, as far as they are imported from there."""
    for line in map(str.strip, file.read_text(encoding="utf-8").splitlines()):
        folder = (file.parent / line).resolve()
        if not line or line.startswith(("import ", "import\t", "#")) or folder == file.parent.resolve() or not folder.is_dir():
            continue
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                if path.stem.isidentifier() and path.stem not in NOT_INSTALLED and _is_from(path, folder):
                    yield path.stem


def _is_from(path: Path, folder: Path) -> bool:
    """It is a module or a package, and the one that an import of its name finds."""
    if not ((path.suffix == ".py" and path.is_file()) or (path / "__init__.py").is_file()):
        return False
    found = _spec(path.stem)
    return found is not None and found.origin is not None and Path(found.origin).resolve().is_relative_to(folder)


def _spec(module: str) -> ModuleSpec | None:
    """Where a top-level module would be imported from; None where there is none. A dotted name would import its parent."""
    if not module.isidentifier():
        return None
    try:
        return find_spec(module)
    except (ImportError, ValueError):
        return None


def files_of(package: str) -> list[Path]:
    """All files of a top-level package or module, but for hidden ones and compiled copies; none where it cannot be found."""
    spec = _spec(package)
    if spec is None:
        return []
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if folders:
        return sorted(
            path for folder in folders for path in folder.rglob("*") if _is_kept(path.relative_to(folder)) and path.is_file()
        )
    return [Path(spec.origin)] if spec.origin and Path(spec.origin).is_file() else []


def _is_kept(path: Path) -> bool:
    """What an interpreter, an editor or a tool leaves in a package is no part of it."""
    return "__pycache__" not in path.parts and not any(part.startswith(".") or part.endswith("~") for part in path.parts)


@cache
def _file_digest(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
