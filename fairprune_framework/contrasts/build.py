"""Crosses templates with attribute values into contrasts: `builtin:en` and `fairprune prompts build` alike, in any language.

A templates file holds `category, template_id, context, text`, and where wanted `control` and `split`; a values file holds
`category, attribute`, and any further column is a *form* of that value, for whatever must agree with it:

    templates.csv   category,template_id,context,text
                    gender,hiring-1,hiring,"{a} {attribute} sent in {their} papers, and the panel thought that"
    values.csv      category,attribute,a,their
                    gender,man,a,his
                    gender,woman,a,her

Both may be CSV, TSV, JSONL, JSON or YAML. In JSON and YAML a mapping of categories to lists saves the column `category`, and
there a value without forms may be written as a bare text. A placeholder is `{attribute}` or the name of a form; `{Their}` is
the form `their` with its first letter raised, unless the values have a form `Their`. Where a placeholder opens the text, the
first letter is raised too. Literal braces are doubled: `{{`. Values of categories without templates are not used.
"""

from __future__ import annotations

import json
import os
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairprune_framework.contrasts import formats
from fairprune_framework.contrasts.formats import Row
from fairprune_framework.contrasts.records import truth
from fairprune_framework.contrasts.schema import Contrast, Variant
from fairprune_framework.errors import PromptError, UserError, did_you_mean

_NAME = re.compile(r"[^\W\d][\w-]*")
_TEMPLATE_FIELDS = ("category", "template_id", "context", "text", "control", "split")


@dataclass(frozen=True, kw_only=True)
class Template:
    """A text with placeholders, for all values of one category."""

    category: str
    template_id: str
    text: str
    context: str = ""
    control: bool = False
    split: str | None = None
    where: str = ""
    """File and line or item, for errors."""


@dataclass(frozen=True, kw_only=True)
class Value:
    """One attribute value of a category, with the forms that agree with it (`{"a": "an", "their": "her"}`)."""

    category: str
    attribute: str
    forms: Mapping[str, str] = field(default_factory=dict)
    where: str = ""


def cross(templates: Sequence[Template], values: Sequence[Value], *, prefix: str = "") -> list[Contrast]:
    """Fill each template with all values of its category: one contrast per template, in the order of the templates.

    Args:
        templates: at least one.
        values: at least two for each category of the templates.
        prefix: opens every id, `<prefix><category>/<template_id>`.

    Raises:
        PromptError: a category with fewer than two values, a template or value that occurs twice, a placeholder that is
            malformed, unknown, or missing for one value, a text without placeholders or whose variants come out equal.
    """
    if not templates:
        raise PromptError("no templates")
    by_category: dict[str, list[Value]] = {}
    for value in values:
        same = by_category.setdefault(value.category, [])
        if any(value.attribute == other.attribute for other in same):
            raise PromptError(f"{_at(value.where)}value {value.attribute!r} of category {value.category!r} occurs twice")
        same.append(value)
    identities: dict[tuple[str, str], Template] = {}
    texts: dict[tuple[str, str], Template] = {}
    contrasts = []
    for template in templates:
        place = f"{_at(template.where)}template {template.template_id!r} of category {template.category!r}"
        if (other := identities.setdefault((template.category, template.template_id), template)) is not template:
            raise PromptError(f"{place} occurs twice{_first(other)}")
        if (other := texts.setdefault((template.category, template.text), template)) is not template:
            raise PromptError(f"{place} has the same text as template {other.template_id!r}{_first(other)}")
        filling = by_category.get(template.category, [])
        if len(filling) < 2:
            hint = did_you_mean(template.category, by_category.keys() - {template.category})
            raise PromptError(
                f"{place}: a category needs at least two values. Got {len(filling)} instead; "
                f"there are values for: {', '.join(by_category) or 'no category'}.{hint}"
            )
        variants = tuple(Variant(attribute=value.attribute, text=_fill(template, value, filling, place)) for value in filling)
        try:
            contrast = Contrast(
                id=f"{prefix}{template.category}/{template.template_id}",
                category=template.category,
                template_id=template.template_id,
                variants=variants,
                context=template.context,
                control=template.control,
                split=template.split,
            )
        except PromptError as error:
            raise PromptError(f"{place}: {error}") from error
        contrasts.append(contrast)
    return contrasts


