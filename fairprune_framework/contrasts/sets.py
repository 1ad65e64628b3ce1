"""A prompt set as a run uses it: read, split and checked as a whole, then gone through as often as needed without being held.

What is kept of each contrast are 8-byte hashes while the set is checked, and nothing after that; a hash that hits is looked at again
before it is said that two things are equal.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fairprune_framework.contrasts.alignment import aligned, ranked_values
from fairprune_framework.contrasts.readers import Scan, short_hash
from fairprune_framework.contrasts.schema import Contrast, stream_of
from fairprune_framework.contrasts.splits import Splitter, overlapping, refuse_roles, refuse_shared_templates
from fairprune_framework.errors import PromptError
from fairprune_framework.models.encoder import Encoder

COUNTED = 4096
"""Different attribute values of a category that are counted; what first comes after these is `other`."""


class ContrastSet:
    """Contrasts with their splits.

    Args:
        source: as `readers.read`.
        bad: `skip` also leaves out contrasts of `select` of which a text occurs in `heldout`.
        split: a rule, see `splits`.

    Raises:
        PromptError, UserError: as `readers.read` and `splits.apply_split`.
    """

    def __init__(
        self,
        source: Any,
        *,
        columns: Mapping[str, str] | None = None,
        bad: Literal["error", "skip"] = "error",
        split: str = "keep",
        seed: int = 0,
    ) -> None:
        self._splitter = Splitter(split, seed)
        self._scan = Scan(source, columns=columns, bad=bad)
        for contrast in self._scan:
            self._splitter.see(contrast)
        self._splitter.close()
        self.sha256 = self._scan.sha256
        self.skipped = list(self._scan.skipped)
        """(where, reason) of what is left out."""
        self.notes = [f"{count:,} records are left out: {reason}" for reason, count in self._scan.left_out.items()]
        """What of a published data set is no contrast by its design, counted."""
        self._out: frozenset[str] = frozenset()
        self.vocabularies: dict[str, tuple[str, ...]] = {}
        """category -> its attribute values, sorted: the most frequent `VALUES`; what is not among them is `other`."""
        self.others: dict[str, int] = {}
        """category -> variants whose value is `other`."""
        self.summed: set[str] = set()
        """Categories with a contrast that is not legitimate: no other enters statistics."""
        self._check(bad)

    def __iter__(self) -> Iterator[Contrast]:
        for row, contrast in enumerate(self._scan):
            if contrast.id not in self._out:
                yield self._splitter.split(contrast, row)

    def __len__(self) -> int:
        return len(self._scan) - len(self._out)

    @property
    def values(self) -> dict[str, int]:
        """category -> size of its vocabulary, `other` included."""
        return {category: len(found) + (category in self.others) for category, found in self.vocabularies.items()}

    def _check(self, bad: str) -> None:
        """Nothing on both sides of the split; which attribute values there are; the hash of the split."""
        clusters, sides = array("Q"), array("b")
        texts = {True: array("Q"), False: array("Q")}
        counted: dict[str, Counter[str]] = {}
        roles = False
        for contrast in self:
            roles = roles or contrast.legitimate or contrast.neutral_of is not None
            if contrast.split is not None:
                chooses = contrast.split == "select"
                clusters.append(short_hash(repr(contrast.cluster)))
                sides.append(chooses)
                texts[chooses].extend({short_hash(variant.text) for variant in contrast.variants})
            values = counted.setdefault(contrast.category, Counter())
            if not contrast.legitimate:
                self.summed.add(contrast.category)
            for variant in contrast.variants:
                values[variant.attribute if variant.attribute in values or len(values) < COUNTED else ""] += 1
        if _on_both_sides(clusters, sides):
            refuse_shared_templates(self, self._splitter.rule if bad == "error" else "of the set")
        if roles:
            refuse_roles(self)
        repeated = _shared(texts[True], texts[False])
        if repeated:
            found = overlapping(self, repeated)
            if found and bad == "error":
                chosen, judge, text = found[0]
                raise PromptError(
                    f"a text occurs on both sides of the split {self._splitter.rule!r}: in contrast {chosen!r} (select) and in "
                    f"{judge!r} (heldout): {text!r}; {len(found)} contrast(s) of select repeat texts of heldout. Take them out, or "
                    "skip bad prompts."
                )
            self._out = frozenset(chosen for chosen, _, _ in found)
            self.skipped += [(chosen, f"a text of it occurs in {judge!r}, which is heldout") for chosen, judge, _ in found]
        for category in sorted(counted):
            self.vocabularies[category], others = ranked_values(counted[category])
            if others:
                self.others[category] = others


@dataclass(frozen=True, kw_only=True)
class Feed:
    """What a set holds for one stream of an audit."""

    contrasts: int = 0
    tokens: int = 0
    categories: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """What a set is under a tokenizer."""

    skipped: tuple[tuple[str, str], ...]
    """(id, reason) of what cannot be used."""
    contrasts: int
    texts: int
    tokens: int
    feeds: Mapping[str, Feed]
    """stream of an audit, `contrasts`, `controls` or `legitimate` -> what may feed it."""
    unequal: int
    """Contrasts whose variants have different numbers of tokens."""
    longest: int


def check_alignment(contrasts: ContrastSet, encoder: Encoder, bad: Literal["error", "skip"] = "error") -> Alignment:
    """Look at a whole set under a tokenizer, keeping nothing but counts and what cannot be used.

    Raises:
        PromptError: one that cannot be used, under `error`; none that can be, under `skip`.
    """
    skipped: list[tuple[str, str]] = []
    counts: Counter[str] = Counter()
    longest, categories = 0, dict[str, set[str]]()
    for contrast in aligned(contrasts, encoder, contrasts.vocabularies, bad, skipped):
        tokens = sum(len(variant.ids) for variant in contrast.variants)
        counts.update(contrasts=1, texts=len(contrast.variants), tokens=tokens, unequal=not contrast.equal_length)
        if (stream := stream_of(contrast.role, contrast.split)) is not None:
            counts.update({f"{stream}/contrasts": 1, f"{stream}/tokens": tokens})
            categories.setdefault(stream, set()).add(contrast.category)
        longest = max(longest, contrast.length)
    if not counts["contrasts"]:
        raise PromptError("no contrast of the prompt set can be used under this model's tokenizer")
    numbers = {name: counts[name] for name in ("contrasts", "texts", "tokens", "unequal")}
    feeds = {
        stream: Feed(
            contrasts=counts[f"{stream}/contrasts"],
            tokens=counts[f"{stream}/tokens"],
            categories=frozenset(categories.get(stream, ())),
        )
        for stream in ("contrasts", "controls", "legitimate")
    }
    return Alignment(skipped=tuple(skipped), longest=longest, feeds=feeds, **numbers)


def _on_both_sides(clusters: array[int], sides: array[int]) -> bool:
    known: dict[int, int] = {}
    if len(clusters) <= COUNTED:
        return any(known.setdefault(cluster, side) != side for cluster, side in zip(clusters, sides, strict=True))
    import numpy as np

    where, side = np.frombuffer(clusters, dtype=np.uint64), np.frombuffer(sides, dtype=np.int8)
    return bool(len(np.intersect1d(where[side == 0], where[side == 1])))


def _shared(one: array[int], other: array[int]) -> set[int]:
    if len(one) + len(other) <= 4 * COUNTED:
        return set(one) & set(other)
    import numpy as np

    found = np.intersect1d(np.frombuffer(one, dtype=np.uint64), np.frombuffer(other, dtype=np.uint64))
    return set(found.tolist())
