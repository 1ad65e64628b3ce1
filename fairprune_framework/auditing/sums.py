"""The one state of an audit: compensated sums of what statistics return, and the result that is saved.

`StatisticSums` is a torchmetrics `Metric`, so that devices, copies and merging work as everywhere; its arithmetic lives in
`compensated.py`. It is moved by `.to(device=...)` only, and never by a change of dtype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from fairprune_framework.auditing.compensated import add_sums, add_value, rounded
from fairprune_framework.errors import RunFolderError

CONTRASTS: Literal["contrasts"] = "contrasts"
CALIBRATION: Literal["calibration"] = "calibration"
OBSERVED = "observed"
"""Output name of the core's own count: contrasts in which a site was seen."""


def described(value: Any) -> str:
    """A statistic in words that are the same in every process: unlike `repr`, sets are sorted.

    >>> described(frozenset({"up", "gate"}))
    "{'gate', 'up'}"
    """
    if is_dataclass(value) and not isinstance(value, type):
        inside = ", ".join(f"{item.name}={described(getattr(value, item.name))}" for item in fields(value))
        return f"{type(value).__qualname__}({inside})"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(described, value)))}}}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(described, value))})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{described(key)}: {described(item)}' for key, item in value.items()))}}}"
    return repr(value)


def key_of(stream: str, site: str, output: str) -> str:
    """Name of one state, and of its tensor in the file."""
    return f"{stream}/{site}/{output}"


class StatisticSums(Metric):
    """Sums per category: state (2, G, R, K) float64, the words hi and lo of G categories."""

    full_state_update = False

    def __init__(self, categories: Sequence[str]) -> None:
        super().__init__(sync_on_compute=False, dist_sync_on_step=False)
        self.categories = tuple(categories)

    def update(self, values: Mapping[str, Tensor]) -> None:
        """Add what one micro-batch summed up to: key -> (G, R, K) float64, zero for categories that it does not hold."""
        for key, value_GRK in values.items():
            if key not in self._defaults:
                zeros = torch.zeros((2, *value_GRK.shape), dtype=torch.float64, device=value_GRK.device)
                self.add_state(key, zeros, dist_reduce_fx=add_sums)
            setattr(self, key, add_value(getattr(self, key), value_GRK))

    def shape_of(self, key: str) -> tuple[int, ...] | None:
        """(R, K) of one sum; None before its first update."""
        return tuple(self._defaults[key].shape[2:]) if key in self._defaults else None

    def totals(self) -> dict[str, Tensor]:
        """key -> (G, R, K) float64, rounded once, on the CPU."""
        return {key: rounded(getattr(self, key)).cpu() for key in sorted(self._defaults)}

    def compute(self) -> dict[str, Tensor]:
        """As `totals`, but torchmetrics squeezes what has one element: `(1, 1, 1)` comes back without axes."""
        return self.totals()


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """The result of an audit. Stored as `statistics.safetensors` and `statistics.json`."""

    sums: Mapping[str, Tensor]
    """`<stream>/<site>/<statistic>.<output>` -> (G, R, K) float64."""
    categories: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    """stream -> contrasts (or documents) of each category (of the one group)."""
    statistics: tuple[str, ...]
    """`<stream>/<the statistic, described>` of all that ran."""
    composition: str
    """Hash of the micro-batches."""

    def of(self, stream: str, site: str, group: int) -> dict[str, Tensor]:
        """`<statistic>.<output>` -> (R, K) of one site in one category."""
        prefix = f"{stream}/{site}/"
        return {key[len(prefix) :]: value[group] for key, value in self.sums.items() if key.startswith(prefix)}

    def observed(self, stream: str, site: str, group: int) -> int:
        """Contrasts (or documents) of the category in which the site was seen."""
        found = self.sums.get(key_of(stream, site, OBSERVED))
        return int(found[group].item()) if found is not None else 0

    def save(self, folder: Path) -> None:
        """Write both files, each atomically, the tensors first."""
        from fairprune_framework.provenance import write_json, write_tensors

        write_tensors(folder / "statistics.safetensors", dict(self.sums))
        write_json(folder / "statistics.json", self.described())

    def described(self) -> dict[str, Any]:
        """All but the tensors."""
        return {
            "format": "fairprune-statistics/1",
            "categories": list(self.categories),
            "counts": {stream: list(counts) for stream, counts in self.counts.items()},
            "statistics": list(self.statistics),
            "composition": self.composition,
        }

    @classmethod
    def load(cls, folder: Path) -> Statistics:
        """Read both files; raises `RunFolderError` where they are absent or of another format."""
        from safetensors.torch import load_file

        from fairprune_framework.provenance import read_json

        data = read_json(folder / "statistics.json", "fairprune-statistics/1")
        path = folder / "statistics.safetensors"
        if not path.is_file():
            raise RunFolderError(f"{path} is missing: run `fairprune audit` again")
        return cls(
            sums=load_file(path),
            categories=tuple(data["categories"]),
            counts={stream: tuple(counts) for stream, counts in data["counts"].items()},
            statistics=tuple(data["statistics"]),
            composition=data["composition"],
        )
