"""Contrasts into micro-batches: a pure function of the contrasts and the token budget, fixed before any sharding.

Each distinct text of a micro-batch is computed once, and contrasts that share texts are brought together within a window. Where a
model allows it, tokens of a shared prefix are computed once too (`packing.py`); a row then holds several texts.
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

from fairprune_framework.api.interfaces import Pass
from fairprune_framework.auditing.packing import Packer, width_of
from fairprune_framework.contrasts.alignment import AlignedContrast

WINDOW = 4096
"""Contrasts that are looked at together for sharing texts and for sorting by length."""


class BatchId(NamedTuple):
    """Which micro-batch of an audit: the same whatever the ranks."""

    pass_: int
    """Number of the pass."""
    window: int
    number: int
    """Place in its window."""
    total: int
    """Micro-batches of its window."""
    content: int
    """`BatchSpec.content`."""


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
    lean: Tensor
    """(C, V) int64: 1 for a stereotyping variant, -1 for its counterpart, 0 where a contrast names neither."""
    categories: tuple[str, ...]
    """Category of each contrast."""
    values: int
    """Size of the largest vocabulary of the set: the same in all micro-batches."""
    ids: tuple[str, ...]
    rare: Tensor | None = None
    """(C, V, L) bool: places of rare tokens, as `Tokens.rare`; of calibration text alone."""
    clusters: tuple[str, ...] = ()
    """Template id of each contrast: with its category, the unit of resampling."""
    batch_id: BatchId | None = None
    """Which micro-batch of the audit it is."""
    idle: bool = False
    """Computed only because other ranks compute in lockstep: nothing of it is summed."""
    position_ids: Tensor | None = None
    """(R, L) int64 where rows are packed: place of each token in its texts."""
    paths: Tensor | None = None
    """(U, T) int64 where rows are packed: flat index into R*L of each token of each text; -1 behind its end."""
    pass_of: Callable[[], Pass] = Pass
    """Gives the pass that computes it. A call, since Lightning looks into the dataclasses of a batch and refuses frozen ones."""

    @property
    def pass_(self) -> Pass:
        """The pass that computes it."""
        return self.pass_of()

    @property
    def stream(self) -> Literal["contrasts", "calibration"]:
        """`contrasts` or `calibration`."""
        return self.pass_.stream

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
        texts = torch.unique(text[present])
        input_ids, mask = self.input_ids, self.attention_mask
        if self.paths is not None:  # parts have a row a text: what ran out of memory need not be fast
            mask = (self.paths >= 0).long()
            input_ids = input_ids.flatten()[self.paths.clamp_min(0)]
        row_of = torch.zeros(len(mask), dtype=torch.long, device=text.device)
        row_of[texts] = torch.arange(len(texts), device=text.device)
        width = int(mask[texts].sum(1).max())
        return replace(
            self,
            input_ids=input_ids[texts, :width],
            attention_mask=mask[texts, :width],
            position_ids=None,
            paths=None,
            text=row_of[text] * present,
            present=present,
            length=self.length[some],
            start=self.start[some],
            end=self.end[some],
            attribute=self.attribute[some],
            lean=self.lean[some],
            rare=None if self.rare is None else self.rare[some, :, :width],
            categories=self.categories[some],
            clusters=self.clusters[some],
            ids=self.ids[some],
            batch_id=None,
        )

    def to(self, device: Any, **kwargs: Any) -> MicroBatch:
        """A copy on a device."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {k: v.to(device, **kwargs) for k, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **moved)


@dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """The contrasts of one micro-batch before its tensors are made: what is hashed, assigned to ranks and counted."""

    contrasts: tuple[AlignedContrast, ...]
    rows: int
    """Rows to compute: texts, or texts that share prefixes."""
    width: int
    """Padded length of each."""
    pass_: Pass
    packed: int | None = None
    """Rows are packed, the first of them filled up to so many tokens; None: a row a text."""

    @property
    def tokens(self) -> int:
        """Padded tokens of the forward: its cost."""
        return self.rows * self.width

    @property
    def content(self) -> int:
        """sha256 over its pass, which contrasts stand together and how far they are padded."""
        return _content(
            self.pass_,
            tuple(contrast.category for contrast in self.contrasts),
            tuple(contrast.id for contrast in self.contrasts),
            (self.rows, self.width),
            self.packed is not None,
        )

    def micro_batch(self, values: int, pad: int = 0, batch_id: BatchId | None = None) -> MicroBatch:
        """Its tensors. `values`: size of the largest vocabulary of the set."""
        return _collate(self.contrasts, values, pad, self.pass_, batch_id, self.packed)


