"""Record what a fixed set of small commands gives: exit codes, and hashes of stdout and of every file that they leave.

`python tests/golden/renew.py` writes `manifest.json` beside this file and names what changed. `test_golden.py` compares.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

MANIFEST = Path(__file__).with_name("manifest.json")
PACKAGES = ("torch", "transformers", "lightning", "tokenizers", "safetensors", "numpy", "scipy", "pyarrow", "plotly")

FAMILIES = ("llama", "phi3", "mixtral")
"""One tiny random model for each architecture adapter."""

PROMPTS, OTHER_PROMPTS, GRID, FOLDER = "prompts.jsonl", "other.jsonl", "grid.yaml", "grid"
CALIBRATION = ("--calibration-tokens", "16", "--calibration-documents", "8")
ALONE = (*CALIBRATION, "--force", "--quiet")
WHOLE = (*ALONE, "--no-speed")

COMMANDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (f"run llama --prompts {PROMPTS} --output variance --recipe relative-variance --budget 0.1", WHOLE),
    (f"run llama --prompts {PROMPTS} --output default --budget 0.05 --judge-prompts other={OTHER_PROMPTS}", WHOLE),
    (f"run phi3 --prompts {PROMPTS} --output scaled --recipe attribution --budget 8n --operator scale --factor auto", WHOLE),
    (f"run mixtral --prompts {PROMPTS} --output experts --recipe variance --budget 16/layer", WHOLE),
    (
        f"run llama --prompts {PROMPTS} --output gradients --bias integrated-gradients --bias.steps 2"
        " --policy greedy --importance output-norm --budget 0.1",
        WHOLE,
    ),
    (f"evaluate llama --prompts {PROMPTS} --output alone", ALONE),
    ("prune llama --plan variance/plan.json --output adopted", WHOLE),
    ("ask overlap default --quiet --json", ()),
    ("ask transfer default --quiet --json", ()),
    ("ask stability default --replicates 5 --quiet --json", ()),
    ("ask causal default --draws 2 --quiet --json", ()),
    ("inspect default --unit 0:3 --quiet --json", ()),
    (f"ablate {GRID} --output {FOLDER} --confirm 1 --quiet", ()),
    ("restore variance --output original", ()),
    (f"prompts check {PROMPTS} --model llama --json", ()),
    ("plugins list --json", ()),
    (f"run nowhere --prompts {PROMPTS} --output refused --quiet", ()),
)
"""Each command and its further options, which the manifest does not repeat. In order: some read what an earlier one left."""

INPUTS = {*FAMILIES, PROMPTS, OTHER_PROMPTS, GRID}

VOLATILE = frozenset(
    {
        "seconds",
        "checkpoint_seconds",
        "masking_ms",
        "planning_seconds",
        "least_seconds",
        "forward_tokens_per_second",
        "key",
        "statistic_sources",
        "plugin_sources",
    }
)
"""Keys and columns that differ from run to run, or with every edit of a plugin: timings, and hashes of sources."""


def environment() -> dict[str, str]:
    """What bits of floating-point results depend on: package versions, the machine, and the instructions that torch uses."""
    import torch

    found = {name: metadata.version(name) for name in PACKAGES}
    found["python"] = platform.python_version()
    found["machine"] = f"{platform.system()} {platform.machine()}"
    found["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    found["cpu"] = _cpu_model()
    return found


def _cpu_model() -> str:
    """The processor: libraries below torch choose kernels and the sizes of their blocks by vendor, family, model and caches, and two
    machines of one name need not share them."""
    fields = ("model name", "cpu family", "model", "stepping", "cache size")
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
        told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
        return ", ".join(f"{name} {told[name]}" for name in fields if name in told)
    return platform.processor()


def write_inputs() -> None:
    """Models, prompt sets and a grid, in the working directory."""
    from fairprune_framework.testing.tiny import save_tiny, tiny_contrasts

    for family in FAMILIES:
        save_tiny(Path(family), family)
    _write_rows(PROMPTS, [contrast.to_json() for contrast in tiny_contrasts()])
    _write_rows(
        OTHER_PROMPTS,
        [
            {
                "id": f"other-{place}",
                "category": "gender",
                "template_id": f"other-{place}",
                "variants": [
                    {"attribute": attribute, "text": f"The {word} at the {place} was very kind ."}
                    for attribute, word in (("pro", "man"), ("anti", "woman"))
                ],
            }
            for place in ("store", "door", "office")
        ],
    )
    Path(GRID).write_text(
        "bias: [variance, attribution]\n"
        "importance: [taylor]\n"
        "policy: [uniform, protected-global]\n"
        "operator: [zero, {operator: scale, factor: 0.5}]\n"
        'budget: ["0.1"]\n'
        "controls: [random]\n"
        "control_seeds: 2\n"
        "model: llama\n"
        f"prompts: {PROMPTS}\n"
        "calibration_tokens: 16\n"
        "calibration_documents: 8\n",
        encoding="utf-8",
    )


def _write_rows(path: str, rows: list[dict[str, Any]]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def record() -> dict[str, Any]:
    """Run all commands in a folder of their own.

    Returns:
        `environment`; `commands`, each with its exit code and the sha256 of its stdout; `files`, path to sha256. Timings are
        taken out before hashing.
    """
    from fairprune_framework.cli.main import main

    commands = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_inputs()
        for text, more in COMMANDS:
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main([*text.split(), *more])
            print(f"exit {code}  {text}", *err.getvalue().splitlines()[-1:], sep="\n  ", file=sys.stderr)
            commands.append({"command": text, "exit": code, "stdout": _sha256(_untimed(out.getvalue()).encode())})
        files = {path.as_posix(): _sha256(content(path)) for path in _results()}
    return {"environment": environment(), "commands": commands, "files": files}


def _results() -> Iterator[Path]:
    """Every file that the commands left, sorted."""
    for path in sorted(Path().rglob("*")):
        if path.is_file() and path.parts[0] not in INPUTS:
            yield path


def content(path: Path) -> bytes:
    """The bytes of a result without what differs from run to run: timings, and versions, which the environment names."""
    if path.suffix == ".json":
        values = json.loads(path.read_text(encoding="utf-8"))
        if path.name == "run.json":
            values.pop("versions")
            for stage in values.get("stages", {}).values():
                stage["files"] = sorted(stage["files"])  # their contents are compared below, without timings
        return json.dumps(_without(values, VOLATILE)).encode()
    if path.suffix == ".html":
        return re.sub(r">\d+\.\d s<", ">T s<", path.read_text(encoding="utf-8")).encode()
    if path.name == "results.parquet":
        from pyarrow import parquet

        table = parquet.read_table(path)
        return json.dumps(table.drop_columns(sorted(VOLATILE & set(table.column_names))).to_pylist()).encode()
    data = path.read_bytes()
    if path.suffix == ".safetensors":  # safetensors writes the metadata's keys in any order
        start = 8 + int.from_bytes(data[:8], "little")
        return json.dumps(json.loads(data[8:start]), sort_keys=True).encode() + data[start:]
    return data


def _without(value: Any, keys: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(inner, keys) for key, inner in value.items() if key not in keys}
    return [_without(inner, keys) for inner in value] if isinstance(value, list) else value


def _untimed(text: str) -> str:
    """The text of a command without its line of seconds and the line that may continue it."""
    return re.sub(r"^seconds .*(\n {9}.*)?", "seconds T", text, flags=re.MULTILINE)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def differences(before: dict[str, Any], after: dict[str, Any], *, hashes: bool) -> list[str]:
    """One line for each command or file in which two manifests differ.

    Args:
        hashes: compare contents too, not only exit codes and which files there are.
    """
    found = []
    old = {each["command"]: each for each in before["commands"]}
    new = {each["command"]: each for each in after["commands"]}
    for command in dict.fromkeys((*old, *new)):
        if command not in old or command not in new:
            found.append(f"{'no longer run' if command in old else 'new'}: {command}")
        elif old[command]["exit"] != new[command]["exit"]:
            found.append(f"exit code {old[command]['exit']} before, {new[command]['exit']} now: {command}")
        elif hashes and old[command]["stdout"] != new[command]["stdout"]:
            found.append(f"another stdout: {command}")
    for path in sorted({*before["files"], *after["files"]}):
        if path not in before["files"] or path not in after["files"]:
            found.append(f"{'no longer written' if path in before['files'] else 'new'}: {path}")
        elif hashes and before["files"][path] != after["files"][path]:
            found.append(f"another content: {path}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a manifest, and say in what it differs from the one kept."""
    parser = argparse.ArgumentParser(description="Record the results of the golden commands.")
    parser.add_argument("--output", type=Path, default=MANIFEST, help="default: the manifest that the test compares with")
    output = parser.parse_args(arguments).output.absolute()
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    kept = json.loads(MANIFEST.read_text(encoding="utf-8")) if MANIFEST.exists() else None
    now = record()
    output.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
    changed = differences(kept, now, hashes=True) if kept else []
    print(*changed, f"{len(now['commands'])} commands, {len(now['files'])} files, {len(changed)} changes: {output}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
