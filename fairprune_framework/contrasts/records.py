"""Turns one row into one contrast: our own schema, and rows of prompts side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fairprune_framework.contrasts.alignment import attribute_spans
from fairprune_framework.contrasts.formats import Row
from fairprune_framework.contrasts.schema import Contrast, Variant
from fairprune_framework.errors import PromptError, UserError, did_you_mean, shown

_FIELDS = (
    "id",
    "category",
    "template_id",
    "context",
    "control",
    "legitimate",
    "neutral_of",
    "split",
    "variants",
    "prompt_1",
    "prompt_2",
)
_NUMBERED = re.compile(r"(?:prompt|attribute|right)_[1-9][0-9]*")

LONGEST_FIELD = 20
"""Characters in the name of a numbered field: more digits than there can be variants are a fault of the file."""


class MissingColumn(PromptError):
    """A column that a source as a whole would need. Its text names the columns found."""


def check_columns(columns: Mapping[str, str]) -> None:
    """Refuse a mapping whose left side is no field of ours.

    Raises:
        UserError: an unknown field, or one column for two fields.
    """
    for field in columns:
        if field not in _FIELDS and not _NUMBERED.fullmatch(field):
            known = ", ".join(_FIELDS) + ", prompt_3 ..., attribute_1 ..., right_1 ..."
            raise UserError(
                f"unknown field {field!r} in the column mapping (our field -> their column); fields are {known}."
                + did_you_mean(field, (*_FIELDS, "attribute_1", "attribute_2", "right_1", "right_2"))
            )
    taken = list(columns.values())
    for column in taken:
        if taken.count(column) > 1:
            raise UserError(f"the column mapping names the column {column!r} {taken.count(column)} times")


def to_contrast(row: Row, columns: Mapping[str, str]) -> Contrast:
    """Read one row.

    The layout is told by the fields: `variants` is ours; `prompt_1`, `prompt_2`, ... with or without `attribute_1`, ... are variants side
    by side (an empty cell at the end is an absent variant). A missing category is `all`; a missing id is `row-<number>`; a row without a
    template id is its own template. Right next words stand in `right` of a variant or in `right_1`, `right_2`, ... (several in one cell
    with `|` between them); a row that has any is legitimate.

    Args:
        row: the record and its place.
        columns: our field -> their column.

    Raises:
        MissingColumn: no layout fits, or a mapped column is absent.
        PromptError: the row is no contrast. The text does not say where: the caller does.
    """
    if row.problem is not None:
        raise PromptError(row.problem)
    data = dict(row.data)
    for field, column in columns.items():
        if column not in row.data:
            hint = did_you_mean(column, map(str, row.data))
            raise MissingColumn(f"missing column {column!r} (for {field!r}): found {_listed(row.data)}.{hint}")
        data[field] = row.data[column]
    identity = _word(data, "id")
    category = _word(data, "category")
    if "variants" in data:
        variants = _from_variants(data["variants"])
    elif "prompt_1" in data:
        variants = _from_prompts(data)
    else:
        raise MissingColumn(
            f"missing column 'prompt_1': found {_listed(row.data)}.{did_you_mean('prompt_1', map(str, row.data))} "
            "Rows need 'prompt_1' and 'prompt_2', or 'variants'; other names are given by a column mapping."
        )
    identity = identity or f"row-{row.number}"
    return Contrast(
        id=identity,
        category=category or "all",
        template_id=_word(data, "template_id") or identity,
        variants=variants,
        context=_word(data, "context") or "",
        control=truth(data.get("control"), "control"),
        split=_word(data, "split"),
        legitimate=truth(data.get("legitimate"), "legitimate") or any(variant.right for variant in variants),
        neutral_of=_word(data, "neutral_of"),
    )


def truth(value: Any, field: str) -> bool:
    """Read a field that is true or false, in JSON's, YAML's or a table's writing; empty is false.

    >>> truth("True", "control"), truth("0", "control"), truth(None, "control")
    (True, False, False)

    Raises:
        PromptError: anything else.
    """
    text = "" if value is None else _printed(value, field).strip().lower()
    if text in ("true", "1", "yes"):
        return True
    if text in ("", "false", "0", "no"):
        return False
    raise PromptError(f"the field {field!r} must be true or false. Got {shown(value)} instead.")


def words(value: Any, field: str) -> tuple[str, ...]:
    """Right next words: a list of texts, or one text with `|` between them; empty is none.

    >>> words("sofa | couch", "right"), words(["mosque"], "right"), words(None, "right")
    (('sofa', 'couch'), ('mosque',), ())

    Raises:
        PromptError: anything else, an empty word, or one that occurs twice.
    """
    if _empty(value):
        return ()
    parts = value.split("|") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) and part.strip() for part in parts):
        raise PromptError(f"the field {field!r} must be a list of words. Got {shown(value)} instead.")
    found = tuple(_text(part, field).strip() for part in parts)
    for word in found:
        if found.count(word) > 1:
            raise PromptError(f"the field {field!r} holds {word!r} {found.count(word)} times")
    return found


def differing_texts(texts: Sequence[str]) -> list[str]:
    """The attribute span of each text, as the alignment defines it.

    >>> differing_texts(["A woman came in.", "A man came in."])
    ['woman', 'man']
    """
    return [text[start:end] for text, (start, end) in zip(texts, attribute_spans(texts), strict=True)]


def _names(texts: Sequence[str]) -> list[str]:
    """Attribute names for variants that came without: the differing texts, or numbers where these do not tell them apart."""
    names = [part.strip() or "(none)" for part in differing_texts(texts)]
    return names if len(set(names)) == len(names) else [str(number) for number in range(1, len(names) + 1)]


def _from_variants(value: Any) -> tuple[Variant, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, Mapping) and "text" in item for item in value):
        raise PromptError("the field 'variants' must be an array of objects with 'attribute' and 'text'")
    texts = [_text(item["text"], "text") for item in value]
    given = [_word(item, "attribute") for item in value]
    return _variants(texts, given, [words(item.get("right"), "right") for item in value])


def _from_prompts(data: Mapping[str, Any]) -> tuple[Variant, ...]:
    if (
        beyond := next((field for field in data if len(field) > LONGEST_FIELD and _NUMBERED.fullmatch(field)), None)
    ) is not None:
        raise PromptError(f"the field {shown(beyond)} has a number that no variant has")
    numbers = sorted(int(field[7:]) for field in data if field.startswith("prompt_") and _NUMBERED.fullmatch(field))
    filled = [number for number in numbers if not _empty(data[f"prompt_{number}"])]
    if filled != list(range(1, len(filled) + 1)):
        missing = next(number for number in range(1, filled[-1]) if number not in filled)
        raise PromptError(f"the field 'prompt_{missing}' is empty or missing, but 'prompt_{filled[-1]}' is there")
    texts = [_text(data[f"prompt_{number}"], f"prompt_{number}") for number in filled]
    given = [_word(data, f"attribute_{number}") for number in filled]
    return _variants(texts, given, [words(data.get(f"right_{number}"), f"right_{number}") for number in filled])


def _variants(texts: Sequence[str], given: Sequence[str | None], right: Sequence[tuple[str, ...]]) -> tuple[Variant, ...]:
    if all(name is None for name in given) and texts:
        given = _names(texts)
    variants = []
    for number, (name, text, wanted) in enumerate(zip(given, texts, right, strict=True), start=1):
        if name is None:
            raise PromptError(f"variant {number} has no attribute, but others have")
        variants.append(Variant(attribute=name, text=text, right=wanted))
    return tuple(variants)


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise PromptError(f"the field {field!r} must be a text. Got {shown(value)} instead.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(f"the field {field!r} holds half of a surrogate pair at character {error.start + 1}") from error
    return value


def _word(data: Mapping[str, Any], field: str) -> str | None:
    """A short field as text without outer blanks; None where it is absent or empty."""
    value = data.get(field)
    if _empty(value):
        return None
    if isinstance(value, list | tuple | Mapping | bytes):
        raise PromptError(f"the field {field!r} must be a text. Got {shown(value)} instead.")
    return _text(_printed(value, field), field).strip()


def _printed(value: Any, field: str) -> str:
    try:
        return str(value)
    except ValueError as error:  # a number with more digits than Python prints
        raise PromptError(f"the field {field!r} holds {shown(value)}") from error


def _listed(data: Mapping[str, Any]) -> str:
    return ", ".join(shown(str(column)) for column in data) or "no columns"
