"""A tokenizer with the settings of this project, and what can be wrong with it, said before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from fairprune_framework.errors import PromptError, UserError, shown
from fairprune_framework.utilities.deadline import within

PATIENCE = 10.0
"""Seconds for a chat template to wrap one text."""
LONGEST_TEMPLATE = 100_000
"""Characters that a chat template may add to a text."""
Encoded = tuple[list[int], list[tuple[int, int]] | None]
"""Token ids of a text, and the characters of each token: (0, 0) for a special token; None where the tokenizer cannot tell."""


class Encoder:
    """A tokenizer with the settings of this project: offsets, special tokens, and optionally the chat template.

    Tokens that the tokenizer appends to every text (`</s>`) are left off: what is measured at the last token would otherwise be
    measured after the end of the text.

    Args:
        tokenizer: of transformers, fast or slow.
        chat_template: wrap texts as one user turn.
        limit: the model's context length in tokens.
        rows: rows of the model's embedding; a token beyond them is an error.
    """

    def __init__(
        self, tokenizer: Any, *, chat_template: bool = False, limit: int | None = None, rows: int | None = None
    ) -> None:
        if chat_template and not getattr(tokenizer, "chat_template", None):
            raise UserError("the tokenizer has no chat template: omit --chat-template")
        self.tokenizer = tokenizer
        self._chat = chat_template
        self.limit = limit
        """The model's context length in tokens."""
        self._rows = rows

    @cached_property
    def _added(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        bare, whole = (self._ids(["a"], special)[0] for special in (False, True))
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return tuple(whole[:start]), tuple(whole[start + len(bare) :])
        special = set(getattr(self.tokenizer, "all_special_ids", ()))
        start = next((i for i, token in enumerate(whole) if token not in special), len(whole))
        end = next((i for i, token in enumerate(reversed(whole)) if token not in special), 0)
        return tuple(whole[:start]), tuple(whole[len(whole) - end :])

    def _ids(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        encoded = self.tokenizer(list(texts), add_special_tokens=special, return_offsets_mapping=False)
        return [list(ids) for ids in encoded["input_ids"]]

    @property
    def opening(self) -> tuple[int, ...]:
        """Tokens that the tokenizer puts before every text."""
        return self._added[0]

    @property
    def closing(self) -> tuple[int, ...]:
        """Tokens that the tokenizer appends to every text, which are left off."""
        return self._added[1]

    @property
    def notes(self) -> list[str]:
        """What is done otherwise than by the tokenizer, as sentences."""
        if not self.closing:
            return []
        names = " ".join(repr(self.tokenizer.decode([token])) for token in self.closing)
        return [f"the tokenizer appends {names} to every text: it is left off, so that the last token is the text's own"]

    def wrapped(self, text: str) -> str:
        """The text in its chat template, if one is used.

        Raises:
            UserError: the template fails, goes on for ever, leaves out the text, or adds what is no text.
        """
        if not self._chat:
            return text
        turn = [{"role": "user", "content": text}]
        try:
            with within(PATIENCE):
                wrapped = str(self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
            if len(wrapped) > len(text) + LONGEST_TEMPLATE:
                raise ValueError(f"it adds {len(wrapped) - len(text):,} characters to a text")
            wrapped.encode()
        except Exception as error:  # a template is a program of its author: it may raise anything
            raise UserError(
                f"the chat template of the tokenizer fails: {type(error).__name__}: {shown(str(error))}. Omit --chat-template, or mend it"
            ) from error
        if text.strip() not in wrapped:
            raise UserError(
                f"the chat template of the tokenizer leaves out or changes the text {shown(text)}: omit --chat-template"
            )
        return wrapped

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Token ids of each (wrapped) text, and the character span of each token.

        Raises:
            UserError: a token that the model's embedding does not hold.
        """
        fast = bool(getattr(self.tokenizer, "is_fast", False))
        encoded = self.tokenizer(list(texts), add_special_tokens=not self._chat, return_offsets_mapping=fast)
        found: list[Encoded] = []
        for place, (text, given) in enumerate(zip(texts, encoded["input_ids"], strict=True)):
            ids = self._without_closing(list(given)) if not self._chat else list(given)
            self._check(ids)
            spans = list(encoded["offset_mapping"][place])[: len(ids)] if fast else self._spans_by_decoding(text, ids)
            found.append((ids, spans if spans is not None and any(end > start for start, end in spans) else None))
        return found

    def _without_closing(self, ids: list[int]) -> list[int]:
        closing = list(self.closing)
        return ids[: -len(closing)] if closing and ids[-len(closing) :] == closing else ids

    def _check(self, ids: Sequence[int]) -> None:
        if self._rows is not None and ids and (most := max(ids)) >= self._rows:
            raise UserError(
                f"the tokenizer gives token {most} ({self.tokenizer.decode([most])!r}), but the model's embedding holds {self._rows}: "
                "tokens were added without resizing it. Use the tokenizer that the model was trained with"
            )

    def _spans_by_decoding(self, text: str, ids: Sequence[int]) -> list[tuple[int, int]] | None:
        """Characters of each token of a slow tokenizer, told by what its first tokens decode to; None where that is not the text."""
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        special = set(getattr(self.tokenizer, "all_special_ids", ()))
        if not hasattr(self.tokenizer, "decode"):
            return None
        whole = self.tokenizer.decode(list(ids), **options)
        extra = len(whole) - len(text)
        if extra not in (0, 1) or whole[extra:] != text:
            return None
        spans, done = [], 0
        for place, token in enumerate(ids):
            part = self.tokenizer.decode(list(ids[: place + 1]), **options)
            complete = next(
                (i for i, (a, b) in enumerate(zip(part, whole, strict=False)) if a != b), min(len(part), len(whole))
            )
            end = max(complete - extra, done)
            partial = len(part) > complete  # bytes of a character that later tokens complete
            spans.append((0, 0) if token in special else (done, max(end, done + 1 if partial else end)))
            done = end
        return spans

    def ids(self, text: str) -> list[int]:
        """Token ids of one text."""
        return self.encode([self.wrapped(text)])[0][0]

    def document(self, text: str) -> list[int]:
        """Token ids of a text that is no prompt: without a chat template, and with what the tokenizer puts before every text.

        Raises:
            UserError: as `encode`.
        """
        ids = self._without_closing(self._ids([text], True)[0])
        self._check(ids)
        return ids

    def continued(self, text: str, word: str) -> list[int]:
        """The token ids that a word adds when it goes on with a text, after a blank; with a chat template it opens the answer.

        Raises:
            PromptError: the tokenizer does not keep the text's own tokens before the word.
        """
        wrapped = self.wrapped(text)
        (before, _), (after, _) = self.encode([wrapped, wrapped + ("" if self._chat else " ") + word])
        if len(after) <= len(before) or after[: len(before)] != before:
            raise PromptError(f"the tokenizer does not tell {word!r} from the text before it: {text!r:.80}")
        return after[len(before) :]
