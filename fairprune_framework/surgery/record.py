"""What a removal did, as `run.json` tells it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fairprune_framework.api.types import Plan, Site


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the model is, before and after."""

    parameters_before: int
    parameters_after: int
    bytes_before: int
    """Of the files with weights; of the tensors in memory, where there are no files of the original."""
    bytes_after: int


@dataclass(frozen=True, kw_only=True)
class Removal(Sizes):
    """What was done, as `run.json` tells it."""

    operator: str
    units: int
    cut: int
    """Units that are gone from the tensors."""
    padded: int
    """Planned units that are stored as zeros."""
    scaled: int
    """Planned units of which the output weights were scaled."""
    widths: Mapping[str, tuple[int, int]]
    """Width group -> (before, after)."""
    parameters_effective: int
    """Without those of units stored as zeros."""
    max_difference: float | None
    """Largest difference of logits between the removed (or scaled) and the masked model, float32. Weights are scaled in float32
    for this comparison; a 16-bit file rounds them once more. None: shard by shard no logits are computed."""
    kl: float | None
    note: str | None
    files: tuple[str, ...]
    """What could not be kept as it is in the original's files."""

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def report(
    plan: Plan,
    sites: Mapping[str, Site],
    per_unit: Mapping[str, int],
    widths: Mapping[tuple[str, int], int],
    sizes: Sizes,
    difference: float | None,
    kl: float | None,
    files: tuple[str, ...],
) -> Removal:
    """What was done.

    Args:
        per_unit: site -> parameters of one of its units.
    """
    gone = {name: site.units - widths[(site.width_group, site.units)] for name, site in sites.items()}
    cut_units = sum(gone.values())
    padded = {name: len(plan.sites.get(name, ())) - count for name, count in gone.items()}
    scaled = plan.count if plan.operator == "scale" else 0
    done = {"scale": "scaled", "mean": "held"}.get(plan.operator, "zeroed")
    note = f"{done}, not smaller" if cut_units == 0 and plan.count else None
    effective = sizes.parameters_after - sum(per_unit[name] * count for name, count in padded.items() if not scaled)
    return Removal(
        operator=plan.operator,
        units=plan.count,
        cut=cut_units,
        padded=plan.count - cut_units - scaled,
        scaled=scaled,
        widths={f"{group}": (width, stored) for (group, width), stored in widths.items()},
        **asdict(sizes),
        parameters_effective=effective,
        max_difference=difference,
        kl=kl,
        note=note,
        files=files,
    )
