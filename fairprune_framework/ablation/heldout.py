"""The single look at held-out contrasts: the best cells, repeated on all of `select` and judged by the ordinary verdict."""

from __future__ import annotations

from typing import Any

from fairprune_framework.ablation import board
from fairprune_framework.ablation.grid import Cell
from fairprune_framework.ablation.search import Ablation
from fairprune_framework.errors import RunFolderError, UserError
from fairprune_framework.functional.hypothesis_tests import holm
from fairprune_framework.recipes.loading import with_options
from fairprune_framework.runs.run import Run


def refuse_second_look(ablation: Ablation, best: int) -> None:
    """Raise `RunFolderError` if held-out contrasts have already judged cells of this folder; an interrupted look may be completed."""
    before = ablation.record.get("confirmed")
    if before is None or ablation.overwrite or (not before["complete"] and before["best"] == best):
        return
    cells = ", ".join(before["chosen"])
    raise RunFolderError(
        f"the held-out contrasts have already judged {cells}, after {before['cells_looked_at']} cells: a second look would "
        "select on them. Use other held-out contrasts and another --output, or --overwrite to start over"
    )


def confirm_best(ablation: Ablation, best: int) -> None:
    """Run the `best` cells of the leaderboard on the real splits; the look is recorded before it happens."""
    contrasts = ablation.base_run().prompts.contrasts
    if not any(contrast.split == "heldout" for contrast in contrasts):
        raise UserError("the prompt set has no split 'heldout' to confirm on: see --split")
    before = ablation.record.get("confirmed")
    if before is not None and before["complete"]:
        return
    known = {cell.id: cell for cell in ablation.grid.cells}
    chosen = before["chosen"] if before else [row["cell"] for row in board.ranked(ablation.record["cells"])[:best]]
    if not chosen:
        raise UserError("no cell is within the guard's limit with a nonempty plan and a change: there is nothing to confirm")
    looked = ablation.record["cells_looked_at"]
    note = {"best": best, "chosen": chosen, "cells_looked_at": looked, "complete": False, "results": []}
    ablation.record["confirmed"] = note
    ablation.save()
    results = [_confirmed(ablation, known[name]) for name in chosen]
    tested = [row["p_value"] for row in results if row["p_value"] is not None]
    adjusted = iter(holm(tested))
    results = [{**row, "p_adjusted": None if row["p_value"] is None else next(adjusted)} for row in results]
    ablation.record["confirmed"] = note | {"complete": True, "results": results}
    ablation.save()


def _confirmed(ablation: Ablation, cell: Cell) -> dict[str, Any]:
    """One cell as an ordinary run: scored on all of `select`, judged on `heldout`."""
    from fairprune_framework.pipeline import STAGES, run_stages

    base = ablation.base_run()
    ablation.notify(f"confirming {cell.id} on held-out contrasts")
    run = Run(
        with_options(cell.recipe, {"split": "keep", "columns": None, "prompts": None}),
        ablation.folder / "confirmed" / cell.id,
        loaded=base.loaded,
        contrasts=list(base.prompts.contrasts),
        calibration=base.calibration,
        notify=ablation.notify,
    )
    run.folder.path.mkdir(parents=True, exist_ok=True)
    run.calibration.save(run.folder / "calibration.jsonl", run.loaded.tokenizer)
    run.folder.note(hashes={"calibration": run.calibration.hash})
    run_stages(run, *STAGES)
    row = run.read_evaluation().find(ablation.grid.judge, split="heldout")
    guard = run.record.get("guard", {})
    return {
        "cell": cell.id,
        "verdict": run.record["verdict"],
        "because": run.record["verdict_because"],
        "change": None if row is None else row.change,
        "ci_low": None if row is None else row.ci_low,
        "ci_high": None if row is None else row.ci_high,
        "p_value": None if row is None else row.p_value,
        "perplexity_change": guard.get("increase"),
        "units": run.read_plan().count,
        "folder": str(run.folder.path.relative_to(ablation.folder)),
    }
