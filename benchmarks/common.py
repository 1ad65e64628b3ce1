"""What the benchmarks share: the machine's description, paired timing, and writing a record."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fairprune_framework.utilities.files import write_text
from fairprune_framework.utilities.versions import versions

DATA = Path(os.environ.get("FAIRPRUNE_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
"""Folder with the public data sets; benchmarks that need one say so where it is absent."""


def machine() -> str:
    """Processor, cores, threads and versions, in one line."""
    import torch

    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    if torch.cuda.is_available():
        name = f"{torch.cuda.get_device_name()}; {name}"
    found = versions()
    packages = ", ".join(f"{key} {found[key]}" for key in ("python", "torch", "lightning", "transformers"))
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; {packages}"


def without_place(text: str) -> str:
    """A message without the temporary folder that it names: a record is of no machine."""
    return re.sub(rf"{re.escape(tempfile.gettempdir())}/[^/\s]+/", "", text)


def paired(
    functions: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each function in turn, A B C A B C ..., after one uncounted round.

    Args:
        clock: wall seconds; `time.process_time` where other programs run.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(rounds + 1):
        for name, function in functions.items():
            began = clock()
            function()
            if turn:
                seconds[name].append(clock() - began)
    return seconds


def ratio(a: list[float], b: list[float]) -> str:
    """Median of the ratios a / b pair by pair, with their range."""
    ratios = sorted(x / y for x, y in zip(a, b, strict=True))
    return f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"


def bind(work: Path, identity: Mapping[str, Any]) -> None:
    """Make a work folder that knows what it is of; exit where it holds what was measured of something else."""
    known = work / "identity.json"
    if json.loads(known.read_text()) != identity if known.is_file() else work.is_dir() and any(work.iterdir()):
        raise SystemExit(f"{work} holds what was measured of something else: give another --work")
    work.mkdir(parents=True, exist_ok=True)
    write_text(known, json.dumps(identity))


def give(text: str, record: str | None) -> None:
    """Write a record to its file, or print it where none is named."""
    if record:
        write_text(Path(record), text)
    else:
        print(text)
