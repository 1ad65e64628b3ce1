"""The tokenizer's wrapper against the tokenizer itself."""

from __future__ import annotations

from typing import Any

import pytest

from fairprune_framework.errors import UserError
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.testing.tiny import tiny_tokenizer

TEXTS = ["The nurse walked home .", "né 男", "  two  blanks", ""]
CHAT = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}{% endfor %}{% if add_generation_prompt %} now:{% endif %}"


def chatting() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    return tokenizer


def test_ids_are_the_tokenizers_with_its_special_tokens() -> None:
    tokenizer, encoder = tiny_tokenizer(), Encoder(tiny_tokenizer())
    for text, (ids, _) in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        assert ids == tokenizer(text)["input_ids"] == encoder.ids(text)
        assert ids[0] == tokenizer.bos_token_id


def test_offsets_point_at_the_text_of_each_token() -> None:
    tokenizer = tiny_tokenizer()
    text = "The nurse walked home ."
    ((ids, spans),) = Encoder(tokenizer).encode([text])
    assert spans is not None
    assert spans[0] == (0, 0)  # special
    assert [text[start:end] for start, end in spans[1:]] == [tokenizer.decode([i]).strip() for i in ids[1:]]


def test_a_slow_tokenizer_has_no_offsets() -> None:
    class Slow:
        is_fast = False

        def __call__(self, texts: list[str], *, add_special_tokens: bool, return_offsets_mapping: bool) -> dict[str, Any]:
            assert not return_offsets_mapping
            return {"input_ids": [[1, *map(ord, text)] if add_special_tokens else list(map(ord, text)) for text in texts]}

    assert Encoder(Slow()).encode(["ab"]) == [([1, 97, 98], None)]


def test_a_chat_template_is_applied_once() -> None:
    """The template brings the special tokens: the tokenizer must not add them a second time."""
    encoder, plain = Encoder(chatting(), chat_template=True), Encoder(chatting())
    assert plain.wrapped("A man") == "A man"
    assert encoder.wrapped("A man") == "<s>user: A man now:"
    expected = chatting().apply_chat_template(
        [{"role": "user", "content": "A man"}], add_generation_prompt=True, return_dict=False
    )
    assert encoder.ids("A man") == list(expected)
    assert encoder.ids("A man").count(chatting().bos_token_id) == 1


def test_a_chat_template_that_is_not_there() -> None:
    with pytest.raises(UserError, match="has no chat template"):
        Encoder(tiny_tokenizer(), chat_template=True)
