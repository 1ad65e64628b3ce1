"""A tokenizer with the settings of this project."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fairprune_framework.errors import PromptError, UserError


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

    def continued(self, text: str, word: str) -> list[int]:
        """The token ids that a word adds when it goes on with a text, after a blank; with a chat template it opens the answer.

        Raises:
            PromptError: the tokenizer does not keep the text's own tokens before the word.
        """
        wrapped = self.wrapped(text)
        (before, _), (after, _) = self.encode([wrapped, wrapped + ("" if self._chat else " ") + word])
        same = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
        closing = len(before) - same  # special tokens that end every text
        if len(after) <= len(before) or after[len(after) - closing :] != before[same:]:
            raise PromptError(f"the tokenizer does not tell {word!r} from the text before it: {text!r:.80}")
        return after[same : len(after) - closing]
