"""Records as published into rows of variants: one record a contrast, or several."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from fairprune_framework.contrasts.formats import Row
from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.errors import PromptError


class LeftOut(Exception):
    """A record that is no contrast by the design of its data set; its text says why."""


Item: TypeAlias = Row | Contrast
"""What a source gives: a record, or (in memory) a contrast that is one already."""


def each(rows: Iterable[Item], made: Callable[[Row], Mapping[str, Any]]) -> Iterator[Item]:
    """One row for each record: what `made` says of it, over its own columns. A contrast, and a row with a problem, is passed on.

    Args:
        made: raises `PromptError` for a record that is malformed, `LeftOut` for one that is no contrast.
    """
    for row in rows:
        if isinstance(row, Contrast) or row.problem is not None:
            yield row
            continue
        try:
            yield replace(row, data={**row.data, **made(row)})
        except LeftOut as reason:
            yield replace(row, data={}, left_out=str(reason))
        except PromptError as error:
            yield replace(row, data={}, problem=str(error))


def gathered(
    rows: Iterable[Item],
    part: Callable[[Mapping[str, Any]], tuple[str, Mapping[str, Any]]],
    whole: Callable[[str], Mapping[str, Any]],
) -> Iterator[Item]:
    """One row for each group of records, in the order of their first ones; all records are held.

    Args:
        part: a record -> its group and its variant; raises `PromptError` for one that is malformed.
        whole: a group -> the other fields of its contrast.
    """
    groups: dict[str, tuple[Row, list[Mapping[str, Any]]]] = {}
    for row in rows:
        if isinstance(row, Contrast) or row.problem is not None:
            yield row
            continue
        try:
            group, variant = part(row.data)
        except PromptError as error:
            yield replace(row, data={}, problem=str(error))
            continue
        groups.setdefault(group, (row, []))[1].append(variant)
    for number, (group, (first, variants)) in enumerate(groups.items(), start=1):
        yield replace(first, number=number, data={**whole(group), "variants": variants})


def text_of(data: Mapping[str, Any], field: str) -> str:
    """A field that must be a text.

    Raises:
        PromptError: it is missing, empty or something else.
    """
    value = data.get(field)
    if not isinstance(value, str) or not value.strip():
        raise PromptError(f"the field {field!r} must be a text. Got {value!r:.60} instead.")
    return value


def word_of(data: Mapping[str, Any], field: str) -> str | None:
    """A field, a text or a number, as text without outer blanks; None where it is absent or empty.

    Raises:
        PromptError: it is an array or an object.
    """
    value = data.get(field)
    if isinstance(value, list | tuple | Mapping):
        raise PromptError(f"the field {field!r} must be a text or a number. Got {value!r:.60} instead.")
    return None if value is None else str(value).strip() or None
