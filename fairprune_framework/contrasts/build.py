"""Crosses templates with attribute values into contrasts: `builtin:en` and `fairprune prompts build` alike, in any language.

    templates.csv   category,template_id,context,text
                    gender,hiring-1,hiring,"{a} {attribute} sent in {their} papers, and the panel thought that"
    values.csv      category,attribute,a,their
                    gender,man,a,his
                    gender,woman,a,her

A placeholder is `{attribute}` or the name of a form; `{Their}` is the form `their` with its first letter raised, unless the values
have a form `Their`. Where a placeholder opens the text, the first letter is raised too. Literal braces are doubled: `{{`. Values of
categories without templates are not used.

- A template with `right` (value -> next words) is a legitimate difference, filled with these values alone.
- A template with `neutral_of` is a control: it fills the text of that demographic template, unless it has one of its own.
- Values of the split `heldout-words` fill the held-out templates of their category once more, in contrasts of their own, whose ids
  end in `/words`; and the templates of the split `heldout-words`.
"""

from __future__ import annotations

import json
import os
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from fairprune_framework.contrasts.schema import Contrast, Variant
from fairprune_framework.contrasts.templates import UNSEEN, Template, Value, content, templates_of, values_of
from fairprune_framework.errors import PromptError, UserError, did_you_mean

_NAME = re.compile(r"[^\W\d][\w-]*")


def cross(templates: Sequence[Template], values: Sequence[Value], *, prefix: str = "") -> list[Contrast]:
    """Fill each template with the values of its category: one contrast per template, in the order of the templates, then the held-out
    templates filled with the values of `heldout-words`.

    Args:
        templates: at least one.
        values: at least two for each category of the templates.
        prefix: opens every id, `<prefix><category>/<template_id>`.

    Raises:
        PromptError: a category with fewer than two values, a template or value that occurs twice, a placeholder that is
            malformed, unknown, or missing for one value, a text without placeholders or whose variants come out equal, `right` of
            an unknown value, `neutral_of` a template that is not there.
    """
    if not templates:
        raise PromptError("no templates")
    by_category: dict[str, list[Value]] = {}
    for value in values:
        same = by_category.setdefault(value.category, [])
        if any(value.attribute == other.attribute for other in same):
            raise PromptError(f"{_at(value.where)}value {value.attribute!r} of category {value.category!r} occurs twice")
        same.append(value)
    originals = {f"{one.category}/{one.template_id}": one for one in templates if one.neutral_of is None and not one.control}
    identities: dict[tuple[str, str], Template] = {}
    texts: dict[tuple[str, str], Template] = {}
    contrasts, again = [], []
    for given in templates:
        template = _with_text(given, originals)
        place = _place(template)
        if (other := identities.setdefault((template.category, template.template_id), given)) is not given:
            raise PromptError(f"{place} occurs twice{_first(other)}")
        if (other := texts.setdefault((template.category, template.text), given)) is not given:
            raise PromptError(f"{place} has the same text as template {other.template_id!r}{_first(other)}")
        known = by_category.get(template.category, [])
        unseen = [value for value in known if value.split == UNSEEN]
        if template.right:
            filling = [_value_of(template, name, known) for name in template.right]
        else:
            filling = unseen if template.split == UNSEEN else [value for value in known if value.split != UNSEEN]
        if len(filling) < 2:
            hint = did_you_mean(template.category, by_category.keys() - {template.category})
            raise PromptError(
                f"{place}: a category needs at least two values. Got {len(filling)} instead; "
                f"there are values for: {', '.join(by_category) or 'no category'}.{hint}"
            )
        contrasts.append(_filled(template, filling, f"{prefix}{template.category}/{template.template_id}"))
        if template.split == "heldout" and unseen and not template.right:
            identity = f"{prefix}{template.category}/{template.template_id}/words"
            again.append(_filled(replace(template, split=UNSEEN), unseen, identity))
    return contrasts + again


def _with_text(template: Template, originals: Mapping[str, Template]) -> Template:
    """A crossed control takes text, context and split of its demographic template where it has none."""
    if template.neutral_of is None or template.text:
        return template
    found = originals.get(template.neutral_of)
    if found is None:
        hint = did_you_mean(template.neutral_of, originals)
        raise PromptError(
            f"{_place(template)} is neutral of {template.neutral_of!r}, which is no demographic template here.{hint}"
        )
    return replace(template, text=found.text, context=template.context or found.context, split=template.split or found.split)


def _value_of(template: Template, name: str, known: Sequence[Value]) -> Value:
    """A value that `right` names: it need be listed only where the category has values."""
    for value in known:
        if value.attribute == name:
            return value
    if known:
        names = [value.attribute for value in known]
        raise PromptError(
            f"{_place(template)}: right words for {name!r}, which is no value of the category: {', '.join(names)}."
            f"{did_you_mean(name, names)}"
        )
    return Value(category=template.category, attribute=name, where=template.where)


def _filled(template: Template, filling: Sequence[Value], identity: str) -> Contrast:
    place = _place(template)
    variants = tuple(
        Variant(
            attribute=value.attribute,
            text=_fill(template, value, filling, place),
            right=template.right.get(value.attribute, ()),
        )
        for value in filling
    )
    try:
        return Contrast(
            id=identity,
            category=template.category,
            template_id=template.template_id,
            variants=variants,
            context=template.context,
            control=template.control or template.neutral_of is not None,
            split=template.split,
            legitimate=bool(template.right),
            neutral_of=template.neutral_of,
        )
    except PromptError as error:
        raise PromptError(f"{place}: {error}") from error


def build_files(templates_path: str | Path, values_path: str | Path) -> list[Contrast]:
    """Cross a file of templates with a file of values; the module's text says how they are written.

    Raises:
        PromptError: as `cross`, and for files that cannot be read or lack a field, with file and line.
    """
    templates = templates_of(content(Path(templates_path)), str(templates_path))
    return cross(templates, values_of(content(Path(values_path)), str(values_path)))


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


def _place(template: Template) -> str:
    return f"{_at(template.where)}template {template.template_id!r} of category {template.category!r}"


def _at(where: str) -> str:
    return f"{where}: " if where else ""


def _first(template: Template) -> str:
    return f"; first in {template.where}" if template.where else ""
