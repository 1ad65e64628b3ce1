"""Before and after, as rows: every metric by split, control, category and layer, with paired intervals over templates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.evaluation.fixed_text import TextLoss, perplexity_change
from fairprune_framework.evaluation.metrics.contrasts import ContrastMeasure
from fairprune_framework.evaluation.metrics.names import ACTIVATION_DIFFERENCE, DIVERGENCE, KL_TO_ORIGINAL, PERPLEXITY
from fairprune_framework.functional.paired_bootstrap import MIN_CLUSTERS, PairedChange, minimum_detectable_change, paired_change

if TYPE_CHECKING:
    from fairprune_framework.evaluation.exhibits import Exhibits

FORMAT = "fairprune-evaluation/1"
SAMPLES = "evaluation_samples.parquet"
UNITS = {DIVERGENCE: "nats", ACTIVATION_DIFFERENCE: "activation"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of `evaluation.json`. Null category or layer: all of them. `change` and its interval are relative to
    |before - ideal|, null where that is 0; in `after` and what follows, null where one model alone was evaluated."""

    metric: str
    split: str | None
    control: bool
    category: str | None
    layer: int | None
    before: float | None
    """None, as `after`: beyond all numbers, or not measured."""
    after: float | None
    difference: float | None
    change: float | None
    ideal: float
    unit: str
    ci_low: float | None
    ci_high: float | None
    p_value: float | None
    n: int
    clusters: int | None = None
    standard_error: float | None = None
    difference_low: float | None = None
    """95 % interval of `difference`."""
    difference_high: float | None = None
    before_low: float | None = None
    """95 % interval of `before`, and of `after` below: Wilson's for shares of items."""
    before_high: float | None = None
    after_low: float | None = None
    after_high: float | None = None
    p_adjusted: float | None = None
    """Holm over the categories of the same metric."""
    detectable: float | None = None
    """`difference` that data like these would have shown with 80 % power: to be read beside every "no difference"."""
    effect_size: float | None = None
    """Cohen's h of shares, d_z of means over items."""
    only_before: int | None = None
    """Items whose answer was yes before and is no after, and below the other way round: newly biased, newly wrong, newly right."""
    only_after: int | None = None
    retention: float | None = None
    """after / before, of a capability, and its 95 % interval."""
    retention_low: float | None = None
    retention_high: float | None = None
    note: str | None = None
    """What has to be known to read the row: the formula, or why there is no interval."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The content of `evaluation.json` and `evaluation_items.parquet`."""

    rows: tuple[Row, ...]
    items: tuple[dict[str, Any], ...]
    """One a contrast, before and after."""
    generations: tuple[dict[str, Any], ...]
    n_unequal: int
    """Contrasts whose variants have unequal token counts: compared over the aligned slots."""
    applied_by: str | None
    """`removal`, `masking`, `another model`, or None: one model alone."""
    samples: tuple[dict[str, Any], ...] = ()
    """One an item and metric of the sets that judge alone and of lm-eval's tasks: `evaluation_samples.parquet`."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    exhibits: Exhibits | None = None
    """What the report shows beside numbers; not read back."""

    def find(self, metric: str, *, split: str | None = None, control: bool = False, category: str | None = None) -> Row | None:
        """The row over all layers that these words name."""
        for row in self.rows:
            if (row.metric, row.split, row.control, row.category, row.layer) == (metric, split, control, category, None):
                return row
        return None

    def save(self, folder: Path) -> None:
        """Write both files, each atomically."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        from fairprune_framework.utilities.files import atomic, write_json

        with atomic(folder / "evaluation_items.parquet") as temporary:
            pq.write_table(pa.Table.from_pylist(list(self.items)), temporary)
        if self.samples:
            with atomic(folder / SAMPLES) as temporary:
                pq.write_table(pa.Table.from_pylist(list(self.samples)), temporary)
        if self.exhibits is not None:
            self.exhibits.save(folder)
        write_json(folder / "evaluation.json", self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The content of `evaluation.json`."""
        return {
            "format": FORMAT,
            "applied_by": self.applied_by,
            "n_unequal": self.n_unequal,
            "results": [row_json(row) for row in self.rows],
            "generations": list(self.generations),
            **self.extra,
        }

    @classmethod
    def load(cls, folder: Path) -> Evaluation:
        """Read both files."""
        import pyarrow.parquet as pq

        from fairprune_framework.utilities.files import read_json

        data = read_json(folder / "evaluation.json", FORMAT)
        known = {"format", "applied_by", "n_unequal", "results", "generations"}
        return cls(
            rows=tuple(Row(**row) for row in data["results"]),
            items=tuple(pq.read_table(folder / "evaluation_items.parquet").to_pylist()),
            generations=tuple(data["generations"]),
            n_unequal=data["n_unequal"],
            applied_by=data["applied_by"],
            samples=tuple(pq.read_table(folder / SAMPLES).to_pylist()) if (folder / SAMPLES).is_file() else (),
            extra={key: value for key, value in data.items() if key not in known},
        )


def row_json(row: Row) -> dict[str, Any]:
    """A row as JSON values. A perplexity may be too large for a number: JSON has no infinity, so that it becomes null."""
    values = asdict(row)
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()}


def items_of(
    contrasts: Iterable[AlignedContrast], before: Sequence[ContrastMeasure], after: Sequence[ContrastMeasure] | None
) -> list[dict[str, Any]]:
    """One mapping a contrast, in the order of the set."""
    first = {measure.id: measure for measure in before}
    second = {measure.id: measure for measure in after or ()}
    items = []
    for contrast in contrasts:
        a, b = first[contrast.id], second.get(contrast.id)
        items.append(
            {
                "id": contrast.id,
                "category": contrast.category,
                "template_id": contrast.template_id,
                "split": contrast.split,
                "control": contrast.control,
                "equal_length": a.equal_length,
                f"{DIVERGENCE}_before": a.divergence,
                f"{DIVERGENCE}_after": b.divergence if b else None,
                f"{ACTIVATION_DIFFERENCE}_before": a.activation_difference,
                f"{ACTIVATION_DIFFERENCE}_after": b.activation_difference if b else None,
                "by_layer_before": list(a.by_layer),
                "by_layer_after": list(b.by_layer) if b else None,
            }
        )
    return items


def contrast_rows(items: Sequence[Mapping[str, Any]], layers: Sequence[int], seed: int) -> list[Row]:
    """All rows of the contrast metrics. Intervals are given over all layers; single layers are point estimates."""
    rows: list[Row] = []
    for split, control in sorted({(item["split"], item["control"]) for item in items}, key=lambda k: (k[1], str(k[0]))):
        group = [item for item in items if (item["split"], item["control"]) == (split, control)]
        for category in [None, *sorted({item["category"] for item in group})]:
            chosen = [item for item in group if category in (None, item["category"])]
            for metric, unit in UNITS.items():
                rows.append(mean_row(metric, unit, split, control, category, None, chosen, metric, None, seed))
            for index, layer in enumerate(layers):
                metric, unit = ACTIVATION_DIFFERENCE, UNITS[ACTIVATION_DIFFERENCE]
                rows.append(mean_row(metric, unit, split, control, category, layer, chosen, "by_layer", index, seed))
    return rows


def paired(items: Sequence[Mapping[str, Any]], metric: str, seed: int) -> PairedChange | None:
    """The paired change of a contrast metric over items; None without items or without an `after`."""
    if not items or items[0][f"{metric}_after"] is None:
        return None
    return paired_change(
        [item[f"{metric}_before"] for item in items],
        [item[f"{metric}_after"] for item in items],
        [item["category"] for item in items],
        [item["template_id"] for item in items],
        seed=seed,
    )


def mean_row(
    metric: str,
    unit: str,
    split: str | None,
    control: bool,
    category: str | None,
    layer: int | None,
    items: Sequence[Mapping[str, Any]],
    key: str,
    place: int | None,
    seed: int,
) -> Row:
    """The row of a metric that is a mean over contrasts, templates and categories, and ideally 0.

    Args:
        key: the items hold its values as `<key>_before` and `<key>_after`.
        place: where these are lists over layers, the place of `layer` in them; such a row is a point estimate.
    """

    def column(name: str) -> list[float]:
        return [item[name] if place is None else item[name][place] for item in items]

    alone = items[0][f"{key}_after"] is None
    before = column(f"{key}_before")
    change = paired_change(
        before,
        before if alone else column(f"{key}_after"),
        [item["category"] for item in items],
        [item["template_id"] for item in items],
        seed=seed,
        resamples=2000 if place is None and not alone else 0,
    )
    judged = not alone and place is None
    smallest = minimum_detectable_change(change) if judged else None
    few = judged and change.clusters < MIN_CLUSTERS
    return Row(
        metric=metric,
        split=split,
        control=control,
        category=category,
        layer=layer,
        before=change.before,
        after=None if alone else change.after,
        difference=None if alone else change.difference,
        change=None if alone else change.change,
        ideal=0.0,
        unit=unit,
        ci_low=change.ci_low if judged else None,
        ci_high=change.ci_high if judged else None,
        p_value=change.p_value if judged else None,
        n=change.n,
        clusters=change.clusters,
        standard_error=change.standard_error if judged else None,
        detectable=None if smallest is None else smallest * change.before,
        note=f"{change.clusters} templates are too few for an interval; {MIN_CLUSTERS} are needed" if few else None,
    )


def language_rows(before: TextLoss, after: TextLoss | None, kl: float | None, seed: int) -> list[Row]:
    """Perplexity, with an interval over documents, and KL to the original, on the judging half of the calibration text."""
    common: dict[str, Any] = {"split": None, "control": False, "category": None, "layer": None, "n": len(before.nll)}
    row = Row(
        metric=PERPLEXITY,
        before=before.perplexity,
        after=None,
        difference=None,
        change=None,
        ideal=0.0,
        unit="perplexity per token",
        ci_low=None,
        ci_high=None,
        p_value=None,
        **common,
    )
    if after is None:
        return [row]
    found = perplexity_change(before, after, seed)
    change = found.change
    row = replace(
        row,
        after=after.perplexity,
        difference=found.difference.value,
        difference_low=found.difference.low,
        difference_high=found.difference.high,
        change=after.perplexity / before.perplexity - 1,
        ci_low=change.low if change else None,
        ci_high=change.high if change else None,
        p_value=found.difference.p_value,
        clusters=found.clusters,
        standard_error=change.standard_error if change else None,
        detectable=found.detectable,
        note=f"{found.clusters} documents are too few for an interval; {MIN_CLUSTERS} are needed" if found.few else None,
    )
    if kl is None:
        return [row]
    return [
        row,
        Row(
            metric=KL_TO_ORIGINAL,
            before=0.0,
            after=kl,
            difference=kl,
            change=None,
            ideal=0.0,
            unit="nats per token",
            ci_low=None,
            ci_high=None,
            p_value=None,
            **common,
        ),
    ]
