"""Alignment of variants under a tokenizer, by properties that hold for every text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fairprune_framework.contrasts.alignment import align, align_all, attribute_spans, attribute_tokens, vocabularies
from fairprune_framework.contrasts.schema import Contrast, Variant
from fairprune_framework.errors import PromptError
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.testing.tiny import WORDS, tiny_contrasts, tiny_tokenizer

ENCODER = Encoder(tiny_tokenizer())
WORD = st.one_of(st.sampled_from(WORDS), st.text("abcßé語 '-.1", min_size=1, max_size=6))
PART = st.lists(WORD, max_size=4).map(" ".join)
VALUES = st.lists(st.text("abBlackwhiteé 語-", max_size=8), min_size=2, max_size=4, unique=True)
FREE = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20), min_size=2, max_size=4, unique=True)


def contrast(texts: list[str]) -> Contrast:
    variants = tuple(Variant(attribute=str(i), text=text) for i, text in enumerate(texts))
    return Contrast(id="c", category="x", template_id="t", variants=variants)


def aligned(texts: list[str]) -> Any:
    assume(all(text.strip() for text in texts))
    assume(len(set(texts)) == len(texts))
    try:
        return align(ENCODER, contrast(texts), {str(i): i for i in range(len(texts))})
    except PromptError:
        assume(False)


def check(texts: list[str]) -> None:
    found = aligned(texts)
    suffixes = {tokens.ids[tokens.end :] for tokens in found.variants}
    assert len(suffixes) == 1
    assert found.suffix == len(next(iter(suffixes)))
    assert len({tokens.ids[: min(t.start for t in found.variants)] for tokens in found.variants}) == 1
    for tokens, text in zip(found.variants, texts, strict=True):
        assert 0 <= tokens.start <= tokens.end <= len(tokens.ids)
        assert list(tokens.ids) == ENCODER.ids(text)
        # a causal model sees no difference before the span
        assert all(
            other.ids[: tokens.start] == tokens.ids[: tokens.start]
            for other in found.variants
            if len(other.ids) >= tokens.start
        )
    if len({" ".join(text.split()) for text in texts}) > 1:  # texts that differ in blanks alone have no attribute
        assert any(tokens.end > tokens.start for tokens in found.variants)  # what differs is inside of a span


@given(PART, VALUES, PART)
@settings(max_examples=100, deadline=None)
def test_templates(before: str, values: list[str], after: str) -> None:
    check([f"{before} {value} {after}" for value in values])


@given(FREE)
@settings(max_examples=100, deadline=None)
def test_any_texts(texts: list[str]) -> None:
    check(texts)


@given(FREE)
@settings(max_examples=300)
def test_spans_cover_all_that_differs(texts: list[str]) -> None:
    spans = attribute_spans(texts)
    assert len({text[:start] for text, (start, _) in zip(texts, spans, strict=True)}) == 1
    assert len({text[end:] for text, (_, end) in zip(texts, spans, strict=True)}) == 1
    assert all(0 <= start <= end <= len(text) for text, (start, end) in zip(texts, spans, strict=True))
    assert attribute_spans(texts[::-1]) == spans[::-1]


@pytest.mark.parametrize(
    ("texts", "parts"),
    [
        (["A Black man", "A white man"], ["Black", "white"]),
        (["a woman came", "a man came"], ["woman", "man"]),
        (["He is old", "He is young"], ["old", "young"]),
        (["Old people", "Young people"], ["Old", "Young"]),
        (["one two", "one two three"], ["", " three"]),
        (["x aa y", "x aaa y"], ["aa", "aaa"]),
        (["a b a", "a a"], ["b ", ""]),
    ],
)
def test_spans_of_plain_cases(texts: list[str], parts: list[str]) -> None:
    assert [text[slice(*span)] for text, span in zip(texts, attribute_spans(texts), strict=True)] == parts


def test_tokens_of_the_attribute_and_after_it() -> None:
    tokenizer = tiny_tokenizer()
    texts = ["The Black nurse walked home .", "The Native American nurse walked home ."]
    found = align(ENCODER, contrast(texts), {"0": 0, "1": 1})
    words = [tokenizer.decode(tokens.ids[tokens.start : tokens.end]).strip() for tokens in found.variants]
    assert words == ["Black", "Native American"]
    assert found.suffix == 4
    assert not found.equal_length


def test_special_tokens_of_a_chat_template_at_the_end_are_matched() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}</s>"
    encoder = Encoder(tokenizer, chat_template=True)
    found = align(encoder, contrast(["They are Black", "They are Native American"]), {"0": 0, "1": 1})
    assert found.suffix == 1
    assert {tokens.ids[tokens.end :] for tokens in found.variants} == {(2,)}


def test_a_text_of_special_tokens_alone_is_refused() -> None:
    class Dropping:
        is_fast = False

        def __call__(self, texts: list[str], *, add_special_tokens: bool, **_: Any) -> dict[str, Any]:
            return {"input_ids": [[1] * add_special_tokens + [97] * text.count("a") for text in texts]}

    with pytest.raises(PromptError, match="has no tokens"):
        align(Encoder(Dropping()), contrast(["ab", "b"]), {"0": 0, "1": 1})


def test_a_tokenizer_without_offsets() -> None:
    class Slow:
        is_fast = False

        def __call__(self, texts: list[str], *, add_special_tokens: bool, **_: Any) -> dict[str, Any]:
            return {"input_ids": tiny_tokenizer()(texts, add_special_tokens=add_special_tokens)["input_ids"]}

    contrasts = tiny_contrasts()
    slow, _ = align_all(contrasts, Encoder(Slow()))
    fast, _ = align_all(contrasts, ENCODER)
    assert [c.suffix for c in slow] == [c.suffix for c in fast]


def test_vocabularies() -> None:
    assert vocabularies(tiny_contrasts())["age"] == ("elderly", "middle aged", "old", "young")


def test_attribute_tokens_are_the_first_of_each_span() -> None:
    contrasts = tiny_contrasts()
    tokenizer = tiny_tokenizer()
    aligned, _ = align_all(contrasts, Encoder(tokenizer))
    names = vocabularies(contrasts)
    for category, tokens in attribute_tokens(aligned).items():
        assert len(tokens) == len(names[category])
        for value, found in zip(names[category], tokens, strict=True):
            texts = {v.text for c in contrasts if c.category == category for v in c.variants if v.attribute == value}
            assert all(any(token in tokenizer(text).input_ids for text in texts) for token in found)
            assert found


def legitimate(first: tuple[str, ...], second: tuple[str, ...]) -> Contrast:
    variants = (
        Variant(attribute="man", text="The man said that", right=first),
        Variant(attribute="woman", text="The woman said that", right=second),
    )
    return Contrast(id="c", category="g", template_id="t", variants=variants, legitimate=True)


def test_the_first_token_of_right_words() -> None:
    found = align(ENCODER, legitimate(("clerk", "doctor"), ("teacher",)), {"man": 0, "woman": 1})
    expected = [tuple(ENCODER.ids(f"a {word}")[-1] for word in words) for words in (("clerk", "doctor"), ("teacher",))]
    assert found.right == tuple(expected)
    assert found.role == "legitimate"
    assert not align(ENCODER, contrast(["a man", "a woman"]), {}).right


def test_right_words_that_begin_with_the_same_token() -> None:
    with pytest.raises(PromptError, match="'zzq' \\(man\\) and 'zzw' \\(woman\\) begin with the same token"):
        align(ENCODER, legitimate(("zzq",), ("zzw",)), {})


@pytest.mark.parametrize(
    ("texts", "spans"),
    [
        (
            ["\u0e04\u0e19\u0e14\u0e33\u0e40\u0e14\u0e34\u0e19", "\u0e04\u0e19\u0e02\u0e32\u0e27\u0e40\u0e14\u0e34\u0e19"],
            ["\u0e14\u0e33", "\u0e02\u0e32\u0e27"],
        ),
        (["האיש היהודי נכנס", "האיש המוסלמי נכנס"], ["היהודי", "המוסלמי"]),
        (["הָאִישׁ נִכְנַס", "הָאִשָּׁה נִכְנַס"], ["הָאִישׁ", "הָאִשָּׁה"]),
        (["한국인은 가게에 들어갔다", "일본인은 가게에 들어갔다"], ["한국인은", "일본인은"]),
        (["흑인 남자가 말했다", "백인 남자가 말했다"], ["흑인", "백인"]),
        (
            ["A \U0001f469\u200d\U0001f680 flew", "A \U0001f468\u200d\U0001f680 flew"],
            ["\U0001f469\u200d\U0001f680", "\U0001f468\u200d\U0001f680"],
        ),
        (["A \U0001f1e9\U0001f1ea fan", "A \U0001f1e9\U0001f1f0 fan"], ["\U0001f1e9\U0001f1ea", "\U0001f1e9\U0001f1f0"]),
        (["A cafe\u0301 owner", "A cafe owner"], ["cafe\u0301", "cafe"]),
        (
            ["\uff22\uff4c\uff41\uff43\uff4b man", "\uff37\uff48\uff49\uff54\uff45 man"],
            ["\uff22\uff4c\uff41\uff43\uff4b", "\uff37\uff48\uff49\uff54\uff45"],
        ),
        (["می\u200cروم خانه", "می\u200cرود خانه"], ["می\u200cروم", "می\u200cرود"]),
        (["মুসলিম লোক", "হিন্দু লোক"], ["মুসলিম", "হিন্দু"]),
        (["رجل مسلم قال", "رجل مسيحي قال"], ["مسلم", "مسيحي"]),
        (["\u0130stanbul man", "Istanbul man"], ["\u0130stanbul", "Istanbul"]),
    ],
    ids=[
        "thai",
        "hebrew",
        "points",
        "korean",
        "hangul",
        "joined",
        "flags",
        "marks",
        "wide",
        "persian",
        "bengali",
        "arabic",
        "dotted",
    ],
)
def test_spans_in_many_scripts_as_their_readers_set_them(texts: list[str], spans: list[str]) -> None:
    assert [text[start:end] for text, (start, end) in zip(texts, attribute_spans(texts), strict=True)] == spans
