"""`fairprune inspect`: one neuron of a run."""

from __future__ import annotations

import json
from typing import Any

from fairprune_framework.cli.command import Command
from fairprune_framework.cli.options import add_json, add_quiet, add_unsafe, unsafe_options
from fairprune_framework.errors import UserError
from fairprune_framework.utilities.aside import answer
from fairprune_framework.utilities.progress import notifier


def _add_options(parser: Any) -> None:
    parser.add_argument("run", help="a run folder with scores")
    parser.add_argument("--unit", help="SITE:I, such as model.layers.3.mlp:17, or 3:17; always needed")
    add_json(parser)
    add_quiet(parser)
    add_unsafe(parser)


def _run(values: dict[str, Any]) -> int:
    if not values.get("unit"):
        raise UserError("`fairprune inspect` needs a neuron: --unit SITE:I")

    from fairprune_framework.analysis.neuron import inspect, render
    from fairprune_framework.runs.open import open_existing

    notify = notifier("inspect", bool(values.get("quiet")))
    seen = inspect(open_existing(values["run"], unsafe_options(values), notify=notify), values["unit"], notify=notify)
    answer(json.dumps(seen, indent=1, ensure_ascii=False) if values.get("json") else render(seen))
    return 0


COMMANDS = (
    Command(
        name="inspect",
        help="what moves one neuron, what it says, why it was or was not chosen",
        add_options=_add_options,
        run=_run,
    ),
)
