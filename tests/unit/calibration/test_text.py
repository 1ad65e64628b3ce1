"""Calibration text: what ships, what a file gives, and which of its tokens are rare."""

from __future__ import annotations

import re

import pytest

from fairprune_framework.calibration.builtin import text_file
from fairprune_framework.calibration.text import Calibration, from_file
from fairprune_framework.contrasts.builtin import builtin
from fairprune_framework.errors import UnknownName
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.recipes.recipe import Recipe
from fairprune_framework.testing.tiny import tiny_tokenizer


def test_the_text_that_ships_is_read() -> None:
    found = from_file("builtin:en", Encoder(tiny_tokenizer()), 4096, 100)
    assert found.source == "builtin:en"
    assert len(found.documents) == 64
    assert len(found.scoring) == len(found.judging) == 32
    few = from_file("builtin:en", Encoder(tiny_tokenizer()), 16, 8)
    assert few.documents == tuple(ids[:16] for ids in found.documents[:8])


def test_the_text_that_ships_names_no_attribute_of_the_prompts_that_ship() -> None:
    text = text_file("builtin:en").read_text(encoding="utf-8").lower()
    words = {variant.attribute.lower() for contrast in builtin("en") if not contrast.control for variant in contrast.variants}
    named = {word for word in words if re.search(rf"\b{re.escape(word)}\b", text)}
    assert len(words) > 10
    assert not named


@pytest.mark.parametrize(("name", "words"), [("builtin:de", "there are: en"), ("builtin:eng", "Did you mean 'en'?")])
def test_an_unknown_text_is_refused(name: str, words: str) -> None:
    with pytest.raises(UnknownName, match=re.escape(words)):
        from_file(name, Encoder(tiny_tokenizer()), 64, 8)


def test_sampled_is_the_same_as_none() -> None:
    assert Recipe(calibration="sampled") == Recipe(calibration=None)


def test_rare_tokens_by_hand() -> None:
    scoring = [(1, 2, 9), (1, 3, 9), (1, 4, 9), (1, 5, 2), (1, 6, 2, 6), (1, 7), (1, 8), (1, 10)]
    documents = tuple(ids for one in scoring for ids in (one, (99, 100)))  # the judging half does not count
    for ids, contrast in zip(scoring, Calibration(documents=documents, source="test").as_contrasts(), strict=True):
        held = [sum(token in other for other in scoring) for token in ids]
        assert contrast.variants[0].rare == tuple(place for place, count in enumerate(held) if count <= 2)
