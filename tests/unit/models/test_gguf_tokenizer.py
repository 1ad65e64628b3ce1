"""Which tokenizers a GGUF file can hold."""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, normalizers, pre_tokenizers

from fairprune_framework.models.gguf_tokenizer import SPLITS, pre_tokenizer
from fairprune_framework.testing.tiny import tiny_tokenizer


def split(by: Any = None, normalizer: Any = None) -> tuple[str, str | None]:
    tokenizer = tiny_tokenizer()
    if by is not None:
        tokenizer.backend_tokenizer.pre_tokenizer = by
    if normalizer is not None:
        tokenizer.backend_tokenizer.normalizer = normalizer
    return pre_tokenizer(tokenizer)


def test_how_texts_are_split_has_a_name_or_a_reason() -> None:
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    assert split(whole) == ("gpt-2", None)
    assert "puts a space before every text" in str(split()[1])
    assert split(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])) == ("smollm", None)
    for expression, name in SPLITS.items():
        by = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(expression), "isolated"), plain])
        assert split(by) == (name, None)
    other = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("x"), "isolated"), plain])
    assert "no name here for how its tokenizer splits a text (Split and ByteLevel)" in str(split(other)[1])
    assert "changes texts first (Lowercase)" in str(split(whole, normalizers.Lowercase())[1])
    assert "no tokenizer.json" in str(pre_tokenizer(object())[1])