def build_files(templates_path: str | Path, values_path: str | Path) -> list[Contrast]:
    """Cross a file of templates with a file of values; the module's text says how they are written.

    Raises:
        PromptError: as `cross`, and for files that cannot be read or lack a field, with file and line.
    """
    templates = templates_of(_content(Path(templates_path)), str(templates_path))
    return cross(templates, values_of(_content(Path(values_path)), str(values_path)))


def write_jsonl(contrasts: Iterable[Contrast], path: str | Path) -> None:
    """Write one contrast a line, as `read` takes it. The file appears whole or not at all.

    Raises:
        UserError: the folder does not exist or cannot be written to.
    """
    path = Path(path)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("w", encoding="utf-8", newline="\n") as file:
            for contrast in contrasts:
                file.write(json.dumps(contrast.to_json(), ensure_ascii=False) + "\n")
        os.replace(scratch, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        scratch.unlink(missing_ok=True)


def templates_of(content: Any, where: str) -> list[Template]:
    """Read templates from rows, a list, or a mapping of categories to lists.

    Raises:
        PromptError: a field that is missing, unknown or no text.
    """
    templates = []
    for row in _rows(content, where, bare="text"):
        for name in row.data:
            if name not in _TEMPLATE_FIELDS:
                hint = did_you_mean(str(name), _TEMPLATE_FIELDS)
                raise PromptError(f"{row.where}: a template has no field {name!r}, only {', '.join(_TEMPLATE_FIELDS)}.{hint}")
        templates.append(
            Template(
                category=_field(row, "category"),
                template_id=_field(row, "template_id"),
                text=_field(row, "text"),
                context=_field(row, "context", ""),
                control=_truth(row),
                split=_field(row, "split", "") or None,
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
        names = [str(name) for name in row.data if name not in ("category", "attribute")]
        forms = {name: form for name in names if (form := _field(row, name, ""))}
        category, attribute = _field(row, "category"), _field(row, "attribute")
        values.append(Value(category=category, attribute=attribute, forms=forms, where=row.where))
    if not values:
        raise PromptError(f"{where} holds no values")
    return values


def _content(path: Path) -> Any:
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


def _truth(row: Row) -> bool:
    try:
        return truth(row.data.get("control"))
    except PromptError as error:
        raise PromptError(f"{row.where}: {error}") from error


def _fill(template: Template, value: Value, peers: Sequence[Value], place: str) -> str:
    """One text: placeholders replaced, first letter raised where a placeholder opens it."""
    pieces: list[str] = []
    opens = False
    count = 0
    for literal, name, conversion in _parts(template.text, place):
        pieces.append(literal)
        if name is None:
            continue
        if conversion or not _NAME.fullmatch(name):
            raise PromptError(f"{place}: malformed placeholder {{{name}{conversion}}}; a placeholder is a name in braces")
        opens = opens or (count == 0 and not literal)
        count += 1
        pieces.append(_form(name, value, peers, place))
    if not count:
        raise PromptError(f"{place} has no placeholder: its text must hold {{attribute}}, or a form of the values")
    text = "".join(pieces)
    return text[:1].upper() + text[1:] if opens else text


def _parts(text: str, place: str) -> Iterator[tuple[str, str | None, str]]:
    try:
        for literal, name, spec, conversion in string.Formatter().parse(text):
            yield literal, name, (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
    except ValueError as error:
        raise PromptError(f"{place}: {error}; a literal brace is doubled") from error


def _form(name: str, value: Value, peers: Sequence[Value], place: str) -> str:
    forms = {"attribute": value.attribute, **value.forms}
    if name in forms:
        return forms[name]
    known = {"attribute": None, **{form: None for peer in peers for form in peer.forms}}
    lower = name[:1].lower() + name[1:]
    if name not in known and lower in forms:
        return forms[lower][:1].upper() + forms[lower][1:]
    if name in known or lower in known:
        raise PromptError(
            f"{place} uses {{{name}}}, value {value.attribute!r} of category {value.category!r} has no form "
            f"{name if name in known else lower!r}{f' ({value.where})' if value.where else ''}"
        )
    raise PromptError(
        f"{place} uses {{{name}}}, which no value of category {value.category!r} has; there are: "
        f"{', '.join(known)}.{did_you_mean(name, known)}"
    )


def _at(where: str) -> str:
    return f"{where}: " if where else ""


def _first(template: Template) -> str:
    return f"; first in {template.where}" if template.where else ""
