"""A campaign of faults: kills, dead ranks, full disks, failed writes, concurrent runs, bad input and fuzzed files; a record with counts.

    python benchmarks/faults.py --results build/faults --record benchmarks/faults_MACHINE_YYYYMM.md

Every trial disturbs one command on a tiny model, looks at what it said and left, gives the same command again, and compares every file with
what two undisturbed runs leave (`tests/faults`). A part is done by name (`kills`, `ranks`, ...); its findings are kept in --results.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))
sys.path.insert(0, str(Path(__file__).parent))
for _name, _value in (("OMP_NUM_THREADS", "1"), ("HF_HUB_OFFLINE", "1"), ("TOKENIZERS_PARALLELISM", "false")):
    os.environ.setdefault(_name, _value)
import fuzzing  # noqa: E402 - after what torch reads when it is imported
import inputs  # noqa: E402
import trials  # noqa: E402
from commands import COMMANDS, Bench  # noqa: E402
from common import give, machine, without_place  # noqa: E402

COUNTS = {"kills": 200, "ranks": 40, "disks": 40, "pairs": 8, "inputs": 700, "fuzz": 250_000}
"""Part -> how many trials."""
WHAT = {
    "kills": "SIGKILL, SIGTERM and SIGINT, half at a random moment and half right before a random file operation, over every stage, "
    "`restore`, `prune --plan` and `ablate`",
    "ranks": "the same signals to one of two gloo ranks of `run`, or to both, at a random moment; again on one rank or two",
    "disks": "a file system that is too small, or a write that fails (one, all from one on, or files beyond a size)",
    "pairs": "the same command twice into the same folder, a moment apart",
    "inputs": "a mutated file of a user or of a run folder, given to a command that reads it",
    "fuzz": "mutated bytes and values, given to a reader in this process",
}
DISKS = ("run", "prune", "evaluate", "restore", "ablate", "audit", "report", "adopt")


def kills(bench: Bench, count: int, draw: random.Random) -> Iterator[trials.Trial]:
    names = list(COMMANDS)
    for number in range(count):
        yield trials.kill(bench, names[number % len(names)], trials.SIGNALS[number // len(names) % 3], draw)


def ranks(bench: Bench, count: int, draw: random.Random) -> Iterator[trials.Trial]:
    for number in range(count):
        yield trials.kill_a_rank(bench, 2, trials.SIGNALS[number % 3], draw, draw.choice([1, 2]))


def disks(bench: Bench, count: int, draw: random.Random) -> Iterator[trials.Trial]:
    for number in range(count):
        name = DISKS[number // 2 % len(DISKS)]
        trial = trials.fill(bench, name, draw) if number % 2 else None
        yield trial or trials.fail_writes(bench, name, draw.choice(["once", "from", "size"]), draw)


def pairs(bench: Bench, count: int, draw: random.Random) -> Iterator[trials.Trial]:
    names = ("run", "ablate", "prune", "evaluate", "audit", "plan", "adopt", "report")
    for number in range(count):
        yield trials.pair(bench, names[number % len(names)], draw)


PARTS: dict[str, Callable[[Bench, int, random.Random], Iterator[trials.Trial]]] = {
    "kills": kills,
    "ranks": ranks,
    "disks": disks,
    "pairs": pairs,
    "inputs": inputs.trials_of,
}


def done(part: str, bench: Bench, count: int, seed: int, minutes: float) -> dict[str, Any]:
    """Do a part, for so many minutes at most; its counts and findings."""
    began = time.monotonic()
    found: list[dict[str, Any]] = []
    number = 0
    if part == "fuzz":
        result = fuzzing.campaign(bench, count, seed, minutes * 60)
        number, found = result.executions, result.findings
    else:
        for trial in PARTS[part](bench, count, random.Random(f"{part} {seed}")):
            number += 1
            if trial.found:
                found.append({"what": trial.what, "found": trial.found})
                print(f"{part} {number}: {trial.what}: {trial.found}", file=sys.stderr, flush=True)
            if time.monotonic() - began > minutes * 60:
                break
    seconds = round(time.monotonic() - began)
    day = datetime.now(UTC).date().isoformat()
    return {"part": part, "trials": number, "wanted": count, "seed": seed, "seconds": seconds, "day": day, "findings": found}


def record(results: list[dict[str, Any]]) -> str:
    """The record as Markdown."""
    lines = [
        "# Faults: what kills, full disks, second writers and bad files leave",
        "",
        f"`python benchmarks/faults.py`, {max(each['day'] for each in results)}, on {machine()}. The model is the tiny random Llama of the "
        "tests. After every trial the same command is given again; a finding is what then differs from two undisturbed runs, byte by byte "
        "(timings in `run.json`, the report and the table of an ablation apart), or what a command said that is not one line and a "
        "documented exit code.",
        "",
        f"| part | seed | trials | {' | '.join(trials.KINDS)} | seconds | what |",
        f"|---|---:|---:|{'---:|' * len(trials.KINDS)}---:|---|",
    ]
    for each in results:
        kinds = Counter(kind for finding in each["findings"] for kind in finding["found"])
        counts = " | ".join(str(kinds[kind]) for kind in trials.KINDS)
        share = f"{each['trials']:,} of {each['wanted']:,}"
        lines.append(f"| {each['part']} | {each['seed']} | {share} | {counts} | {each['seconds']:,} | {WHAT[each['part']]} |")
    lines += ["", "## Findings", ""]
    for each in results:
        for finding in each["findings"]:
            told = "; ".join(
                f"{kind}: {' '.join(without_place(text).split())[:300]}" for kind, text in finding["found"].items()
            )
            lines.append(f"- {each['part']}, seed {each['seed']}: {finding['what']}: `{told.replace('`', '')}`")
    if not any(each["findings"] for each in results):
        lines.append("None.")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Do parts, and write the record of all that were done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", choices=[*COUNTS, []], help="all if none is named")
    parser.add_argument("--results", default="build/faults", help="folder with what each part found")
    parser.add_argument("--share", type=float, default=1.0, help="of the trials of each part")
    parser.add_argument("--minutes", type=float, default=60.0, help="at most, for each part")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", help="file for the record; it is printed if none is named")
    words = parser.parse_args()
    folder = Path(words.results)
    folder.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        bench = Bench(Path(scratch) / "bench")
        for part in words.parts or COUNTS:
            result = done(part, bench, max(1, round(COUNTS[part] * words.share)), words.seed, words.minutes)
            (folder / f"{part}-{words.seed}.json").write_text(json.dumps(result, indent=1))
    give(
        record([json.loads(path.read_text()) for part in COUNTS for path in sorted(folder.glob(f"{part}-*.json"))]),
        words.record,
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
