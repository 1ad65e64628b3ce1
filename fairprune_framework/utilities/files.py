"""Hashes, and files that are written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fairprune_framework.errors import DiskFull, RunFolderError, shortened, shown
from fairprune_framework.utilities import stopping

if TYPE_CHECKING:
    from torch import Tensor


LONGEST_NAME = 255
"""Bytes in the name of a file, on all common file systems."""
UNFINISHED = ".tmp"
"""Suffix of files and folders that a kill may leave; their names begin with a dot and the name that they would have got."""
_UNFINISHED = re.compile(r"\.+[^/]+\.[a-z0-9_]{8}\.tmp")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def in_mb(size: int) -> str:
    """Bytes in megabytes: 1,234.5 MB."""
    return f"{size / 1e6:,.1f} MB"


def digest(value: Any) -> str:
    """sha256 of a JSON value in its canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()


def repr_digest(*values: object) -> bytes:
    """sha256 of `repr(values)`, 32 bytes. For values whose `repr` is the same in every process: no sets, no addresses."""
    return hashlib.sha256(repr(values).encode()).digest()


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path`; move it there when the block ends well, remove it otherwise.

    Args:
        durable: wait until the disk has it, so that a power cut leaves the old file or the new one.

    Raises:
        DiskFull: no space is left; nothing half-written stays.
    """
    temporary = _beside(path)  # named before it is made: a signal at any moment leaves nothing
    try:
        stopping.check()
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with stopping.shielded():
            temporary.unlink(missing_ok=True)
        if isinstance(error, Exception):
            _explain(error, path)
        raise


def _explain(error: Exception, path: Path) -> None:
    """Raise what a failed write means to a user, where it is one: `DiskFull`, or an `OSError` that names the file."""
    from safetensors import SafetensorError

    text = " ".join(str(error).split())
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, DiskFull) and UNFINISHED not in str(error):  # it names the file already
        return
    if full or isinstance(error, DiskFull) or any(os.strerror(number) in text for number in (errno.ENOSPC, errno.EDQUOT)):
        raise DiskFull(
            f"the disk is full: {path} could not be written, and nothing half-written was left. Free some space and give the "
            "same command again"
        ) from error
    if isinstance(error, SafetensorError) and "I/O error" in text:
        raise OSError(f"{path} could not be written: {shortened(text, 200)}") from error


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target`, with ordinary permissions; it goes at the end, unless it was moved. Raises as `atomic`."""
    path = _beside(target)
    try:
        path.mkdir()
        yield path
    except Exception as error:
        _explain(error, target)
        raise
    finally:
        with stopping.shielded():
            if path.exists():
                shutil.rmtree(path, ignore_errors=True)


def move_folder(temporary: Path, target: Path) -> None:
    """Give a finished folder its name, and its files ordinary permissions, which libraries may have narrowed."""
    for path in temporary.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())
    temporary.replace(target)


def is_unfinished(path: Path) -> bool:
    """The name is one that `atomic` or `temporary_folder` gives."""
    return _UNFINISHED.fullmatch(path.name) is not None


def sweep(folder: Path, target: str | None = None) -> None:
    """Remove what killed writers left in a folder; links are removed, not followed.

    Args:
        target: only what would have become the file or folder of this name.
    """
    for path in folder.iterdir() if folder.is_dir() else ():
        if is_unfinished(path) and (target is None or path.name.lstrip(".").startswith(f"{target.lstrip('.')}.")):
            remove(path)


def remove(path: Path) -> None:
    """Remove a file, a folder or a link; what a link points to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def refuse_unwritable(folder: Path) -> None:
    """Look whether a folder can be made, or written to where it is there; nothing is made.

    Raises:
        RunFolderError: a name that no file may have, a loop of links, a link to nothing, a file above it, or no permission.
    """
    place = folder.absolute()
    try:
        if any(len(os.fsencode(part)) > LONGEST_NAME for part in folder.parts):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        while not _is_there(place):
            place = place.parent
    except (OSError, ValueError) as error:  # ValueError: a character that cannot be in a name
        reason = getattr(error, "strerror", None) or "its name holds a character that no name may have"
        raise RunFolderError(f"cannot make the folder {shown(str(folder))}: {reason}") from error
    if not place.is_dir():
        what = "a link to nothing" if place.is_symlink() else "a file"
        raise RunFolderError(f"cannot make the folder {folder}: {place} is {what}")
    if not os.access(place, os.W_OK | os.X_OK):
        raise RunFolderError(f"cannot make the folder {folder}: {place} may not be written to")


