"""The commands about what goes in: `prompts check | build` and `plugins list | check`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from fairprune_framework import discovery
from fairprune_framework.errors import FairpruneError, UserError


def one_line(error: BaseException) -> str:
    """The message of an error, without breaks."""
    return " ".join(str(error).split())


def pairs(given: Sequence[str], wanted: str) -> dict[str, str]:
    """`A=B` words as a mapping; `wanted` says what they must be."""
    parts = [pair.partition("=") for pair in given]
    if bad := next((pair for pair in parts if not (pair[0] and pair[2])), None):
        raise UserError(f"{wanted}. Got {''.join(bad)!r} instead.")
    return {field: column for field, _, column in parts}


# -- prompts -------------------------------------------------------------------------------------------------------------


def check_parser() -> Any:
    """Parser of `fairprune prompts check`."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        exit_on_error=False, description="report counts, token lengths and alignment under a model's tokenizer"
    )
    parser.add_argument("set", help="a file, a hub data set, or builtin:en")
    parser.add_argument("--model", required=True, help="whose tokenizer: hub id, folder or smollm2-135m")
    parser.add_argument("--split", help="as in `fairprune run`")
    parser.add_argument("--columns", action="append", metavar="FIELD=COLUMN", help="our field = the set's column")
    parser.add_argument("--bad-prompts", choices=["error", "skip"], help="skip: list what cannot be used, and go on")
    parser.add_argument("--chat-template", action="store_true", help="wrap texts in the chat template")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    return parser


def prompts_check(values: dict[str, Any]) -> int:
    """Run `fairprune prompts check`."""
    from fairprune_framework.contrasts.check import check_prompts, render

    columns = pairs(values.get("columns") or (), "--columns must be FIELD=COLUMN") or None
    report = check_prompts(
        values["set"],
        values["model"],
        split=values.get("split") or "keep",
        columns=columns,
        bad=values.get("bad_prompts") or "error",
        chat_template=bool(values.get("chat_template")),
    )
    print(json.dumps(report, indent=1, ensure_ascii=False) if values.get("json") else render(report))
    return 0


def build_parser() -> Any:
    """Parser of `fairprune prompts build`."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, description="cross a file of templates with a file of attribute values")
    parser.add_argument("templates", help="YAML, JSON, JSONL or CSV: category, template_id, context, text, [control], [split]")
    parser.add_argument("values", help="the same kinds: category, attribute, and any other form that the texts name")
    parser.add_argument("--output", required=True, help="the .jsonl file to write")
    return parser


def prompts_build(values: dict[str, Any]) -> int:
    """Run `fairprune prompts build`."""
    from pathlib import Path

    from fairprune_framework.contrasts.build import build_files, write_jsonl
    from fairprune_framework.contrasts.splits import apply_split

    contrasts = apply_split(build_files(Path(values["templates"]), Path(values["values"])), "keep", 0)
    output = Path(values["output"])
    if not output.parent.is_dir():
        raise UserError(f"there is no folder {output.parent}")
    write_jsonl(contrasts, output)
    print(f"{len(contrasts)} contrasts, {sum(len(contrast.variants) for contrast in contrasts)} texts -> {output}")
    return 0


# -- plugins -------------------------------------------------------------------------------------------------------------


def list_parser() -> Any:
    """Parser of `fairprune plugins list`."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, description="show kind, name, distribution, version and state")
    parser.add_argument("--load", action="store_true", help="import each one: ok, or broken and why")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    return parser


def plugins_list(values: dict[str, Any]) -> int:
    """Run `fairprune plugins list`."""
    rows = []
    for kind in (*discovery.GROUPS, "recipe"):
        for entry in discovery.entries(kind):
            row = {**dataclasses.asdict(entry), "state": "not loaded", "error": None}
            if values.get("load") and kind != "recipe":
                try:
                    discovery.load(entry)
                    row["state"] = "ok"
                except FairpruneError as error:
                    row |= {"state": "broken", "error": one_line(error)}
            rows.append(row)
    if values.get("json"):
        print(json.dumps(rows, indent=1))
        return 0
    names = ("kind", "name", "distribution", "version", "state")
    widths = [max([len(name), *(len(str(row[name])) for row in rows)]) for name in names]
    for line in [dict(zip(names, names, strict=True)), *rows]:
        print("  ".join(str(line[name]).ljust(width) for name, width in zip(names, widths, strict=True)).rstrip())
    for row in rows:
        if row["error"]:
            print(f"\n{row['error']}")
    return 0


def contract_parser() -> Any:
    """Parser of `fairprune plugins check`."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False, description="run the contract suite on an installed plugin")
    parser.add_argument("kind", choices=["bias", "importance", "policy", "architecture"], help="which interface")
    parser.add_argument("name", help="as in `fairprune plugins list`")
    return parser


def plugins_check(values: dict[str, Any]) -> int:
    """Run `fairprune plugins check`."""
    from fairprune_framework.testing.contracts import check_plugin

    report = check_plugin(values["kind"], discovery.build(values["kind"], values["name"]))
    print(report)
    return 1 if report.failures else 0
