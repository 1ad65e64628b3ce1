"""Winogender: sentences of an occupation with a male, a female and a neutral pronoun. Source: Rudinger et al. 2018, arXiv 1804.09301.

Read from `all_sentences.tsv`. The three sentences whose `sentid` is equal but for the pronoun are one contrast; all sentences of an
occupation share a template.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fairprune_framework.contrasts.published.arranging import Item, gathered, text_of
from fairprune_framework.errors import PromptError

COLUMNS = frozenset({"sentid", "sentence"})
_SENTENCE = re.compile(r"(?P<group>(?P<occupation>[^.]+)\..+)\.(?P<pronoun>male|female|neutral)(?:\.txt)?")


def rows(records: Iterable[Item]) -> Iterator[Item]:
    """One contrast for each three sentences."""
    return gathered(records, _part, _whole)


def _part(data: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    match = _SENTENCE.fullmatch(name := text_of(data, "sentid"))
    if match is None:
        raise PromptError(
            f"the 'sentid' of Winogender must name occupation, participant, answer and pronoun, such as technician.customer.1.male.txt. "
            f"Got {name!r} instead."
        )
    return match["group"], {"attribute": match["pronoun"], "text": text_of(data, "sentence")}


def _whole(group: str) -> Mapping[str, Any]:
    return {"id": f"winogender/{group}", "category": "gender", "template_id": group.partition(".")[0]}
