"""Borders of words in many scripts: spans as a reader of the language sets them, and text that is never changed."""

from __future__ import annotations

import unicodedata
from itertools import pairwise

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fairprune_framework.contrasts.alignment import align, attribute_spans
from fairprune_framework.contrasts.schema import Contrast, Variant
from fairprune_framework.contrasts.words import inside_word
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.testing.tiny import tiny_tokenizer

PAIRS = {
    "chinese": ("一位黑人律师在办公室工作", "一位白人律师在办公室工作", "黑", "白"),
    "japanese": ("その黒人看護師は店に入って、", "その白人看護師は店に入って、", "黒", "白"),
    "katakana": ("アメリカ人の先生は", "アフリカ人の先生は", "アメリカ", "アフリカ"),
    "korean": ("그 흑인은 가게에 갔다", "그 백인은 가게에 갔다", "흑인은", "백인은"),
    "hindi, a vowel sign": ("वह लड़का घर गया", "वह लड़की घर गया", "लड़का", "लड़की"),
    "arabic, a vowel sign": ("ذهب الرجلُ إلى", "ذهب الرجلَ إلى", "الرجلُ", "الرجلَ"),
    "arabic": ("ذهب الرجل إلى", "ذهبت المرأة إلى", "ذهب الرجل", "ذهبت المرأة"),
    "hebrew": ("צה״ל אמר", "צה״ב אמר", "צה״ל", "צה״ב"),
    "thai": ("ผู้ชายคนนี้เดิน", "ผู้หญิงคนนี้เดิน", "ชาย", "หญิง"),
    "thai, a vowel before its consonant": ("คนเก่งมา", "คนเล็งมา", "เก่", "เล็"),
    "thai, a vowel after its consonant": ("คนตามา", "คนตะมา", "ตา", "ตะ"),
    "spanish": ("El niño corre", "El niña corre", "niño", "niña"),
    "german": ("die Ärztin kam", "die Arztin kam", "Ärztin", "Arztin"),
    "accents of their own": ("un cafe\u0301 noir", "un cafe\u0300 noir", "cafe\u0301", "cafe\u0300"),
    "ukrainian, an apostrophe": ("п'ять осіб", "п'ята осіб", "п'ять", "п'ята"),
    "english, an apostrophe": ("the man's car", "the woman's car", "man", "woman"),
    "full-width": ("Ｔｈｅ Ｍａｎ ｒａｎ", "Ｔｈｅ Ｍｅｎ ｒａｎ", "Ｍａｎ", "Ｍｅｎ"),
    "pictures of several characters": ("a 👩🏽‍⚕️ came", "a 👨🏻‍⚕️ came", "👩🏽‍⚕️", "👨🏻‍⚕️"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_spans(name: str) -> None:
    *texts, one, other = PAIRS[name]
    assert [text[slice(*span)] for text, span in zip(texts, attribute_spans(texts), strict=True)] == [one, other]


@pytest.mark.parametrize("name", PAIRS)
def test_what_follows_is_matched_under_a_byte_level_tokenizer(name: str) -> None:
    *texts, one, other = PAIRS[name]
    contrast = Contrast(
        id="c",
        category="x",
        template_id="t",
        variants=tuple(Variant(attribute=part, text=text) for part, text in zip((one, other), texts, strict=True)),
    )
    tokenizer = tiny_tokenizer()
    found = align(Encoder(tokenizer), contrast, {})
    for text, span, tokens in zip(texts, attribute_spans(texts), found.variants, strict=True):
        assert tokenizer.decode(tokens.ids[tokens.start : tokens.end]).strip() == text[slice(*span)]
        assert tokenizer.decode(tokens.ids[tokens.end :]) == text[span[1] :]


ASCII = st.text(st.characters(max_codepoint=126, min_codepoint=32), max_size=12)


@given(ASCII, st.integers(-1, 13))
@settings(max_examples=200)
def test_ascii_by_hand(text: str, position: int) -> None:
    between = 0 < position < len(text) and (text[position - 1] + text[position]).isalnum()
    assert inside_word(text, position) == between


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=10))
@example("\U00018cd6\u03000")  # a mark on a letter that this Python's tables do not know, before a digit
@settings(max_examples=300)
def test_marks_stay_with_their_letters_and_characters_whole(text: str) -> None:
    """Between two blanks every border is one between extended grapheme clusters, as `regex` finds them in the whole text."""
    if any(char.isspace() or unicodedata.category(char) == "Cc" for char in text):
        return
    clusters = {match.end() for match in regex.finditer(r"\X", text)}
    borders = [position for position in range(1, len(text)) if not inside_word(text, position)]
    plain = [p for p, (a, b) in enumerate(pairwise(text), start=1) if a.isascii() and b.isascii()]
    assert set(borders) - set(plain) <= clusters


def test_a_span_leaves_every_character_as_it_was() -> None:
    composed, apart = "caf\u00e9 a", "cafe\u0301 a"
    assert unicodedata.normalize("NFC", apart) == composed
    assert [text[slice(*span)] for text, span in zip((composed, apart), attribute_spans([composed, apart]), strict=True)] == [
        "caf\u00e9",
        "cafe\u0301",
    ]
