"""CrowS-Pairs: two sentences a row, the more and the less stereotyping one. Source: Nangia et al. 2020, arXiv 2010.00133.

The variants are named `more` and `less`; `bias_type` is the category, and each row is its own template.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fairprune_framework.contrasts.formats import Row
from fairprune_framework.contrasts.published.arranging import Item, each, word_of

COLUMNS = frozenset({"sent_more", "sent_less"})


def rows(records: Iterable[Item]) -> Iterator[Item]:
    """One contrast for each record."""
    return each(records, _made)


def _made(row: Row) -> Mapping[str, Any]:
    index = word_of(row.data, "") or row.number  # the column of the index has no name
    return {
        "id": word_of(row.data, "id") or f"crows-pairs/{index}",
        "category": word_of(row.data, "category") or word_of(row.data, "bias_type"),
        "variants": [{"attribute": name, "text": row.data[f"sent_{name}"]} for name in ("more", "less")],
    }
