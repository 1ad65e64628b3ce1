"""`fairprune run | audit | score | plan | prune | evaluate`: stages of a run, on a run folder. `report.py` has the last stage."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from fairprune_framework.cli.command import Command
from fairprune_framework.cli.options import add_json, add_quiet, add_recipe_options, recipe_options, unsafe_options
from fairprune_framework.errors import UserError, shortened
from fairprune_framework.recipes.recipe import UNSAFE
from fairprune_framework.utilities.aside import answer
from fairprune_framework.utilities.files import RUN_RECORD
from fairprune_framework.utilities.progress import notifier, shown

HELP = {
    "run": "do everything: read, audit, score, plan, prune, evaluate, report",
    "audit": "stream the contrasts through the model into statistics",
    "score": "turn the statistics of a run into bias and importance per neuron",
    "plan": "choose neurons by the scores of a run",
    "prune": "carry out the plan of a run, if the guard holds",
    "evaluate": "judge a run before and after, or one model alone",
}


def _add_options(stage: str, parser: Any) -> None:
    parser.add_argument(
        "model", nargs="?", help="hub id, folder, .gguf file or smollm2-135m; or an existing run folder, for its own"
    )
    parser.add_argument("--output", help="the run folder")
    parser.add_argument("--recipe", help="name of a shipped recipe, or a YAML file")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace what the run folder holds of this stage and later ones"
    )
    add_json(parser, "print run.json instead of the summary")
    add_quiet(parser)
    if stage == "score":
        parser.add_argument(
            "--look",
            action="store_true",
            help="then show the highest neurons, other scorers beside them, and what masking them does",
        )
    if stage == "prune":
        parser.add_argument("--plan", help="a plan file to carry out on MODEL, instead of the run folder's own")
        parser.add_argument(
            "--shard-by-shard",
            action="store_true",
            help="for a model that does not fit in memory: read and write its safetensors tensor by tensor, without the guard; needs "
            "--force",
        )
    if stage in ("run", "prune"):
        parser.add_argument(
            "--no-speed",
            action="store_true",
            help="do not measure tokens per second before and after, which takes a few seconds",
        )
    add_recipe_options(parser)


def _run(stage: str, values: dict[str, Any]) -> int:
    if values.get("output") is None and is_run_folder(values.get("model")):
        values = {**values, "model": None, "output": values["model"]}
    if values.get("output") is None:
        named = values.get("model")
        told = "" if named is None or stage not in ("score", "plan") else f"; {shortened(str(named), 300)} holds no run"
        raise UserError(f"`fairprune {stage}` needs a run folder: --output DIR{told}")
    options = recipe_options(values)
    as_json, quiet, looks = (options.pop(name, False) for name in ("json", "quiet", "look"))
    if options.pop("no_speed", False):
        options["speed"] = False

    if stage == "score" and (names := _several(options.get("bias"))):
        return _score_many(options, names, as_json, notifier(stage, quiet))

    from fairprune_framework import pipeline

    with shown(not quiet):
        done = getattr(pipeline, stage)(**options, notify=notifier(stage, quiet))
    if looks:
        from fairprune_framework.analysis import look

        found = look.look(done, notify=notifier(stage, quiet))
        answer(json.dumps(found, indent=1) if as_json else look.render(found))
    elif as_json:
        answer(json.dumps(done.record, indent=1, ensure_ascii=False))
    else:
        from fairprune_framework.reporting.summary import summary

        plan = done.read_plan() if done.folder.has("plan") else None
        evaluation = done.read_evaluation() if done.folder.has("evaluate") else None
        answer(summary(done.folder.path, done.recipe, done.record, plan, evaluation))
    return 0


def _several(bias: str | None) -> str | list[str] | None:
    """Of `--bias all` or `--bias variance,d-prime`: what to score by; None: one scorer, the run's own."""
    if bias is None or (bias != "all" and "," not in bias):
        return None
    return "all" if bias == "all" else [name.strip() for name in bias.split(",") if name.strip()]


def _score_many(options: dict[str, Any], names: str | list[str], as_json: bool, notify: Any) -> int:
    """Score by several scorers from one audit, beside the scores of the run, which stay as they are."""
    from fairprune_framework.analysis import scorers
    from fairprune_framework.runs.open import open_existing

    options = {name: value for name, value in options.items() if name != "bias"}
    folder, unsafe = options.pop("output"), unsafe_options(options)
    if others := sorted(set(options) - set(UNSAFE)):
        raise UserError(
            f"several scorers are compared under the settings of the run: leave out --{others[0].replace('_', '-')}"
        )
    found = scorers.score_many(open_existing(folder, unsafe, notify=notify), names, notify=notify)
    answer(json.dumps(found, indent=1, ensure_ascii=False) if as_json else scorers.render(found))
    return 0


def is_run_folder(name: str | None) -> bool:
    """What stands in the place of a model is a run folder, as in `fairprune score RUN`."""
    return name is not None and (Path(name) / RUN_RECORD).is_file()


COMMANDS = tuple(
    Command(name=name, help=text, add_options=partial(_add_options, name), run=partial(_run, name), plugin_options=True)
    for name, text in HELP.items()
)
