"""The source of an installed plugin: the files whose edit makes another plugin of it. Nothing is imported."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
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
    for path in (path for paths in _sources_of(entry).values() for path in paths):
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


def sources_with(module: str) -> dict[str, list[Path]]:
    """The files of a top-level package or module, and those of the others in the distributions whose plugins are in it: it may call
    them. Of a namespace, which many distributions share, the files of those alone."""
    found = dict[str, list[Path]]()
    for entry in (entry for entries in every_entry().values() for entry in entries if entry.top == module):
        for name, paths in _sources_of(entry).items():
            found[name] = sorted({*found.get(name, ()), *paths})
    if _is_namespace(module):
        return found
    return {module: files_of(module)} | {name: found[name] for name in sorted(found.keys() - {module})}


def _sources_of(entry: Entry) -> dict[str, list[Path]]:
    """Top-level name -> files: that of the entry point, then the others that its distribution lists; of this distribution, whose parts
    are plugins of their own, the first alone."""
    own = entry.top
    listed = dict[str, set[Path]]()
    if normalised(entry.distribution) != normalised(OWN):
        with contextlib.suppress(Exception):  # no such name, or files that nobody can list: what was found until then
            for top, files in _listed(metadata.distribution(entry.distribution), own):
                if top.isidentifier():
                    listed.setdefault(top, set()).update(files)
    return {top: sorted(listed.get(top, ())) or files_of(top) for top in (own, *sorted(listed.keys() - {own}))}


def _listed(distribution: metadata.Distribution, own: str) -> Iterator[tuple[str, list[Path]]]:
    """The top-level packages and modules among the files of a distribution, of which `own` is one; of an editable installation, which
    lists none of them, those that its build backend names, or that lie where it points to. Of a part of a namespace its files; else
    none are named."""
    files = distribution.files or []
    modules = [file for file in files if file.suffix == ".py" and not file.name.startswith("__editable__")]
    whole = {file.parts[0].removesuffix(".py") for file in modules if file.parts[1:] in ((), ("__init__.py",))}
    yield from ((top, []) for top in whole)
    parts = {file.parts[0] for file in modules if len(file.parts) > 1} - whole
    yield from (
        (file.parts[0], [Path(str(file.locate()))]) for file in files if file.parts[0] in parts and _is_kept(Path(file))
    )
    yield from ((top, []) for top in (distribution.read_text("top_level.txt") or "").split())
    for file in files:
        if file.suffix == ".pth" and len(file.parts) == 1:
            with contextlib.suppress(OSError, ValueError):  # gone, closed to this process, or no text
                yield from _pointed_to(Path(str(file.locate())), own)


def _pointed_to(file: Path, own: str) -> Iterator[tuple[str, list[Path]]]:
    """The modules in the folders that a `.pth` file adds to the path, as far as they are imported from there; folders that are no
    packages only where one of these imports them."""
    for line in map(str.strip, file.read_text(encoding="utf-8").splitlines()):
        folder = (file.parent / line).resolve()
        if not line or line.startswith(("import ", "import\t", "#")) or folder == file.parent.resolve() or not folder.is_dir():
            continue
        found, parts = [own], dict[str, list[Path]]()
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                if path.stem.isidentifier() and path.stem not in NOT_INSTALLED:
                    if _is_from(path, folder):
                        found.append(path.stem)
                    elif _is_part(path):
                        parts[path.stem] = _files_in(path)
        yield from ((top, []) for top in found[1:])
        sources = [parts.get(own, []), *map(files_of, found)]
        text = (
            "\n".join(path.read_text(encoding="utf-8", errors="replace") for paths in sources for path in paths)
            if parts
            else ""
        )
        yield from (
            (top, paths) for top, paths in parts.items() if top == own or re.search(rf"\b(from|import)\s+{top}\b", text)
        )


def _is_from(path: Path, folder: Path) -> bool:
    """It is a module or a package, and the one that an import of its name finds."""
    if not ((path.suffix == ".py" and path.is_file()) or (path / "__init__.py").is_file()):
        return False
    found = _spec(path.stem)
    return found is not None and found.origin is not None and Path(found.origin).resolve().is_relative_to(folder)


def _is_part(folder: Path) -> bool:
    """It holds modules or packages of a namespace, and an import of its name looks into it."""
    if not (any(folder.glob("*.py")) or any(folder.glob("*/__init__.py"))):
        return False
    found = _spec(folder.name) if _is_namespace(folder.name) else None
    return found is not None and folder.resolve() in {Path(part).resolve() for part in found.submodule_search_locations or ()}


def _is_namespace(module: str) -> bool:
    """A package without an `__init__.py`, of which several distributions may have parts."""
    found = _spec(module)
    return found is not None and found.origin is None and found.submodule_search_locations is not None


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
        return sorted(path for folder in folders for path in _files_in(folder))
    return [Path(spec.origin)] if spec.origin and Path(spec.origin).is_file() else []


def _files_in(folder: Path) -> list[Path]:
    """Of a link to a folder only where that is a package elsewhere, and once: what is not imported may be large, and change."""
    whole, found, linked = folder.resolve(), list[Path](), set[Path]()
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [
            name for name in sorted(folders) if _is_kept(Path(name)) and _is_followed(Path(root, name), whole, linked)
        ]
        found += [path for name in sorted(names) if _is_kept(Path(name)) and (path := Path(root, name)).is_file()]
    return found


def _is_followed(path: Path, package: Path, linked: set[Path]) -> bool:
    """A folder, or a link to a package that is neither in `package` nor around it, and is not among those linked so far."""
    if not path.is_symlink():
        return True
    target = path.resolve()
    near = package.is_relative_to(target) or target.is_relative_to(package)
    if near or target in linked or not (target / "__init__.py").is_file():
        return False
    linked.add(target)
    return True


def _is_kept(path: Path) -> bool:
    """What an interpreter, an editor or a tool leaves in a package is no part of it."""
    return "__pycache__" not in path.parts and not any(part.startswith(".") or part.endswith("~") for part in path.parts)


@cache
def _file_digest(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
