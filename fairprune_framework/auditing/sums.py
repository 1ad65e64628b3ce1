"""The state of an audit: compensated sums of what statistics return.

`StatisticSums` is a torchmetrics `Metric`, so that devices, copies and merging work as everywhere; its arithmetic lives in
`compensated.py`. It is moved by `.to(device=...)` only, and never by a change of dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import compress

import torch
from torch import Tensor
from torchmetrics import Metric

from fairprune_framework.auditing.reductions import merged, neutral, reduction_of, with_value
from fairprune_framework.auditing.sum_blocks import Block, Rows
from fairprune_framework.functional.compensated import rounded


class StatisticSums(Metric):
    """Sums per category: state (2, G, R, K) float64, the words hi and lo of G categories."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False, dist_sync_on_step=False)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._blocks: dict[int, list[Block]] = {}
        """Columns -> the blocks of sums on a CPU."""

    def update(
        self, values: Mapping[str, Tensor], groups: Sequence[int] | None = None, of: int = 0, rows: Rows | None = None
    ) -> None:
        """Add what one micro-batch summed up to.

        Args:
            values: key -> (G, R, K) float64; or of some groups alone, (len(groups), R, K): the others stay as they are. On a CPU also
                (P, K), of sums: some rows alone, those of `rows`.
            groups: which ones, ascending; None: all.
            of: G, where groups are given.
        """
        index: dict[torch.device, Tensor] = {}
        together: dict[int, dict[str, Tensor]] = {}
        whole = groups is None or len(groups) == of
        for key, value_GRK in values.items():
            if value_GRK.device.type == "cpu" and reduction_of(key) == "sum":
                together.setdefault(value_GRK.shape[-1], {})[key] = value_GRK
                continue
            self._know(key, (len(value_GRK) if whole else of, *value_GRK.shape[1:]), value_GRK.device)
            if whole:
                setattr(self, key, with_value(key, getattr(self, key), value_GRK))
                continue
            if value_GRK.device not in index:
                index[value_GRK.device] = torch.tensor(groups, device=value_GRK.device)
            words_2GRK, chosen = getattr(self, key), index[value_GRK.device]
            added = with_value(key, words_2GRK.index_select(1, chosen), value_GRK)
            setattr(self, key, words_2GRK.index_copy_(1, chosen, added))
        for waiting in together.values():
            self._add_rows(waiting, None if whole else groups, of, rows)

    def _add_rows(self, values: Mapping[str, Tensor], groups: Sequence[int] | None, of: int, rows: Rows | None) -> None:
        """Add to sums of equally many columns, some rows of several sums at a time."""
        self._make_blocks(values, of, rows)
        columns = next(iter(values.values())).shape[-1]
        own: dict[tuple[int, ...], list[int]] = {}
        for block in self._blocks[columns]:
            parts: list[Tensor] = []
            places: list[int] = []
            for key, offset in block.offsets.items():
                if key not in values:
                    continue
                value = values[key]
                if value.ndim == 2:
                    assert rows is not None
                    chosen: Iterable[int] = rows.places
                else:
                    shape = tuple(value.shape[:2])
                    if shape not in own:
                        every = range(shape[0]) if groups is None else groups
                        own[shape] = [group * shape[1] + row for group in every for row in range(shape[1])]
                    value, chosen = value.flatten(0, 1), own[shape]
                    if (
                        shape[1] > 1 and columns > 1
                    ):  # most attribute values belong to one category, and adding 0 changes no word
                        filled = value.any(1)
                        value, chosen = value[filled], compress(chosen, filled.tolist())
                parts.append(value)
                places.extend(offset + place for place in chosen)
            if places:
                block.add(parts, torch.tensor(places))

    def _make_blocks(self, values: Mapping[str, Tensor], of: int, rows: Rows | None) -> None:
        """A block of those sums that are not known yet, or that have been moved or put in their place since."""
        columns = next(iter(values.values())).shape[-1]
        blocks = self._blocks.setdefault(columns, [])
        blocks[:] = [block for block in blocks if all(getattr(self, key) is view for key, view in block.views.items())]
        known = {key for block in blocks for key in block.offsets}
        shapes: dict[str, tuple[int, ...]] = {}
        for key, value in values.items():
            if key not in known:
                of_rows = () if rows is None else (of, rows.of, columns)
                shapes[key] = of_rows if value.ndim == 2 else (of or len(value), *value.shape[1:])
        if not shapes:
            return
        block = Block(shapes)
        for key, view in block.views.items():
            if key in self._defaults:
                view.copy_(getattr(self, key))
                setattr(self, key, view)
            else:
                self._know(key, shapes[key], view.device, view)
        blocks.append(block)

    def _know(self, key: str, shape: tuple[int, ...], device: torch.device, view: Tensor | None = None) -> None:
        if key not in self._defaults:
            self.add_state(key, neutral(key, (0,) * len(shape), device), dist_reduce_fx=partial(merged, key))
            self._shapes[key] = shape[1:]
            setattr(self, key, neutral(key, shape, device) if view is None else view)  # its default takes no memory

    def words(self) -> dict[str, Tensor]:
        """key -> (2, G, R, K) float64, both words, on the CPU."""
        return {key: getattr(self, key).cpu() for key in sorted(self._defaults)}

    def shape_of(self, key: str) -> tuple[int, ...] | None:
        """(R, K) of one sum; None before its first update."""
        return self._shapes.get(key)

    def totals(self) -> dict[str, Tensor]:
        """key -> (G, R, K) float64, rounded once, on the CPU."""
        return {key: rounded(getattr(self, key)).cpu() for key in sorted(self._defaults)}

    def compute(self) -> dict[str, Tensor]:
        """As `totals`, but torchmetrics squeezes what has one element: `(1, 1, 1)` comes back without axes."""
        return self.totals()
