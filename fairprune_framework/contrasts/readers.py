"""Reads a prompt set from wherever it lies: built in, a file, a dataset, or a list in memory. Start here: `read`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fairprune_framework.contrasts import builtin, formats, records, winobias
from fairprune_framework.contrasts.formats import Row
from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.errors import PromptError, UserError

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?")
_FILE_SUFFIXES = (*formats.SUFFIXES, ".yaml", ".yml", ".txt")


@dataclass(frozen=True, kw_only=True)
class ReadResult:
    """A prompt set that was read, and what could not be."""

    contrasts: tuple[Contrast, ...]
    skipped: tuple[tuple[str, str], ...]
    """(where, reason) of every bad row; empty unless `bad="skip"`."""
    source: str
    """The name that was asked for; `list` for contrasts in memory."""
    sha256: str
    """Of the file's bytes; where there is no one file, of the contrasts (`content_hash`)."""


def read(
    source: str | Path | Sequence[Contrast | Mapping[str, Any]],
    *,
    columns: Mapping[str, str] | None = None,
    bad: Literal["error", "skip"] = "error",
    hub_split: str | None = None,
) -> ReadResult:
    """Read a prompt set.

    A name is taken for, in this order: `builtin:<language>`; a folder of WinoBias or one of its files (the other side of it
    is found beside it); a file that exists (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`) or a folder that `datasets` can
    load; a dataset on the Hugging Face hub (`name`, `owner/name`). Layouts of rows are those of `records.to_contrast`.

    Args:
        source: a name, a path, or contrasts (or rows) in memory.
        columns: our field -> their column: `{"prompt_1": "a", "prompt_2": "b", "category": "kind"}`.
        bad: what to do with a row that is no contrast: stop, or list it in `skipped` and go on.
        hub_split: which split of a dataset; None takes the only one. (Not the split of our contrasts.)

    Raises:
        UnknownName: a built-in language that is not there.
        PromptError: nothing at that name; a malformed row, with its place; a missing column; an id that occurs twice; no
            contrasts at all, or none left.
        UserError: a column mapping or `bad` that makes no sense.
    """
    columns = dict(columns or {})
    records.check_columns(columns)
    if bad not in ("error", "skip"):
        raise UserError(f"The 'bad' of read must be 'error' or 'skip'. Got {bad!r} instead.")
    if not isinstance(source, str | Path):
        return _collect(_from_memory(source), columns, bad, "list", None)
    name = str(source)
    if name.startswith("builtin:"):
        return _collect(builtin.builtin(name.removeprefix("builtin:")), {}, bad, name, None)
    path = Path(source)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except OSError:  # a name too long for the file system: a prompt where its file was meant
        is_file = is_folder = False
    if (is_file or is_folder) and winobias.recognised(path):
        return _collect(winobias.rows(path), {}, bad, name, None)
    if is_file:
        return _collect(formats.rows(path), columns, bad, name, path)
    if is_folder or (isinstance(source, str) and _may_be_hub(name)):
        return _collect(formats.dataset_rows(name, hub_split), columns, bad, name, None)
    raise PromptError(
        f"no such prompt set: {name!r:.200} is no file, no folder and no name of a dataset. "
        f"Built-in sets: {', '.join('builtin:' + language for language in builtin.names())}"
    )


def content_hash(contrasts: Iterable[Contrast]) -> str:
    """SHA-256 over the contrasts in order, each as one line of JSON with sorted keys and no blanks."""
    digest = hashlib.sha256()
    for contrast in contrasts:
        line = json.dumps(contrast.to_json(), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def _may_be_hub(name: str) -> bool:
    return len(name) <= 200 and _HUB_NAME.fullmatch(name) is not None and Path(name).suffix.lower() not in _FILE_SUFFIXES


def _from_memory(items: Iterable[object]) -> Iterator[Row | Contrast]:
    for number, item in enumerate(items, start=1):
        where = f"list, item {number}"
        if isinstance(item, Contrast):
            yield item
        elif isinstance(item, Mapping):
            yield Row(where=where, number=number, data=item)
        else:
            problem = f"must be a Contrast or a mapping. Got {type(item).__name__} instead."
            yield Row(where=where, number=number, data={}, problem=problem)


def _collect(
    items: Iterable[Row | Contrast], columns: Mapping[str, str], bad: str, source: str, path: Path | None
) -> ReadResult:
    contrasts: list[Contrast] = []
    skipped: list[tuple[str, str]] = []
    places: dict[str, str] = {}
    for number, item in enumerate(items, start=1):
        where = item.where if isinstance(item, Row) else f"{source}, item {number}"
        try:
            contrast = records.to_contrast(item, columns) if isinstance(item, Row) else item
            if contrast.id in places:
                raise PromptError(f"the id {contrast.id!r} is taken already by {places[contrast.id]}")
        except PromptError as error:
            if isinstance(error, records.MissingColumn) and isinstance(item, Row) and item.table:
                raise PromptError(f"{source}: {error}") from error
            if bad == "error":
                raise PromptError(f"{where}: {error}") from error
            skipped.append((where, str(error)))
            continue
        places[contrast.id] = where
        contrasts.append(contrast)
    if not contrasts and skipped:
        raise PromptError(
            f"{source} has no contrast that can be used: all {len(skipped)} were skipped. The first: {': '.join(skipped[0])}"
        )
    if not contrasts:
        raise PromptError(f"{source} is an empty prompt set")
    sha256 = _file_hash(path) if path is not None else content_hash(contrasts)
    return ReadResult(contrasts=tuple(contrasts), skipped=tuple(skipped), source=source, sha256=sha256)


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
