"""`fairprune report`: the page of a run again, or several runs side by side."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairprune_framework.cli.command import Command
from fairprune_framework.cli.options import add_json
from fairprune_framework.utilities.aside import answer


def _add_options(parser: Any) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folder or ablation folder; several are compared with the first"
    )
    parser.add_argument("--output", help="the HTML file; for one folder, report.html in it")
    parser.add_argument("--figures", metavar="DIR", help="write each chart as a file into this folder, too")
    parser.add_argument("--format", choices=["svg", "png", "pdf"], help="of the figures; svg if not given")
    add_json(parser, "machine-readable: the files written, and what is missing")


def _run(values: dict[str, Any]) -> int:
    from fairprune_framework.reporting.report import make_report

    output, figures = (Path(values[name]) if values.get(name) else None for name in ("output", "figures"))
    sources, written = make_report([Path(run) for run in values["runs"]], output, figures, values.get("format") or "svg")
    missing = [asdict(item) for source in sources for item in source.missing]
    damaged = [{"file": str(source.folder / name), "reason": why} for source in sources for name, why in source.damaged]
    if values.get("json"):
        answer(json.dumps({"written": [str(path) for path in written], "missing": missing, "damaged": damaged}, indent=1))
        return 0
    for item in missing:
        print(f"missing: {item['file']}, so no word on {item['what']}: {item['command']}", file=sys.stderr)
    for item in damaged:
        print(f"cannot be read: {item['file']}: {item['reason']}", file=sys.stderr)
    for path in written:
        answer(str(path))
    return 0


COMMANDS = (
    Command(name="report", help="make the page of a run again, or compare several runs", add_options=_add_options, run=_run),
)