def compose(
    contrasts: Iterable[AlignedContrast],
    values: Mapping[str, int],
    max_tokens: int,
    pad: int = 0,
    pass_: Pass | None = None,
    share_up_to: int = 0,
) -> Iterator[MicroBatch]:
    """Fill micro-batches with at most `max_tokens` padded tokens, or with one contrast.

    Passes with an objective get micro-batches of one category each, in which every variant has a row of its own: a shared text would
    carry two gradients.

    Args:
        values: category -> size of its attribute vocabulary.
        pad: token id of the padding; masked, so that its value does not matter.
        step: the pass that the micro-batches are for; by default a plain forward of contrasts.
        share_up_to: contrasts whose texts are at most so long get packed rows, in which shared prefixes are computed once. Passes with
            an objective and calibration text never do.
    """
    pass_, largest = pass_ or Pass(), max(values.values())
    for window in windows_of(contrasts):
        for spec in batch_specs(window, max_tokens, pass_, share_up_to):
            yield spec.micro_batch(largest, pad)


def windows_of(contrasts: Iterable[AlignedContrast]) -> Iterator[list[AlignedContrast]]:
    """Successive `WINDOW` contrasts."""
    remaining = iter(contrasts)
    while window := list(islice(remaining, WINDOW)):
        yield window


def batch_specs(window: Sequence[AlignedContrast], max_tokens: int, pass_: Pass, share_up_to: int = 0) -> Iterator[BatchSpec]:
    """What stands together: a pure function of one window, the token budget, the pass and the length up to which rows are packed."""
    if max_tokens < 1:
        raise ValueError(
            f"a token budget must be at least 1. Got {max_tokens} instead (a run's own is `Run.micro_batch_tokens`)."
        )
    if pass_.objective is not None or pass_.stream != "contrasts":
        share_up_to = 0
    groups: dict[str, list[AlignedContrast]] = {}
    for contrast in window:
        groups.setdefault(contrast.category if pass_.objective else "", []).append(contrast)
    for group in groups.values():
        yield from _plain_specs([contrast for contrast in group if contrast.length > share_up_to], max_tokens, pass_)
        yield from _packed_specs([contrast for contrast in group if contrast.length <= share_up_to], max_tokens, pass_)


def _packed_specs(window: Sequence[AlignedContrast], max_tokens: int, pass_: Pass) -> Iterator[BatchSpec]:
    """Rows as wide as the first contrasts of a micro-batch want them; groups that want the widest rows come first."""
    groups = [[window[i] for i in group] for group in _groups(window)]
    widths = [width_of(tokens.ids for contrast in group for tokens in contrast.variants) for group in groups]
    batch: list[AlignedContrast] = []
    start, packer = 0, Packer(0)

    def spec() -> BatchSpec:
        return BatchSpec(contrasts=tuple(batch), rows=len(packer.rows), width=packer.longest, pass_=pass_, packed=start)

    for index in sorted(range(len(groups)), key=lambda index: -widths[index]):
        for contrast in groups[index]:
            texts = [tokens.ids for tokens in contrast.variants]
            if not batch or not packer.fits(texts, max_tokens):
                if batch:
                    yield spec()
                start = max(min(widths[index], max_tokens), contrast.length)
                batch, packer = [], Packer(start)
                packer.add(texts)
            batch.append(contrast)
    if batch:
        yield spec()


