"""How soon the command line answers. What an audit costs is asked by `kernel_overhead.py` and `audit_throughput.py`.

    python benchmarks/audit_overhead.py [--rounds 7]

The record of November 2026 also holds an audit against bare forwards, from an earlier form of this script.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

from common import machine

COMMANDS = ((["--help"], 0.5), (["plugins", "list"], 1.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print(f"{machine()}; load {os.getloadavg()[0]:.2f}")
    for words, wanted in COMMANDS:
        times = []
        for _ in range(options.rounds):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-m", "fairprune_framework", *words], check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - began)
        print(f"fairprune {' '.join(words)}: median {statistics.median(times):.2f} s (wanted: at most {wanted})")


if __name__ == "__main__":
    main()
