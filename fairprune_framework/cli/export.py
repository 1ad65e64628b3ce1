"""`fairprune export`: the pruned model for another program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fairprune_framework.cli.command import Command
from fairprune_framework.cli.options import add_json, add_unsafe, unsafe_options
from fairprune_framework.utilities.aside import answer


def _add_options(parser: Any) -> None:
    parser.add_argument("source", help="a run folder, or the folder of a model")
    text = "hf: plain transformers, without code; vllm: as stored; gguf: one file for llama.cpp"
    parser.add_argument("--format", required=True, help=text)
    parser.add_argument("--output", required=True, help="the folder to make, or the .gguf file")
    add_json(parser)
    add_unsafe(parser)


def _run(values: dict[str, Any]) -> int:
    from fairprune_framework.surgery.export import export

    done = export(Path(values["source"]), values["output"], values["format"], **unsafe_options(values))
    if values.get("json"):
        answer(json.dumps(done.to_json(), indent=1))
        return 0
    notes = [f"{done.bytes:,} bytes"]
    if done.architecture:
        notes.append(f"architecture {done.architecture}")
    if done.filled:
        notes.append(f"{done.filled} parameters filled up with zeros")
    answer(f"{done.output}: {', '.join(notes)}\n{done.serve}")
    return 0


COMMANDS = (
    Command(
        name="export", help="write the pruned model for transformers, vLLM or llama.cpp", add_options=_add_options, run=_run
    ),
)