def _plain_specs(group: Sequence[AlignedContrast], max_tokens: int, pass_: Pass) -> Iterator[BatchSpec]:
    batch: list[AlignedContrast] = []
    rows: dict[object, int] = {}
    longest = 0
    for contrast in _ordered(group):
        wanted = rows | dict.fromkeys(_row_keys(contrast, pass_), 0)
        length = max(longest, contrast.length)
        if batch and len(wanted) * length > max_tokens:
            yield BatchSpec(contrasts=tuple(batch), rows=len(rows), width=longest, pass_=pass_)
            batch, wanted, length = [], dict.fromkeys(_row_keys(contrast, pass_), 0), contrast.length
        batch.append(contrast)
        rows, longest = wanted, length
    if batch:
        yield BatchSpec(contrasts=tuple(batch), rows=len(rows), width=longest, pass_=pass_)


def _row_keys(contrast: AlignedContrast, pass_: Pass) -> list[object]:
    """What makes two variants one row of the forward: equal tokens, or under an objective nothing."""
    if pass_.objective is None:
        return [tokens.ids for tokens in contrast.variants]
    return [(contrast.id, index) for index in range(len(contrast.variants))]


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


def _collate(
    batch: Sequence[AlignedContrast],
    values: int,
    pad: int,
    pass_: Pass,
    batch_id: BatchId | None = None,
    packed: int | None = None,
) -> MicroBatch:
    if packed is not None:
        packer = Packer(packed)
        for contrast in batch:
            packer.add([tokens.ids for tokens in contrast.variants])
        layout = packer.layout(pad)
        found = [[layout.index_of[tokens.ids] for tokens in contrast.variants] for contrast in batch]
        tensors = {name: getattr(layout, name) for name in ("input_ids", "attention_mask", "position_ids", "paths")}
        return _described(batch, values, pass_, found, batch_id, **tensors)
    rows: dict[object, int] = {}
    texts: list[tuple[int, ...]] = []
    row_of: list[list[int]] = []
    for contrast in batch:
        row_of.append([])
        for key, tokens in zip(_row_keys(contrast, pass_), contrast.variants, strict=True):
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
    return _described(batch, values, pass_, row_of, batch_id, input_ids=input_ids, attention_mask=mask)


def _described(
    batch: Sequence[AlignedContrast],
    values: int,
    pass_: Pass,
    text_of: Sequence[list[int]],
    batch_id: BatchId | None,
    **tensors: Any,
) -> MicroBatch:
    """Rows with what is known of the contrasts in them; `text_of`: the text of each variant of each contrast."""
    most = max(len(contrast.variants) for contrast in batch)
    rare = None
    if pass_.stream == "calibration":
        rare = torch.zeros((len(batch), most, tensors["input_ids"].shape[1]), dtype=torch.bool)
        for c, contrast in enumerate(batch):
            rare[c, 0, list(contrast.variants[0].rare)] = True

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
        lean=table(lambda c, v: 0 if c.stereotyping is None else (1 if v == c.stereotyping else -1), 0),
        rare=rare,
        categories=tuple(contrast.category for contrast in batch),
        values=values,
        ids=tuple(contrast.id for contrast in batch),
        pass_of=partial(_always, pass_),
        clusters=tuple(contrast.template_id for contrast in batch),
        batch_id=batch_id,
    )


def _always(pass_: Pass) -> Pass:
    return pass_


def _content(pass_: Pass, categories: tuple[str, ...], ids: tuple[str, ...], shape: tuple[int, ...], packed: bool) -> int:
    return int.from_bytes(hashlib.sha256(repr((repr(pass_), categories, ids, shape, packed)).encode()).digest(), "big")


def composition_hash(parts: Iterable[MicroBatch | BatchSpec]) -> str:
    """Hash over which contrasts stand together and how each micro-batch is laid out, whatever the order of the micro-batches."""
    total = 0
    for part in parts:
        if isinstance(part, BatchSpec):
            total += part.content
        else:
            total += _content(part.pass_, part.categories, part.ids, tuple(part.input_ids.shape), part.paths is not None)
    return hashed_sum(total)


def hashed_sum(total: int) -> str:
    """A sum of `BatchSpec.content`, as it is written down. Sums of hashes add up over ranks and checkpoints."""
    return f"{total % 2**256:064x}"
