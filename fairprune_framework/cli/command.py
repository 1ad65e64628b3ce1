"""The commands beside the stages: what each one reads from the command line, and what it calls."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fairprune_framework.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command: its line in the help, its options, its work. The work returns the exit code."""

    text: str
    options: Callable[[Any], None]
    work: Callable[[dict[str, Any]], int]


def _say(command: str, text: str) -> None:
    print(f"[{command}] {text}", file=sys.stderr, flush=True)


def _report_options(parser: Any) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folder or ablation folder; several are compared with the first"
    )
    parser.add_argument("--output", help="the HTML file; for one folder, report.html in it")
    parser.add_argument("--figures", metavar="DIR", help="write each chart as a file into this folder, too")
    parser.add_argument("--format", choices=["svg", "png", "pdf"], help="of the figures; svg if not given")
    parser.add_argument("--json", action="store_true", help="machine-readable: the files written, and what is missing")


def _report(values: dict[str, Any]) -> int:
    from fairprune_framework.reporting.report import make_report

    output, figures = (Path(values[name]) if values.get(name) else None for name in ("output", "figures"))
    sources, written = make_report([Path(run) for run in values["runs"]], output, figures, values.get("format") or "svg")
    missing = [asdict(item) for source in sources for item in source.missing]
    damaged = [{"file": str(source.folder / name), "reason": why} for source in sources for name, why in source.damaged]
    if values.get("json"):
        print(json.dumps({"written": [str(path) for path in written], "missing": missing, "damaged": damaged}, indent=1))
        return 0
    for item in missing:
        print(f"missing: {item['file']}, so no word on {item['what']}: {item['command']}", file=sys.stderr)
    for item in damaged:
        print(f"cannot be read: {item['file']}: {item['reason']}", file=sys.stderr)
    for path in written:
        print(path)
    return 0


def _restore_options(parser: Any) -> None:
    parser.add_argument("source", help="a run folder, or the folder of a pruned model")
    parser.add_argument("--output", required=True, help="the folder to make, in the layout of Hugging Face")
    parser.add_argument("--restoration", help="the file to restore from; by default the one in or beside the folder")
    parser.add_argument("--json", action="store_true", help="machine-readable")


def _restore(values: dict[str, Any]) -> int:
    from fairprune_framework.models.loading import fingerprint, parameter_count
    from fairprune_framework.surgery.restore import restore_folder

    model, _ = restore_folder(Path(values["source"]), values["output"], values.get("restoration"))
    facts = {"output": values["output"], "parameters": parameter_count(model), "fingerprint": fingerprint(model)}
    if values.get("json"):
        print(json.dumps(facts, indent=1))
    else:
        print(f"{facts['output']}: {facts['parameters']:,} parameters, bit by bit the original ({facts['fingerprint'][:12]})")
    return 0


def _push_options(parser: Any) -> None:
    parser.add_argument("run", help="a finished run folder")
    parser.add_argument("--repo", required=True, help="where to: owner/name")
    parser.add_argument("--private", action="store_true", help="make the repository private, where it is made")
    parser.add_argument("--revision", help="branch to push to; made where there is none")
    parser.add_argument("--json", action="store_true", help="machine-readable")


def _push(values: dict[str, Any]) -> int:
    from fairprune_framework.reporting.publishing import push

    url = push(Path(values["run"]), values["repo"], private=bool(values.get("private")), revision=values.get("revision"))
    print(json.dumps({"repo": values["repo"], "commit": url}) if values.get("json") else f"pushed: {url}")
    return 0


def _explore_options(parser: Any) -> None:
    parser.add_argument("run", help="a run folder")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; by default this machine alone")
    parser.add_argument("--port", type=int, help="by default the first free one from 7860")


def _explore(values: dict[str, Any]) -> int:
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise UserError("exploring needs gradio: pip install 'fairprune_framework[explore]'")
    from fairprune_framework.exploring.compare import Explorer
    from fairprune_framework.exploring.page import serve

    explorer = Explorer(values["run"], notify=lambda text: _say("explore", text))
    serve(explorer, values.get("host") or "127.0.0.1", values.get("port"))
    return 0


def _doctor_options(parser: Any) -> None:
    parser.add_argument("--json", action="store_true", help="machine-readable")


def _doctor(values: dict[str, Any]) -> int:
    from fairprune_framework.cli import doctor

    findings = doctor.examine()
    report = doctor.to_json(findings)
    print(json.dumps(report, indent=1) if values.get("json") else doctor.render(findings))
    return 0 if report["ok"] else 1


SHELLS = ("bash", "zsh", "tcsh", "fish")


def _completion_options(parser: Any) -> None:
    parser.add_argument("shell", choices=list(SHELLS), help="for which shell to print a script")


def _completion(values: dict[str, Any]) -> int:
    from importlib.util import find_spec

    if find_spec("shtab") is None:
        raise UserError("shell completion needs shtab: pip install 'fairprune_framework[completion]'")
    print(values["parser"].get_completion_script(f"shtab-{values['shell']}"))
    return 0


COMMANDS: Mapping[str, Command] = {
    "report": Command(text="make the page of a run again, or compare several runs", options=_report_options, work=_report),
    "restore": Command(text="make the original model from a pruned one, bit by bit", options=_restore_options, work=_restore),
    "push": Command(text="upload the pruned model of a run with its card", options=_push_options, work=_push),
    "explore": Command(text="a local page: type two prompts, see both models", options=_explore_options, work=_explore),
    "doctor": Command(text="say what this environment can do and what it lacks", options=_doctor_options, work=_doctor),
    "completion": Command(
        text="print a script that completes commands and options", options=_completion_options, work=_completion
    ),
}
