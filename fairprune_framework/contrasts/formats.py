"""Turns files into rows: JSONL, JSON, CSV, TSV, Parquet and YAML. `hub` does it for datasets.

A row knows its place, so that whoever reads it can say what is wrong *and where*. Nothing here knows what a contrast is.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairprune_framework.errors import PromptError, did_you_mean, shortened, shown
from fairprune_framework.utilities.files import parse_json

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""File types that hold rows. `.yaml` and `.yml` are read by `document` alone: they serve templates and values."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One record of a source."""

    where: str
    """Place, as an error names it: `prompts.jsonl, line 3`."""
    number: int
    """Counted from 1 over the records of the source; blank lines do not count."""
    data: Mapping[str, Any]
    problem: str | None = None
    """Why the record could not be read at all; `data` is empty then."""
    left_out: str | None = None
    """Why the record is no contrast by the design of its data set: such rows are counted, and are no errors."""
    table: bool = False
    """True: every record of the source has the same columns, so a missing one is the source's fault."""


def rows(path: Path) -> Iterator[Row]:
    """Stream the records of a file; of JSONL, CSV and Parquet never more than one piece is in memory.

    Raises:
        PromptError: no such file, an unknown file type, or a file that breaks off the reading (a broken table, JSON that
            is no array, text that is not UTF-8). A JSONL line that cannot be read is given as a row with its `problem`.
    """
    if not path.exists():
        raise PromptError(f"no such file: {path}")
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        return _jsonl(path)
    if suffix == ".json":
        return items(path, document(path))
    if suffix in (".csv", ".tsv"):
        return _table(path, "," if suffix == ".csv" else "\t")
    if suffix == ".parquet":
        return _parquet(path)
    raise PromptError(f"{path}: unknown file type {suffix!r}; known are {', '.join(SUFFIXES)}.{did_you_mean(suffix, SUFFIXES)}")


def document(path: Path) -> Any:
    """Parse a `.json`, `.yaml` or `.yml` file as a whole. YAML tags that run code and repeated keys are refused.

    Raises:
        PromptError: unreadable, not UTF-8, or malformed, with the line.
    """
    text = "".join(text for _, text in text_lines(path))
    if path.suffix.lower() == ".json":
        try:
            return parse_json(text, "keep")
        except json.JSONDecodeError as error:
            raise PromptError(f"{path}, line {error.lineno}: not JSON: {error.msg} at column {error.colno}") from error
        except (ValueError, RecursionError) as error:
            raise PromptError(f"{path}: not JSON: {error}") from error
    return _yaml(text, str(path))


def _yaml(text: str, where: str) -> Any:
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        """Refuses a key that occurs twice, where YAML would drop the first in silence."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [
                key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge"
            ]
            for index, key in enumerate(keys):
                if key in keys[:index]:
                    raise yaml.MarkedYAMLError(problem=f"the key {key!r} occurs twice", problem_mark=node.start_mark)
            return dict(super().construct_mapping(node, deep))

    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or str(error).replace("\n", " ")
        raise PromptError(f"{where}{line}: not YAML: {reason}") from error
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{where}: not YAML: {error}") from error


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Decode a text file line by line; a byte order mark at its head is dropped."""
    for number, raw in _raw_lines(path):
        try:
            yield number, raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise PromptError(f"{path}, line {number}: {_not_utf8(error)}") from error


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                yield number, raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
    except OSError as error:
        raise PromptError(f"cannot read {path}: {error.strerror or error}") from error


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"not UTF-8 text (byte 0x{error.object[error.start]:02x} at column {error.start + 1}); save the file as UTF-8"


def _jsonl(path: Path) -> Iterator[Row]:
    count = 0
    for line, raw in _raw_lines(path):
        if not raw.strip():
            continue
        count += 1
        where = f"{path}, line {line}"
        try:
            yield _record(
                parse_json(raw.decode("utf-8").rstrip(), "keep"), where, count
            )  # a column of this line, not of the next
        except json.JSONDecodeError as error:
            yield Row(where=where, number=count, data={}, problem=f"not JSON: {error.msg} at column {error.colno}")
        except UnicodeDecodeError as error:
            yield Row(where=where, number=count, data={}, problem=_not_utf8(error))
        except (ValueError, RecursionError) as error:
            yield Row(where=where, number=count, data={}, problem=f"not JSON: {error}")


def items(path: Path, content: Any) -> Iterator[Row]:
    """The records of a parsed `.json` file.

    Raises:
        PromptError: it holds no array.
    """
    if not isinstance(content, list):
        raise PromptError(
            f"{path} must hold a JSON array of objects. Got {_kind(content)} instead; one object a line is '.jsonl'."
        )
    for number, item in enumerate(content, start=1):
        yield _record(item, f"{path}, item {number}", number)


def _record(item: Any, where: str, number: int) -> Row:
    if isinstance(item, dict):
        return Row(where=where, number=number, data=item)
    return Row(where=where, number=number, data={}, problem=f"must be a JSON object. Got {_kind(item)} instead.")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a text", bool: "a truth value", int: "a number", float: "a number"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)


def _table(path: Path, delimiter: str) -> Iterator[Row]:
    reader = csv.reader((text for _, text in text_lines(path)), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if not any(header):
            raise PromptError(f"{path} is empty: its first line must name the columns")
        for name in header:
            if name and header.count(name) > 1:
                raise PromptError(f"{path}, line 1: the column {name!r} occurs {header.count(name)} times")
        count, start = 0, reader.line_num + 1
        for cells in reader:
            where, start = f"{path}, line {start}", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            count += 1
            if len(cells) != len(header):
                problem = f"has {len(cells)} cell(s) where the header names {len(header)} column(s)"
                yield Row(where=where, number=count, data={}, problem=problem)
            else:
                yield Row(where=where, number=count, data=dict(zip(header, cells, strict=True)), table=True)
    except csv.Error as error:
        raise PromptError(f"{path}, line {reader.line_num}: a broken table: {error}") from error


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    count = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) < len(names):
                raise PromptError(
                    f"{path}: the column {shown(next(name for name in names if names.count(name) > 1))} occurs twice"
                )
            for batch in file.iter_batches():
                for data in batch.to_pylist():
                    count += 1
                    yield Row(where=f"{path}, row {count}", number=count, data=data, table=True)
    except UnicodeDecodeError as error:
        raise PromptError(f"{path}, row {count + 1} or one after it: a text that is not UTF-8") from error
    except (pyarrow.ArrowException, OSError) as error:
        raise PromptError(f"{path}: not a Parquet file: {first_line(error)}") from error
    except (ValueError, OverflowError, KeyError) as error:  # a date or a time that Python cannot hold, an unknown time zone
        raise PromptError(f"{path}, row {count + 1} or one after it: a value beyond range: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """The first line of a foreign error, without its trailing punctuation; at most 200 characters."""
    return shortened((str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(" .:"), 197)
