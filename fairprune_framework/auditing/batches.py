"""Contrasts into micro-batches: a pure function of the contrasts and the token budget, fixed before any sharding.

Each distinct text of a micro-batch is computed once, and contrasts that share texts are brought together within a window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.interfaces import Pass

WINDOW = 4096
"""Contrasts that are looked at together for sharing texts and for sorting by length."""


class Place(NamedTuple):
    """Which micro-batch of an audit: the same whatever the ranks."""

    step: int
    """Number of the pass."""
    window: int
    number: int
    """Place in its window."""
    total: int
    """Micro-batches of its window."""
    content: int
    """`Portion.content`."""


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
    clusters: tuple[str, ...] = ()
    """Template id of each contrast: with its category, the unit of resampling."""
    place: Place | None = None
    """Which micro-batch of the audit it is."""
    idle: bool = False
    """Computed only because other ranks compute in step: nothing of it is summed."""
    pass_of: Callable[[], Pass] = Pass
    """Gives the pass that computes it. A call, since Lightning looks into the dataclasses of a batch and refuses frozen ones."""

    @property
    def step(self) -> Pass:
        """The pass that computes it."""
        return self.pass_of()

    @property
    def stream(self) -> Literal["contrasts", "calibration"]:
        """`contrasts` or `calibration`."""
        return self.step.stream

    @property
    def tokens(self) -> int:
        """Padded tokens of the forward."""
        return self.input_ids.numel()

    def halves(self) -> list[MicroBatch]:
        """Two micro-batches with half of the contrasts each; raises `torch.OutOfMemoryError` for one contrast."""
        if len(self.ids) < 2:
            raise torch.OutOfMemoryError(f"contrast {self.ids[0]!r} alone, {self.tokens} tokens, does not fit into memory")
        middle = len(self.ids) // 2
        return [self._part(slice(None, middle)), self._part(slice(middle, None))]

    def _part(self, some: slice) -> MicroBatch:
        present, text = self.present[some], self.text[some]
        rows = torch.unique(text[present])
        place = torch.zeros(self.input_ids.shape[0], dtype=torch.long, device=text.device)
        place[rows] = torch.arange(len(rows), device=text.device)
        width = int(self.attention_mask[rows].sum(1).max())
        return replace(
            self,
            input_ids=self.input_ids[rows, :width],
            attention_mask=self.attention_mask[rows, :width],
            text=place[text] * present,
            present=present,
            length=self.length[some],
            start=self.start[some],
            end=self.end[some],
            attribute=self.attribute[some],
            categories=self.categories[some],
            clusters=self.clusters[some],
            ids=self.ids[some],
            place=None,
        )

    def to(self, device: Any, **kwargs: Any) -> MicroBatch:
        """A copy on a device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: v.to(device, **kwargs) for k, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **moved)


@dataclass(frozen=True, kw_only=True)
class Portion:
    """The contrasts of one micro-batch before its tensors are made: what is hashed, dealt to ranks and counted."""

    contrasts: tuple[AlignedContrast, ...]
    rows: int
    """Texts to compute."""
    width: int
    """Padded length of each."""
    step: Pass

    @property
    def tokens(self) -> int:
        """Padded tokens of the forward: its cost."""
        return self.rows * self.width

    @property
    def content(self) -> int:
        """sha256 over its pass, which contrasts stand together and how far they are padded."""
        return _content(
            self.step,
            tuple(contrast.category for contrast in self.contrasts),
            tuple(contrast.id for contrast in self.contrasts),
            (self.rows, self.width),
        )

    def micro_batch(self, values: int, pad: int = 0, place: Place | None = None) -> MicroBatch:
        """Its tensors. `values`: size of the largest vocabulary of the set."""
        return _collate(self.contrasts, values, pad, self.step, place)


def compose(
    contrasts: Iterable[AlignedContrast], values: Mapping[str, int], budget: int, pad: int = 0, step: Pass | None = None
) -> Iterator[MicroBatch]:
    """Fill micro-batches with at most `budget` padded tokens, or with one contrast.

    Passes with an objective get micro-batches of one category each, in which every variant has a row of its own: a shared text would
    carry two gradients.

    Args:
        values: category -> size of its attribute vocabulary.
        pad: token id of the padding; masked, so that its value does not matter.
        step: the pass that the micro-batches are for; by default a plain forward of contrasts.
    """
    step, largest = step or Pass(), max(values.values())
    for window in windows_of(contrasts):
        for portion in portions(window, budget, step):
            yield portion.micro_batch(largest, pad)


