"""Texts into tokens, and which tokens of the variants belong together.

The attribute span runs from the first to the last character at which the variants differ, widened to word borders, and is
mapped to tokens by offsets. The tokens after it are matched from the end; where the tokenizer splits that suffix differently, the unequal
head joins the span. Nothing is truncated: a text longer than the model's context is an error, or listed as skipped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.errors import PromptError, UserError


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """One text: its token ids, and the tokens `[start:end)` of the attribute."""

    ids: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class AlignedContrast:
    """A contrast under a tokenizer. After `end`, every variant has the same number of tokens, `suffix`, with equal ids."""

    id: str
    category: str
    template_id: str
    control: bool
    split: str | None
    variants: tuple[Tokens, ...]
    attributes: tuple[int, ...]
    """Index of each variant's value in the category's vocabulary."""

    @property
    def suffix(self) -> int:
        """Number of matched tokens after the attribute."""
        return len(self.variants[0].ids) - self.variants[0].end

    @property
    def equal_length(self) -> bool:
        """All variants have the same number of tokens."""
        return len({len(tokens.ids) for tokens in self.variants}) == 1

    @property
    def length(self) -> int:
        """Tokens of the longest variant."""
        return max(len(tokens.ids) for tokens in self.variants)


def attribute_spans(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Character span of the difference in each text, widened to word borders.

    >>> attribute_spans(["A Black man walked", "A white man walked"])
    [(2, 7), (2, 7)]
    """
    shortest = min(len(text) for text in texts)
    prefix = _shared_prefix(texts)
    suffix = min(_shared_prefix([text[::-1] for text in texts]), shortest - prefix)
    first = texts[0]
    while prefix > 0 and first[prefix - 1].isalnum() and any(_inside_word(text, prefix) for text in texts):
        prefix -= 1
    while suffix > 0 and first[-suffix].isalnum() and any(_inside_word(text, len(text) - suffix) for text in texts):
        suffix -= 1
    return [(prefix, len(text) - suffix) for text in texts]


def _shared_prefix(texts: Sequence[str]) -> int:
    low, high = min(texts), max(texts)  # what these two share, all between them share
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))


def _inside_word(text: str, position: int) -> bool:
    return 0 < position < len(text) and text[position - 1].isalnum() and text[position].isalnum()


class Encoder:
    """A tokenizer as this project uses it: offsets, special tokens, the chat template if asked for."""

    def __init__(self, tokenizer: Any, *, chat_template: bool = False, limit: int | None = None) -> None:
        if chat_template and not getattr(tokenizer, "chat_template", None):
            raise UserError("the tokenizer has no chat template: leave out --chat-template")
        self._tokenizer = tokenizer
        self._chat = chat_template
        self.limit = limit
        """The model's context length in tokens."""

    def wrapped(self, text: str) -> str:
        """The text as the model sees it."""
        if not self._chat:
            return text
        turn = [{"role": "user", "content": text}]
        return str(self._tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))

    def encode(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]] | None]]:
        """Token ids of each (wrapped) text, and the character span of each token, None where the tokenizer cannot tell."""
        fast = bool(getattr(self._tokenizer, "is_fast", False))
        encoded = self._tokenizer(list(texts), add_special_tokens=not self._chat, return_offsets_mapping=fast)
        offsets = encoded["offset_mapping"] if fast else [None] * len(texts)
        return [(list(ids), spans) for ids, spans in zip(encoded["input_ids"], offsets, strict=True)]

    def ids(self, text: str) -> list[int]:
        """Token ids of one text."""
        return self.encode([self.wrapped(text)])[0][0]

    def align(self, contrast: Contrast, vocabulary: Mapping[str, int]) -> AlignedContrast:
        """Tokenize the variants and find their attribute tokens.

        Raises:
            PromptError: variants with equal tokens, or longer than the model's context.
        """
        texts = [self.wrapped(variant.text) for variant in contrast.variants]
        encoded = self.encode(texts)
        for ids, _ in encoded:
            if self.limit is not None and len(ids) > self.limit:
                raise PromptError(f"contrast {contrast.id!r} has {len(ids)} tokens; the model's context holds {self.limit}")
            if not ids:
                raise PromptError(f"contrast {contrast.id!r} has no tokens under this tokenizer")
        if len({tuple(ids) for ids, _ in encoded}) < len(encoded):
            raise PromptError(f"contrast {contrast.id!r} has variants with equal tokens under this tokenizer")
        starts, suffix = _token_spans(encoded, attribute_spans(texts))
        variants = tuple(
            Tokens(ids=tuple(ids), start=min(start, len(ids) - suffix), end=len(ids) - suffix)
            for (ids, _), start in zip(encoded, starts, strict=True)
        )
        return AlignedContrast(
            id=contrast.id,
            category=contrast.category,
            template_id=contrast.template_id,
            control=contrast.control,
            split=contrast.split,
            variants=variants,
            attributes=tuple(vocabulary[variant.attribute] for variant in contrast.variants),
        )


