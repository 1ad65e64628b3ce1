"""Reads a prompt set from wherever it lies: built in, a file, a dataset, or a list in memory. Start here: `read`, or `Scan`."""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fairprune_framework.contrasts import builtin, formats, hub, published, records
from fairprune_framework.contrasts.formats import Row
from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.errors import PromptError, UserError
from fairprune_framework.utilities.files import file_digest

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?")
_FILE_SUFFIXES = (*formats.SUFFIXES, ".yaml", ".yml", ".txt")


HELD = 4096
"""Contrasts of a set that stay in memory; a larger set is read again each time."""


@dataclass(frozen=True, kw_only=True)
class ReadResult:
    """A prompt set that was read, and what could not be."""

    contrasts: tuple[Contrast, ...]
    skipped: tuple[tuple[str, str], ...]
    """(where, reason) of every bad row; empty unless `bad="skip"`."""
    left_out: Mapping[str, int]
    """Reason -> how many records of a published data set are no contrasts by its design."""
    source: str
    """The name that was asked for; `list` for contrasts in memory."""
    sha256: str
    """Of the file's bytes; where there is no one file, of the contrasts (`content_hash`)."""


def read(
    source: str | Path | Sequence[Contrast | Mapping[str, Any]],
    *,
    columns: Mapping[str, str] | None = None,
    bad: Literal["error", "skip"] = "error",
) -> ReadResult:
    """Read a prompt set.

    A name is taken for, in this order: `builtin:<language>`; files or a folder of a data set that `published` knows; a file that exists
    (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`) or a folder that `datasets` can load, also one that `save_to_disk` left; a dataset on
    the Hugging Face hub (`name`, `owner/name`). Behind the name of a dataset, hub or folder, may stand a configuration, a split, or both:
    `owner/name:configuration:split`. Layouts of rows are those of `records.to_contrast` and of `published`.

    Args:
        source: a name, a path, or contrasts (or rows) in memory.
        columns: our field -> their column: `{"prompt_1": "a", "prompt_2": "b", "category": "kind"}`.
        bad: what to do with a row that is no contrast: stop, or list it in `skipped` and go on.

    Raises:
        UnknownName: a built-in language that is not there.
        PromptError: nothing at that name; a malformed row, with its place; a missing column; an id that occurs twice; no
            contrasts at all, or none left.
        UserError: a column mapping or `bad` that makes no sense.
    """
    found = Scan(source, columns=columns, bad=bad)
    return ReadResult(
        contrasts=tuple(found),
        skipped=tuple(found.skipped),
        left_out=dict(found.left_out),
        source=found.name,
        sha256=found.sha256,
    )


