"""Templates that stand in one sentence: their contrasts share its words, so they are no independent evidence."""

from __future__ import annotations

from collections.abc import Iterable

from fairprune_framework.contrasts.alignment import attribute_spans
from fairprune_framework.contrasts.schema import Contrast

WORDS = 3
"""Words that texts must share around what differs, at least, to be one sentence."""

Template = tuple[str, str]
"""(category, template id)."""


def around(contrast: Contrast) -> tuple[str, str] | None:
    """What stands before and behind the difference of a contrast; None where that is too little to be called a sentence."""
    texts = [variant.text for variant in contrast.variants]
    start, end = attribute_spans(texts)[0]
    found = texts[0][:start], texts[0][end:]
    return found if len(" ".join(found).split()) >= WORDS else None


def templates_by_sentence(contrasts: Iterable[Contrast]) -> dict[tuple[bool, str, str], set[Template]]:
    """(legitimate, before, behind) -> the templates in that sentence, where these are several.

    A control that is crossed with a demographic template counts as that one.
    """
    found: dict[tuple[bool, str, str], set[Template]] = {}
    for contrast in contrasts:
        if (sentence := around(contrast)) is not None:
            found.setdefault((contrast.legitimate, *sentence), set()).add(contrast.origin)
    return {sentence: templates for sentence, templates in found.items() if len(templates) > 1}


def drawn_together(contrasts: Iterable[Contrast]) -> dict[Template, str]:
    """Template -> a label that it has in common with all templates that a sentence connects it to, whatever their categories.

    A template that shares no sentence is not among them. The order of the contrasts does not matter.
    """
    group_of: dict[Template, set[Template]] = {}
    for templates in templates_by_sentence(contrasts).values():
        group = set(templates).union(*(group_of.get(each, ()) for each in templates))
        group_of.update(dict.fromkeys(group, group))
    return {template: "one sentence: " + "/".join(min(group)) for template, group in group_of.items()}
