"""BBQ: ambiguous questions about two groups, each answered with either group. Source: Parrish et al. 2022, arXiv 2110.08193.

A contrast is one ambiguous question: context, question and answer, once for each of the two groups. The answer that the stereotype
expects, the stereotyped group of a negative question and the other one of a non-negative question, is named `stereotype`, the other
`anti-stereotype`; where the metadata do not say which group is stereotyped, the variants bear the labels of their groups. The answer
"unknown" is no variant, and questions whose context says the answer are left out: there the group should matter. All questions of a
published template (`question_index`) share a template.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fairprune_framework.contrasts.formats import Row
from fairprune_framework.contrasts.published.arranging import Item, LeftOut, each, text_of, word_of
from fairprune_framework.errors import PromptError

ANSWERS = ("ans0", "ans1", "ans2")
COLUMNS = frozenset({"answer_info", "context_condition", "question_polarity", "context", "question", *ANSWERS})
POLARITIES = ("neg", "nonneg")


def rows(records: Iterable[Item]) -> Iterator[Item]:
    """One contrast for each ambiguous question."""
    return each(records, _made)


def _made(row: Row) -> Mapping[str, Any]:
    data = row.data
    if (condition := text_of(data, "context_condition")) != "ambig":
        if condition != "disambig":
            raise PromptError(f"the 'context_condition' of BBQ must be ambig or disambig. Got {condition!r} instead.")
        raise LeftOut("their context says the answer (context_condition: disambig)")
    polarity = text_of(data, "question_polarity")
    if polarity not in POLARITIES:
        raise PromptError(f"the 'question_polarity' of BBQ must be neg or nonneg. Got {polarity!r} instead.")
    groups = {answer: labels for answer in ANSWERS if "unknown" not in (labels := _labels(data["answer_info"], answer))}
    if len(groups) != 2:
        raise PromptError(f"a question of BBQ has two answers that name a group. Got {len(groups)} instead.")
    prompt = f"{text_of(data, 'context').rstrip()} {text_of(data, 'question').rstrip()}"
    names = _names(groups, _stereotyped(data), polarity)
    category = text_of(data, "category")
    return {
        "id": f"bbq/{category}-{word_of(data, 'example_id') or row.number}",
        "category": category,
        "template_id": word_of(data, "question_index"),
        "context": polarity,
        "variants": [{"attribute": name, "text": f"{prompt} {text_of(data, answer)}"} for answer, name in names.items()],
    }


def _names(groups: Mapping[str, tuple[str, ...]], stereotyped: frozenset[str], polarity: str) -> dict[str, str | None]:
    """Answer -> name of its variant, the stereotype first where it is known; None for labels that do not tell the answers apart."""
    for parts in (_whole, _joined):
        hit = [answer for answer, labels in groups.items() if stereotyped.intersection(parts(labels))]
        if len(hit) == 1:
            break
    else:
        labels = [found[-1] for found in groups.values()]
        return dict(zip(groups, labels if len(set(labels)) == 2 else [None, None], strict=True))
    target = hit[0]
    other = next(answer for answer in groups if answer != target)
    expected, against = (target, other) if polarity == "neg" else (other, target)
    return {expected: "stereotype", against: "anti-stereotype"}


def _labels(info: Any, answer: str) -> tuple[str, ...]:
    found = info.get(answer) if isinstance(info, Mapping) else None
    if not isinstance(found, list | tuple) or not found:
        raise PromptError(f"the 'answer_info' of BBQ must name the group of {answer!r}. Got {found!r} instead.")
    return tuple(str(label) for label in found)


def _whole(labels: Iterable[str]) -> set[str]:
    return {label.lower() for label in labels}


def _joined(labels: Iterable[str]) -> set[str]:
    """The parts of joined labels: `F-Black` is `f` and `black`."""
    return {part for label in labels for part in re.split(r"[-_]", label.lower())}


def _stereotyped(data: Mapping[str, Any]) -> frozenset[str]:
    metadata = data.get("additional_metadata")
    groups = metadata.get("stereotyped_groups") if isinstance(metadata, Mapping) else None
    if not (groups is None or isinstance(groups, list | tuple)):
        raise PromptError(f"the 'stereotyped_groups' of BBQ must be an array. Got {groups!r:.60} instead.")
    return frozenset(str(group).lower() for group in groups or ())
