"""Where the tokens of a micro-batch's variants stand, and which of them match: made once and used by every site."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fairprune_framework.api.observations import Lasting
from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.auditing.statistics import cluster_id

CACHED = 2**22
"""Bytes of aligned slots that are looked at together on a CPU, where temporaries beyond the cache cost more than all arithmetic."""


@dataclass(frozen=True)
class Geometry:
    """Index tensors of one micro-batch, made once and used by every site."""

    batch: MicroBatch
    contrasts: tuple[int, ...] | None = None
    """Which contrasts of a larger micro-batch these are; None: all."""
    known: Mapping[str, int] = field(default_factory=dict)
    """category -> its index in the sums."""
    in_parts: bool | None = None
    """Look at groups of contrasts of alike shape; None: on a CPU."""
    rooms: dict[tuple[Any, ...], Tensor] = field(default_factory=dict, repr=False)
    """`Lasting.rooms`: parts, which are looked at one after the other, have those of the whole."""

    @cached_property
    def lasting(self) -> Lasting:
        """What observations share of sites that see every token, and the room in which they compute."""
        batch = self.batch
        places = (self.mask_CVT, self.aligned_mask_CVS, *self.slots_shared, self.equal_length_C, self.ids_CVT)
        given = (*places, batch.attribute, batch.lean, self.cluster_C, self.category_C)
        return Lasting({id(one): one for one in given}, rooms=self.rooms)

    @cached_property
    def _parts(self) -> dict[int, tuple[Geometry, ...]]:
        return {}

    def parts(self, columns: int) -> tuple[Geometry, ...]:
        """The contrasts in groups of alike shape, so small that their slots of `columns` values stay in a processor's cache.

        On other devices than the CPU there is one group: they pay for each call, and not for memory.
        """
        if not (self.batch.text.device.type == "cpu" if self.in_parts is None else self.in_parts):
            return (self,)
        if columns not in self._parts:
            self._parts[columns] = tuple(self._part(group) for group in self._grouped(columns))
        return self._parts[columns]

    def _grouped(self, columns: int) -> Iterator[list[int]]:
        batch = self.batch
        variants = batch.present.sum(1).tolist()
        slots = ((batch.length - batch.end) * batch.present).amax(1).tolist()
        group: list[int] = []
        for i in sorted(range(len(variants)), key=lambda i: (variants[i], slots[i], i)):
            size = (len(group) + 1) * variants[i] * (slots[i] + 1) * columns * 4
            if group and (variants[i] != variants[group[0]] or size > CACHED):
                yield group
                group = []
            group.append(i)
        if group:
            yield group

    def _part(self, group: list[int]) -> Geometry:
        batch, index = self.batch, torch.tensor(group)
        variants = int(batch.present[index].sum(1).max())
        names = ("text", "present", "length", "start", "end", "attribute", "lean")
        tables: dict[str, Any] = {name: getattr(batch, name)[index, :variants] for name in names}
        chosen: dict[str, Any] = {
            name: tuple(getattr(batch, name)[i] for i in group if getattr(batch, name))
            for name in ("ids", "categories", "clusters")
        }
        return Geometry(replace(batch, **tables, **chosen), tuple(group), self.known, rooms=self.rooms)

    @cached_property
    def category_C(self) -> Tensor:
        """Index of each contrast's category."""
        return torch.tensor([self.known.get(name, 0) for name in self.batch.categories], device=self.batch.text.device)

    @cached_property
    def cluster_C(self) -> Tensor:
        """See `Observation.cluster`."""
        named = zip(self.batch.categories, self.batch.clusters or self.batch.ids, strict=True)
        return torch.tensor([cluster_id(*each) for each in named], device=self.batch.text.device)

    @cached_property
    def ids_CVT(self) -> Tensor:
        """Token ids of the variants' texts."""
        return self.batch.input_ids.flatten()[self.tokens_CVT]

    def others(self, wide: torch.dtype) -> tuple[Tensor | None, Tensor]:
        """Which variants but the first are present, (C, V - 1, 1, 1) bool, None: all; and how many variants are, (C, 1, 1)."""
        key = ("others", wide)
        if key not in self._others:
            present_CV11 = self.batch.present[:, 1:, None, None]
            every = present_CV11.device.type == "cpu" and bool(present_CV11.all())
            self._others[key] = (None if every else present_CV11, 1 + present_CV11.sum(1).to(wide))
        return self._others[key]

    @cached_property
    def _others(self) -> dict[tuple[str, torch.dtype], tuple[Tensor | None, Tensor]]:
        return {}

    @property
    def width(self) -> int:
        """Tokens of the longest text of the whole micro-batch, with the padding of plain rows."""
        paths = self.batch.paths
        return (self.batch.input_ids if paths is None else paths).shape[1]

    @cached_property
    def longest(self) -> int:
        """T that statistics see: of a group of contrasts its own longest text, without padding for others."""
        return self.width if self.contrasts is None else int(self.batch.length.max())

    def flat(self, index_CVS: Tensor) -> Tensor:
        """Flat index into the tokens of the forward for places in the variants' texts; any index where there is no token."""
        batch = self.batch
        if batch.paths is None:
            return batch.text.unsqueeze(-1) * self.width + index_CVS
        return batch.paths[batch.text].gather(2, index_CVS).clamp_min_(0)

    @cached_property
    def tokens_CVT(self) -> Tensor:
        """Flat index of every token."""
        steps = torch.arange(self.longest, device=self.batch.text.device)
        return self.flat(steps.expand(*self.batch.text.shape, -1))

    @cached_property
    def in_order(self) -> bool:
        """The tokens of the variants' texts are those of the forward, one after the other."""
        tokens = self.tokens_CVT.flatten()
        return len(tokens) == self.batch.input_ids.numel() and bool(
            (tokens == torch.arange(len(tokens), device=tokens.device)).all()
        )

    @cached_property
    def without_padding(self) -> bool:
        """Every place of `mask_CVT` holds a token."""
        return bool(self.mask_CVT.all())

    @cached_property
    def mask_CVT(self) -> Tensor:
        """True where a present variant has a token."""
        steps = torch.arange(self.longest, device=self.batch.text.device)
        return (steps < self.batch.length.unsqueeze(-1)) & self.batch.present.unsqueeze(-1)

    @cached_property
    def padding(self) -> Tensor:
        """Places of `mask_CVT`, flat, that hold no token."""
        return (~self.mask_CVT).flatten().nonzero().squeeze(1)

    @cached_property
    def suffix_CVS(self) -> tuple[Tensor, Tensor]:
        """Flat index of the matched tokens after the attribute, and whether they exist: both (C, V, S - 1)."""
        batch = self.batch
        suffix_CV = (batch.length - batch.end) * batch.present
        most = int(suffix_CV.max())
        steps = torch.arange(most, device=batch.text.device)
        exists = steps < suffix_CV.unsqueeze(-1)
        index = (batch.end.unsqueeze(-1) + steps).where(exists, 0)
        return self.flat(index), exists

    @cached_property
    def span_CVP(self) -> tuple[Tensor, Tensor]:
        """Flat index of the attribute's own tokens, and whether they exist: both (C, V, P)."""
        batch = self.batch
        size_CV = (batch.end - batch.start) * batch.present
        steps = torch.arange(max(int(size_CV.max()), 1), device=batch.text.device)
        exists = steps < size_CV.unsqueeze(-1)
        index = (batch.start.unsqueeze(-1) + steps).where(exists, 0)
        return self.flat(index), exists

    @cached_property
    def slots(self) -> Tensor:
        """(C*V*S,) flat index of the aligned slots; of the pooled one its first token."""
        return torch.cat([self.span_CVP[0][:, :, :1], self.suffix_CVS[0]], 2).flatten()

    @cached_property
    def pooled(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Which contrasts have an attribute of several tokens, (C',), and those tokens as in `span_CVP`; None: no contrast has."""
        index, exists = self.span_CVP
        several_C = exists[:, :, 1:].any(2).any(1)
        return (several_C.nonzero().squeeze(1), index[several_C], exists[several_C]) if bool(several_C.any()) else None

    @cached_property
    def equal_length_C(self) -> Tensor:
        """True where all present variants have the same number of tokens."""
        batch = self.batch
        longest = batch.length.amax(1, keepdim=True)
        return ((batch.length == longest) | ~batch.present).all(1)

    def shared(self, seen_CVS: Tensor) -> Tensor:
        """True only where every present variant has the slot."""
        present_CV1 = self.batch.present.unsqueeze(-1)
        return (seen_CVS | ~present_CV1).all(1, keepdim=True) & present_CV1

    @cached_property
    def aligned_mask_CVS(self) -> Tensor:
        """The aligned slots that every present variant has: the pooled one first."""
        (_, in_span), (_, exists) = self.span_CVP, self.suffix_CVS
        return self.shared(torch.cat([in_span.any(2, keepdim=True), exists], 2))

    @cached_property
    def not_shared(self) -> Tensor:
        """Places among the aligned slots, (C*V*S), that not all present variants have."""
        return (~self.aligned_mask_CVS).flatten().nonzero().squeeze(1)

    @cached_property
    def slots_shared(self) -> tuple[Tensor, Tensor]:
        """`Observation.slot_weight` and `Observation.reached` of a site that saw all tokens."""
        return slots_shared(self.aligned_mask_CVS)


def slots_shared(aligned_mask_CVS: Tensor) -> tuple[Tensor, Tensor]:
    """`Observation.slot_weight`, (C, S), and `Observation.reached`, (C, 1, 1)."""
    shared_CS = aligned_mask_CVS.any(1)
    count_C1 = shared_CS.sum(1, keepdim=True)
    return shared_CS / count_C1.clamp_min(1).double(), (count_C1 > 0).double().unsqueeze(-1)
