"""A tokenizer with the settings of this project."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairprune_framework.errors import UserError


class Encoder:
    """A tokenizer with the settings of this project: offsets, special tokens, and optionally the chat template."""

    def __init__(self, tokenizer: Any, *, chat_template: bool = False, limit: int | None = None) -> None:
        if chat_template and not getattr(tokenizer, "chat_template", None):
            raise UserError("the tokenizer has no chat template: omit --chat-template")
        self._tokenizer = tokenizer
        self._chat = chat_template
        self.limit = limit
        """The model's context length in tokens."""

    def wrapped(self, text: str) -> str:
        """The text in its chat template, if one is used."""
        if not self._chat:
            return text
        turn = [{"role": "user", "content": text}]
        return str(self._tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))

    def encode(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]] | None]]:
        """Token ids of each (wrapped) text, and the character span of each token; None if the tokenizer has no offsets."""
        fast = bool(getattr(self._tokenizer, "is_fast", False))
        encoded = self._tokenizer(list(texts), add_special_tokens=not self._chat, return_offsets_mapping=fast)
        offsets = encoded["offset_mapping"] if fast else [None] * len(texts)
        return [(list(ids), spans) for ids, spans in zip(encoded["input_ids"], offsets, strict=True)]

    def ids(self, text: str) -> list[int]:
        """Token ids of one text."""
        return self.encode([self.wrapped(text)])[0][0]
