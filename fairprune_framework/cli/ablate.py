"""`fairprune ablate`: a grid of recipes on one audit."""

from __future__ import annotations

import json
import re
from typing import Any

from fairprune_framework.cli.command import Command
from fairprune_framework.cli.options import add_json, add_quiet, add_unsafe
from fairprune_framework.errors import UserError
from fairprune_framework.utilities.aside import answer
from fairprune_framework.utilities.progress import notifier


def _add_options(parser: Any) -> None:
    parser.add_argument("grid", help="a YAML file: lists for bias, importance, policy, operator, budget, seed; and controls")
    parser.add_argument("--output", help="the folder of the ablation; always needed")
    parser.add_argument("--model", help="hub id, folder or smollm2-135m, where the grid names none")
    parser.add_argument("--prompts", help="a file, a hub data set, or builtin:en, where the grid names none")
    parser.add_argument("--split", help="as in `fairprune run`, where the grid names none")
    parser.add_argument("--confirm", type=int, metavar="K", help="judge the K best cells on held-out contrasts: once")
    parser.add_argument("--part", metavar="I/N", help="do cells I, I+N, ...: N processes share one folder, I from 0")
    parser.add_argument("--overwrite", action="store_true", help="begin anew; the number of cells looked at is remembered")
    add_json(parser, "print ablation.json instead of the leaderboard")
    add_quiet(parser)
    add_unsafe(parser)


def _run(values: dict[str, Any]) -> int:
    options = {name: value for name, value in values.items() if value is not None}
    as_json, notify = options.pop("json", False), notifier("ablate", options.pop("quiet", False))
    if not options.get("output"):
        raise UserError("`fairprune ablate` needs a folder: --output DIR")
    if "part" in options:
        if (match := re.fullmatch(r"(\d{1,18})/(\d{1,18})", options["part"])) is None:
            raise UserError(f"--part must be I/N, such as 0/2. Got {options['part']!r} instead.")
        options["part"] = (int(match[1]), int(match[2]))

    from fairprune_framework.ablation.ablate import ablate
    from fairprune_framework.ablation.board import render
    from fairprune_framework.auditing.distributed.parallel import is_worker_rank

    record = ablate(options.pop("grid"), options.pop("output"), notify=notify, **options)
    if is_worker_rank():
        return 0
    if record is None:
        answer("other parts of the grid are not done yet")
    else:
        answer(json.dumps(record, indent=1, ensure_ascii=False) if as_json else render(record))
    return 0


COMMANDS = (
    Command(
        name="ablate", help="judge every cell of a grid of recipes on one audit, by masking", add_options=_add_options, run=_run
    ),
)
