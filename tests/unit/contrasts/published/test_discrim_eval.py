"""discrim-eval in its published fields, on invented decisions."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from fairprune_framework.contrasts.readers import read
from fairprune_framework.errors import PromptError


def people(question: int) -> list[dict[str, Any]]:
    return [
        {
            "filled_template": f"Case {question}: a {age:.0f}-year-old {race} {gender} person asks for a key. Give it?",
            "decision_question_id": question,
            "age": age,
            "gender": gender,
            "race": race,
        }
        for age, gender, race in product((20.0, 90.0), ("male", "female"), ("Black", "white"))
    ]


def test_all_people_of_a_question_are_one_contrast() -> None:
    mixed = [row for pair in zip(people(4), people(9), strict=True) for row in pair]
    found = read(mixed).contrasts
    assert [(one.id, one.template_id, len(one.variants)) for one in found] == [
        ("discrim-eval/4", "4", 8),
        ("discrim-eval/9", "9", 8),
    ]
    assert (found[0].variants[1].attribute, found[0].variants[1].text) == (
        "20 white male",
        "Case 4: a 20-year-old white male person asks for a key. Give it?",
    )
    assert {one.category for one in found} == {"age-race-gender"}


def test_a_missing_age_is_named() -> None:
    rows = people(1)
    rows[2]["age"] = None
    with pytest.raises(PromptError, match="list, item 3: the field 'age' of discrim-eval is empty"):
        read(rows)
    assert len(read(rows, bad="skip").contrasts[0].variants) == 7
