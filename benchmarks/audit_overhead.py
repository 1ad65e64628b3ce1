"""How close the audit comes to a bare forward of the same texts, and how soon the command line answers.

    python benchmarks/audit_overhead.py [--rounds 7] [--threads 2]

Compared in one process, in turn: `audit` of the 75 published English pairs (130 distinct texts) with the plugins of the recipe
`variance`, without loading, against a forward of the trunk over the distinct texts, sorted by length, at the best of three
batch sizes. Needs the embedded model and the data folder (see `common.DATA`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import torch
from common import DATA, machine, paired, ratio

from fairprune_framework import discovery
from fairprune_framework.architecture import recognise
from fairprune_framework.auditing.audit import Demand, audit
from fairprune_framework.auditing.calibration import padded
from fairprune_framework.contrasts.alignment import Encoder, align_all, vocabularies
from fairprune_framework.contrasts.readers import read
from fairprune_framework.models import load_model


def bare(trunk: torch.nn.Module, texts: Sequence[Sequence[int]], size: int) -> None:
    """Forward the distinct texts, sorted by length, `size` at a time."""
    with torch.inference_mode():
        for start in range(0, len(texts), size):
            ids, mask = padded(texts[start : start + size])
            trunk(input_ids=ids, attention_mask=None if bool(mask.all()) else mask, use_cache=False)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = load_model("smollm2-135m")
    contrasts = read(DATA / "fairness_pruning_pairs" / "prompt_pairs_en.json").contrasts
    aligned, _ = align_all(contrasts, Encoder(tokenizer))
    values = {category: len(found) for category, found in vocabularies(contrasts).items()}
    architecture = recognise(model)
    plugins = [discovery.build("bias", "variance"), discovery.build("importance", "max-abs-weight")]
    demand = Demand.of(plugins, len(architecture.sites))
    texts = sorted({tokens.ids for contrast in aligned for tokens in contrast.variants}, key=len)
    trunk = model.get_decoder()
    functions = {f"bare, {size} texts": (lambda size=size: bare(trunk, texts, size)) for size in (16, 32, 64)}
    functions["audit"] = lambda: audit(model, architecture, aligned, values, demand, accelerator="cpu")
    seconds = paired(functions, options.rounds)
    best = min((name for name in seconds if name != "audit"), key=lambda name: statistics.median(seconds[name]))
    print(machine())
    print(f"{len(texts)} distinct texts, {sum(map(len, texts))} tokens, {options.rounds} rounds")
    for name, found in seconds.items():
        print(f"{name:16} median {statistics.median(found):.3f} s, {min(found):.3f} to {max(found):.3f}")
    print(f"audit / {best}: {ratio(seconds['audit'], seconds[best])}   (wanted: at most 1.15)")
    for words, wanted in ((["--help"], 0.5), (["plugins", "list"], 1.0)):
        times = []
        for _ in range(options.rounds):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-m", "fairprune_framework", *words], check=True, stdout=subprocess.DEVNULL)
            times.append(time.perf_counter() - began)
        print(f"fairprune {' '.join(words)}: median {statistics.median(times):.2f} s (wanted: at most {wanted})")
    print(json.dumps({"load": os.getloadavg()}))


if __name__ == "__main__":
    main()
