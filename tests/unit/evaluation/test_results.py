"""An evaluation that is written and read back, and its rows found again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.errors import RunFolderError
from fairprune_framework.evaluation.results import Evaluation
from fairprune_framework.evaluation.rows import ResultRow, RowKey

ITEM = {"id": "0", "split": "heldout", "next-token-divergence_before": 0.5, "by_layer_before": [0.1, 0.2]}
ROWS = tuple(
    ResultRow.alone(RowKey(metric=metric, unit="nats", split="heldout", category=category, layer=layer), 0.5, n=3)
    for metric in ("next-token-divergence", "activation-difference")
    for layer in (0, 5, None)
    for category in (None, "age", "race")
)


def evaluation(**more: Any) -> Evaluation:
    values: dict[str, Any] = {
        "rows": ROWS,
        "items": (ITEM,),
        "generations": ({"prompt": "né", "before": "a", "after": "b"},),
        "n_unequal": 3,
        "applied_by": "removal",
    }
    return Evaluation(**{**values, **more})


@pytest.mark.parametrize("samples", [(), ({"id": 1, "metric": "acc", "before": 0.5},)])
def test_there_and_back(tmp_path: Path, samples: Any) -> None:
    made = evaluation(samples=samples, extra={"sets": {"x": 1}})
    made.save(tmp_path)
    assert Evaluation.load(tmp_path) == made
    assert (tmp_path / "evaluation_samples.parquet").exists() is bool(samples)
    data = json.loads((tmp_path / "evaluation.json").read_text())
    assert (data["format"], data["sets"]) == ("fairprune-evaluation/1", {"x": 1})
    (tmp_path / "evaluation.json").write_text(json.dumps({**data, "format": "other/1"}))
    with pytest.raises(RunFolderError, match="must be of format"):
        Evaluation.load(tmp_path)


def test_a_row_is_found_over_all_layers() -> None:
    made = evaluation()
    found = made.find("activation-difference", split="heldout", category="race")
    assert found is not None
    assert (found.layer, found.category, found.control) == (None, "race", False)
    assert made.find("activation-difference", split="nothing") is None
    assert made.find("nothing") is None
