"""The one state of an audit: compensated sums of what statistics return, and the result that is saved.

`StatisticSums` is a torchmetrics `Metric`, so that devices, copies and merging work as everywhere; its arithmetic lives in
`compensated.py`. It is moved by `.to(device=...)` only, and never by a change of dtype.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from fairprune_framework.api.types import Stream
from fairprune_framework.auditing.identity import own_sums
from fairprune_framework.auditing.reductions import (
    merged,
    neutral,
    over,
    reduction_of,
    unmarked,
    with_value,
    without_neutral,
)
from fairprune_framework.auditing.sum_blocks import Block, Rows
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
