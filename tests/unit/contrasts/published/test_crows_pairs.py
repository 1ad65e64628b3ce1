"""CrowS-Pairs in its published columns, on invented sentences."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairprune_framework.contrasts.readers import read
from fairprune_framework.errors import PromptError

ROW = {"": "31", "sent_more": "Women are late.", "sent_less": "Men are late.", "bias_type": "gender"}


def test_two_sentences_are_a_contrast() -> None:
    (found,) = read([ROW]).contrasts
    assert (found.id, found.category, found.template_id) == ("crows-pairs/31", "gender", "crows-pairs/31")
    assert [(v.attribute, v.text) for v in found.variants] == [("more", "Women are late."), ("less", "Men are late.")]


def test_columns_may_be_mapped_over_it() -> None:
    mapped = read([{**ROW, "kind": "sex"}], columns={"category": "kind"}).contrasts[0]
    assert (mapped.category, mapped.variants[0].attribute) == ("sex", "more")
    plain = read([ROW], columns={"prompt_1": "sent_more", "prompt_2": "sent_less"}).contrasts[0]
    assert (plain.id, [v.attribute for v in plain.variants]) == ("row-1", ["Women", "Men"])


def test_an_empty_sentence_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "crows.csv"
    path.write_text(",sent_more,sent_less,bias_type\n0,A b,A c,age\n1,A b,,age\n")
    with pytest.raises(PromptError, match=r"crows.csv, line 3: contrast 'crows-pairs/1' has an empty text"):
        read(path)
    assert len(read(path, bad="skip").contrasts) == 1
