"""What every layout does with rows that are none of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.contrasts.published import arranged
from fairprune_framework.contrasts.readers import read
from fairprune_framework.contrasts.schema import Contrast, Variant
from fairprune_framework.errors import PromptError

CROWS = {"sent_more": "A b", "sent_less": "A c", "bias_type": "age"}
OURS = Contrast(
    id="x", category="c", template_id="x", variants=(Variant(attribute="a", text="a"), Variant(attribute="b", text="b"))
)


def test_the_first_readable_row_tells(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text('{broken\n{"sent_more": "A b", "sent_less": "A c", "bias_type": "age"}\n')
    found = read(path, bad="skip")
    assert [one.category for one in found.contrasts] == ["age"]
    assert [where for where, _ in found.skipped] == [f"{path}, line 1"]


def test_contrasts_in_memory_stay_as_they_are() -> None:
    assert [one.id for one in read([CROWS, OURS]).contrasts] == ["crows-pairs/1", "x"]
    assert read([OURS]).contrasts == (OURS,)


def test_rows_of_no_published_set_pass() -> None:
    assert list(arranged([])) == []
    assert [one.id for one in read([{"prompt_1": "a", "prompt_2": "b"}]).contrasts] == ["row-1"]


PERSON = {"filled_template": "A man asks. Yes?", "decision_question_id": 1, "age": 20, "gender": "male", "race": "white"}
QUESTION = {
    "answer_info": {"ans0": ["a", "old"], "ans1": ["b", "young"], "ans2": ["c", "unknown"]},
    "context_condition": "ambig",
    "question_polarity": "neg",
    "context": "Two met.",
    "question": "Who?",
    "ans0": "A",
    "ans1": "B",
    "ans2": "C",
    "category": "Age",
}


@pytest.mark.parametrize("wrong", [[], ["x"], {}])
@pytest.mark.parametrize(
    ("record", "field"), [(PERSON, "age"), (PERSON, "race"), (PERSON, "decision_question_id"), (QUESTION, "question_index")]
)
def test_an_array_is_no_word(record: dict[str, Any], field: str, wrong: Any) -> None:
    with pytest.raises(PromptError, match=rf"the field '{field}' must be a text or a number\. Got"):
        read([record | {field: wrong}])


def test_stereotyped_groups_are_an_array() -> None:
    with pytest.raises(PromptError, match=r"'stereotyped_groups' of BBQ must be an array\. Got 'old' instead"):
        read([QUESTION | {"additional_metadata": {"stereotyped_groups": "old"}}])
