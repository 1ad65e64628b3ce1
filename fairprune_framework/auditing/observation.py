"""From the values of a tap to the `Observation` that statistics see; gathers are made only when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from fairprune_framework.api.interfaces import Observation, Pass
from fairprune_framework.api.types import Site, Tap
from fairprune_framework.auditing.lazy import Lazy
from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.auditing.sums import cluster_id
from fairprune_framework.functional.fused import slot_variance, usable

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
        return Geometry(replace(batch, **tables, **chosen), tuple(group), self.known)

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


@dataclass(frozen=True)
class _Reach:
    """Which tokens of the micro-batch a site saw: all, or for an expert those routed to it."""

    geometry: Geometry
    routed: Tensor | None
    """(R*L,) row of the tap's values, or -1; None: row = flat index."""

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Rows of the values for flat token indices, and where they exist."""
        if self.routed is None:
            return index, None
        rows = self.routed[index]
        return rows.clamp_min(0), rows >= 0

    def gather(self, values_MK: Tensor, index: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
        """values (..., K) at flat token indices, zero where there is none; and where there is one."""
        if values_MK.shape[0] == 0:
            return values_MK.new_zeros((*index.shape, values_MK.shape[1])), torch.zeros_like(exists)
        rows, seen = self.rows(index)
        exists = exists if seen is None else exists & seen
        values = values_MK.index_select(0, rows.reshape(-1)).reshape(*index.shape, values_MK.shape[1])
        return values, exists

    def slots(self, values_MK: Tensor, wide: torch.dtype) -> Tensor:
        """(C, V, S, K) in a dtype that is at least as wide as the model's: the pooled attribute slot first, then the matched suffix."""
        geometry, columns = self.geometry, values_MK.shape[1]
        shape = (*geometry.batch.text.shape, -1, columns)
        if values_MK.shape[0] == 0:
            return values_MK.new_zeros((len(geometry.slots), columns), dtype=wide).view(shape)
        slots_CVSK = values_MK.index_select(0, self.rows(geometry.slots)[0]).view(shape).to(wide)
        if geometry.pooled is not None:
            several, span, in_span = geometry.pooled
            values, in_span = self.gather(values_MK, span, in_span)
            weight_CVP = in_span / in_span.sum(2, keepdim=True).clamp_min(1).to(wide)
            slots_CVSK[several, :, 0] = values.to(wide).mul_(weight_CVP.unsqueeze(-1)).sum(2)
        return slots_CVSK

    def aligned(self, values_MK: Tensor) -> Tensor:
        """See `Observation.aligned`. On a CPU 0 where it is arbitrary, which costs little there and saves `shared_slots` a copy."""
        slots_CVSK = self.slots(values_MK, torch.float64)
        if self.routed is None and slots_CVSK.device.type == "cpu":
            slots_CVSK.view(-1, values_MK.shape[1]).index_fill_(0, self.geometry.not_shared, 0)
        return slots_CVSK

    def filled(self, values_MK: Tensor) -> Tensor:
        """See `Observation.slots`."""
        slots_CVSK = self.slots(values_MK, torch.promote_types(values_MK.dtype, torch.float32))
        if self.routed is None and slots_CVSK.device.type == "cpu":
            slots_CVSK.view(-1, values_MK.shape[1]).index_fill_(0, self.geometry.not_shared, 0)
            return slots_CVSK
        return slots_CVSK.masked_fill_(~self.aligned_mask().unsqueeze(-1), 0)

    def variance(self, values_MK: Tensor) -> Tensor:
        """See `Observation.aligned_variance`. From the differences to the first variant, whose squares do not cancel."""
        if usable(values_MK) and len(values_MK):
            return self._fused_variance(values_MK)
        wide = values_MK.dtype if values_MK.dtype.itemsize >= 4 else torch.float32
        slots_CVSK = self.slots(values_MK, wide)
        first_C1SK, others_CVSK = slots_CVSK[:, :1], slots_CVSK[:, 1:]
        if others_CVSK.shape[1] == 1:
            return mse_loss(others_CVSK.squeeze(1), first_C1SK.squeeze(1), reduction="none").mul_(0.25)  # one pass, not two
        present_CV11 = self.geometry.batch.present[:, 1:, None, None]
        count_C11 = 1 + present_CV11.sum(1).to(wide)
        delta_CVSK = others_CVSK.sub_(first_C1SK).mul_(present_CV11)
        mean_CSK = delta_CVSK.sum(1).div_(count_C11)
        return delta_CVSK.square_().sum(1).div_(count_C11).sub_(mean_CSK.square_()).clamp_min_(0)

    def _fused_variance(self, values_MK: Tensor) -> Tensor:
        """`variance` on a GPU: attributes of several tokens, whose slot is a mean, are computed apart."""
        geometry = self.geometry
        present_CV = geometry.batch.present
        slots_CVS = self.rows(geometry.slots)[0].view(*present_CV.shape, -1)
        variance_CSK = slot_variance(values_MK, slots_CVS, present_CV)
        if geometry.pooled is not None:
            several, span, in_span = geometry.pooled
            values, in_span = self.gather(values_MK, span, in_span)
            weight_CVP = in_span / in_span.sum(2, keepdim=True).clamp_min(1).float()
            pooled_VRK = (values.float().mul_(weight_CVP.unsqueeze(-1))).sum(2).flatten(0, 1)
            own_CV1 = torch.arange(len(pooled_VRK), device=span.device).view(len(several), -1, 1)
            variance_CSK[several, 0] = slot_variance(pooled_VRK, own_CV1, present_CV[several]).squeeze(1)
        return variance_CSK

    def aligned_mask(self) -> Tensor:
        """(C, V, S): where `aligned` holds something; elsewhere its values are arbitrary."""
        if self.routed is None:
            return self.geometry.aligned_mask_CVS
        (span, in_span), (suffix, exists) = self.geometry.span_CVP, self.geometry.suffix_CVS
        in_span, exists = in_span & (self.routed[span] >= 0), exists & (self.routed[suffix] >= 0)
        return self.geometry.shared(torch.cat([in_span.any(2, keepdim=True), exists], 2))


