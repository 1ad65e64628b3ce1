"""The stage `score`: statistics and weights -> `scores.safetensors`."""

from __future__ import annotations

from fairprune_framework.runs.run import Run
from fairprune_framework.selection.decide import scores_of
from fairprune_framework.selection.scoring import save_scores

FILE = "scores.safetensors"


def check(run: Run) -> None:
    """Nothing beyond what all stages ask for: plugins and statistics are checked there."""


def run(run: Run) -> list[str]:
    """Do the stage; returns the files that it left."""
    scores = scores_of(run.selection)
    run.folder.begin("score")
    save_scores(scores, run.folder / FILE)
    return [FILE]
