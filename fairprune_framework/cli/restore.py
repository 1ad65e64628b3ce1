"""`fairprune restore`: the original model from a pruned one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fairprune_framework.cli.command import Command
from fairprune_framework.cli.options import add_json, add_unsafe, unsafe_options


def _add_options(parser: Any) -> None:
    parser.add_argument("source", help="a run folder, or the folder of a pruned model")
    parser.add_argument("--output", required=True, help="the folder to make, in the layout of Hugging Face")
    parser.add_argument("--restoration", help="the file to restore from; by default the one in or beside the folder")
    add_json(parser)
    add_unsafe(parser)


def _run(values: dict[str, Any]) -> int:
    from fairprune_framework.models.loading import parameter_count
    from fairprune_framework.models.weights import fingerprint
    from fairprune_framework.surgery.restore import restore_folder

    model, _ = restore_folder(Path(values["source"]), values["output"], values.get("restoration"), **unsafe_options(values))
    facts = {"output": values["output"], "parameters": parameter_count(model), "fingerprint": fingerprint(model)}
    if values.get("json"):
        print(json.dumps(facts, indent=1))
    else:
        print(f"{facts['output']}: {facts['parameters']:,} parameters, bit by bit the original ({facts['fingerprint'][:12]})")
    return 0


COMMANDS = (
    Command(name="restore", help="make the original model from a pruned one, bit by bit", add_options=_add_options, run=_run),
)
