"""From the values of a tap to the `Observation` that statistics see; gathers are made only when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from fairprune_framework.api.observations import Lasting, Observation, Pass
from fairprune_framework.api.types import Site, Tap
from fairprune_framework.auditing.geometry import Geometry as Geometry
from fairprune_framework.auditing.geometry import slots_shared as slots_shared
from fairprune_framework.auditing.lazy import Lazy
from fairprune_framework.functional.fused import slot_variance, usable


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

    def gather(self, values_MK: Tensor, index: Tensor, exists: Tensor, name: str = "") -> tuple[Tensor, Tensor]:
        """values (..., K) at flat token indices, zero where there is none; and where there is one. `name`: of the room for them."""
        if values_MK.shape[0] == 0:
            return values_MK.new_zeros((*index.shape, values_MK.shape[1])), torch.zeros_like(exists)
        rows, seen = self.rows(index)
        exists = exists if seen is None else exists & seen
        return self._selected(values_MK, rows.reshape(-1), name).view(*index.shape, values_MK.shape[1]), exists

    def _selected(self, values_MK: Tensor, rows: Tensor, name: str) -> Tensor:
        """Some rows of values; with a name, in the room of this name on a CPU, where memory costs more to get than to fill."""
        if not name or values_MK.device.type != "cpu":
            return values_MK.index_select(0, rows)
        room = self.geometry.lasting.room(name, (len(rows), values_MK.shape[1]), values_MK.dtype, values_MK.device)
        return torch.index_select(values_MK, 0, rows, out=room)

    def slots(self, values_MK: Tensor, wide: torch.dtype, name: str = "") -> Tensor:
        """(C, V, S, K) in a dtype that is at least as wide as the model's: the pooled attribute slot first, then the matched suffix."""
        geometry, columns = self.geometry, values_MK.shape[1]
        shape = (*geometry.batch.text.shape, -1, columns)
        if values_MK.shape[0] == 0:
            return values_MK.new_zeros((len(geometry.slots), columns), dtype=wide).view(shape)
        slots_CVSK = self._selected(values_MK, self.rows(geometry.slots)[0], name).view(shape).to(wide)
        if geometry.pooled is not None:
            several, span, in_span = geometry.pooled
            values, in_span = self.gather(values_MK, span, in_span)
            weight_CVP = in_span / in_span.sum(2, keepdim=True).clamp_min(1).to(wide)
            slots_CVSK[several, :, 0] = values.to(wide).mul_(weight_CVP.unsqueeze(-1)).sum(2)
        return slots_CVSK

    def aligned(self, values_MK: Tensor) -> Tensor:
        """See `Observation.aligned`. On a CPU 0 where it is arbitrary."""
        slots_CVSK = self.slots(values_MK, torch.float64)
        if self.routed is None and slots_CVSK.device.type == "cpu":
            slots_CVSK.view(-1, values_MK.shape[1]).index_fill_(0, self.geometry.not_shared, 0)
        return slots_CVSK

    def filled(self, values_MK: Tensor, tap: Tap) -> Tensor:
        """See `Observation.slots`."""
        slots_CVSK = self.slots(values_MK, torch.promote_types(values_MK.dtype, torch.float32), f"slots of {tap}")
        if self.routed is None and slots_CVSK.device.type == "cpu":
            slots_CVSK.view(-1, values_MK.shape[1]).index_fill_(0, self.geometry.not_shared, 0)
            return slots_CVSK
        return slots_CVSK.masked_fill_(~self.aligned_mask().unsqueeze(-1), 0)

    def variance(self, values_MK: Tensor, slots: Callable[[], Tensor]) -> Tensor:
        """See `Observation.aligned_variance`. From the differences to the first variant, whose squares do not cancel."""
        if usable(values_MK) and len(values_MK):
            return self._fused_variance(values_MK)
        slots_CVSK = slots()
        first_C1SK, others_CVSK = slots_CVSK[:, :1], slots_CVSK[:, 1:]
        if others_CVSK.shape[1] == 1:
            return mse_loss(others_CVSK.squeeze(1), first_C1SK.squeeze(1), reduction="none").mul_(0.25)  # one pass, not two
        present_CV11, count_C11 = self.geometry.others(slots_CVSK.dtype)
        room = self.geometry.lasting.room("delta", others_CVSK.shape, slots_CVSK.dtype, slots_CVSK.device)
        delta_CVSK = torch.sub(others_CVSK, first_C1SK, out=room)
        if present_CV11 is not None:
            delta_CVSK.mul_(present_CV11)
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

    def tokens(tap: Tap, values_MK: Tensor, name: str) -> Tensor:
        if of(tap).routed is None and geometry.in_order:
            shown_CVTK = values_MK.view(*geometry.mask_CVT.shape, -1)
            return shown_CVTK if geometry.without_padding else shown_CVTK.masked_fill(~geometry.mask_CVT.unsqueeze(-1), 0)
        shown = geometry.mask_CVT if tap not in whole else geometry.mask_CVT & mask.any(2).any(1)[:, None, None]
        gathered, seen = of(tap).gather(values_MK, geometry.tokens_CVT, shown, name)
        if of(tap).routed is None and tap not in whole and gathered.device.type == "cpu":
            gathered.view(-1, gathered.shape[-1]).index_fill_(0, geometry.padding, 0)
            return gathered
        return gathered.masked_fill_(~seen.unsqueeze(-1), 0)

    slots = Lazy(taps, lambda tap: of(tap).filled(values[tap], tap))
    return Observation(
        acts=Lazy(taps, lambda tap: tokens(tap, values[tap], f"acts of {tap}")),
        grads=Lazy(frozenset(slopes), lambda tap: tokens(tap, slopes[tap], f"grads of {tap}")),
        mask=mask,
        aligned=Lazy(taps, lambda tap: of(tap).aligned(values[tap])),
        slots=slots,
        aligned_variance=Lazy(taps, lambda tap: of(tap).variance(values[tap], lambda: slots[tap])),
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
        lasting=geometry.lasting if routed is None else Lasting(rooms=geometry.lasting.rooms),
    )


def narrowed(observation: Observation, taps: frozenset[Tap]) -> Observation:
    """What a statistic that declared `taps` may see of a site; values are made once for all statistics."""
    if taps >= set(observation.acts):
        return observation
    parts: dict[str, Any] = {
        name: getattr(observation, name).only(taps) for name in ("acts", "grads", "aligned", "slots", "aligned_variance")
    }
    return replace(observation, **parts)
