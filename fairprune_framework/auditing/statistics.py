"""The result of an audit: sums by stream, site and category, as later stages read them. Nothing that streams is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fairprune_framework.api.types import Stream
from fairprune_framework.auditing.identity import own_sums
from fairprune_framework.auditing.reductions import merged, over, unmarked, without_neutral
from fairprune_framework.errors import RunFolderError, shown
from fairprune_framework.functional.compensated import rounded
from fairprune_framework.utilities.files import digest, read_tensors, repr_digest, write_json, write_tensors
from fairprune_framework.utilities.schemas import StatisticsFile, read_checked

if TYPE_CHECKING:
    from fairprune_framework.api.interfaces import Statistic

CONTRASTS: Literal["contrasts"] = "contrasts"
CONTROLS: Literal["controls"] = "controls"
LEGITIMATE: Literal["legitimate"] = "legitimate"
CALIBRATION: Literal["calibration"] = "calibration"
OF_PROMPTS: tuple[Stream, ...] = (CONTRASTS, CONTROLS, LEGITIMATE)
"""The streams of contrasts; all but the first have categories of their own."""
CLUSTERS = 32
"""Hashed clusters of templates per category, where a policy declares replicates."""
CLUSTERED = "clustered/"
OBSERVED = "observed"
"""Output name of the core's own count: contrasts in which a site was seen."""


