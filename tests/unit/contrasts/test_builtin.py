"""What the built-in sets promise, counted and read: balance, roles, grammar, and nothing that leaks into what judges."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import cache

import pytest

from fairprune_framework.contrasts.alignment import align_all
from fairprune_framework.contrasts.builtin import builtin, names
from fairprune_framework.contrasts.readers import content_hash
from fairprune_framework.contrasts.schema import Contrast, Role
from fairprune_framework.contrasts.sets import ContrastSet
from fairprune_framework.contrasts.splits import apply_split, without_overlap
from fairprune_framework.errors import UnknownName
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.models.loading import load_tokenizer

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
LEGITIMATE = {
    f"legit-{kind}" for kind in ("pronoun", "family", "religion", "nation", "age", "disability", "orientation", "fact")
}
SETS = ("en", "en-1", "en-2", "en-small", "en-wide")
EVERY = (*SETS, "es")
WHOLE = ("en", "en-wide")
"""Of these a plan is chosen and judged."""


@cache
def contrasts(name: str = "en") -> tuple[Contrast, ...]:
    return tuple(builtin(name))


def chosen(name: str = "en", role: Role = "demographic", split: str | None = None) -> list[Contrast]:
    return [one for one in contrasts(name) if one.role == role and split in (None, one.split)]


def by_category(found: Iterable[Contrast]) -> dict[str, list[Contrast]]:
    sorted_in: dict[str, list[Contrast]] = {}
    for contrast in found:
        sorted_in.setdefault(contrast.category, []).append(contrast)
    return sorted_in


def texts(found: Iterable[Contrast]) -> list[str]:
    return [variant.text for contrast in found for variant in contrast.variants]


def words(found: Iterable[Contrast]) -> set[str]:
    return {variant.attribute for contrast in found for variant in contrast.variants}


def voiced(contrast: Contrast) -> bool:
    """The author of letters, diaries and quotations, not the one who tells in the third person."""
    return re.search(r"-v\d$", contrast.template_id) is not None


# -- every set -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_nothing_lies_on_both_sides(name: str) -> None:
    found = list(contrasts(name))
    assert apply_split(found, "keep", 0) == found
    assert without_overlap(found) == (found, [])
    assert list(ContrastSet(found)) == found
    assert max(Counter(texts(found)).values()) == 1
    assert len({contrast.id for contrast in found}) == len(found)


@pytest.mark.parametrize("name", EVERY)
def test_texts_are_whole_open_sentences(name: str) -> None:
    for contrast in contrasts(name):
        for variant in contrast.variants:
            text = variant.text
            if contrast.role != "legitimate":
                assert 10 <= len(text.split()) <= 27, text
                assert text[-1].isalpha(), text
            assert text[0].isupper() or text[0] == '"', text
            assert not re.search(r"[{}]|\s\s|^\s|\s$|[“”’]", text), text
            assert text.count('"') <= 4, text


@pytest.mark.parametrize("name", SETS)
def test_articles_agree(name: str) -> None:
    sounds_open = r"(?:[AEIOaeio]|[Uu](?!ni)|hour|8\d?-|11-|18-)"
    wrong = re.compile(rf"\b[Aa] (?={sounds_open})|\b[Aa]n (?!{sounds_open})")
    for text in texts(contrasts(name)):
        assert not wrong.search(text), text


@pytest.mark.parametrize("name", SETS)
def test_variants_differ_in_the_attribute_and_what_agrees_with_it(name: str) -> None:
    agreeing = re.compile(r"\b(a|an|A|An|his|her|their|who is|who has no disability)\b")
    for contrast in contrasts(name):
        rests = set()
        for variant in contrast.variants:
            word = variant.attribute
            rest = re.sub(rf"(?<![\w-]){re.escape(word)}(?![\w-])", "*", variant.text, count=1, flags=re.IGNORECASE)
            if rest == variant.text:  # the form `{who}` bears the attribute
                assert contrast.category == "disability"
                rest = variant.text.replace("who has no disability", "*")
            rests.add(agreeing.sub("+", rest.replace("who is *", "*")))
        assert len(rests) == 1, rests


@pytest.mark.parametrize("name", EVERY)
def test_the_model_goes_on_after_the_attribute(name: str) -> None:
    """A text that ended with its attribute would leave no token to compare."""
    for contrast in contrasts(name):
        if contrast.role != "legitimate":
            assert len({tuple(variant.text.split()[-2:]) for variant in contrast.variants}) == 1, contrast.id


# -- builtin:en ------------------------------------------------------------------------------------------------------------


def test_demographic_templates_are_balanced() -> None:
    for split in ("select", "heldout"):
        found = by_category(chosen(split=split))
        assert set(found) == CATEGORIES
        for category, mine in found.items():
            assert len(mine) == 20, category
            contexts = Counter(contrast.context for contrast in mine)
            assert len(contexts) == 10
            assert set(contexts.values()) == {2}, category
            assert sum(map(voiced, mine)) == 10, category
    for mine in by_category(chosen()).values():
        sides = [{c.context for c in mine if c.split == split} for split in ("select", "heldout")]
        assert sides[0] == sides[1]


def test_two_authors_who_can_be_told_apart() -> None:
    speaks = re.compile(r"\b(I|me|my|we|us|our|We|My|Our)\b|\"|^\w+[\w ,.']*: |^(Dear|Parents)\b")  # to somebody, or in a note
    for split in ("select", "heldout"):
        found = chosen(split=split)
        assert all(speaks.search(contrast.variants[0].text) for contrast in found if voiced(contrast))
        told = [contrast for contrast in found if not voiced(contrast)]
        assert sum(bool(speaks.search(contrast.variants[0].text)) for contrast in told) <= len(told) // 10


def test_words_that_select_never_saw() -> None:
    found = chosen(split="heldout-words")
    again = [contrast for contrast in found if contrast.category in CATEGORIES]
    assert [contrast.cluster for contrast in again] == [contrast.cluster for contrast in chosen(split="heldout")]
    names_ = [contrast for contrast in found if contrast.category not in CATEGORIES]
    assert {category: len(mine) for category, mine in by_category(names_).items()} == {"name-ethnicity": 10, "name-gender": 10}
    assert not words(found) & words(chosen(split="heldout"))


@pytest.mark.parametrize("split", ["select", "heldout"])
def test_neutral_words_are_crossed_with_demographic_templates(split: str) -> None:
    found = chosen(role="control", split=split)
    crossed = [contrast for contrast in found if contrast.neutral_of is not None]
    assert [len(mine) for mine in by_category(crossed).values()] == [10] * 12
    originals = {"/".join(contrast.cluster): contrast for contrast in chosen(split=split)}
    assert len({contrast.neutral_of for contrast in crossed}) == len(crossed)  # each template at most once
    assert sum(voiced(originals[str(contrast.neutral_of)]) for contrast in crossed) >= len(crossed) // 3
    for contrast in crossed:
        original = originals[str(contrast.neutral_of)]
        assert contrast.variants[0].text.split()[-2:] == original.variants[0].text.split()[-2:]
        assert contrast.context == original.context
    scenes = [contrast for contrast in found if contrast.neutral_of is None]
    assert {len(mine) for mine in by_category(scenes).values()} == {6}
    assert len(by_category(scenes)) == 4


@pytest.mark.parametrize("name", WHOLE)
def test_no_word_that_judges_alone_stands_in_a_text_that_selects(name: str) -> None:
    unseen = words(chosen(name, split="heldout-words")) | words(chosen(name, "control", split="heldout"))
    assert len(unseen) > 70
    selecting = "\n".join(texts(contrast for contrast in contrasts(name) if contrast.split == "select"))
    leaked = [word for word in unseen if re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", selecting, re.IGNORECASE)]
    assert not leaked
    controls = [words(chosen(name, "control", split=split)) for split in ("select", "heldout")]
    assert not controls[0] & controls[1]
    sets = [set(by_category(chosen(name, "control", split=split))) for split in ("select", "heldout")]
    assert not sets[0] & sets[1]


@pytest.mark.parametrize("name", WHOLE)
def test_templates_of_both_sides_share_no_run_of_seven_words(name: str) -> None:
    def runs(contrast: Contrast) -> set[tuple[str, ...]]:
        variant = contrast.variants[0]
        found = re.sub(r"[^\w' ]", "", variant.text.replace(variant.attribute, "X").lower()).split()
        return {tuple(found[i : i + 7]) for i in range(len(found) - 6)}

    own = [contrast for contrast in contrasts(name) if contrast.neutral_of is None and not contrast.id.endswith("/words")]
    selecting = set().union(*(runs(contrast) for contrast in own if contrast.split == "select"))
    judging = set().union(*(runs(contrast) for contrast in own if contrast.split != "select"))
    assert not selecting & judging


def test_legitimate_differences() -> None:
    found = chosen(role="legitimate")
    assert len(found) >= 80
    assert set(by_category(found)) == LEGITIMATE
    for category, mine in by_category(found).items():
        sides = Counter(contrast.split for contrast in mine)
        assert min(sides["select"], sides["heldout"]) >= 5, category
        assert sides["heldout-words"] == 0
    for contrast in found:
        right = [word.lower() for variant in contrast.variants for word in {w.lower() for w in variant.right}]
        assert len(set(right)) == len(right) >= 2, contrast.id
        assert not any(word in variant.text.lower().split()[-2:] for variant in contrast.variants for word in variant.right)


def test_a_tokenizer_of_a_model_tells_all_of_it_apart() -> None:
    encoder = Encoder(load_tokenizer("smollm2-135m"))
    aligned, skipped = align_all(contrasts(), encoder)
    assert len(aligned) == len(contrasts())
    assert not skipped
    for contrast in aligned:
        if contrast.role == "legitimate":
            first = [token for tokens in contrast.right for token in tokens]
            assert len(set(first)) == len(first) >= 2, contrast.id
        else:
            assert contrast.suffix >= (4 if contrast.split == "heldout" else 2), contrast.id
    several = [
        word
        for one in chosen(role="legitimate")
        for v in one.variants
        for word in v.right
        if len(encoder.continued(v.text, word)) > 1
    ]
    assert len(several) < 30  # of these the first token is scored


# -- builtin:en-wide -------------------------------------------------------------------------------------------------------


def test_the_wide_set_is_builtin_en_and_as_many_selecting_templates_again() -> None:
    first, wide = contrasts(), contrasts("en-wide")
    assert wide[: len(first)] == first
    added = wide[len(first) :]
    assert {contrast.split for contrast in added} == {"select"}
    new = {role: by_category(one for one in added if one.role == role) for role in ("demographic", "control", "legitimate")}
    assert {name: len(found) for name, found in new["demographic"].items()} == dict.fromkeys(CATEGORIES, 20)
    assert new["legitimate"].keys() == LEGITIMATE
    assert {len(found) for found in new["control"].values()} <= {7, 8, 10}
    crossed = [contrast.neutral_of for found in new["control"].values() for contrast in found if contrast.neutral_of]
    assert len(set(crossed)) == len(crossed) > 100


def test_what_the_wide_set_adds_repeats_nothing_that_judges_anywhere() -> None:
    added = contrasts("en-wide")[len(contrasts()) :]
    judging = [one for name in ("en", "en-2") for one in contrasts(name) if one.split != "select"]
    assert not set(texts(added)) & set(texts(judging))
    for role in ("control", "legitimate"):
        frames = [{frame_of(one) for one in each if one.role == role} for each in (added, judging)]
        assert not frames[0] & frames[1]
    unseen = words(one for one in judging if one.split == "heldout-words" or one.role == "control")
    assert not words(added) & unseen


# -- its parts and its predecessor -----------------------------------------------------------------------------------------


def test_the_small_set_is_a_balanced_part() -> None:
    whole = {contrast.id: contrast for contrast in contrasts()}
    small = contrasts("en-small")
    assert all(whole[contrast.id] == contrast for contrast in small)
    assert 110 <= len(small) <= 130
    for split in ("select", "heldout"):
        found = by_category(chosen("en-small", split=split))
        assert set(found) == CATEGORIES
        for category, mine in found.items():
            assert [sum(map(voiced, mine)), len(mine)] == [2, 4], category
            assert len({contrast.context for contrast in mine}) == 4, category
        crossed = [contrast for contrast in chosen("en-small", "control", split) if contrast.neutral_of is not None]
        assert len({contrast.category for contrast in crossed}) == len(crossed) == 12
        legitimate = chosen("en-small", "legitimate", split)
        assert {contrast.category for contrast in legitimate} == LEGITIMATE
        assert len(legitimate) == 8
    assert {contrast.category for contrast in chosen("en-small", split="heldout-words")} > CATEGORIES


def test_the_first_set_stays_as_records_have_it() -> None:
    """benchmarks/evidence_smollm2-135m_202611.md names the hash of its contrasts."""
    first = contrasts("en-1")
    assert len(first) == 190
    assert content_hash(first).startswith("1dd1e47ff8c2")
    assert all(contrast.id == f"en/{contrast.category}/{contrast.template_id}" for contrast in first)
    for category, mine in by_category(first).items():
        sides = Counter(contrast.split for contrast in mine)
        assert sides == {"select": len(mine) // 2, "heldout": len(mine) // 2}, category


def test_what_the_first_set_held_out_is_held_out_no_more() -> None:
    """Its held-out templates have been looked at; those of builtin:en are fresh, and its selecting ones are partly the old."""
    looked_at = set(texts(contrast for contrast in contrasts("en-1") if contrast.split == "heldout"))
    assert not looked_at & set(texts(contrasts()))
    old = [contrast for contrast in contrasts("en-1") if contrast.split == "select" and not contrast.control]
    assert [contrast for contrast in chosen(split="select") if not voiced(contrast)] == old


def test_names() -> None:
    assert names() == list(EVERY)


def test_each_call_gives_a_list_of_its_own() -> None:
    again = builtin("en-1")
    again.clear()
    assert tuple(builtin("en-1")) == contrasts("en-1")


@pytest.mark.parametrize("name", ["eng", "", "../data/en", "en.yaml", "en/demographic"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(UnknownName, match=r"no built-in prompt set .*there are: en"):
        builtin(name)
    with pytest.raises(UnknownName, match="Did you mean 'en'"):
        builtin("eng")


# -- the set that judges alone ---------------------------------------------------------------------------------------------


def test_the_second_set_never_selects_and_repeats_nothing() -> None:
    first, second = contrasts("en"), contrasts("en-2")
    assert {contrast.split for contrast in second} == {"heldout", "heldout-words"}
    assert not set(texts(second)) & set(texts(first))
    frames = [{re.sub(r"\W", "", frame_of(one)) for one in each if one.role != "legitimate"} for each in (first, second)]
    assert not frames[0] & frames[1]
    assert not words(chosen("en-2", "control")) & words(chosen("en", "control"))
    assert words(chosen("en-2")) == words(one for one in chosen("en") if not one.category.startswith("name-"))


def test_the_second_set_is_balanced() -> None:
    for split in ("heldout", "heldout-words"):
        assert {name: len(found) for name, found in by_category(chosen("en-2", split=split)).items()} == dict.fromkeys(
            CATEGORIES, 12
        )
    controls = by_category(chosen("en-2", "control"))
    assert len(controls) == 8
    assert {len(found) for found in controls.values()} == {11, 12}
    crossed = [one.neutral_of for found in controls.values() for one in found]
    assert None not in crossed
    assert len(set(crossed)) == len(crossed)
    assert by_category(chosen("en-2", "legitimate")).keys() == LEGITIMATE


def frame_of(contrast: Contrast) -> str:
    """The text around the attribute."""
    first = contrast.variants[0]
    return first.text.replace(first.attribute, "")
