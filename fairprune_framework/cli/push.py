"""`fairprune push`: the pruned model of a run to a hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fairprune_framework.cli.command import Command
from fairprune_framework.cli.options import add_json
from fairprune_framework.utilities.aside import answer


def _add_options(parser: Any) -> None:
    parser.add_argument("run", help="a finished run folder")
    parser.add_argument("--repo", required=True, help="where to: owner/name")
    parser.add_argument("--private", action="store_true", help="make the repository private, where it is made")
    parser.add_argument("--revision", help="branch to push to; made where there is none")
    add_json(parser)


def _run(values: dict[str, Any]) -> int:
    from fairprune_framework.reporting.publishing import push

    url = push(Path(values["run"]), values["repo"], private=bool(values.get("private")), revision=values.get("revision"))
    answer(json.dumps({"repo": values["repo"], "commit": url}) if values.get("json") else f"pushed: {url}")
    return 0


COMMANDS = (Command(name="push", help="upload the pruned model of a run with its card", add_options=_add_options, run=_run),)