def key_of(stream: str, site: str, output: str) -> str:
    """Name of one state, and of its tensor in the file."""
    return f"{stream}/{site}/{output}"


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """The result of an audit. Stored as `statistics.safetensors` and `statistics.json`."""

    sums: Mapping[str, Tensor]
    """`<stream>/<site>/<statistic>.<output>` -> (G, R, K) float64."""
    categories: tuple[str, ...]
    """Of demographic contrasts: the G groups of their sums."""
    counts: Mapping[str, tuple[int, ...]]
    """stream -> contrasts (or documents) of each category (of the one group)."""
    statistics: tuple[str, ...]
    """`<stream>/<the statistic, described>` of all that ran."""
    composition: str
    """Hash of the micro-batches."""
    control_categories: tuple[str, ...] = ()
    """Of control contrasts: the G groups of theirs; empty unless a statistic listens to them."""
    legitimate_categories: tuple[str, ...] = ()
    """Of legitimate contrasts, as those of controls."""
    clustered: Mapping[str, Tensor] = field(default_factory=dict)
    """`contrasts/<site>/<statistic>.<output>` -> (G, B, R, K) float64: the sums of B hashed clusters of templates; empty unless
    a policy declared replicates."""
    cluster_counts: tuple[tuple[int, ...], ...] = ()
    """(G, B): contrasts of each cluster."""

    def categories_of(self, stream: Stream) -> tuple[str, ...]:
        """Categories of a stream; calibration text has none."""
        own = {CONTRASTS: self.categories, CONTROLS: self.control_categories, LEGITIMATE: self.legitimate_categories}
        return own.get(stream, ())

    def sites(self) -> set[str]:
        """Sites that have a sum."""
        return {key.partition("/")[2].rpartition("/")[0] for key in self.sums}

    def of(
        self, stream: Stream, site: str, group: int | None, statistics: Sequence[Statistic] | None = None
    ) -> dict[str, Tensor]:
        """`<statistic>.<output>` -> (R, K) of one site in one category, or (None) in all together.

        Of all statistics, or of some alone under their own names.

        A site that the stream never reached has zeros, as far as a site beside it was reached: experts of a block are equally wide.
        """
        return {
            unmarked(name): without_neutral(name, over(name, value, 0) if group is None else value[group])
            for name, value in self._named(stream, site, statistics).items()
        }

    def by_category(self, stream: Stream, site: str, statistics: Sequence[Statistic] | None = None) -> dict[str, Tensor]:
        """As `of`, of all categories: (G, R, K)."""
        found = self._named(stream, site, statistics)
        return {unmarked(name): without_neutral(name, value) for name, value in found.items()}

    def _named(self, stream: Stream, site: str, statistics: Sequence[Statistic] | None) -> dict[str, Tensor]:
        found: Mapping[str, Tensor] = self._places.get(f"{stream}/{site}", {})
        if not found:
            block = f"{stream}/{site.rpartition('.')[0]}."
            beside = {name: value for at, sums in self._places.items() if at.startswith(block) for name, value in sums.items()}
            found = {name: torch.zeros_like(value) for name, value in beside.items()}
        return dict(found) if statistics is None else own_sums(found, statistics)

    @cached_property
    def _places(self) -> dict[str, dict[str, Tensor]]:
        """`<stream>/<site>` -> `<statistic>.<output>` -> sum."""
        found: dict[str, dict[str, Tensor]] = {}
        for key, value in self.sums.items():
            place, _, name = key.rpartition("/")
            found.setdefault(place, {})[name] = value
        return found

    def count(self, stream: Stream, group: int | None) -> int:
        """Contrasts (or documents) of one category, or (None) of all."""
        counts = self.counts.get(stream, ())
        return sum(counts) if group is None else counts[group]

    def observed(self, stream: Stream, site: str, group: int | None) -> int:
        """Contrasts (or documents) of one category, or (None) of all, in which the site was seen."""
        counts = self.sums.get(key_of(stream, site, OBSERVED))
        if counts is None:
            return 0
        return int((counts.sum() if group is None else counts[group]).item())

    def joined(self, later: Statistics) -> Statistics:
        """With what a later reading of the same streams summed."""
        return replace(
            self,
            sums={**self.sums, **later.sums},
            clustered={**self.clustered, **later.clustered},
            control_categories=self.control_categories or later.control_categories,
            legitimate_categories=self.legitimate_categories or later.legitimate_categories,
            counts={  # a stream that one of them did not read counts 0 in it
                stream: tuple(map(max, counts, self.counts.get(stream, counts)))
                for stream, counts in {**self.counts, **later.counts}.items()
            },
            cluster_counts=self.cluster_counts or later.cluster_counts,
            statistics=tuple(sorted({*self.statistics, *later.statistics})),
            composition=digest([self.composition, later.composition]),
        )

    def save(self, folder: Path) -> None:
        """Write both files, each atomically, the tensors first."""
        clustered = {f"{CLUSTERED}{key}": value for key, value in self.clustered.items()}
        write_tensors(folder / "statistics.safetensors", {**self.sums, **clustered})
        write_json(folder / "statistics.json", self.described())

    def described(self) -> dict[str, Any]:
        """All but the tensors."""
        return {
            "format": "fairprune-statistics/1",
            "categories": list(self.categories),
            **({"control_categories": list(self.control_categories)} if self.control_categories else {}),
            **({"legitimate_categories": list(self.legitimate_categories)} if self.legitimate_categories else {}),
            "counts": {stream: list(counts) for stream, counts in self.counts.items()},
            "statistics": list(self.statistics),
            "composition": self.composition,
            "cluster_counts": [list(counts) for counts in self.cluster_counts],
        }

    @classmethod
    def load(cls, folder: Path) -> Statistics:
        """Read both files; raises `RunFolderError` where they are absent, damaged, or do not belong together."""
        data = read_checked(folder / "statistics.json", StatisticsFile)
        path = folder / "statistics.safetensors"
        tensors = read_tensors(path)
        controls = data.get("control_categories", ())
        legitimate = data.get("legitimate_categories", ())
        groups = {CONTRASTS: len(data["categories"]), CONTROLS: len(controls), LEGITIMATE: len(legitimate), CALIBRATION: 1}
        if data["statistics"] and not tensors:
            raise RunFolderError(f"{path} is damaged: it holds none of the statistics that {folder / 'statistics.json'} names")
        for name, tensor in tensors.items():
            stream = name.removeprefix(CLUSTERED).partition("/")[0]
            axes = 4 if name.startswith(CLUSTERED) else 3
            fits = tensor.ndim == axes and 0 not in tensor.shape
            if tensor.dtype != torch.float64 or not fits or tensor.shape[0] != groups.get(stream):
                got = f"{tuple(tensor.shape)} {tensor.dtype}"
                raise RunFolderError(
                    f"{path} is damaged: {shown(name)} is {got}, expected {groups.get(stream)} groups in float64"
                )
            if len(data["counts"].get(stream, ())) != groups[stream]:
                raise RunFolderError(
                    f"{folder / 'statistics.json'} is damaged: it counts no {stream}, and {path.name} holds sums of them"
                )
        places = {name.rpartition("/")[0] for name in tensors if not name.startswith(CLUSTERED)}
        if unseen := sorted(place for place in places if f"{place}/{OBSERVED}" not in tensors):
            raise RunFolderError(f"{path} is damaged: it holds no count of the contrasts that reached {shown(unseen[0])}")
        return cls(
            sums={key: value for key, value in tensors.items() if not key.startswith(CLUSTERED)},
            clustered={key.removeprefix(CLUSTERED): value for key, value in tensors.items() if key.startswith(CLUSTERED)},
            cluster_counts=tuple(tuple(counts) for counts in data.get("cluster_counts", ())),
            categories=tuple(data["categories"]),
            control_categories=tuple(controls),
            legitimate_categories=tuple(legitimate),
            counts={stream: tuple(counts) for stream, counts in data["counts"].items()},
            statistics=tuple(data["statistics"]),
            composition=data["composition"],
        )


