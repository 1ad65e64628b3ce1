"""The tasks that are ours, by name."""

from __future__ import annotations

from collections.abc import Mapping

from fairprune_framework.evaluation.tasks.decisions import DECISIONS
from fairprune_framework.evaluation.tasks.own import OwnTask
from fairprune_framework.evaluation.tasks.stereoset import STEREOSET
from fairprune_framework.evaluation.tasks.winobias import WINOBIAS

OWN: Mapping[str, OwnTask] = {"winobias": WINOBIAS, "stereoset": STEREOSET, "decisions": DECISIONS}
"""Asked for by `--suite NAME` beside the tasks of lm-eval, the decisions by `--decisions SET`."""