def _token_spans(
    encoded: Sequence[tuple[list[int], list[tuple[int, int]] | None]], spans: Sequence[tuple[int, int]]
) -> tuple[list[int], int]:
    shortest = min(len(ids) for ids, _ in encoded)
    first = encoded[0][0]
    suffix = 0

    def behind(offsets: list[tuple[int, int]] | None, place: int, end: int) -> bool:
        return offsets is None or offsets[place][0] >= end or offsets[place] == (0, 0)  # (0, 0): a special token

    while suffix < shortest and all(
        ids[-suffix - 1] == first[-suffix - 1] and behind(offsets, -suffix - 1, end)
        for (ids, offsets), (_, end) in zip(encoded, spans, strict=True)
    ):
        suffix += 1
    starts = []
    common = next((i for i in range(shortest) if any(ids[i] != first[i] for ids, _ in encoded)), shortest)
    for (ids, offsets), (start, _) in zip(encoded, spans, strict=True):
        if offsets is None:
            starts.append(common)
        else:
            inside = (i for i, (_, end) in enumerate(offsets) if end > start)
            starts.append(min(next(inside, len(ids)), common))
    return starts, suffix


def vocabularies(contrasts: Iterable[Contrast]) -> dict[str, tuple[str, ...]]:
    """category -> its attribute values, sorted."""
    values: dict[str, set[str]] = {}
    for contrast in contrasts:
        values.setdefault(contrast.category, set()).update(variant.attribute for variant in contrast.variants)
    return {category: tuple(sorted(found)) for category, found in sorted(values.items())}


def attribute_tokens(contrasts: Iterable[AlignedContrast]) -> dict[str, tuple[tuple[int, ...], ...]]:
    """category -> for each attribute value the first tokens of its span in the texts, the most frequent first."""
    seen: dict[str, dict[int, Counter[int]]] = {}
    for contrast in contrasts:
        values = seen.setdefault(contrast.category, {})
        for attribute, tokens in zip(contrast.attributes, contrast.variants, strict=True):
            if tokens.start < tokens.end:
                values.setdefault(attribute, Counter())[tokens.ids[tokens.start]] += 1
    return {
        category: tuple(
            tuple(token for token, _ in sorted(values.get(i, Counter()).items(), key=lambda item: (-item[1], item[0])))
            for i in range(max(values, default=-1) + 1)
        )
        for category, values in seen.items()
    }


def align_all(
    contrasts: Sequence[Contrast], encoder: Encoder, bad: Literal["error", "skip"] = "error"
) -> tuple[list[AlignedContrast], list[tuple[str, str]]]:
    """Align every contrast; with `skip`, those that cannot be used come back as (id, reason)."""
    values = {category: {v: i for i, v in enumerate(names)} for category, names in vocabularies(contrasts).items()}
    aligned, skipped = [], []
    for contrast in contrasts:
        try:
            aligned.append(encoder.align(contrast, values[contrast.category]))
        except PromptError as error:
            if bad == "error":
                raise
            skipped.append((contrast.id, str(error)))
    if not aligned:
        raise PromptError("no contrast of the prompt set can be used under this model's tokenizer")
    return aligned, skipped
