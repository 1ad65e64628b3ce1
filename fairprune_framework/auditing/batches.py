"""Contrasts into micro-batches: a pure function of the contrasts and `max_tokens`, fixed before any sharding.

Each distinct text of a micro-batch is computed once, and contrasts that share texts are brought together within a window. Where a
model allows it, tokens of a shared prefix are computed once too (`packing.py`); a row then holds several texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from fairprune_framework.api.interfaces import Pass
from fairprune_framework.auditing.collation import collate, row_keys
from fairprune_framework.auditing.merging import members_of
from fairprune_framework.auditing.micro_batch import BatchId, MicroBatch
from fairprune_framework.auditing.packing import Packer, width_of
from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.utilities.files import repr_digest

WINDOW = 4096
"""Contrasts that are composed together: they share texts, and are sorted by length."""


@dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """The contrasts of one micro-batch before its tensors exist: what is hashed, assigned to ranks and counted."""

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
        """sha256 over its pass, which contrasts stand together and how far they are padded; of merged passes the sum of theirs."""
        return _content(
            self.pass_,
            tuple(contrast.category for contrast in self.contrasts),
            tuple(contrast.id for contrast in self.contrasts),
            (self.rows, self.width),
            self.packed is not None,
        )

    def micro_batch(self, values: int, pad: int = 0, batch_id: BatchId | None = None) -> MicroBatch:
        """Its tensors. `values`: size of the largest vocabulary of the set."""
        return collate(self.contrasts, values, pad, self.pass_, batch_id, self.packed)


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
    """What stands together: a pure function of one window, the most padded tokens, the pass and the length up to which rows are packed."""
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1. Got {max_tokens} instead (see --micro-batch-tokens).")
    if pass_.objective is not None or pass_.stream == "calibration":
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
        wanted = rows | dict.fromkeys(row_keys(contrast, pass_), 0)
        length = max(longest, contrast.length)
        if batch and len(wanted) * length > max_tokens:
            yield BatchSpec(contrasts=tuple(batch), rows=len(rows), width=longest, pass_=pass_)
            batch, wanted, length = [], dict.fromkeys(row_keys(contrast, pass_), 0), contrast.length
        batch.append(contrast)
        rows, longest = wanted, length
    if batch:
        yield BatchSpec(contrasts=tuple(batch), rows=len(rows), width=longest, pass_=pass_)


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


def _content(pass_: Pass, categories: tuple[str, ...], ids: tuple[str, ...], shape: tuple[int, ...], packed: bool) -> int:
    each = (repr_digest(repr(member), categories, ids, shape, packed) for member in members_of(pass_))
    return sum(int.from_bytes(one, "big") for one in each)


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
