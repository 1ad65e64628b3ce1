"""What `builtin:en` promises, counted."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from fairprune_framework.contrasts.builtin import builtin, names
from fairprune_framework.contrasts.readers import content_hash
from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.contrasts.splits import apply_split, without_overlap
from fairprune_framework.errors import UnknownName

CATEGORIES = {
    "race-ethnicity",
    "gender",
    "age",
    "religion",
    "nationality",
    "disability",
    "socioeconomic-status",
    "sexual-orientation",
}


@pytest.fixture(scope="module")
def english() -> list[Contrast]:
    return builtin("en")


def by_category(contrasts: list[Contrast]) -> dict[str, list[Contrast]]:
    found: dict[str, list[Contrast]] = {}
    for contrast in contrasts:
        found.setdefault(contrast.category, []).append(contrast)
    return found


def test_categories_and_controls(english: list[Contrast]) -> None:
    assert {contrast.category for contrast in english if not contrast.control} == CATEGORIES
    controls = {contrast.category for contrast in english if contrast.control}
    assert len(controls) >= 2
    assert all(category.startswith("control-") for category in controls)
    assert not controls & CATEGORIES


def test_counts(english: list[Contrast]) -> None:
    for category, contrasts in by_category(english).items():
        control = contrasts[0].control
        assert len({contrast.template_id for contrast in contrasts}) == len(contrasts) >= (10 if control else 20), category
        assert len({contrast.context for contrast in contrasts}) >= 5, category
        values = {tuple(variant.attribute for variant in contrast.variants) for contrast in contrasts}
        assert len(values) == 1, category
        assert 3 <= len(values.pop()) <= 8, category


def test_half_selects_and_half_judges_in_every_context(english: list[Contrast]) -> None:
    for category, contrasts in by_category(english).items():
        sides = Counter(contrast.split for contrast in contrasts)
        assert sides == {"select": len(contrasts) // 2, "heldout": len(contrasts) // 2}, category
        contexts = {side: {c.context for c in contrasts if c.split == side} for side in ("select", "heldout")}
        assert contexts["select"] == contexts["heldout"], category


def test_nothing_lies_on_both_sides(english: list[Contrast]) -> None:
    assert apply_split(english, "keep", 0) == english
    assert without_overlap(english) == (english, [])
    texts = Counter(variant.text for contrast in english for variant in contrast.variants)
    assert max(texts.values()) == 1


def test_ids(english: list[Contrast]) -> None:
    assert all(contrast.id == f"en/{contrast.category}/{contrast.template_id}" for contrast in english)
    assert all(contrast.template_id.startswith(contrast.context + "-") for contrast in english)


def test_texts_are_whole_open_sentences(english: list[Contrast]) -> None:
    for contrast in english:
        for variant in contrast.variants:
            assert 10 <= len(variant.text.split()) <= 25, variant.text
            assert variant.text[0].isupper(), variant.text
            assert variant.text[-1].isalpha(), variant.text
            assert "{" not in variant.text
            assert "  " not in variant.text
            assert variant.text == variant.text.strip()


def test_articles_agree(english: list[Contrast]) -> None:
    vowel = re.compile(r"\ba [AEIOUaeio]|\ban [^AEIOUaeiouh]")
    for contrast in english:
        for variant in contrast.variants:
            assert not vowel.search(variant.text), variant.text


def test_variants_differ_in_the_attribute_and_what_agrees_with_it(english: list[Contrast]) -> None:
    agreeing = re.compile(r"\b(a|an|A|An|his|her|their|who is|who has no disability)\b")
    for contrast in english:
        rests = set()
        for variant in contrast.variants:
            word = variant.attribute
            rest = re.sub(rf"\b{re.escape(word)}\b", "*", variant.text, count=1)
            if rest == variant.text:  # the form `{who}` bears the attribute
                assert contrast.category == "disability"
                rest = variant.text.replace("who has no disability", "*")
            rests.add(agreeing.sub("+", rest.replace("who is *", "*")))
        assert len(rests) == 1, rests


def test_the_model_goes_on_after_the_attribute(english: list[Contrast]) -> None:
    """A text that ended with its attribute would leave no token to compare."""
    for contrast in english:
        assert len({variant.text.split()[-1] for variant in contrast.variants}) == 1, contrast.id


def test_names() -> None:
    assert names() == ["en", "en-1"]


def test_the_first_set_stays_as_records_have_it() -> None:
    """benchmarks/evidence_smollm2-135m_202611.md names the hash of its contrasts."""
    first = builtin("en-1")
    assert len(first) == 190
    assert content_hash(first).startswith("1dd1e47ff8c2")


def test_each_call_gives_a_list_of_its_own(english: list[Contrast]) -> None:
    again = builtin("en")
    again.clear()
    assert builtin("en") == english


@pytest.mark.parametrize("name", ["eng", "", "../data/en", "en.yaml"])
def test_unknown_language(name: str) -> None:
    with pytest.raises(UnknownName, match=r"no built-in prompt set .*there are: en"):
        builtin(name)
    with pytest.raises(UnknownName, match="Did you mean 'en'"):
        builtin("eng")
