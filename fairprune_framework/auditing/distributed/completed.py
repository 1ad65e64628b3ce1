"""The micro-batches that a sum contains, so that none is added twice and none is lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fairprune_framework.auditing.batches import hashed_sum
from fairprune_framework.auditing.micro_batch import BatchId
from fairprune_framework.errors import FairpruneError


@dataclass
class CompletedBatches:
    """The set of micro-batches that a sum contains: one bit each."""

    bits: dict[tuple[int, int], int] = field(default_factory=dict)
    """(pass, window) -> bit mask over its micro-batches."""
    counts: dict[tuple[int, int], int] = field(default_factory=dict)
    """(pass, window) -> how many micro-batches it has."""
    contents: int = 0
    """Sum of `BatchSpec.content`, modulo 2^256."""
    contrasts: int = 0
    """Contrasts (or documents) of all of them, over all passes."""
    tokens: int = 0

    def add(self, batch_id: BatchId, contrasts: int, tokens: int) -> None:
        """Add a micro-batch; raises `FairpruneError` if the set contains it."""
        where, bit = (batch_id.pass_, batch_id.window), 1 << batch_id.number
        if self.bits.get(where, 0) & bit:
            raise FairpruneError(f"micro-batch {tuple(batch_id[:3])} was added twice")
        self.bits[where] = self.bits.get(where, 0) | bit
        self.counts[where] = batch_id.total
        self.contents = (self.contents + batch_id.content) % 2**256
        self.contrasts += contrasts
        self.tokens += tokens

    def __contains__(self, batch_id: tuple[int, int, int]) -> bool:
        return bool(self.bits.get(batch_id[:2], 0) >> batch_id[2] & 1)

    def is_complete(self, pass_: int, window: int) -> bool:
        """All micro-batches of a window are done in a pass."""
        return (pass_, window) in self.counts and self.bits[pass_, window].bit_count() == self.counts[pass_, window]

    def overlaps(self, other: CompletedBatches) -> bool:
        """Both contain some micro-batch."""
        return any(self.bits.get(where, 0) & bits for where, bits in other.bits.items())

    def union(self, other: CompletedBatches) -> CompletedBatches:
        """The union of disjoint sets; raises `FairpruneError` if they overlap."""
        if self.overlaps(other):
            raise FairpruneError("two partial sums contain the same micro-batch")
        bits = dict(self.bits)
        for where, more in other.bits.items():
            bits[where] = bits.get(where, 0) | more
        return CompletedBatches(
            bits=bits,
            counts={**self.counts, **other.counts},
            contents=(self.contents + other.contents) % 2**256,
            contrasts=self.contrasts + other.contrasts,
            tokens=self.tokens + other.tokens,
        )

    def copy(self) -> CompletedBatches:
        """A copy that may be added to."""
        return self.union(CompletedBatches())

    @property
    def composition(self) -> str:
        """As `composition_hash` of the micro-batches."""
        return hashed_sum(self.contents)

    def to_json(self) -> dict[str, object]:
        """As JSON values."""
        windows = [[*where, f"{bits:x}", self.counts[where]] for where, bits in sorted(self.bits.items())]
        return {
            "windows": windows,
            "contents": hashed_sum(self.contents),
            "contrasts": self.contrasts,
            "tokens": self.tokens,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CompletedBatches:
        """Read `to_json`, which was checked."""
        return cls(
            bits={(pass_, window): int(bits, 16) for pass_, window, bits, _ in data["windows"]},
            counts={(pass_, window): count for pass_, window, _, count in data["windows"]},
            contents=int(data["contents"], 16),
            contrasts=data["contrasts"],
            tokens=data["tokens"],
        )
