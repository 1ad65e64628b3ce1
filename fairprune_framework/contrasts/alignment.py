"""Texts into tokens, and which tokens of the variants belong together.

The attribute span runs from the first to the last character at which the variants differ, widened to word borders in any script (see
`words`), and is mapped to tokens by offsets: in scripts without blanks to all tokens that hold a part of it. The tokens after it are
matched from the end; where the tokenizer splits that suffix differently, the unequal head joins the span. Nothing is truncated: a text
longer than the model's context is an error, or listed as skipped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from fairprune_framework.contrasts.schema import Contrast, Role, origin_of, role_of, stereotyping_variants
from fairprune_framework.contrasts.words import inside_word
from fairprune_framework.errors import PromptError
from fairprune_framework.models.encoder import Encoder

VALUES = 16
"""Attribute values of a category that statistics tell apart; the others are `other`."""
ENCODED = 256
"""Contrasts that are tokenized at once."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """One text: its token ids, and the tokens `[start:end)` of the attribute."""

    ids: tuple[int, ...]
    start: int
    end: int
    rare: tuple[int, ...] = ()
    """Of calibration text: the places of tokens that few of its documents hold."""


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
    stereotyping: int | None = None
    """Place of the stereotyping one of two variants, where they are named so: see `schema.stereotyping_variants`."""
    legitimate: bool = False
    right: tuple[tuple[int, ...], ...] = ()
    """Of a legitimate contrast, for each variant: the first token of each of its right next words."""
    neutral_of: str | None = None

    @property
    def role(self) -> Role:
        """As of the contrast."""
        return role_of(self.control, self.legitimate)

    @property
    def origin(self) -> tuple[str, str]:
        """As of the contrast."""
        return origin_of(self.category, self.template_id, self.neutral_of)

    @property
    def suffix(self) -> int:
        """Number of matched tokens after the attribute."""
        return len(self.variants[0].ids) - self.variants[0].end

    @property
    def equal_length(self) -> bool:
        """All variants have the same number of tokens."""
        return len({len(tokens.ids) for tokens in self.variants}) == 1

    @property
    def same_start(self) -> bool:
        """All variants begin with the same token: one that has no probability, where nothing stands before it."""
        return len({tokens.ids[0] for tokens in self.variants}) == 1

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
    while prefix > 0 and any(inside_word(text, prefix) for text in texts):
        prefix -= 1
    while suffix > 0 and any(inside_word(text, len(text) - suffix) for text in texts):
        suffix -= 1
    return [(prefix, len(text) - suffix) for text in texts]


def _shared_prefix(texts: Sequence[str]) -> int:
    low, high = min(texts), max(texts)  # what these two share, all between them share
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))


def align(encoder: Encoder, contrast: Contrast, vocabulary: Mapping[str, int]) -> AlignedContrast:
    """Tokenize the variants and find their attribute tokens.

    Raises:
        PromptError: variants with equal tokens, or longer than the model's context; right words that begin alike.
    """
    texts = [encoder.wrapped(variant.text) for variant in contrast.variants]
    return _aligned(encoder, contrast, texts, encoder.encode(texts), vocabulary)


def _aligned(
    encoder: Encoder,
    contrast: Contrast,
    texts: Sequence[str],
    encoded: Sequence[tuple[list[int], list[tuple[int, int]] | None]],
    vocabulary: Mapping[str, int],
) -> AlignedContrast:
    """As `align`, where the (wrapped) texts were encoded before. A value that the vocabulary lacks is `other`, the index after its
    last."""
    for ids, _ in encoded:
        if encoder.limit is not None and len(ids) > encoder.limit:
            raise PromptError(f"contrast {contrast.id!r} has {len(ids)} tokens; the model's context holds {encoder.limit}")
        if tuple(ids) in ((), encoder.opening):
            raise PromptError(f"contrast {contrast.id!r} has no tokens under this tokenizer")
    if len({tuple(ids) for ids, _ in encoded}) < len(encoded):
        raise PromptError(f"contrast {contrast.id!r} has variants with equal tokens under this tokenizer")
    starts, suffix = _token_spans(encoded, attribute_spans(texts))
    stereotyped = stereotyping_variants(contrast)
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
        attributes=tuple(vocabulary.get(variant.attribute, len(vocabulary)) for variant in contrast.variants),
        stereotyping=stereotyped[0] if stereotyped else None,
        legitimate=contrast.legitimate,
        right=_right_tokens(encoder, contrast),
        neutral_of=contrast.neutral_of,
    )


def _right_tokens(encoder: Encoder, contrast: Contrast) -> tuple[tuple[int, ...], ...]:
    if not contrast.legitimate:
        return ()
    found: list[tuple[int, ...]] = []
    taken: dict[int, tuple[str, str]] = {}
    for variant in contrast.variants:
        first = {word: encoder.continued(variant.text, word)[0] for word in variant.right}
        found.append(tuple(dict.fromkeys(first.values())))
        for word, token in first.items():
            attribute, other = taken.setdefault(token, (variant.attribute, word))
            if attribute != variant.attribute:
                raise PromptError(
                    f"contrast {contrast.id!r}: the right words {other!r} ({attribute}) and {word!r} ({variant.attribute}) begin with the "
                    "same token, and only the first one is scored"
                )
    return tuple(found)


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
    """category -> its attribute values, sorted; of more than `VALUES` the most frequent."""
    counted: dict[str, Counter[str]] = {}
    for contrast in contrasts:
        counted.setdefault(contrast.category, Counter()).update(variant.attribute for variant in contrast.variants)
    return {category: ranked_values(counts)[0] for category, counts in sorted(counted.items())}


def ranked_values(counts: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
    """The `VALUES` most frequent attribute values, sorted by name, and how many variants bear another one.

    >>> ranked_values({"old": 3, "young": 3})
    (('old', 'young'), 0)
    """
    named = sorted((value for value in counts if value), key=lambda value: (-counts[value], value))[:VALUES]
    return tuple(sorted(named)), sum(counts.values()) - sum(counts[value] for value in named)


def aligned(
    contrasts: Iterable[Contrast],
    encoder: Encoder,
    vocabularies: Mapping[str, Sequence[str]],
    bad: Literal["error", "skip"] = "error",
    skipped: list[tuple[str, str]] | None = None,
) -> Iterator[AlignedContrast]:
    """Align contrasts one after the other, tokenizing `ENCODED` at once; with `skip`, those that cannot be used go to `skipped`."""
    places = {category: {value: i for i, value in enumerate(names)} for category, names in vocabularies.items()}
    remaining = iter(contrasts)
    while some := list(islice(remaining, ENCODED)):
        texts = [[encoder.wrapped(variant.text) for variant in contrast.variants] for contrast in some]
        encoded = iter(encoder.encode([text for each in texts for text in each]))
        for contrast, mine in zip(some, texts, strict=True):
            tokens = [next(encoded) for _ in mine]
            try:
                yield _aligned(encoder, contrast, mine, tokens, places[contrast.category])
            except PromptError as error:
                if bad == "error":
                    raise
                if skipped is not None:
                    skipped.append((contrast.id, str(error)))


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
    skipped: list[tuple[str, str]] = []
    found = list(aligned(contrasts, encoder, vocabularies(contrasts), bad, skipped))
    if not found:
        raise PromptError("no contrast of the prompt set can be used under this model's tokenizer")
    return found, skipped
