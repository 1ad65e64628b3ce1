"""`fairprune finetune`: a short recovery training of a run's pruned model."""

from __future__ import annotations

import json
from typing import Any

from fairprune_framework.cli.command import Command
from fairprune_framework.cli.options import add_json, add_quiet, add_unsafe, unsafe_options
from fairprune_framework.utilities.aside import answer
from fairprune_framework.utilities.progress import notifier, shown

_NAMES = ("text", "distill", "method", "steps", "tokens", "batch_tokens", "learning_rate", "rank", "seed")


def _add_options(parser: Any) -> None:
    parser.add_argument("run", help="a run folder with a pruned model")
    parser.add_argument("--text", help="what to train on: a .txt or .jsonl file (field `text`), or builtin:en")
    text = "learn the answers of the original model; without --text on the scoring half of the run's calibration text"
    parser.add_argument("--distill", action="store_true", help=text)
    parser.add_argument("--method", help="lora (needs the extra `finetune`), the default, or full")
    parser.add_argument("--steps", type=int, help="steps of the optimiser; 100")
    parser.add_argument("--tokens", type=int, help="tokens to train on, in place of steps")
    parser.add_argument("--batch-tokens", type=int, help="tokens of a step, at most; 2048")
    parser.add_argument("--learning-rate", type=float, help="the highest one; 2e-4 for lora, 1e-5 for full")
    parser.add_argument("--rank", type=int, help="of LoRA; 8")
    parser.add_argument("--seed", type=int, help="of the order of documents and of the adapters; 0")
    parser.add_argument("--output", help="the folder to make; by default `finetuned` in the run folder")
    parser.add_argument("--overwrite", action="store_true", help="replace a finetuned model that is there")
    parser.add_argument("--perplexity-only", action="store_true", help="no verdict; the same command without it adds one")
    parser.add_argument("--accelerator", help="where to compute; by default where the run did")
    add_json(parser)
    add_quiet(parser)
    add_unsafe(parser)


def _run(values: dict[str, Any]) -> int:
    from fairprune_framework.pipeline import finetune
    from fairprune_framework.recovery.record import render

    quiet = bool(values.get("quiet"))
    given: dict[str, Any] = {name: values[name] for name in _NAMES if values.get(name) is not None}
    given |= unsafe_options(values)
    with shown(not quiet):
        record = finetune(
            values["run"],
            values.get("output"),
            overwrite=bool(values.get("overwrite")),
            verdict=not values.get("perplexity_only"),
            notify=notifier("finetune", quiet),
            accelerator=values.get("accelerator"),
            **given,
        )
    answer(json.dumps(record, indent=1, ensure_ascii=False) if values.get("json") else render(record))
    return 0


COMMANDS = (
    Command(
        name="finetune",
        help="train the pruned model of a run for a short while, and measure what came back",
        add_options=_add_options,
        run=_run,
    ),
)
