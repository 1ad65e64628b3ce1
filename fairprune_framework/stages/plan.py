"""The stage `plan`: scores and budget -> `plan.json`; or a plan that came as a file, adopted."""

from __future__ import annotations

from pathlib import Path

from fairprune_framework.api.types import Plan
from fairprune_framework.errors import RunFolderError, UserError
from fairprune_framework.runs.run import Run
from fairprune_framework.selection.decide import plan_of
from fairprune_framework.stages.checks import prepare
from fairprune_framework.surgery.masking import check_fits
from fairprune_framework.utilities.files import digest, read_json, write_json
from fairprune_framework.utilities.schemas import PlanFile, problem

FILE = "plan.json"


def check(run: Run) -> None:
    """Raise `UserError` where the recipe protects a layer that the model does not have."""
    layers = run.loaded.layers
    if unknown := sorted(set(run.recipe.protected_layers) - set(layers)):
        raise UserError(f"--protected-layers names layer {unknown[0]}; the model's are {min(layers)} to {max(layers)}")


def run(run: Run) -> list[str]:
    """Do the stage; returns the files that it left."""
    plan = plan_of(run.selection, run.read_scores())
    run.folder.begin("plan")
    write_json(run.folder / FILE, plan.to_json())
    if plan.reason:
        run.notify(f"plan: {plan.reason}")
    return [FILE]


def adopt(run: Run, path: Path) -> Run:
    """Take a plan from a file, in place of the stages before.

    Raises:
        UserError: no such file, a field that `plan.json` cannot have, or a plan for another model.
        RunFolderError: the folder has a plan of its own.
    """
    if not path.is_file():
        raise UserError(f"there is no plan file {path}")
    try:
        data = read_json(path)
    except RunFolderError as error:
        raise UserError(str(error)) from error
    plan = Plan.from_json(data, str(path))
    if (wrong := problem(plan.to_json(), PlanFile)) is not None:  # later stages read what is written here through it
        raise UserError(f"{path} is no plan: {wrong}")
    check_fits(plan, run.loaded.fingerprint, run.loaded.architecture)
    if run.folder.has("score"):
        raise RunFolderError(f"{run.folder} has a plan of its own: give another --output for {path}")
    run.record["plan_file"] = digest(data)
    if not run.folder.done("plan"):
        prepare(run, ("prune",))
        run.folder.begin("plan")
        write_json(run.folder / FILE, plan.to_json())
        run.folder.note(hashes={"model": run.fingerprint})
        run.folder.finish("plan", 0.0, [FILE])
    return run