def refuse_inside(folder: Path, source: Path) -> None:
    """Raise `RunFolderError` where a folder would be made in one that is read: that would change, and hold itself."""
    if folder.resolve().is_relative_to(source.resolve()):
        raise RunFolderError(f"{folder} lies in {source}, which is read: choose another --output")


RUN_RECORD = "run.json"
"""The record of a run folder."""
RUN_PARTS = ("model", "checkpoint", "logs", "cache", "finetuned")
"""Folders in a run folder that stages write, and remove."""


def refuse_part_of_run(path: Path, option: str = "--output") -> None:
    """Raise `RunFolderError` for a place in a folder that the stages of a run write, and remove with what lies in it."""
    try:
        whole = path.resolve()
        parts = [part for part in (whole, *whole.parents) if part.name in RUN_PARTS]
        inside = [part for part in parts if (part.parent / RUN_RECORD).is_file()]
    except (OSError, RuntimeError, ValueError):  # a loop of links, or a name that no file may have: told where it is to be made
        return
    if inside:
        raise RunFolderError(f"{option} {path} lies in {inside[0]}, which belongs to a run: choose another place")


def _is_there(path: Path) -> bool:
    """As `path.exists()`, also for a link to nothing; raises `OSError` where no file can have the name."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return path.is_symlink()
    return True


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{UNFINISHED}")


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file atomically; NaN is refused."""
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def parse_json(
    text: str, surrogates: Literal["refuse", "keep"] = "refuse", constants: Literal["refuse", "keep"] = "refuse"
) -> Any:
    """Parse a JSON text.

    Args:
        surrogates: what becomes of half a surrogate pair; `keep` is for a caller that names the field which holds it.
        constants: what becomes of NaN and Infinity; `keep` is for files of others, which hold them.

    Raises:
        ValueError: not JSON, nested too deeply, a number beyond range, or a key that occurs twice, where Python would drop the
            first in silence. The message has at most 500 characters.
    """

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise ValueError(f"the key {shown(repeated)} occurs twice")
        return found

    def constant(name: str) -> float:
        if constants == "keep":
            return float(name)
        raise ValueError(f"{name} is not JSON")

    try:
        data = json.loads(text, object_pairs_hook=mapping, parse_constant=constant)
        if surrogates == "refuse" and _SURROGATE.search(text):
            json.dumps(data, ensure_ascii=False).encode()  # half a character: it could be read, but never written again
        return data
    except json.JSONDecodeError:  # short, and it knows its place
        raise
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        raise ValueError(shortened(str(error), 497)) from None


def read_json(path: Path, format: str | None = None, constants: Literal["refuse", "keep"] = "refuse") -> dict[str, Any]:
    """Read a JSON object, of the format given; `constants` as for `parse_json`.

    Raises:
        RunFolderError: absent, broken, or of another format.
    """
    try:
        data = parse_json(path.read_text(encoding="utf-8"), constants=constants)
    except FileNotFoundError:
        raise RunFolderError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise RunFolderError(f"cannot read {path}: {error}") from error
    if not isinstance(data, dict):
        raise RunFolderError(f"{path} must hold a JSON object. Got {type(data).__name__} instead.")
    if format is not None and data.get("format") != format:
        raise RunFolderError(f"{path} must be of format {format!r}. Got {shown(data.get('format'))} instead.")
    return data


def unreadable(path: Path) -> str | None:
    """Why a file cannot be opened, in words that follow its name; None: it can."""
    try:
        with path.open("rb"):
            return None
    except FileNotFoundError:
        return f"is a link to {os.readlink(path)}, which is missing" if path.is_symlink() else "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file of numbers.

    Raises:
        RunFolderError: it is absent, closed to this process or damaged, or a tensor holds NaN or Inf.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if (reason := unreadable(path)) is not None:  # safetensors calls all of them "No such file"
        raise RunFolderError(f"{path} {reason}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise RunFolderError(f"{path} is damaged: {shortened(' '.join(str(error).split()), 200)}") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise RunFolderError(f"{path} is damaged: {shown(name)} holds NaN or Inf")
    return tensors


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, metadata: dict[str, str] | None = None, durable: bool = False
) -> None:
    """Write a safetensors file atomically; equal content gives equal bytes."""
    from safetensors.torch import save_file

    with atomic(path, durable=durable) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata=metadata)
        if metadata:
            _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Order the metadata of a safetensors file by key, in place: safetensors writes them in the random order of a hash map."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= size, "the same entries in another order are as long"
        file.seek(8)
        file.write(text.ljust(size))
