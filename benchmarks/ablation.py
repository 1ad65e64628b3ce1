"""What an ablation costs on a model: gradients against the forward audit, masking, one cell, and the time of a grid of 60 cells.

    python benchmarks/ablation.py [MODEL] [--prompts SET] [--cells 60]

Prints a table in Markdown. The audits are measured in turn, three times each, and the fastest of each counts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from fairprune_framework import discovery
from fairprune_framework.ablation.cell import PlanEvaluator, Scorekeeper, evaluate_cell
from fairprune_framework.ablation.grid import read_grid
from fairprune_framework.ablation.search import Ablation
from fairprune_framework.auditing.audit import audit
from fairprune_framework.auditing.demand import Demand, selecting
from fairprune_framework.pipeline import run_stages


def seconds_of_audit(run: Any, bias: str, **options: Any) -> float:
    """One audit of the contrasts of `select` for a bias scorer."""
    layers = len({site.layer for site in run.loaded.architecture.sites.values()})
    demand = Demand.of([discovery.build("bias", bias, options)], layers)
    _, bar = audit(
        run.loaded.model, run.loaded.architecture, selecting(run.prompts.aligned), run.prompts.values, demand, accelerator="cpu"
    )
    return float(bar.seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--prompts", default="builtin:en")
    parser.add_argument("--cells", type=int, default=60)
    words = parser.parse_args()
    grid = read_grid(
        {
            "model": words.model,
            "prompts": words.prompts,
            "bias": "attribution",
            "importance": "taylor",
            "policy": "protected-global",
            "operator": "zero",
            "budget": ["0.002", "0.004", "0.02"],
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        ablation = Ablation(grid, Path(folder) / "grid")
        ablation.begin("")
        run = ablation.search_run()
        prepared = time.perf_counter() - began
        began = time.perf_counter()
        run_stages(run, "read", "audit")
        audited = time.perf_counter() - began
        rounds = [(seconds_of_audit(run, "variance"), seconds_of_audit(run, "attribution")) for _ in range(3)]
        forward, gradient = (min(column) for column in zip(*rounds, strict=True))
        evaluator, keeper = PlanEvaluator(run), Scorekeeper(run)
        _ = evaluator.evaluator.original
        keeper.scores(grid.cells[0])
        rows = [evaluate_cell(run, cell, keeper, evaluator) for cell in grid.cells]
    cell = sum(row["seconds"] for row in rows) / len(rows)
    print("| | |\n|---|---|")
    print(f"| forward audit (variance), s | {forward:.1f} |")
    print(f"| gradient audit (attribution), s | {gradient:.1f} |")
    print(f"| gradient over forward | {gradient / forward:.2f} |")
    for row in rows:
        print(f"| masking {row['units']} neurons, ms | {row['masking_ms']:.2f} |")
    print(f"| one cell, s | {cell:.1f} |")
    print(f"| model, calibration text; audit of all cells, s | {prepared:.1f}; {audited:.1f} |")
    print(f"| {words.cells} cells, minutes | {(prepared + audited + words.cells * cell) / 60:.1f} |")


if __name__ == "__main__":
    main()
