"""One row into one contrast, for each layout, with every field mapped and unmapped."""

from __future__ import annotations

from typing import Any

import pytest

from fairprune_framework.contrasts.formats import Row
from fairprune_framework.contrasts.records import MissingColumn, check_columns, to_contrast
from fairprune_framework.errors import PromptError, UserError


def row(**data: Any) -> Row:
    return Row(where="x.jsonl, line 7", number=7, data=data)


def pairs(**data: Any) -> list[tuple[str, str]]:
    return [(variant.attribute, variant.text) for variant in to_contrast(row(**data), {}).variants]


def test_variants_as_an_array() -> None:
    made = to_contrast(
        row(
            id=12,
            category=" age ",
            template_id="T",
            context="work",
            control="yes",
            split="heldout",
            variants=[{"attribute": "old", "text": "An old man"}, {"attribute": "young", "text": "A young man"}],
        ),
        {},
    )
    assert (made.id, made.category, made.template_id, made.context) == ("12", "age", "T", "work")
    assert (made.control, made.split) == (True, "heldout")
    assert [(v.attribute, v.text) for v in made.variants] == [("old", "An old man"), ("young", "A young man")]


def test_prompts_side_by_side_end_with_empty_cells() -> None:
    found = pairs(prompt_1="A", prompt_2="B", prompt_3=" ", prompt_4=None, attribute_1="x", attribute_2="y", attribute_3="z")
    assert found == [("x", "A"), ("y", "B")]


def test_prompts_beyond_the_ninth_keep_their_order() -> None:
    found = pairs(**{f"prompt_{i}": f"Number {i}" for i in (10, 2, 1, *range(3, 10))})
    assert [text for _, text in found] == [f"Number {i}" for i in range(1, 11)]


def test_attributes_are_the_texts_that_differ_or_numbers() -> None:
    assert pairs(prompt_1="A tall man", prompt_2="A man") == [("tall", "A tall man"), ("(none)", "A man")]
    assert pairs(prompt_1="A  man", prompt_2="A man") == [("1", "A  man"), ("2", "A man")]


def test_names_that_are_missing_are_made_up_from_the_place() -> None:
    found = to_contrast(row(prompt_1="A", prompt_2="B"), {})
    assert (found.id, found.category, found.template_id, found.split, found.context) == ("row-7", "all", "row-7", None, "")


def test_columns_are_mapped() -> None:
    found = to_contrast(
        row(group="race", first="A", second="B", prompt_1="unused"),
        {"category": "group", "prompt_1": "first", "prompt_2": "second"},
    )
    assert found.category == "race"
    assert [v.text for v in found.variants] == ["A", "B"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"prompt_1": "A", "prompt_3": "C"}, "'prompt_2' is empty or missing, but 'prompt_3' is there"),
        ({"prompt_1": "A", "prompt_2": 3}, "'prompt_2' must be a text. Got 3"),
        ({"prompt_1": "A", "prompt_2": "B\ud83d"}, "'prompt_2' holds half of a surrogate pair at character 2"),
        ({"prompt_1": "A", "prompt_2": "B", "attribute_2": "y"}, "variant 1 has no attribute, but others have"),
        ({"prompt_1": "A", "prompt_2": "B", "id": ["x"]}, "'id' must be a text. Got ['x']"),
        ({"prompt_1": "A", "prompt_2": "B", "control": "maybe"}, "must be true or false. Got 'maybe'"),
        ({"variants": "A|B"}, "'variants' must be an array of objects"),
        ({"variants": [{"attribute": "x"}]}, "'variants' must be an array of objects"),
        ({"variants": [{"text": "A"}, {"text": None}]}, "'text' must be a text. Got None"),
    ],
)
def test_rows_that_are_no_contrast(data: dict[str, Any], words: str) -> None:
    with pytest.raises(PromptError) as caught:
        to_contrast(row(**data), {})
    assert words in str(caught.value)
    assert not isinstance(caught.value, MissingColumn)


def test_no_layout_and_no_mapped_column() -> None:
    with pytest.raises(MissingColumn, match=r"missing column 'prompt_1': found 'promt_1', 'b'\. Did you mean 'promt_1'\?"):
        to_contrast(row(promt_1="A", b="B"), {})
    with pytest.raises(
        MissingColumn, match=r"missing column 'fist' \(for 'prompt_1'\): found 'first'\. Did you mean 'first'\?"
    ):
        to_contrast(row(first="A"), {"prompt_1": "fist"})
    with pytest.raises(MissingColumn, match="found no columns"):
        to_contrast(row(), {})


def test_a_row_that_could_not_be_read_says_why() -> None:
    with pytest.raises(PromptError, match="not JSON: x"):
        to_contrast(Row(where="w", number=1, data={}, problem="not JSON: x"), {})


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"categry": "group"}, "unknown field 'categry'"),
        ({"prompt_0": "first"}, "unknown field 'prompt_0'"),
        ({"prompt_1": "a", "prompt_2": "a"}, "names the column 'a' 2 times"),
    ],
)
def test_mappings_that_are_refused(columns: dict[str, str], words: str) -> None:
    check_columns({"prompt_12": "x", "attribute_3": "y", "split": "z"})
    with pytest.raises(UserError) as caught:
        check_columns(columns)
    assert words in str(caught.value)
