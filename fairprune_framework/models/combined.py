"""Several adapters for one model: each knows one layout, and together their sites cover a model that mixes layouts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import combinations

from torch import nn

from fairprune_framework.api.interfaces import ArchitectureAdapter, Handler
from fairprune_framework.api.types import Site, Tap

MOST = 4
"""Adapters that are combined at most."""
OF_A_SITE: frozenset[Tap] = frozenset({"gate", "up", "neuron", "down"})
"""Taps that every site shows for itself; the others belong to its layer, and are given once."""


@dataclass(frozen=True, kw_only=True)
class Combined(ArchitectureAdapter):
    """The sites of all parts, experts first and heads last within a layer; each part taps its own."""

    parts: tuple[ArchitectureAdapter, ...]

    def sites(self, model: nn.Module) -> Sequence[Site]:
        """See `ArchitectureAdapter.sites`."""
        return in_order([site for part in self.parts for site in part.sites(model)])

    @contextmanager
    def tap(self, model: nn.Module, sites: Sequence[Site], taps: frozenset[Tap], handler: Handler) -> Iterator[None]:
        """See `ArchitectureAdapter.tap`. The part of a layer's first site gives the taps of the layer."""
        first: dict[int, str] = {}
        for site in sites:
            first.setdefault(site.layer, site.name)
        with ExitStack() as stack:
            for part in self.parts:
                names = {site.name for site in part.sites(model)}
                mine = [site for site in sites if site.name in names]
                leading = {site.layer for site in mine if first[site.layer] == site.name}
                for leads, wanted in ((True, taps), (False, taps & OF_A_SITE)):
                    chosen = [site for site in mine if (site.layer in leading) == leads]
                    if chosen and wanted:
                        stack.enter_context(part.tap(model, chosen, wanted, handler))
            yield


def in_order(sites: Sequence[Site]) -> list[Site]:
    """By layer, experts before what stands beside them, and heads last: who comes first shows the taps of the layer's MLP."""
    return sorted(sites, key=lambda site: (site.layer, ("expert", "mlp", "heads").index(site.kind)))


def disjoint(groups: Sequence[Sequence[Site]]) -> bool:
    """Whether no parameter belongs to the sites of two groups."""
    owned = [{piece.parameter for site in group for piece in site.slices} for group in groups]
    return all(not (a & b) for a, b in combinations(owned, 2))
