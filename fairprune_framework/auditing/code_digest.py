"""Which code sums come from: partial sums of one version of it are never added to those of another."""

from __future__ import annotations

import hashlib
import sys
from abc import ABC
from collections.abc import Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

from fairprune_framework.plugin_sources import sources_with

PACKAGE = Path(__file__).resolve().parents[1]
SUMMED_BY = (
    "api",
    "auditing",
    "calibration/text.py",
    "contrasts/alignment.py",
    "contrasts/schema.py",
    "contrasts/words.py",
    "functional/compensated.py",
    "functional/divergence.py",
    "functional/fused.py",
    "functional/log_probs.py",
    "functional/shared_tokens.py",
    "functional/triton_kernels.py",
    "models/encoder.py",
    "models/head.py",
    "stages/audit.py",
    "surgery/slices.py",
    "utilities/files.py",
)
"""Files and folders of this package whose code decides what an audit sums."""


def summing_files(package: Path) -> dict[str, Path]:
    """Path inside the package -> file, of all that `SUMMED_BY` names.

    Raises:
        FileNotFoundError: a name stands for nothing.
    """
    files: dict[str, Path] = {}
    for name in SUMMED_BY:
        sources = sorted((package / name).rglob("*.py")) if (package / name).is_dir() else [package / name]
        if not sources or not sources[0].is_file():
            raise FileNotFoundError(f"{package / name} is named as code that sums come from, and is not there")
        files.update((source.relative_to(package).as_posix(), source) for source in sources)
    return files


def code_digest(parts: Sequence[object], package: Path = PACKAGE) -> str:
    """sha256 over the source files that sums come from.

    Args:
        parts: statistics and the adapter, of this package or of a plugin: the package of each is covered too.
        package: the folder of this package.

    Returns: hexadecimal.
    """
    files = summing_files(package)
    for part in parts:
        files |= _sources(type(part))
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        _add(digest, name, path)
    return digest.hexdigest()


def class_digest(plugin: type) -> str:
    """sha256 over the packages that a class and its bases are written in; bases of this package, the interfaces, do not count."""
    digest = hashlib.sha256()
    for base in plugin.__mro__:
        inherited = base is not plugin and base.__module__.partition(".")[0] == PACKAGE.name
        if base not in (object, ABC) and not inherited:
            for name, path in sorted(_sources(base).items()):
                _add(digest, name, path)
    return digest.hexdigest()


_in_use: WeakKeyDictionary[type, str] = WeakKeyDictionary()


def digest_in_use(plugin: type) -> str:
    """`class_digest` when this process first asked: an edit while it works makes no other of a class that was imported before."""
    return _in_use.get(plugin) or _in_use.setdefault(plugin, class_digest(plugin))


def _add(digest: hashlib._Hash, name: str, path: Path) -> None:
    """A file, piece by piece: a plugin may bring large data."""
    digest.update(name.encode())
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)


def _sources(plugin: type) -> dict[str, Path]:
    """The files that a class may call: its module, and of a plugin all of its top-level package, and those that are installed with it."""
    module = plugin.__module__
    file = getattr(sys.modules.get(module), "__file__", None)
    found = {} if file is None else {module: Path(file)}
    top = module.partition(".")[0]
    if top != PACKAGE.name:
        for name, paths in sources_with(top).items():
            found |= {f"{name}/{number}": path for number, path in enumerate(paths)}
    return found
