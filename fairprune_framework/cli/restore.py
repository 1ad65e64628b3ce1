"""`fairprune restore`: the original model from a pruned one, or a part of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fairprune_framework.cli.command import Command
from fairprune_framework.cli.options import add_json, add_unsafe, unsafe_options
from fairprune_framework.errors import UserError
from fairprune_framework.utilities.aside import answer
from fairprune_framework.utilities.wording import number_of


def _add_options(parser: Any) -> None:
    parser.add_argument("source", help="a run folder, or the folder of a pruned model")
    parser.add_argument("--output", required=True, help="the folder to make, in the layout of Hugging Face")
    parser.add_argument("--restoration", help="the file to restore from; by default the one in or beside the folder")
    parser.add_argument("--layer", action="append", help="put back the neurons of this layer alone. May be given again.")
    text = "put back those of this category alone; with --layer those of both. May be given again."
    parser.add_argument("--category", action="append", help=text)
    text = "put back this one: LAYER:UNIT, or SITE:UNIT where a layer has several sites. May be given again."
    parser.add_argument("--neuron", action="append", help=text)
    parser.add_argument("--architecture", help="adapter, where the run named one and a part is put back")
    add_json(parser)
    add_unsafe(parser)


def _run(values: dict[str, Any]) -> int:
    from fairprune_framework.recipes.recipe import PluginSpec
    from fairprune_framework.surgery.partial import Part
    from fairprune_framework.surgery.restore import restore_folder

    part = Part(
        layers=tuple(map(_number, values.get("layer") or ())),
        categories=tuple(values.get("category") or ()),
        neurons=tuple(values.get("neuron") or ()),
    )
    done = restore_folder(
        Path(values["source"]),
        values["output"],
        values.get("restoration"),
        part=part or None,
        architecture=PluginSpec(plugin=values["architecture"]) if values.get("architecture") else None,
        **unsafe_options(values),
    )
    facts = {"output": values["output"], "parameters": done.parameters, "fingerprint": done.fingerprint}
    facts |= {"neurons_back": done.back, "neurons_out": done.out}
    if values.get("json"):
        answer(json.dumps(facts, indent=1))
    elif done.out:
        back = f"{number_of(done.back, 'neuron')} {'is' if done.back == 1 else 'are'}"
        answer(f"{facts['output']}: {facts['parameters']:,} parameters, {back} back and {done.out:,} still out")
    else:
        answer(f"{facts['output']}: {facts['parameters']:,} parameters, bit by bit the original ({facts['fingerprint'][:12]})")
    return 0


def _number(word: str) -> int:
    if not word.isdecimal() or len(word) > 9:
        raise UserError(f"--layer must be the number of a layer, counted from 0. Got {word!r} instead.")
    return int(word)


COMMANDS = (
    Command(
        name="restore",
        help="make the original model from a pruned one, bit by bit, or put back a part of it",
        add_options=_add_options,
        run=_run,
    ),
)
