"""Templates and values as their files hold them, read into what `build.cross` fills.

A templates file holds `category, template_id, context, text`, and where wanted `control`, `split`, `right` and `neutral_of`; a values
file holds `category, attribute`, where wanted `split`, and any further column is a *form* of that value, for whatever must agree with it.
Both may be CSV, TSV, JSONL, JSON or YAML. In JSON and YAML a mapping of categories to lists saves the column `category`, and there a
value without forms may be written as a bare text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairprune_framework.contrasts import formats
from fairprune_framework.contrasts.formats import Row
from fairprune_framework.contrasts.records import truth, words
from fairprune_framework.errors import PromptError, did_you_mean

_TEMPLATE_FIELDS = ("category", "template_id", "context", "text", "control", "split", "right", "neutral_of")
UNSEEN = "heldout-words"
"""The split of values that no selecting text holds."""


@dataclass(frozen=True, kw_only=True)
class Template:
    """A text with placeholders, for all values of one category."""

    category: str
    template_id: str
    text: str
    context: str = ""
    control: bool = False
    split: str | None = None
    right: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Value -> the right next words. A template that has them is legitimate, and is filled with these values alone."""
    neutral_of: str | None = None
    """`<category>/<template_id>` of the demographic template whose text this is."""
    where: str = ""
    """File and line or item, for errors."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """One attribute value of a category, with the forms that agree with it (`{"a": "an", "their": "her"}`)."""

    category: str
    attribute: str
    forms: Mapping[str, str] = field(default_factory=dict)
    split: str | None = None
    """`heldout-words`: this value fills the held-out templates once more, in contrasts of their own."""
    where: str = ""


def templates_of(content: Any, where: str) -> list[Template]:
    """Read templates from rows, a list, or a mapping of categories to lists. One with `neutral_of` may lack a text, and an id.

    Raises:
        PromptError: a field that is missing, unknown or no text; `right` that is no mapping of values to words.
    """
    templates = []
    for row in _rows(content, where, bare="text"):
        for name in row.data:
            if name not in _TEMPLATE_FIELDS:
                hint = did_you_mean(str(name), _TEMPLATE_FIELDS)
                raise PromptError(f"{row.where}: a template has no field {name!r}, only {', '.join(_TEMPLATE_FIELDS)}.{hint}")
        neutral_of = _field(row, "neutral_of", "") or None
        templates.append(
            Template(
                category=_field(row, "category"),
                template_id=_field(row, "template_id", neutral_of),
                text=_field(row, "text", "" if neutral_of else None),
                context=_field(row, "context", ""),
                control=_control(row),
                split=_field(row, "split", "") or None,
                right=_right(row),
                neutral_of=neutral_of,
                where=row.where,
            )
        )
    if not templates:
        raise PromptError(f"{where} holds no templates")
    return templates


def values_of(content: Any, where: str) -> list[Value]:
    """Read values from rows, a list, or a mapping of categories to lists; an empty cell is an absent form.

    Raises:
        PromptError: a field that is missing or no text.
    """
    values = []
    for row in _rows(content, where, bare="attribute"):
        names = [str(name) for name in row.data if name not in ("category", "attribute", "split")]
        split = _field(row, "split", "") or None
        if split not in (None, UNSEEN):
            raise PromptError(f"{row.where}: The 'split' of a value must be {UNSEEN!r} or empty. Got {split!r} instead.")
        forms = {name: form for name in names if (form := _field(row, name, ""))}
        category, attribute = _field(row, "category"), _field(row, "attribute")
        values.append(Value(category=category, attribute=attribute, forms=forms, split=split, where=row.where))
    if not values:
        raise PromptError(f"{where} holds no values")
    return values


def content(path: Path) -> Any:
    if path.suffix.lower() in (".json", ".yaml", ".yml"):
        if not path.is_file():
            raise PromptError(f"no such file: {path}")
        return formats.document(path)
    if path.suffix.lower() in (".csv", ".tsv", ".jsonl"):
        return formats.rows(path)
    raise PromptError(f"{path}: templates and values are read from .csv, .tsv, .jsonl, .json, .yaml or .yml files")


def _rows(content: Any, where: str, bare: str) -> Iterator[Row]:
    """Rows of a list, of a mapping category -> list, or as they come. A bare text in a mapping stands for its field `bare`."""
    if isinstance(content, Mapping):
        for category, items in content.items():
            if not isinstance(items, list):
                raise PromptError(f"{where}: category {category!r} must hold a list")
            for number, item in enumerate(items, start=1):
                record = {bare: item} if isinstance(item, str) else item
                data = {"category": category, **record} if isinstance(record, Mapping) else record
                yield _row(data, f"{where}, {category} {number}", number)
    elif isinstance(content, list):
        for number, item in enumerate(content, start=1):
            yield _row(item, f"{where}, item {number}", number)
    elif isinstance(content, Iterator):
        for row in content:
            if row.problem is not None:
                raise PromptError(f"{row.where}: {row.problem}")
            yield row
    else:
        raise PromptError(f"{where} must hold a list, or a mapping of categories to lists. Got {content!r:.60} instead.")


def _row(data: Any, where: str, number: int) -> Row:
    if not isinstance(data, Mapping):
        raise PromptError(
            f"{where}: must be a mapping of fields. Got {data!r:.60} instead; a text that YAML reads otherwise is quoted."
        )
    return Row(where=where, number=number, data=data)


def _field(row: Row, name: str, default: str | None = None) -> str:
    value = row.data.get(name)
    if value is None or value == "":
        if default is not None:
            return default
        found = ", ".join(repr(str(column)) for column in row.data)
        raise PromptError(f"{row.where}: missing field {name!r}: found {found}.{did_you_mean(name, map(str, row.data))}")
    if not isinstance(value, str):
        raise PromptError(f"{row.where}: the field {name!r} must be a text. Got {value!r} instead; put it in quotes.")
    return value.strip() if name != "text" else value


def _control(row: Row) -> bool:
    try:
        return truth(row.data.get("control"), "control")
    except PromptError as error:
        raise PromptError(f"{row.where}: {error}") from error


def _right(row: Row) -> dict[str, tuple[str, ...]]:
    given = row.data.get("right")
    if given is None or given == "":
        return {}
    if not isinstance(given, Mapping) or not given:
        raise PromptError(
            f"{row.where}: the field 'right' must be a mapping of values to next words, which a table cannot hold: write the templates "
            f"as YAML or JSON. Got {given!r:.60} instead."
        )
    try:
        return {str(value): words(found, "right") for value, found in given.items()}
    except PromptError as error:
        raise PromptError(f"{row.where}: {error}") from error
