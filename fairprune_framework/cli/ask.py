"""The commands that compare and ask: `ablate`, `ask overlap | transfer | stability | causal`, `inspect`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from fairprune_framework.errors import UserError

QUESTIONS = {
    "overlap": "are the same neurons found for each category? (from the scores alone)",
    "transfer": "does what is chosen on one category help another? (one evaluation a category)",
    "stability": "would other templates have chosen the same neurons? (one more audit)",
    "causal": "does zeroing the plan do more than zeroing random neurons of equal activation norm?",
}


def ablate_parser() -> Any:
    """Parser of `fairprune ablate`."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, description="judge every cell of a grid of recipes on one audit, by masking")
    parser.add_argument("grid", help="a YAML file: lists for bias, importance, policy, operator, budget, seed; and controls")
    parser.add_argument("--output", help="the folder of the ablation; always needed")
    parser.add_argument("--model", help="hub id, folder or smollm2-135m, where the grid names none")
    parser.add_argument("--prompts", help="a file, a hub data set, or builtin:en, where the grid names none")
    parser.add_argument("--split", help="as in `fairprune run`, where the grid names none")
    parser.add_argument("--confirm", type=int, metavar="K", help="judge the K best cells on held-out contrasts: once")
    parser.add_argument("--part", metavar="I/N", help="do cells I, I+N, ...: N processes share one folder, I from 0")
    parser.add_argument("--overwrite", action="store_true", help="begin anew; the number of cells looked at is remembered")
    parser.add_argument("--json", action="store_true", help="print ablation.json instead of the leaderboard")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return parser


def ablate(values: dict[str, Any]) -> int:
    """Run `fairprune ablate`."""
    words = {name: value for name, value in values.items() if value is not None}
    as_json, notify = words.pop("json", False), _notifier("ablate", words.pop("quiet", False))
    if "output" not in words:
        raise UserError("`fairprune ablate` needs a folder: --output DIR")
    if "part" in words:
        if (found := re.fullmatch(r"(\d+)/(\d+)", words["part"])) is None:
            raise UserError(f"--part must be I/N, such as 0/2. Got {words['part']!r} instead.")
        words["part"] = (int(found[1]), int(found[2]))

    from fairprune_framework.ablation.ablate import ablate as run_grid
    from fairprune_framework.ablation.board import render
    from fairprune_framework.auditing.distributed.parallel import is_worker_rank

    record = run_grid(words.pop("grid"), words.pop("output"), notify=notify, **words)
    if is_worker_rank():
        return 0
    if record is None:
        print("other parts of the grid are not done yet")
    else:
        print(json.dumps(record, indent=1, ensure_ascii=False) if as_json else render(record))
    return 0


def question_parser(name: str) -> Callable[[], Any]:
    """Makes the parser of one question."""

    def make() -> Any:
        from jsonargparse import ArgumentParser

        parser = ArgumentParser(exit_on_error=False, description=QUESTIONS[name])
        parser.add_argument("run", help="a run folder with scores (and for causal a plan)")
        parser.add_argument("--json", action="store_true", help=f"print {name}.json instead of a table")
        parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
        if name == "causal":
            parser.add_argument("--draws", type=int, help="sets of random neurons, 20 by default")
        if name == "stability":
            parser.add_argument("--replicates", type=int, help="bootstrap replicates, 100 by default")
        return parser

    return make


def question(name: str) -> Callable[[dict[str, Any]], int]:
    """Answers one question."""

    def answer(values: dict[str, Any]) -> int:
        module = import_module(f"fairprune_framework.analysis.{'causality' if name == 'causal' else name}")
        words = {key: value for key, value in values.items() if value is not None}
        as_json, notify = words.pop("json", False), _notifier(f"ask {name}", words.pop("quiet", False))
        found = getattr(module, name)(words.pop("run"), notify=notify, **words)
        print(json.dumps(found, indent=1, ensure_ascii=False) if as_json else module.render(found))
        return 0

    return answer


def inspect_parser() -> Any:
    """Parser of `fairprune inspect`."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        exit_on_error=False, description="what moves one neuron, what it says, why it was or was not chosen"
    )
    parser.add_argument("run", help="a run folder with scores")
    parser.add_argument("--unit", help="SITE:I, such as model.layers.3.mlp:17, or 3:17; always needed")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return parser


def inspect(values: dict[str, Any]) -> int:
    """Run `fairprune inspect`."""
    if not values.get("unit"):
        raise UserError("`fairprune inspect` needs a neuron: --unit SITE:I")
    from fairprune_framework.analysis.neuron import inspect as look
    from fairprune_framework.analysis.neuron import render

    found = look(values["run"], values["unit"], notify=_notifier("inspect", values.get("quiet") or False))
    print(json.dumps(found, indent=1, ensure_ascii=False) if values.get("json") else render(found))
    return 0


def _notifier(command: str, quiet: bool) -> Callable[[str], None]:
    def notify(text: str) -> None:
        if not quiet:
            print(f"[{command}] {text}", file=sys.stderr, flush=True)

    return notify
