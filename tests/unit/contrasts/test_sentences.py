"""Which templates stand in one sentence."""

from __future__ import annotations

import itertools

import pytest

from fairprune_framework.contrasts.builtin import builtin, names
from fairprune_framework.contrasts.schema import Contrast, Variant
from fairprune_framework.contrasts.sentences import around, drawn_together, templates_by_sentence


def contrast(category: str, template: str, text: str, words: tuple[str, str], **more: object) -> Contrast:
    right = [("Sunday",), ("Monday",)] if more.get("legitimate") else [(), ()]
    variants = tuple(Variant(attribute=word, text=text.format(word), right=one) for word, one in zip(words, right, strict=True))
    return Contrast(id=f"{category}-{template}-{words[0]}", category=category, template_id=template, variants=variants, **more)  # type: ignore[arg-type]


AGE, RACE = ("old", "young"), ("Black", "white")
NURSE, COOK = "The {} nurse said that", "The {} cook said that"


def test_what_stands_around_a_difference() -> None:
    assert around(contrast("age", "1", NURSE, AGE)) == ("The ", " nurse said that")
    assert around(contrast("name", "1", "{}", ("Emily", "Lakisha"))) is None
    assert around(contrast("name", "1", "{} was late", ("Emily", "Lakisha"))) is None  # two words are no sentence


def test_a_sentence_connects_templates_of_all_categories() -> None:
    rows = [
        contrast("age", "1", NURSE, AGE),
        contrast("age", "2", NURSE, ("aged", "youthful")),
        contrast("race", "1", NURSE, RACE),
        contrast("race", "2", COOK, RACE),
        contrast("age", "3", "The {} clerk said that", AGE),
    ]
    assert templates_by_sentence(rows) == {(False, "The ", " nurse said that"): {("age", "1"), ("age", "2"), ("race", "1")}}
    expected = dict.fromkeys([("age", "1"), ("age", "2"), ("race", "1")], "one sentence: age/1")
    for order in itertools.permutations(rows):
        assert drawn_together(order) == expected


def test_a_template_of_two_sentences_connects_what_stands_in_either() -> None:
    rows = [
        contrast("age", "1", NURSE, AGE),
        contrast("age", "2", COOK, AGE),
        contrast("race", "both", NURSE, RACE),
        contrast("race", "both", COOK, RACE),
        contrast("nation", "3", COOK, ("French", "Spanish")),
    ]
    for order in itertools.permutations(rows):
        found = drawn_together(order)
        assert len(found) == 4
        assert set(found.values()) == {"one sentence: age/1"}


def test_crossed_controls_count_as_their_template_and_legitimate_differences_are_apart() -> None:
    controls = [
        contrast("hand", f"c{n}", NURSE, words, control=True, neutral_of="age/1")
        for n, words in enumerate([("left-handed", "right-handed"), ("tall", "short")])
    ]
    rows = [contrast("age", "1", NURSE, AGE), *controls]
    assert drawn_together(rows) == {}
    legitimate = contrast("legit-age", "9", NURSE, AGE, legitimate=True)
    assert drawn_together([*rows, legitimate]) == {}
    other = contrast("coat", "x", NURSE, ("red", "blue"), control=True)  # stands there too, and does not say so
    assert drawn_together([*rows, other]) == dict.fromkeys([("age", "1"), ("coat", "x")], "one sentence: age/1")


@pytest.mark.parametrize("name", names())
def test_no_sentence_of_a_built_in_set_stands_in_two_templates(name: str) -> None:
    assert templates_by_sentence(builtin(name)) == {}