def cluster_id(category: str, template_id: str) -> int:
    """A number for a template of a category, in [0, 2^63): the same everywhere."""
    return _template_number(category, template_id) >> 1


def cluster_of(category: str, template_id: str, clusters: int = CLUSTERS) -> int:
    """The hashed cluster that a template belongs to, in [0, clusters)."""
    return _template_number(category, template_id) % clusters


def _template_number(category: str, template_id: str) -> int:
    return int.from_bytes(repr_digest(category, template_id)[:8], "big")


def finished(
    words: Mapping[str, Tensor],
    categories: Mapping[Stream, Sequence[str]],
    counts: Mapping[str, Sequence[int]],
    clusters: int,
    statistics: tuple[str, ...],
    composition: str,
) -> Statistics:
    """Round sums, key -> (2, G, R, K), to the result of an audit.

    With clusters, their sums are added as double-doubles first, so that a category's sum is
    the same with and without them; those of other streams are not summed by cluster."""
    named, controls, legitimate = (tuple(categories.get(stream, ())) for stream in OF_PROMPTS)
    shaped = {stream: tuple(each) for stream, each in counts.items() if each}
    if clusters == 1:
        return Statistics(
            sums={key: rounded(each) for key, each in words.items()},
            categories=named,
            control_categories=controls,
            legitimate_categories=legitimate,
            counts=shaped,
            statistics=statistics,
            composition=composition,
        )
    totals, apart = {}, {}
    for key, each in words.items():
        if not key.startswith(f"{CONTRASTS}/"):
            totals[key] = rounded(each)
            continue
        words_2GB = each.reshape(2, len(named), clusters, *each.shape[2:])
        totals[key] = rounded(merged(key, words_2GB.transpose(1, 2).transpose(0, 1).contiguous()))
        apart[key] = rounded(words_2GB)
    by_cluster = torch.tensor(counts[CONTRASTS]).reshape(len(named), clusters)
    return Statistics(
        sums=totals,
        categories=named,
        control_categories=controls,
        legitimate_categories=legitimate,
        counts={**shaped, CONTRASTS: tuple(by_cluster.sum(1).tolist())},
        statistics=statistics,
        composition=composition,
        clustered=apart,
        cluster_counts=tuple(tuple(row) for row in by_cluster.tolist()),
    )
