"""How wide the units of a plan are stored: uniform widths, which one config field says, or exact ones, which tensors have.

A width group is stored as wide as its least-cut site allows, rounded up to the budget's multiple; planned units beyond that
are stored as zeros. With uniform widths a group is what one config field describes, with exact ones what one tensor holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from fairprune_framework.api.types import Plan, Site
from fairprune_framework.api.widths import read_field

Widths = Literal["uniform", "exact"]


def stored_widths(plan: Plan, sites: Mapping[str, Site], round_to: int) -> dict[tuple[str, int], int]:
    """(width group, width) -> stored width: the least-cut site decides, rounded up to a multiple of `round_to` and of what each
    site asks for, and to one that the config takes; `zero` and `scale` keep every width."""
    widths: dict[tuple[str, int], int] = {}
    multiples: dict[tuple[str, int], int] = {}
    takes: dict[tuple[str, int], tuple[int, ...]] = {}
    for name, site in sites.items():
        gone = len(plan.sites.get(name, ())) if plan.removes else 0
        kept = site.units - gone
        group = (site.width_group, site.units)
        widths[group] = max(widths.get(group, 0), kept)
        multiples[group] = math.lcm(multiples.get(group, round_to), site.multiple)
        takes[group] = site.storable
    rounded = {group: min(-(-width // multiples[group]) * multiples[group], group[1]) for group, width in widths.items()}
    return {
        group: next((each for each in takes[group] if each >= width), group[1]) if takes[group] else width
        for group, width in rounded.items()
    }


def stored_sites(sites: Mapping[str, Site], widths: Widths) -> dict[str, Site]:
    """The sites with the width groups in which they are stored: with exact widths those that one tensor of output weights holds, such
    as the experts of a layer, and no config field."""
    if widths == "uniform":
        return dict(sites)
    outs = {name: min((s.parameter for s in site.slices if s.role == "out"), default=name) for name, site in sites.items()}
    plain: dict[str, Any] = {"config_fields": {}, "config_constants": {}, "storable": ()}
    return {name: replace(site, width_group=outs[name], **plain) for name, site in sites.items()}


def new_fields(sites: Mapping[str, Site], widths: Mapping[tuple[str, int], int], config: Any) -> dict[str, int]:
    """Field of the text config -> its value at these stored widths, where it is another one, and what is written beside it."""
    found: dict[str, int] = {}
    for site in sites.values():
        stored = widths[(site.width_group, site.units)]
        if stored != site.units:
            new = {field: stored * times for field, times in site.config_fields.items()}
            found |= {field: width for field, width in new.items() if width != read_field(config, field)}
            found |= site.config_constants
    return found
