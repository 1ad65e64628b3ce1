"""Contrasts into micro-batches: a pure function of the contrasts and the token budget, fixed before any sharding.

Each distinct text of a micro-batch is computed once, and contrasts that share texts are brought together within a window. Where a
model allows it, tokens of a shared prefix are computed once too (`packing.py`); a row then holds several texts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from fairprune_framework.auditing.packing import Packer, width_of
from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.interfaces import Pass

WINDOW = 4096
"""Contrasts that are looked at together for sharing texts and for sorting by length."""


@dataclass(kw_only=True, eq=False)  # not frozen: under `precision="bf16-true"` Lightning refuses frozen dataclasses
class MicroBatch:
    """Whole contrasts, of any categories: U distinct texts in R rows, padded on the right to L tokens. Treated as immutable.

    Plain rows: R = U, row u holds text u. Packed rows (`paths` is given): texts that begin alike stand in one row behind their prefix;
    such a batch needs the mask of `packing.tree_mask` and its `position_ids`.
    """

    input_ids: Tensor
    """(R, L) int64."""
    attention_mask: Tensor
    """(R, L) int64: 1 where a token is."""
    text: Tensor
    """(C, V) int64: which of the U texts each variant is; 0 for an absent variant."""
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
    position_ids: Tensor | None = None
    """(R, L) int64 where rows are packed: place of each token in its texts."""
    paths: Tensor | None = None
    """(U, T) int64 where rows are packed: flat index into R*L of each token of each text; -1 behind its end."""
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

    def to(self, device: Any, **kwargs: Any) -> MicroBatch:
        """A copy on a device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: v.to(device, **kwargs) for k, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def compose(
    contrasts: Iterable[AlignedContrast],
    values: Mapping[str, int],
    budget: int,
    pad: int = 0,
    step: Pass | None = None,
    share_up_to: int = 0,
) -> Iterator[MicroBatch]:
    """Fill micro-batches with at most `budget` padded tokens, or with one contrast.

    Passes with an objective get micro-batches of one category each, in which every variant has a row of its own: a shared text would
    carry two gradients.

    Args:
        values: category -> size of its attribute vocabulary.
        pad: token id of the padding; masked, so that its value does not matter.
        step: the pass that the micro-batches are for; by default a plain forward of contrasts.
        share_up_to: contrasts whose texts are at most so long get packed rows, in which shared prefixes are computed once. Passes with
            an objective and calibration text never do.
    """
    step = step or Pass()
    if step.objective is not None or step.stream != "contrasts":
        share_up_to = 0
    largest, windows = max(values.values()), dict[str, list[AlignedContrast]]()
    for contrast in contrasts:
        window = windows.setdefault(contrast.category if step.objective else "", [])
        window.append(contrast)
        if len(window) == WINDOW:
            yield from _compose_window(window, largest, budget, pad, step, share_up_to)
            window.clear()
    for window in windows.values():
        yield from _compose_window(window, largest, budget, pad, step, share_up_to)


def _compose_window(
    window: Sequence[AlignedContrast], values: int, budget: int, pad: int, step: Pass, share_up_to: int
) -> Iterator[MicroBatch]:
    yield from _compose_plain([c for c in window if c.length > share_up_to], values, budget, pad, step)
    yield from _compose_packed([c for c in window if c.length <= share_up_to], values, budget, pad, step)


def _compose_packed(window: Sequence[AlignedContrast], values: int, budget: int, pad: int, step: Pass) -> Iterator[MicroBatch]:
    """Rows as wide as the first contrasts of a micro-batch want them; groups that want the widest rows come first."""
    groups = [[window[i] for i in group] for group in _groups(window)]
    widths = [width_of(tokens.ids for contrast in group for tokens in contrast.variants) for group in groups]
    batch: list[AlignedContrast] = []
    packer = Packer(0)
    for place in sorted(range(len(groups)), key=lambda place: -widths[place]):
        for contrast in groups[place]:
            texts = [tokens.ids for tokens in contrast.variants]
            if not batch or not packer.fits(texts, budget):
                if batch:
                    yield _collate(batch, values, pad, step, packer)
                batch, packer = [], Packer(max(min(widths[place], budget), contrast.length))
                packer.add(texts)
            batch.append(contrast)
    if batch:
        yield _collate(batch, values, pad, step, packer)