def windows_of(contrasts: Iterable[AlignedContrast]) -> Iterator[list[AlignedContrast]]:
    """Successive `WINDOW` contrasts."""
    remaining = iter(contrasts)
    while window := list(islice(remaining, WINDOW)):
        yield window


def portions(window: Sequence[AlignedContrast], budget: int, step: Pass) -> Iterator[Portion]:
    """What stands together: a pure function of one window, the token budget and the pass."""
    if budget < 1:
        raise ValueError(f"a token budget must be at least 1. Got {budget} instead (a run's own is `Run.micro_batch_tokens`).")
    groups: dict[str, list[AlignedContrast]] = {}
    for contrast in window:
        groups.setdefault(contrast.category if step.objective else "", []).append(contrast)
    for group in groups.values():
        yield from _portions_of_group(group, budget, step)


def _portions_of_group(group: Sequence[AlignedContrast], budget: int, step: Pass) -> Iterator[Portion]:
    batch: list[AlignedContrast] = []
    rows: dict[object, int] = {}
    longest = 0
    for contrast in _ordered(group):
        wanted = rows | dict.fromkeys(_row_keys(contrast, step), 0)
        length = max(longest, contrast.length)
        if batch and len(wanted) * length > budget:
            yield Portion(contrasts=tuple(batch), rows=len(rows), width=longest, step=step)
            batch, wanted, length = [], dict.fromkeys(_row_keys(contrast, step), 0), contrast.length
        batch.append(contrast)
        rows, longest = wanted, length
    if batch:
        yield Portion(contrasts=tuple(batch), rows=len(rows), width=longest, step=step)


def _row_keys(contrast: AlignedContrast, step: Pass) -> list[object]:
    """What makes two variants one row of the forward: equal tokens, or under an objective nothing."""
    if step.objective is None:
        return [tokens.ids for tokens in contrast.variants]
    return [(contrast.id, place) for place in range(len(contrast.variants))]


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


def _collate(batch: Sequence[AlignedContrast], values: int, pad: int, step: Pass, place: Place | None = None) -> MicroBatch:
    rows: dict[object, int] = {}
    texts: list[tuple[int, ...]] = []
    row_of: list[list[int]] = []
    for contrast in batch:
        row_of.append([])
        for key, tokens in zip(_row_keys(contrast, step), contrast.variants, strict=True):
            if key not in rows:
                rows[key] = len(rows)
                texts.append(tokens.ids)
            row_of[-1].append(rows[key])
    width = max(map(len, texts))
    input_ids = torch.full((len(texts), width), pad, dtype=torch.long)
    mask = torch.zeros((len(texts), width), dtype=torch.long)
    for row, ids in enumerate(texts):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        mask[row, : len(ids)] = 1
    most = max(len(contrast.variants) for contrast in batch)

    def table(cell: Any, absent: int) -> Tensor:
        return torch.tensor([[cell(c, v) if v < len(c.variants) else absent for v in range(most)] for c in batch])

    return MicroBatch(
        input_ids=input_ids,
        attention_mask=mask,
        text=torch.tensor([found + [0] * (most - len(found)) for found in row_of]),
        present=table(lambda c, v: 1, 0).bool(),
        length=table(lambda c, v: len(c.variants[v].ids), 0),
        start=table(lambda c, v: c.variants[v].start, 0),
        end=table(lambda c, v: c.variants[v].end, 0),
        attribute=table(lambda c, v: c.attributes[v], -1),
        categories=tuple(contrast.category for contrast in batch),
        values=values,
        ids=tuple(contrast.id for contrast in batch),
        pass_of=partial(_always, step),
        clusters=tuple(contrast.template_id for contrast in batch),
        place=place,
    )


def _always(step: Pass) -> Pass:
    return step


def _content(step: Pass, categories: tuple[str, ...], ids: tuple[str, ...], shape: tuple[int, ...]) -> int:
    return int.from_bytes(hashlib.sha256(repr((repr(step), categories, ids, shape)).encode()).digest(), "big")


def composition_hash(parts: Iterable[MicroBatch | Portion]) -> str:
    """Hash over which contrasts stand together and how far each micro-batch is padded, whatever the order of the micro-batches."""
    total = 0
    for part in parts:
        if isinstance(part, Portion):
            total += part.content
        else:
            total += _content(part.step, part.categories, part.ids, tuple(part.input_ids.shape))
    return hashed_sum(total)


def hashed_sum(total: int) -> str:
    """A sum of `Portion.content`, as it is written down. Sums of hashes add up over ranks and checkpoints."""
    return f"{total % 2**256:064x}"
