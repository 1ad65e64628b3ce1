"""BBQ in its published columns, on invented questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.contrasts.readers import read
from fairprune_framework.contrasts.sets import ContrastSet
from fairprune_framework.errors import PromptError


def question(number: int = 0, **changed: Any) -> dict[str, Any]:
    made = {
        "example_id": number,
        "question_index": "7",
        "question_polarity": "neg",
        "context_condition": "ambig",
        "category": "Age",
        "answer_info": {"ans0": ["unknown", "unknown"], "ans1": ["aunt", "old"], "ans2": ["niece", "nonOld"]},
        "additional_metadata": {"stereotyped_groups": ["old"]},
        "context": "An aunt and her niece came in. ",
        "question": "Who was slow?",
        "ans0": "Not known",
        "ans1": "The aunt",
        "ans2": "The niece",
        "label": 0,
    }
    return made | changed


def named(**changed: Any) -> dict[str, str]:
    (found,) = read([question(**changed)]).contrasts
    return {variant.attribute: variant.text for variant in found.variants}


def test_an_ambiguous_question_is_a_contrast_of_its_two_groups() -> None:
    (found,) = read([question(3)]).contrasts
    assert (found.id, found.category, found.template_id, found.context) == ("bbq/Age-3", "Age", "7", "neg")
    assert [(v.attribute, v.text) for v in found.variants] == [
        ("stereotype", "An aunt and her niece came in. Who was slow? The aunt"),
        ("anti-stereotype", "An aunt and her niece came in. Who was slow? The niece"),
    ]


def test_a_question_that_is_not_negative_expects_the_other_group() -> None:
    assert named(question_polarity="nonneg")["stereotype"].endswith("The niece")


@pytest.mark.parametrize(
    ("first", "second", "stereotyped", "names"),
    [
        (["Jo", "F-Black"], ["Al", "M-White"], ["Black", "African American"], ["stereotype", "anti-stereotype"]),
        (["60 year old", "old"], ["20-year-old", "nonOld"], ["old"], ["stereotype", "anti-stereotype"]),
        (["deaf", "disabled"], ["tall", "non-disabled"], ["Disabled"], ["stereotype", "anti-stereotype"]),
        (["Jo", "F-Black"], ["Al", "M-Black"], ["Black"], ["F-Black", "M-Black"]),
        (["Jo", "x"], ["Al", "x"], [], ["aunt", "niece"]),
    ],
)
def test_labels_of_groups(first: list[str], second: list[str], stereotyped: list[str], names: list[str]) -> None:
    info = {"ans0": ["x", "unknown"], "ans1": first, "ans2": second}
    assert list(named(answer_info=info, additional_metadata={"stereotyped_groups": stereotyped})) == names


def test_answered_questions_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [question(0), question(1, context_condition="disambig"), question(2), question(3, context_condition="disambig")]
    (tmp_path / "Age.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read(tmp_path / "Age.jsonl")
    assert [contrast.id for contrast in found.contrasts] == ["bbq/Age-0", "bbq/Age-2"]
    assert dict(found.left_out) == {"their context says the answer (context_condition: disambig)": 2}
    assert found.skipped == ()
    assert ContrastSet(tmp_path / "Age.jsonl").notes == [
        "2 records are left out: their context says the answer (context_condition: disambig)"
    ]
    with pytest.raises(PromptError, match="is an empty prompt set: 1 records are left out: their context says the answer"):
        read(rows[1:2])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"context_condition": "vague"}, "must be ambig or disambig. Got 'vague'"),
        ({"question_polarity": "positive"}, "must be neg or nonneg. Got 'positive'"),
        ({"answer_info": {"ans0": ["a", "b"], "ans1": ["c", "d"], "ans2": ["e", "f"]}}, "two answers that name a group. Got 3"),
        ({"answer_info": {"ans0": ["a", "b"]}}, "must name the group of 'ans1'. Got None"),
        ({"ans1": ""}, "the field 'ans1' must be a text. Got ''"),
    ],
)
def test_bad_questions(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(PromptError, match=f"list, item 1: .*{said}"):
        read([question(**changed)])
