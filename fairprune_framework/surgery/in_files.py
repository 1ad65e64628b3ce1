"""Sites, and what a removal took, by the tensors of files: of packed experts each file tensor holds the rows of one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from torch import Tensor

from fairprune_framework.api.types import Site, Slice
from fairprune_framework.models.blocks import Layout
from fairprune_framework.models.checkpoint import Checkpoint
from fairprune_framework.surgery import restoration as kept


def sites_in_files(sites: Mapping[str, Site], parameters: Collection[str], layout: Layout) -> dict[str, Site]:
    """The sites with those of their slices that lie in these parameters as slices of the tensors of files.

    Raises:
        UserError: no tensor of the files holds all of a slice.
    """
    return {
        name: replace(
            site,
            slices=tuple(layout.within(slice_, site.units) for slice_ in site.slices if slice_.parameter in parameters),
        )
        for name, site in sites.items()
    }


def restoration_in_files(taken: kept.Restoration, layout: Layout) -> kept.Restoration:
    """What a removal took, by the tensors of files: of `shapes` and `slices` the names.

    Args:
        layout: of the original model.
    """
    slices: dict[str, list[tuple[str, Slice]]] = {}
    for entries in taken.slices.values():
        for site, slice_ in entries:
            found = layout.within(slice_, _extent(taken, site))
            slices.setdefault(found.parameter, []).append((site, found))
    shapes = {name: layout.shape(name) for name in slices}
    return replace(taken, shapes=shapes, slices={name: tuple(entries) for name, entries in slices.items()})


def _extent(taken: kept.Restoration, site: str) -> int:
    return 1 + max(unit for units in taken.units[site] for unit in units)


class Pieces(Mapping[str, Tensor]):
    """The tensors of a restoration, each read from the original when it is asked for."""

    def __init__(self, checkpoint: Checkpoint, taken: kept.Restoration) -> None:
        self._checkpoint = checkpoint
        self._pieces = kept.pieces(restoration_in_files(taken, checkpoint.layout))

    def __getitem__(self, name: str) -> Tensor:
        slice_, units = self._pieces[name]
        return kept.piece(self._checkpoint.part(slice_.parameter), slice_, units)

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)
