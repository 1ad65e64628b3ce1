"""`fairprune plugins list | check`."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from fairprune_framework import discovery
from fairprune_framework.cli.command import Command, Group
from fairprune_framework.cli.options import add_json, one_line
from fairprune_framework.errors import FairpruneError

GROUP = Group(name="plugins", help="list what is installed")


def _add_list_options(parser: Any) -> None:
    parser.add_argument("--load", action="store_true", help="import each one: ok, or broken and why")
    add_json(parser)


def _list(values: dict[str, Any]) -> int:
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


def _add_check_options(parser: Any) -> None:
    parser.add_argument("kind", choices=list(discovery.GROUPS), help="which interface")
    parser.add_argument("name", help="as in `fairprune plugins list`")


def _check(values: dict[str, Any]) -> int:
    from fairprune_framework.testing.contracts import check_plugin

    report = check_plugin(values["kind"], discovery.build(values["kind"], values["name"]))
    print(report)
    return 1 if report.failures else 0


COMMANDS = (
    Command(
        name="list",
        help="show kind, name, distribution, version and state",
        add_options=_add_list_options,
        run=_list,
        group=GROUP,
    ),
    Command(
        name="check",
        help="run the contract suite on an installed plugin",
        add_options=_add_check_options,
        run=_check,
        group=GROUP,
    ),
)
