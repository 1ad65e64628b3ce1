"""What the contrasts of one part of a micro-batch add to: their groups, and the attribute values of these."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fairprune_framework.api.interfaces import Observation, ValueSums
from fairprune_framework.api.statistics import value_of_variants
from fairprune_framework.auditing.observation import Geometry
from fairprune_framework.auditing.reductions import by_group, reduction_of


class Members:
    """What the contrasts of one part of a micro-batch add to."""

    def __init__(self, part: Geometry, member_GC: Tensor, rows: Sequence[int]) -> None:
        self.part, self.member_GC, self.rows = part, member_GC, rows
        self._added: dict[int, tuple[Tensor, Tensor]] = {}
        """Summands that are the same at all sites that see every token, by identity, and what they add up to."""
        self._known: set[int] = set()
        self._row_of_PX: Tensor | None = None

    def of_contrasts(self, key: str, summands_CRK: Tensor, observation: Observation) -> Tensor:
        """(G, R, K): rows reduced by group."""
        if reduction_of(key) != "sum" or not self.part.lasting.holds(summands_CRK):
            return by_group(key, self.member_GC, summands_CRK, observation.mask)
        if id(summands_CRK) not in self._added:
            total_GRK = by_group(key, self.member_GC, summands_CRK, observation.mask)
            self._added[id(summands_CRK)] = (summands_CRK, total_GRK)
            self._known.add(id(total_GRK))
        return self._added[id(summands_CRK)][1]

    def knows(self, total_GRK: Tensor) -> bool:
        """It was made of masks and attributes alone: it is finite."""
        return id(total_GRK) in self._known

    def of_values(self, key: str, sums: ValueSums, observation: Observation) -> Tensor:
        """(P, K): the rows of the groups' attribute values; or (G, A, K), where that cannot be."""
        shown = self.part.lasting.holds(sums.value) and sums.value is value_of_variants(observation)
        if not shown or sums.value.device.type != "cpu" or reduction_of(key) != "sum":
            return by_group(key, self.member_GC, sums.spread(), observation.mask)
        if self._row_of_PX is None:
            value_1ACV = sums.value.permute(2, 0, 1).unsqueeze(0)
            self._row_of_PX = (self.member_GC[:, None, :, None] * value_1ACV).flatten(0, 1)[self.rows].flatten(1)
        return self._row_of_PX @ sums.of_variants.flatten(0, 1)
