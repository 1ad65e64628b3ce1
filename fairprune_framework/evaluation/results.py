"""Results of an evaluation: its rows, items, samples and generations, and the files that hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairprune_framework.errors import RunFolderError, shortened
from fairprune_framework.evaluation.rows import ResultRow

if TYPE_CHECKING:
    from fairprune_framework.evaluation.exhibits import Exhibits

FORMAT = "fairprune-evaluation/1"
SAMPLES = "evaluation_samples.parquet"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The content of `evaluation.json` and `evaluation_items.parquet`."""

    rows: tuple[ResultRow, ...]
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

    def find(
        self, metric: str, *, split: str | None = None, control: bool = False, category: str | None = None
    ) -> ResultRow | None:
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
            "results": [row.to_json() for row in self.rows],
            "generations": list(self.generations),
            **self.extra,
        }

    @classmethod
    def load(cls, folder: Path) -> Evaluation:
        """Read both files; raises `RunFolderError` where one is absent or damaged."""
        from fairprune_framework.evaluation.files import EvaluationFile
        from fairprune_framework.utilities.schemas import read_checked

        data = read_checked(folder / "evaluation.json", EvaluationFile)
        known = {"format", "applied_by", "n_unequal", "results", "generations"}
        return cls(
            rows=tuple(ResultRow.from_json(row) for row in data["results"]),
            items=_table(folder / "evaluation_items.parquet"),
            generations=tuple(data["generations"]),
            n_unequal=data["n_unequal"],
            applied_by=data["applied_by"],
            samples=_table(folder / SAMPLES) if (folder / SAMPLES).is_file() else (),
            extra={key: value for key, value in data.items() if key not in known},
        )


def _table(path: Path) -> tuple[dict[str, Any], ...]:
    import pyarrow
    import pyarrow.parquet as pq

    try:
        return tuple(pq.read_table(path).to_pylist())
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise RunFolderError(f"cannot read {path}: {shortened(' '.join(str(error).split()), 200)}") from error