class Scan:
    """A prompt set that has been looked through once, and is gone through again without being held in memory.

    Iterating reads the source again; up to `HELD` contrasts are kept, so that small sets are read once. What is known of every
    contrast is the 8-byte hash of its id.

    Args and errors: as `read`. A source that changes between two readings is a `PromptError`.
    """

    def __init__(
        self,
        source: str | Path | Sequence[Contrast | Mapping[str, Any]],
        *,
        columns: Mapping[str, str] | None = None,
        bad: Literal["error", "skip"] = "error",
    ) -> None:
        columns = dict(columns or {})
        records.check_columns(columns)
        if bad not in ("error", "skip"):
            raise UserError(f"The 'bad' of read must be 'error' or 'skip'. Got {bad!r} instead.")
        self.name, self._columns, self._bad = "list", columns, bad
        self._items, path = self._opened(source)
        self._path, self._stamp = path, _stamp(path)
        self.skipped: list[tuple[str, str]] = []
        """(where, reason) of every bad row."""
        self.left_out: Counter[str] = Counter()
        """Reason -> how many rows are no contrasts by the design of their data set."""
        self._passed_over: set[int] = set()
        self._held: list[Contrast] | None = []
        self._count = 0
        self.sha256 = self._look(hash_contents=path is None)
        if path is not None:
            self.sha256 = file_digest(path)

    def _opened(self, source: Any) -> tuple[Callable[[], Iterable[Row | Contrast]], Path | None]:
        if not isinstance(source, str | Path):
            return lambda: self._arranged(_from_memory(source)), None
        self.name = name = str(source)
        if name.startswith("builtin:"):
            self._columns = {}
            return lambda: builtin.builtin(name.removeprefix("builtin:")), None
        base, chosen = _chosen(name)
        path = Path(base)
        if _exists(path) and published.recognised(path):
            self._columns = {}
            if len(chosen) > 1:
                raise PromptError(f"{base} has one kind of part to choose. Got {':'.join(chosen)!r} instead.")
            return lambda: published.of_files(path, *chosen), None
        if _exists(path) and path.is_file():
            if chosen:
                raise PromptError(f"{base} is a file, which has no split {':'.join(chosen)!r} to choose")
            return lambda: formats.rows(path) if self._mapped else published.of_file(path), path
        if _exists(path) or (isinstance(source, str) and _may_be_hub(base)):
            return lambda: self._arranged(hub.dataset_rows(base, chosen)), None
        raise PromptError(
            f"no such prompt set: {name!r:.200} is no file, no folder and no name of a dataset. "
            f"Built-in sets: {', '.join('builtin:' + language for language in builtin.names())}"
        )

    @property
    def _mapped(self) -> bool:
        """The user says which columns are the texts: no layout is to be guessed."""
        return any(field == "variants" or field.startswith("prompt_") for field in self._columns)

    def _arranged(self, rows: Iterable[Row | Contrast]) -> Iterable[Row | Contrast]:
        return rows if self._mapped else published.arranged(rows)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Contrast]:
        if self._held is not None:
            yield from self._held
            return
        if _stamp(self._path) != self._stamp:
            raise PromptError(f"{self.name} was changed while it was being read")
        for number, item in enumerate(self._items(), start=1):
            if number not in self._passed_over:
                yield self._contrast(item)

    def _contrast(self, item: Row | Contrast) -> Contrast:
        return records.to_contrast(item, self._columns) if isinstance(item, Row) else item

    def _where(self, item: Row | Contrast, number: int) -> str:
        return item.where if isinstance(item, Row) else f"{self.name}, item {number}"

    def _look(self, hash_contents: bool) -> str:
        """Read all of it once; returns the hash of the contents where that is asked for."""
        ids, numbers, digest = array("Q"), array("Q"), hashlib.sha256()
        bad: list[tuple[int, str, str]] = []
        for number, item in enumerate(self._items(), start=1):
            if isinstance(item, Row) and item.left_out is not None:
                self.left_out[item.left_out] += 1
                self._passed_over.add(number)
                continue
            try:
                contrast = self._contrast(item)
            except PromptError as error:
                bad.append((number, *self._refused(item, number, error)))
                continue
            ids.append(short_hash(contrast.id))
            numbers.append(number)
            if hash_contents:
                digest.update(_line(contrast))
            if self._held is not None:
                self._held.append(contrast)
                if len(self._held) > HELD:
                    self._held = None
        repeated = self._repeated(ids)
        bad += repeated
        self.skipped = [(where, reason) for _, where, reason in sorted(bad)]
        self._passed_over.update(number for number, _, _ in bad)
        self._count = len(ids) - len(repeated)
        if repeated:
            again = {number for number, _, _ in repeated}
            if self._held is not None:
                self._held = [contrast for contrast, number in zip(self._held, numbers, strict=True) if number not in again]
            if hash_contents:
                return content_hash(self)
        if not self._count and self.skipped:
            raise PromptError(
                f"{self.name} has no contrast that can be used: all {len(self.skipped)} were skipped. "
                f"The first: {': '.join(self.skipped[0])}"
            )
        if not self._count:
            why = "".join(f": {count} records are left out: {reason}" for reason, count in self.left_out.most_common(1))
            raise PromptError(f"{self.name} is an empty prompt set{why}")
        return digest.hexdigest()

    def _refused(self, item: Row | Contrast, number: int, error: PromptError) -> tuple[str, str]:
        """Place and reason of what cannot be used; raises where that is not to be skipped."""
        if isinstance(error, records.MissingColumn) and isinstance(item, Row) and item.table:
            raise PromptError(f"{self.name}: {error}") from error
        where = self._where(item, number)
        if self._bad == "error":
            raise PromptError(f"{where}: {error}") from error
        return where, str(error)

    def _repeated(self, ids: array[int]) -> list[tuple[int, str, str]]:
        """(number, place, reason) of contrasts whose id was taken already; read again only where two hashes are equal."""
        suspects = repeated_hashes(ids)
        found: list[tuple[int, str, str]] = []
        places: dict[str, str] = {}
        for number, item in enumerate(self._items(), start=1) if suspects else ():
            if number in self._passed_over:
                continue
            try:
                contrast = self._contrast(item)
            except PromptError:
                continue
            if short_hash(contrast.id) not in suspects:
                continue
            if contrast.id in places:
                error = PromptError(f"the id {contrast.id!r} is taken already by {places[contrast.id]}")
                found.append((number, *self._refused(item, number, error)))
            else:
                places[contrast.id] = self._where(item, number)
        return found


def short_hash(text: str) -> int:
    """8 bytes that stand for a text: equal texts are equal, and others are looked at again before anything is said of them."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def repeated_hashes(hashes: array[int]) -> set[int]:
    """Those that occur more than once; of many, by sorting them, so that memory stays at 8 bytes each."""
    if len(hashes) <= HELD:
        return {value for value, count in Counter(hashes).items() if count > 1}
    import numpy as np

    values = np.sort(np.frombuffer(hashes, dtype=np.uint64))
    return set(values[1:][values[1:] == values[:-1]].tolist())


def _stamp(path: Path | None) -> tuple[int, int] | None:
    if path is None:
        return None
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _line(contrast: Contrast) -> bytes:
    text = json.dumps(contrast.to_json(), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass") + b"\n"


def content_hash(contrasts: Iterable[Contrast]) -> str:
    """SHA-256 over the contrasts in order, each as one line of JSON with sorted keys and no blanks."""
    digest = hashlib.sha256()
    for contrast in contrasts:
        digest.update(_line(contrast))
    return digest.hexdigest()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long for the file system: a prompt where its file was meant
        return False


def _chosen(name: str) -> tuple[str, tuple[str, ...]]:
    """A name without the configuration and split behind it, and these. A path that exists is taken as it is.

    >>> _chosen("owner/name:explicit:train"), _chosen("owner/name")
    (('owner/name', ('explicit', 'train')), ('owner/name', ()))
    """
    for count in range(3):
        base, *chosen = name.rsplit(":", count)
        if len(chosen) == count and all(chosen) and (_exists(Path(base)) or (count and ":" not in base and _may_be_hub(base))):
            return base, tuple(chosen)
    return name, ()


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
