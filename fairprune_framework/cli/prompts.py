"""`fairprune prompts check | build`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fairprune_framework.cli.command import Command, Group
from fairprune_framework.cli.options import add_json, pairs
from fairprune_framework.errors import UserError
from fairprune_framework.utilities.aside import answer
from fairprune_framework.utilities.files import RUN_RECORD, refuse_part_of_run
from fairprune_framework.utilities.wording import number_of

GROUP = Group(name="prompts", help="check a prompt set, or build one")


def _add_check_options(parser: Any) -> None:
    parser.add_argument(
        "set", help="a file, a data set (NAME[:CONFIGURATION][:SPLIT], on the hub or in a folder), or builtin:en"
    )
    parser.add_argument("--model", required=True, help="whose tokenizer: hub id, folder or smollm2-135m")
    parser.add_argument("--split", help="as in `fairprune run`")
    parser.add_argument("--columns", action="append", metavar="FIELD=COLUMN", help="our field = the set's column")
    parser.add_argument("--bad-prompts", choices=["error", "skip"], help="skip: list what cannot be used, and go on")
    parser.add_argument("--chat-template", action="store_true", help="wrap texts in the chat template")
    parser.add_argument("--trust-remote-code", action="store_true", help="allow code that comes with the tokenizer to run")
    add_json(parser)


def _check(values: dict[str, Any]) -> int:
    from fairprune_framework.contrasts.check import check_prompts, render

    report = check_prompts(
        values["set"],
        values["model"],
        split=values.get("split") or "keep",
        columns=pairs(values.get("columns") or (), "--columns must be FIELD=COLUMN") or None,
        bad=values.get("bad_prompts") or "error",
        chat_template=bool(values.get("chat_template")),
        trust_remote_code=bool(values.get("trust_remote_code")),
    )
    answer(json.dumps(report, indent=1, ensure_ascii=False) if values.get("json") else render(report))
    return 0


def _add_build_options(parser: Any) -> None:
    parser.add_argument("templates", help="YAML, JSON, JSONL or CSV: category, template_id, context, text, [control], [split]")
    parser.add_argument("values", help="the same kinds: category, attribute, and any other form that the texts name")
    parser.add_argument("--output", required=True, help="the .jsonl file to write")


def _build(values: dict[str, Any]) -> int:
    from fairprune_framework.contrasts.build import build_files, write_jsonl
    from fairprune_framework.contrasts.splits import apply_split

    contrasts = apply_split(build_files(Path(values["templates"]), Path(values["values"])), "keep", 0)
    output = Path(values["output"])
    if not output.parent.is_dir():
        raise UserError(f"there is no folder {output.parent}")
    refuse_part_of_run(output)
    if output.exists() and (output.parent / RUN_RECORD).is_file():
        raise UserError(f"--output {output} is a file of a run: name another file")
    write_jsonl(contrasts, output)
    answer(
        f"{number_of(len(contrasts), 'contrast')}, {sum(len(contrast.variants) for contrast in contrasts):,} texts -> {output}"
    )
    return 0


COMMANDS = (
    Command(
        name="check",
        help="report counts, token lengths and alignment under a model's tokenizer",
        add_options=_add_check_options,
        run=_check,
        group=GROUP,
    ),
    Command(
        name="build",
        help="cross a file of templates with a file of attribute values",
        add_options=_add_build_options,
        run=_build,
        group=GROUP,
    ),
)
