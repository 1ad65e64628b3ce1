"""What the items of an evaluation are drawn with: their template, or all templates that share a sentence with it.

Decided anew for the items of every interval: templates that only others connect, of another category or split, are apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.contrasts.schema import origin_of
from fairprune_framework.contrasts.sentences import connections, joined

Items = Sequence[Mapping[str, Any]]
"""With `category`, `template_id`, `neutral_of` (of controls) and `sentence`, which items of older runs lack."""


def item_of(contrast: AlignedContrast, sentences: Mapping[str, str]) -> dict[str, Any]:
    """What an item says of where it stands."""
    return {
        "category": contrast.category,
        "template_id": contrast.template_id,
        "neutral_of": contrast.neutral_of,
        "sentence": sentences.get(contrast.id),
    }


def together(items: Items) -> list[str | None]:
    """For each item the label of the templates that are drawn as one with its own; None where it is drawn alone.

    What connects them: a sentence, or the demographic template that controls of several sets stand in.
    """
    found = joined(
        [(item["category"], item["template_id"]) for item in items],
        [connections(item.get("sentence"), item.get("neutral_of")) for item in items],
    )
    return [None if first is None else _named(first) for first in found]


def draws(items: Items) -> list[str]:
    """For each item the label of what it is drawn with: of its template within its category, or of `together`."""
    return [label or f"{item['category']}/{item['template_id']}" for label, item in zip(together(items), items, strict=True)]


def across_roles(items: Items) -> list[str | None]:
    """For each of demographic contrasts and controls the label of the templates that sentences connect; None: those of the
    demographic template that it is of, or names, alone."""
    origins = [origin_of(item["category"], item["template_id"], item.get("neutral_of")) for item in items]
    found = joined(origins, [connections(item.get("sentence"), None) for item in items])
    return [None if first is None else _named(first) for first in found]


def _named(first: tuple[str, str]) -> str:
    return f"one sentence: {first[0]}/{first[1]}"