def observe(
    site: Site,
    values: Mapping[Tap, Tensor],
    rows: Tensor | None,
    geometry: Geometry,
    pass_: Pass,
    weights: Mapping[str, Tensor],
    grads: Mapping[Tap, Tensor] | None = None,
    objective_C: Tensor | None = None,
    whole: frozenset[Tap] = frozenset(),
) -> Observation:
    """Build what statistics see of one site.

    Args:
        values: tap -> (M, K) as the adapter showed them.
        rows: (M,) flat token index of each row; None: all R*L tokens in order.
        grads: tap -> (M, K), d objective / d values.
        objective_C: value of the pass's objective.
        whole: taps with a row for every token, whatever `rows` says: those of the layer of an expert. Contrasts that the site did
            not see have zeros, so that it does not matter what stands together.
    """
    batch = geometry.batch
    taps: frozenset[Tap] = frozenset(values)
    routed = None
    if rows is not None:
        routed = torch.full((batch.input_ids.numel(),), -1, dtype=torch.long, device=rows.device)
        routed[rows] = torch.arange(len(rows), device=rows.device)
    reach, everywhere = _Reach(geometry, routed), _Reach(geometry, None)
    mask = geometry.mask_CVT if routed is None else geometry.mask_CVT & (routed[geometry.tokens_CVT] >= 0)

    slopes = grads or {}
    aligned_mask = reach.aligned_mask()
    slot_weight, reached = geometry.slots_shared if routed is None else slots_shared(aligned_mask)

    def of(tap: Tap) -> _Reach:
        return everywhere if tap in whole else reach

    def tokens(tap: Tap, values_MK: Tensor) -> Tensor:
        if of(tap).routed is None and geometry.in_order:
            shown_CVTK = values_MK.view(*geometry.mask_CVT.shape, -1)
            return shown_CVTK if geometry.without_padding else shown_CVTK.masked_fill(~geometry.mask_CVT.unsqueeze(-1), 0)
        shown = geometry.mask_CVT if tap not in whole else geometry.mask_CVT & mask.any(2).any(1)[:, None, None]
        gathered, seen = of(tap).gather(values_MK, geometry.tokens_CVT, shown)
        if of(tap).routed is None and tap not in whole and gathered.device.type == "cpu":
            gathered.view(-1, gathered.shape[-1]).index_fill_(0, geometry.padding, 0)
            return gathered
        return gathered.masked_fill_(~seen.unsqueeze(-1), 0)

    return Observation(
        acts=Lazy(taps, lambda tap: tokens(tap, values[tap])),
        grads=Lazy(frozenset(slopes), lambda tap: tokens(tap, slopes[tap])),
        mask=mask,
        aligned=Lazy(taps, lambda tap: of(tap).aligned(values[tap])),
        slots=Lazy(taps, lambda tap: of(tap).filled(values[tap])),
        aligned_variance=Lazy(taps, lambda tap: of(tap).variance(values[tap])),
        aligned_mask=aligned_mask,
        slot_weight=slot_weight,
        reached=reached,
        attribute=batch.attribute,
        values=batch.values,
        equal_length=geometry.equal_length_C,
        weights=weights,
        pass_=pass_,
        objective=objective_C,
        site=site,
        tokens=geometry.ids_CVT,
        lean=batch.lean,
        cluster=geometry.cluster_C,
        category=geometry.category_C,
        before={},
    )


def narrowed(observation: Observation, taps: frozenset[Tap]) -> Observation:
    """What a statistic that declared `taps` may see of a site; values are made once for all statistics."""
    if taps >= set(observation.acts):
        return observation
    parts: dict[str, Any] = {
        name: getattr(observation, name).only(taps) for name in ("acts", "grads", "aligned", "slots", "aligned_variance")
    }
    return replace(observation, **parts)
