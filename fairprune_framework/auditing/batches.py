"""Contrasts into micro-batches: a pure function of the contrasts and the token budget, fixed before any sharding.

Each distinct text of a micro-batch is computed once, and contrasts that share texts are brought together within a window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from fairprune_framework.contrasts.alignment import AlignedContrast

WINDOW = 4096
"""Contrasts that are looked at together for sharing texts and for sorting by length."""


@dataclass(kw_only=True, eq=False)  # not frozen: under `precision="bf16-true"` Lightning refuses frozen dataclasses
class MicroBatch:
    """Whole contrasts, of any categories. U distinct texts, padded on the right to T. Treated as immutable."""

    input_ids: Tensor
    """(U, T) int64."""
    attention_mask: Tensor
    """(U, T) int64."""
    text: Tensor
    """(C, V) int64: row of each variant's text; 0 for an absent variant."""
    present: Tensor
    """(C, V) bool."""
    length: Tensor
    """(C, V) int64: tokens of each variant."""
    start: Tensor
    """(C, V) int64: first attribute token."""
    end: Tensor
    """(C, V) int64: one past the last attribute token; the matched suffix begins here."""
    attribute: Tensor
    """(C, V) int64: index into the category's vocabulary; -1 for an absent variant."""
    categories: tuple[str, ...]
    """Category of each contrast."""
    values: int
    """Size of the largest vocabulary of the set: the same in all micro-batches."""
    ids: tuple[str, ...]
    stream: str = "contrasts"

    @property
    def tokens(self) -> int:
        """Padded tokens of the forward."""
        return self.input_ids.numel()

    def to(self, device: Any, **kwargs: Any) -> MicroBatch:
        """A copy on a device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: v.to(device, **kwargs) for k, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def compose(
    contrasts: Iterable[AlignedContrast], values: Mapping[str, int], budget: int, pad: int = 0, stream: str = "contrasts"
) -> Iterator[MicroBatch]:
    """Fill micro-batches with at most `budget` padded tokens, or with one contrast.

    Args:
        values: category -> size of its attribute vocabulary.
        pad: token id of the padding; masked, so that its value does not matter.
    """
    largest, window = max(values.values()), list[AlignedContrast]()
    for contrast in contrasts:
        window.append(contrast)
        if len(window) == WINDOW:
            yield from _compose_window(window, largest, budget, pad, stream)
            window.clear()
    yield from _compose_window(window, largest, budget, pad, stream)


def _compose_window(window: Sequence[AlignedContrast], values: int, budget: int, pad: int, stream: str) -> Iterator[MicroBatch]:
    batch: list[AlignedContrast] = []
    texts: set[tuple[int, ...]] = set()
    longest = 0
    for contrast in _ordered(window):
        wanted = texts | {tokens.ids for tokens in contrast.variants}
        length = max(longest, contrast.length)
        if batch and len(wanted) * length > budget:
            yield _collate(batch, values, pad, stream)
            batch, wanted, length = [], {tokens.ids for tokens in contrast.variants}, contrast.length
        batch.append(contrast)
        texts, longest = wanted, length
    if batch:
        yield _collate(batch, values, pad, stream)


def _ordered(window: Sequence[AlignedContrast]) -> list[AlignedContrast]:
    """Contrasts that share texts side by side, longest first; ties by their place in the set."""
    parent = list(range(len(window)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    owner: dict[tuple[int, ...], int] = {}
    for i, contrast in enumerate(window):
        for tokens in contrast.variants:
            parent[root(i)] = root(owner.setdefault(tokens.ids, i))
    groups: dict[int, list[int]] = {}
    for i in range(len(window)):
        groups.setdefault(root(i), []).append(i)
    order = sorted(groups.values(), key=lambda group: (-max(window[i].length for i in group), group[0]))
    return [window[i] for group in order for i in group]


def _collate(batch: Sequence[AlignedContrast], values: int, pad: int, stream: str) -> MicroBatch:
    rows: dict[tuple[int, ...], int] = {}
    for contrast in batch:
        for tokens in contrast.variants:
            rows.setdefault(tokens.ids, len(rows))
    width = max(len(ids) for ids in rows)
    input_ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for ids, row in rows.items():
        input_ids[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
    most = max(len(contrast.variants) for contrast in batch)

    def table(cell: Any, absent: int) -> Tensor:
        return torch.tensor([[cell(c, v) if v < len(c.variants) else absent for v in range(most)] for c in batch])

    return MicroBatch(
        input_ids=input_ids,
        attention_mask=mask,
        text=table(lambda c, v: rows[c.variants[v].ids], 0),
        present=table(lambda c, v: 1, 0).bool(),
        length=table(lambda c, v: len(c.variants[v].ids), 0),
        start=table(lambda c, v: c.variants[v].start, 0),
        end=table(lambda c, v: c.variants[v].end, 0),
        attribute=table(lambda c, v: c.attributes[v], -1),
        categories=tuple(contrast.category for contrast in batch),
        values=values,
        ids=tuple(contrast.id for contrast in batch),
        stream=stream,
    )


def composition_hash(batches: Iterable[MicroBatch]) -> str:
    """sha256 over which contrasts stand together and how far each micro-batch is padded."""
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(repr((batch.stream, batch.categories, batch.ids, tuple(batch.input_ids.shape))).encode())
    return digest.hexdigest()
