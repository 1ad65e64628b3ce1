"""`fairprune ask overlap | transfer | stability | causal | scorers`: the article's questions to a finished run."""

from __future__ import annotations

import json
from functools import partial
from importlib import import_module
from typing import Any

from fairprune_framework.cli.command import Command, Group
from fairprune_framework.cli.options import add_json, add_quiet, add_unsafe, unsafe_options
from fairprune_framework.recipes.recipe import UNSAFE
from fairprune_framework.utilities.aside import answer
from fairprune_framework.utilities.progress import notifier

GROUP = Group(name="ask", help="ask a finished run the article's questions")
QUESTIONS = {
    "overlap": "are the same neurons found for each category? (from the scores alone)",
    "transfer": "does what is chosen on one category help another? (one evaluation a category)",
    "stability": "would other templates have chosen the same neurons? (one more audit)",
    "causal": "does zeroing the plan do more than zeroing random neurons of equal activation norm?",
    "scorers": "do other bias scorers find the same neurons? (one more audit)",
}
FUNCTIONS = {"scorers": "score_many"}
"""Question -> function, where it has another name."""


def _add_options(question: str, parser: Any) -> None:
    parser.add_argument("run", help="a run folder with scores (and for causal a plan)")
    add_json(parser, f"print {question}.json instead of a table")
    add_quiet(parser)
    add_unsafe(parser)
    if question == "causal":
        parser.add_argument("--draws", type=int, help="sets of random neurons, 20 by default")
    if question == "scorers":
        parser.add_argument("--bias", nargs="+", metavar="NAME", help="which; by default all that are installed")
        parser.add_argument("--top", type=int, help="neurons of each that are named, 10 by default")
    if question == "stability":
        parser.add_argument("--replicates", type=int, help="bootstrap replicates, 100 by default")


def _run(question: str, values: dict[str, Any]) -> int:
    from fairprune_framework.runs.open import open_existing

    module = import_module(f"fairprune_framework.analysis.{'causality' if question == 'causal' else question}")
    options = {name: value for name, value in values.items() if value is not None}
    as_json, notify = options.pop("json", False), notifier(f"ask {question}", options.pop("quiet", False))
    asked = {name: value for name, value in options.items() if name not in {"run", *UNSAFE}}
    run = open_existing(options.pop("run"), unsafe_options(options), notify=notify)
    found = getattr(module, FUNCTIONS.get(question, question))(run, notify=notify, **asked)
    answer(json.dumps(found, indent=1, ensure_ascii=False) if as_json else module.render(found))
    return 0


COMMANDS = tuple(
    Command(name=name, help=text, add_options=partial(_add_options, name), run=partial(_run, name), group=GROUP)
    for name, text in QUESTIONS.items()
)
