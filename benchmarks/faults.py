"""A campaign of faults: kills, dead ranks, full disks, failed writes, concurrent runs, bad input and fuzzed files; a record with counts.

    python benchmarks/faults.py --results build/faults --record benchmarks/faults_MACHINE_YYYYMM.md

Every trial disturbs one command on a tiny model, looks at what it said and left, gives the same command again, and compares every file with
what two undisturbed runs leave (`tests/faults`). A part is done by name (`kills`, `ranks`, ...). What was done is kept in --results after
every trial, and not done again: a campaign that is stopped goes on, and with --shard several processes share it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
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

from fairprune_framework.utilities.files import write_json  # noqa: E402
from fairprune_framework.utilities.versions import __version__  # noqa: E402

COUNTS = {"kills": 200, "ranks": 40, "disks": 40, "pairs": 8, "inputs": 700, "fuzz": 250_000}
"""Part -> how many trials."""
SLICE = 25_000
"""Executions of `fuzz` after which what was done is kept."""
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


def kills(bench: Bench, number: int, draw: random.Random) -> trials.Trial:
    names = list(COMMANDS)
    return trials.kill(bench, names[number % len(names)], trials.SIGNALS[number // len(names) % 3], draw)


def ranks(bench: Bench, number: int, draw: random.Random) -> trials.Trial:
    return trials.kill_a_rank(bench, 2, trials.SIGNALS[number % 3], draw, draw.choice([1, 2]))


def disks(bench: Bench, number: int, draw: random.Random) -> trials.Trial:
    name = DISKS[number // 2 % len(DISKS)]
    trial = trials.fill(bench, name, draw) if number % 2 else None
    return trial or trials.fail_writes(bench, name, draw.choice(["once", "from", "size"]), draw)


def pairs(bench: Bench, number: int, draw: random.Random) -> trials.Trial:
    names = ("run", "ablate", "prune", "evaluate", "audit", "plan", "adopt", "report")
    return trials.pair(bench, names[number % len(names)], draw)


PARTS: dict[str, Callable[[Bench, int, random.Random], trials.Trial]] = {
    "kills": kills,
    "ranks": ranks,
    "disks": disks,
    "pairs": pairs,
    "inputs": inputs.trial_of,
}
"""Part -> its trial of a number. A trial draws from its number and the seed alone: any may be done in any process, in any order."""


def done(part: str, bench: Bench, numbers: range, seed: int, minutes: float, path: Path) -> None:
    """Do those trials of a part that `path` does not hold, for so many minutes at most; it is written after each."""
    began = time.monotonic()
    result: dict[str, Any] = {"part": part, "seed": seed, "trials": [], "seconds": 0, "findings": []}
    if path.is_file():
        result = json.loads(path.read_text())
    before, known = result["seconds"], set(result["trials"])

    def keep() -> None:
        result["seconds"] = before + round(time.monotonic() - began)
        result["day"], result["code"] = datetime.now(UTC).date().isoformat(), sorted({*result.get("code", []), version()})
        write_json(path, result)

    if part == "fuzz":
        while (left := len(numbers) - sum(result["trials"])) > 0 and (seconds := minutes * 60 - (time.monotonic() - began)) > 0:
            name = f"{seed} {numbers.start} {len(result['trials'])}"
            fuzzed = fuzzing.campaign(bench, min(left, SLICE), name, seconds)
            result["trials"].append(fuzzed.executions)
            seen = {(each["what"], *each["found"].values()) for each in result["findings"]}
            result["findings"] += [each for each in fuzzed.findings if (each["what"], *each["found"].values()) not in seen]
            keep()
        return
    for number in numbers:
        if time.monotonic() - began > minutes * 60:
            return
        if number in known:
            continue
        trial = PARTS[part](bench, number, random.Random(f"{part} {seed} {number}"))
        result["trials"].append(number)
        if trial.found:
            result["findings"].append({"number": number, "what": trial.what, "found": trial.found})
            print(f"{part} {number}: {trial.what}: {trial.found}", file=sys.stderr, flush=True)
        keep()


@cache
def version() -> str:
    """The commit of the code, with a plus where it was changed; or the version of the package."""
    words = ("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*")
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    return found.stdout.strip() or __version__


def together(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One result for each part and seed, of all processes that did some of it."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for each in sorted(results, key=lambda each: (list(COUNTS).index(each["part"]), each["seed"])):
        count = sum(each["trials"]) if each["part"] == "fuzz" else len(each["trials"])
        one = found.setdefault((each["part"], each["seed"]), {**each, "count": 0, "seconds": 0, "findings": []})
        one["count"] += count
        one["seconds"] += each["seconds"]
        one["findings"] = one["findings"] + each["findings"]
        one["code"] = sorted({*one["code"], *each["code"]})
        one["day"] = max(one["day"], each["day"])
    return list(found.values())


def record(results: list[dict[str, Any]]) -> str:
    """The record as Markdown."""
    results = together(results)
    code = ", ".join(sorted({name for each in results for name in each["code"]}))
    lines = [
        "# Faults: what kills, full disks, second writers and bad files leave",
        "",
        f"`python benchmarks/faults.py`, {max(each['day'] for each in results)}, on {machine()}; "
        f"code {code}. The model is the tiny random Llama of the "
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
        share = f"{each['count']:,} of {COUNTS[each['part']]:,}"
        lines.append(f"| {each['part']} | {each['seed']} | {share} | {counts} | {each['seconds']:,} | {WHAT[each['part']]} |")
    lines += ["", "## Findings", ""]
    for each in results:
        for finding in each["findings"]:
            told = "; ".join(
                f"{kind}: {' '.join(without_place(text).split())[:300]}" for kind, text in finding["found"].items()
            )
            number = f", trial {finding['number']}" if "number" in finding else ""
            lines.append(f"- {each['part']}, seed {each['seed']}{number}: {finding['what']}: `{told.replace('`', '')}`")
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
    parser.add_argument(
        "--shard", default="0/1", help="I/N: every Nth trial from the Ith on, for N processes beside each other"
    )
    parser.add_argument("--record", help="file for the record; it is printed if none is named")
    words = parser.parse_args()
    folder = Path(words.results)
    folder.mkdir(parents=True, exist_ok=True)
    start, step = (int(word) for word in words.shard.split("/"))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        bench = Bench(Path(scratch) / "bench")
        for part in words.parts or COUNTS:
            numbers = range(start, max(1, round(COUNTS[part] * words.share)), step)
            done(part, bench, numbers, words.seed, words.minutes, folder / f"{part}-{words.seed}-{start}.json")
    give(record([json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]), words.record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