def _compose_plain(window: Sequence[AlignedContrast], values: int, budget: int, pad: int, step: Pass) -> Iterator[MicroBatch]:
    batch: list[AlignedContrast] = []
    rows: dict[object, int] = {}
    longest = 0
    for contrast in _ordered(window):
        wanted = rows | dict.fromkeys(_row_keys(contrast, step), 0)
        length = max(longest, contrast.length)
        if batch and len(wanted) * length > budget:
            yield _collate(batch, values, pad, step)
            batch, wanted, length = [], dict.fromkeys(_row_keys(contrast, step), 0), contrast.length
        batch.append(contrast)
        rows, longest = wanted, length
    if batch:
        yield _collate(batch, values, pad, step)


def _row_keys(contrast: AlignedContrast, step: Pass) -> list[object]:
    """What makes two variants one row of the forward: equal tokens, or under an objective nothing."""
    if step.objective is None:
        return [tokens.ids for tokens in contrast.variants]
    return [(contrast.id, place) for place in range(len(contrast.variants))]


def _ordered(window: Sequence[AlignedContrast]) -> list[AlignedContrast]:
    """Contrasts that share texts side by side, longest first; ties by their place in the set."""
    order = sorted(_groups(window), key=lambda group: -max(window[i].length for i in group))
    return [window[i] for group in order for i in group]


def _groups(window: Sequence[AlignedContrast]) -> list[list[int]]:
    """Places of contrasts that share texts, directly or through others; in the order of their first places."""
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
    return list(groups.values())


def _collate(batch: Sequence[AlignedContrast], values: int, pad: int, step: Pass, packer: Packer | None = None) -> MicroBatch:
    if packer is not None:
        layout = packer.layout(pad)
        found = [[layout.places[tokens.ids] for tokens in contrast.variants] for contrast in batch]
        tensors = {name: getattr(layout, name) for name in ("input_ids", "attention_mask", "position_ids", "paths")}
        return _described(batch, values, step, found, **tensors)
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
    return _described(batch, values, step, row_of, input_ids=input_ids, attention_mask=mask)


def _described(
    batch: Sequence[AlignedContrast], values: int, step: Pass, text_of: Sequence[list[int]], **tensors: Tensor
) -> MicroBatch:
    """Rows with what is known of the contrasts in them; `text_of`: the text of each variant of each contrast."""
    most = max(len(contrast.variants) for contrast in batch)

    def table(cell: Any, absent: int) -> Tensor:
        return torch.tensor([[cell(c, v) if v < len(c.variants) else absent for v in range(most)] for c in batch])

    return MicroBatch(
        **tensors,
        text=torch.tensor([found + [0] * (most - len(found)) for found in text_of]),
        present=table(lambda c, v: 1, 0).bool(),
        length=table(lambda c, v: len(c.variants[v].ids), 0),
        start=table(lambda c, v: c.variants[v].start, 0),
        end=table(lambda c, v: c.variants[v].end, 0),
        attribute=table(lambda c, v: c.attributes[v], -1),
        categories=tuple(contrast.category for contrast in batch),
        values=values,
        ids=tuple(contrast.id for contrast in batch),
        pass_of=partial(_always, step),
    )


def _always(step: Pass) -> Pass:
    return step


def composition_hash(batches: Iterable[MicroBatch]) -> str:
    """sha256 over which contrasts stand together, how far each micro-batch is padded, and where texts stand in packed rows."""
    digest = hashlib.sha256()
    for batch in batches:
        digest.update(repr((repr(batch.step), batch.categories, batch.ids, tuple(batch.input_ids.shape))).encode())
        if batch.paths is not None:
            digest.update(repr(batch.paths.tolist()).encode())
    return digest.hexdigest()
