"""Does an audit's memory grow with the number of contrasts? Tiny model, synthetic contrasts, one process per size.

    python benchmarks/audit_memory.py                      1,000 against 100,000: the ratio of peak memory
    python benchmarks/audit_memory.py --contrasts 1000000  one size, with memory over time as a plot

Writes a record with --record FILE.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from common import machine

VALUES = ("Black", "white", "Asian", "Latino")
FRAMES = ("The {} nurse number {} walked into the store .", "A {} man , the {} th , was waiting at the door of the office .")


def write_contrasts(path: Path, count: int) -> None:
    """Pairs in four categories and a thousand templates, as JSONL."""
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            pair = (VALUES[i % 4], VALUES[(i + 1) % 4])
            variants = [{"attribute": value, "text": FRAMES[i % 2].format(value, i)} for value in pair]
            row = {"id": f"c{i}", "category": f"k{i % 4}", "template_id": f"t{i % 1000}", "variants": variants}
            file.write(json.dumps(row) + "\n")


def audit(folder: Path) -> None:
    """One audit in this process; samples its memory every second."""
    import threading

    import fairprune_framework as fp

    began, samples, done = time.perf_counter(), [], threading.Event()

    def sample() -> None:
        while not done.wait(1.0):
            samples.append((round(time.perf_counter() - began, 1), resident()))

    threading.Thread(target=sample, daemon=True).start()
    run = fp.audit(
        model=str(folder / "model"),
        prompts=str(folder / "contrasts.jsonl"),
        output=str(folder / "run"),
        recipe="variance",
        accelerator="cpu",
        micro_batch_tokens=4096,
    )
    done.set()
    print(json.dumps({"peak": peak(), "samples": samples, "audit": run.record["audit"], "seconds": run.record["seconds"]}))


def resident() -> int:
    """Resident memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak() -> int:
    """Peak resident memory in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measured(count: int) -> dict[str, object]:
    """Make a set and a tiny model, and audit them in a process of their own."""
    from fairprune_framework.models.quiet import quietly
    from fairprune_framework.testing.tiny import save_tiny

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with quietly():
            save_tiny(folder / "model", "llama")
        write_contrasts(folder / "contrasts.jsonl", count)
        command = [sys.executable, __file__, "--child", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def plot(samples: list[tuple[float, int]], width: int = 72, height: int = 12) -> str:
    """Memory over time in letters, from zero."""
    top, end = max(used for _, used in samples), samples[-1][0]
    columns: list[list[int]] = [[] for _ in range(width)]
    for moment, used in samples:
        columns[min(width - 1, int(moment / end * width))].append(used)
    bars: list[int] = []
    for column in columns:  # an empty column is as high as the one before
        bars.append(max(column) if column else (bars[-1] if bars else 0))
    lines = []
    for row in range(height, 0, -1):
        label = f"{top * row / height / 1e6:7.0f} MB |"
        lines.append(label + "".join("#" if bar >= top * (row - 0.5) / height else " " for bar in bars))
    return "\n".join([*lines, " " * 11 + "+" + "-" * width, " " * 12 + f"0 s{end:>{width - 6}.0f} s"])


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contrasts", type=int, help="one size instead of the comparison")
    parser.add_argument("--record", help="the .md file to write")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        audit(Path(options.child))
        return
    sizes = [options.contrasts] if options.contrasts else [1_000, 100_000]
    lines = [
        f"# Memory of an audit, {date.today():%d %B %Y}",
        "",
        machine(),
        "",
        "| contrasts | peak MB | audit s | read s |",
        "|---|---|---|---|",
    ]
    found = {}
    for size in sizes:
        found[size] = one = measured(size)
        seconds: dict[str, float] = one["seconds"]  # type: ignore[assignment]
        lines.append(f"| {size:,} | {int(str(one['peak'])) / 1e6:.0f} | {seconds['audit']:.1f} | {seconds['read']:.1f} |")
        print(lines[-1], flush=True)
    if len(sizes) == 2:
        ratio = int(str(found[sizes[1]]["peak"])) / int(str(found[sizes[0]]["peak"]))
        lines += ["", f"Ratio of the peaks: {ratio:.3f} (at most 1.05 is asked for)."]
    samples: list[tuple[float, int]] = found[sizes[-1]]["samples"]  # type: ignore[assignment]
    if len(samples) > 2:
        lines += ["", f"Memory over time, {sizes[-1]:,} contrasts:", "", "```text", plot(samples), "```"]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.record:
        Path(options.record).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
