"""What a contrast may be, its one line of JSON, and which of its variants is the stereotyping one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairprune_framework.contrasts.records import words
from fairprune_framework.contrasts.schema import Contrast, Variant, stereotyping_variants, stream_of
from fairprune_framework.errors import PromptError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


def contrast(*texts: Any, **more: Any) -> Contrast:
    variants = tuple(Variant(attribute=str(number), text=text) for number, text in enumerate(texts))
    return Contrast(**{"id": "c", "category": "age", "template_id": "t", "variants": variants, **more})


@given(
    st.lists(TEXT, min_size=2, max_size=4, unique=True),
    TEXT,
    st.text(st.characters(exclude_categories=["Cs"])),
    st.booleans(),
    st.sampled_from([None, "select", "heldout"]),
)
def test_one_line_of_json_and_back(texts: list[str], name: str, context: str, control: bool, split: str | None) -> None:
    made = contrast(*texts, id=name, context=context, control=control, split=split)
    line = json.dumps(made.to_json(), ensure_ascii=False)
    assert "\n" not in line
    assert Contrast.from_json(json.loads(line)) == made


@pytest.mark.parametrize(
    ("texts", "more", "words"),
    [
        (("A",), {}, "'c' has 1 variant(s); a contrast needs at least two"),
        ((), {}, "has 0 variant(s)"),
        (("A", " \t"), {}, "has an empty text"),
        (("A", None), {}, "has an empty text"),
        (("A", "B", "A"), {}, "'A' occurs 2 times"),
        (("A", "B"), {"split": "train"}, "must be 'select', 'heldout', 'heldout-words' or null. Got 'train'"),
    ],
)
def test_what_is_no_contrast(texts: tuple[Any, ...], more: dict[str, Any], words: str) -> None:
    with pytest.raises(PromptError) as caught:
        contrast(*texts, **more)
    assert words in str(caught.value)


@pytest.mark.parametrize("change", [{"variants": None}, {"variants": [{"text": "A"}, {"text": "B"}]}, {"variants": [1, 2]}])
def test_json_that_is_no_contrast(change: dict[str, Any]) -> None:
    data = {**contrast("A", "B").to_json(), **change}
    with pytest.raises(PromptError, match=r"not a contrast: (KeyError|TypeError)"):
        Contrast.from_json(data)
    for field in ("id", "category", "template_id", "variants"):
        short = {key: value for key, value in contrast("A", "B").to_json().items() if key != field}
        with pytest.raises(PromptError, match=f"KeyError: '{field}'"):
            Contrast.from_json(short)


def test_fields_that_may_be_absent() -> None:
    data = contrast("A", "B").to_json()
    for field in ("context", "control", "split"):
        del data[field]
    assert Contrast.from_json(data) == contrast("A", "B")


def test_a_template_is_known_by_its_category_too() -> None:
    assert contrast("A", "B").cluster != contrast("A", "B", category="race").cluster
    assert contrast("A", "B").cluster == contrast("C", "D", id="d").cluster


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("more", "less"), (0, 1)),
        (("less", "more"), (1, 0)),
        (("anti", "pro"), (1, 0)),
        (("stereotype", "anti-stereotype"), (0, 1)),
        (("more", "anti"), None),
        (("Black", "white"), None),
        (("more", "less", "other"), None),
    ],
)
def test_the_stereotyping_variant(names: tuple[str, ...], expected: tuple[int, int] | None) -> None:
    variants = tuple(Variant(attribute=name, text=name) for name in names)
    assert stereotyping_variants(contrast(variants=variants)) == expected


# roles

MAN = Variant(attribute="man", text="The man and", right=("his",))
WOMAN = Variant(attribute="woman", text="The woman and", right=("her",))
BARE = (Variant(attribute="man", text="The man and"), Variant(attribute="woman", text="The woman and"))


def of_role(**fields: Any) -> Contrast:
    return Contrast(**{"id": "c", "category": "g", "template_id": "t", "variants": BARE, **fields})


def test_the_role_says_which_stream_a_contrast_feeds() -> None:
    found = {one.role: one for one in (of_role(), of_role(control=True), of_role(legitimate=True, variants=(MAN, WOMAN)))}
    assert list(found) == ["demographic", "control", "legitimate"]
    for split in (None, "select"):
        assert [stream_of(role, split) for role in found] == ["contrasts", "controls", "legitimate"]
    assert {stream_of(role, split) for role in found for split in ("heldout", "heldout-words")} == {None}


def test_a_line_of_json_holds_new_fields_only_where_they_say_something() -> None:
    plain = of_role(split="select")
    assert list(plain.to_json()) == ["id", "category", "template_id", "context", "control", "split", "variants"]
    assert list(plain.to_json()["variants"][0]) == ["attribute", "text"]
    for one in (
        plain,
        of_role(control=True, neutral_of="age/hiring-1"),
        of_role(legitimate=True, variants=(MAN, WOMAN), split="heldout-words"),
    ):
        assert Contrast.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_the_origin_of_a_crossed_control_is_the_template_that_it_fills() -> None:
    assert of_role().origin == of_role(control=True).origin == ("g", "t")
    assert of_role(control=True, neutral_of="age/hiring-1").origin == ("age", "hiring-1")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"legitimate": True}, "variant 'man' of contrast 'c' has no right next words"),
        ({"legitimate": True, "variants": (MAN, BARE[1])}, "variant 'woman' of contrast 'c' has no right next words"),
        ({"variants": (MAN, WOMAN)}, "has right next words, but the contrast is not legitimate"),
        ({"legitimate": True, "control": True, "variants": (MAN, WOMAN)}, "it can have one role"),
        ({"neutral_of": "age/t"}, "which only a control has"),
        ({"control": True, "neutral_of": "age"}, "must be '<category>/<template_id>'. Got 'age' instead."),
        (
            {"legitimate": True, "variants": (MAN, Variant(attribute="woman", text="x", right=("her", "his")))},
            "has 'his' as a right word of 'man' and of 'woman'",
        ),
        (
            {"legitimate": True, "variants": (MAN, Variant(attribute="woman", text="x", right=(" her",)))},
            "without outer blanks. Got ' her' instead.",
        ),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError) as error:
        of_role(**fields)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [(3, "must be a list of words. Got 3"), (["her", ""], "must be a list of words"), ("her|her", "holds 'her' 2 times")],
)
def test_right_words_that_are_none(value: object, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        words(value, "right")
