"""discrim-eval: decisions about people of different age, gender and race. Source: Tamkin et al. 2023, arXiv 2312.03689.

All people of a decision question are one contrast, 135 as it is published; the question is the template. The texts are those of
`filled_template`, without the frame of a dialogue.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fairprune_framework.contrasts.published.arranging import Item, gathered, text_of, word_of
from fairprune_framework.errors import PromptError

_PERSON = ("age", "race", "gender")
COLUMNS = frozenset({"filled_template", "decision_question_id", *_PERSON})


def rows(records: Iterable[Item]) -> Iterator[Item]:
    """One contrast for each decision question."""
    return gathered(records, _part, _whole)


def _part(data: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    question = word_of(data, "decision_question_id")
    person = {field: word_of(data, field) for field in _PERSON}
    for field, value in {"decision_question_id": question, **person}.items():
        if value is None:
            raise PromptError(f"the field {field!r} of discrim-eval is empty")
    age = str(person["age"]).removesuffix(".0")
    return str(question), {"attribute": f"{age} {person['race']} {person['gender']}", "text": text_of(data, "filled_template")}


def _whole(question: str) -> Mapping[str, Any]:
    return {"id": f"discrim-eval/{question}", "category": "age-race-gender", "template_id": question}
