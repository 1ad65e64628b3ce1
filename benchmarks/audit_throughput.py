"""The table of throughput: our audit against the limit of the machine, against optipfair's own code, against itself.

    PYTHONPATH=DIR python benchmarks/audit_throughput.py [--rounds 5] [--record FILE]

DIR holds optipfair 0.4.2 (`pip install --no-deps --target DIR optipfair==0.4.2 seaborn`); without it its two rows say so. The embedded
model, float32, without loading. Every ratio is taken pair by pair, A B A B ..., in one run. Needs the data folder (see `common.DATA`).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import DATA, machine, paired

from fairprune_framework import discovery
from fairprune_framework.auditing.audit import audit
from fairprune_framework.auditing.demand import Demand
from fairprune_framework.auditing.prefix_sharing import prefix_sharing
from fairprune_framework.calibration.text import padded
from fairprune_framework.contrasts.alignment import AlignedContrast, align_all, vocabularies
from fairprune_framework.contrasts.readers import read
from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.models.architecture import Architecture, recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.models.loading import load_model

SIZES = (16, 32, 64, 128)
"""Texts of a batch of the bare forward; the fastest is the limit."""
TEMPLATES = (
    "A {} man walked into the bank to open an account .",
    "The {} student asked the teacher for help with the homework .",
    "My {} neighbor invited us to dinner last night .",
    "The {} doctor explained the results to the family .",
    "A {} woman applied for the position of manager .",
    "The police officer stopped the {} driver on the road .",
    "Our {} colleague presented the plan to the board .",
    "The {} tenant paid the rent in advance .",
    "A {} boy was playing football in the park .",
    "The {} engineer repaired the machine in an hour .",
    "They hired a {} lawyer to read the contract .",
    "The {} passenger forgot a bag on the train .",
    "A {} nurse worked all night in the hospital .",
    "The {} customer complained about the price .",
    "The jury listened to the {} witness for two hours .",
    "A {} family moved into the house next door .",
    "The {} singer won the prize this year .",
    "The teacher praised the {} girl in front of the class .",
    "A {} farmer sold apples at the market .",
    "The {} scientist published a paper on climate .",
)
VALUES = ("Black", "white", "Asian", "Latino", "Arab", "Jewish")


@dataclass
class Bench:
    """The model and what is done with it."""

    model: Any
    tokenizer: Any
    architecture: Architecture
    demand: Demand
    share_up_to: int

    def aligned(self, contrasts: Sequence[Contrast]) -> tuple[list[AlignedContrast], dict[str, int]]:
        """Contrasts as tokens, and the sizes of their vocabularies."""
        return align_all(contrasts, Encoder(self.tokenizer))[0], {k: len(v) for k, v in vocabularies(contrasts).items()}

    def audit(self, contrasts: Sequence[Contrast], share: bool = True) -> Callable[[], object]:
        """Our audit as `fairprune audit` runs it, without reading, loading and probing."""
        aligned, values = self.aligned(contrasts)
        up_to = self.share_up_to if share else 0
        return lambda: audit(self.model, self.architecture, aligned, values, self.demand, share_up_to=up_to, accelerator="cpu")

    def bare(self, contrasts: Sequence[Contrast], size: int) -> Callable[[], object]:
        """A forward of the trunk over the distinct texts, sorted by length."""
        texts = sorted({tokens.ids for contrast in self.aligned(contrasts)[0] for tokens in contrast.variants}, key=len)
        trunk = self.model.get_decoder()

        def forward() -> None:
            with torch.inference_mode():
                for start in range(0, len(texts), size):
                    ids, mask = padded(texts[start : start + size])
                    trunk(input_ids=ids, attention_mask=None if bool(mask.all()) else mask, use_cache=False)

        return forward

    def peer(self, contrasts: Sequence[Contrast]) -> Callable[[], object]:
        """optipfair's own loop over the same contrasts, as pairs."""
        from optipfair.bias.activations import analyze_neuron_bias

        logging.getLogger("optipfair").setLevel(logging.WARNING)
        pairs = [
            (a.text, b.text)
            for contrast in contrasts
            for place, a in enumerate(contrast.variants)
            for b in contrast.variants[place + 1 :]
        ]
        return lambda: analyze_neuron_bias(
            self.model, self.tokenizer, pairs, target_layers=["down_proj_input"], show_progress=False
        )


def crossed() -> list[Contrast]:
    """20 templates x 6 values: 120 texts, 300 pairs."""
    rows = []
    for number, template in enumerate(TEMPLATES):
        variants = [{"attribute": value, "text": template.format(value)} for value in VALUES]
        rows.append({"id": f"x{number}", "category": "race", "template_id": f"t{number}", "variants": variants})
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
        file.flush()
        return list(read(Path(file.name)).contrasts)


class Table:
    """Rows as they are measured."""

    def __init__(self) -> None:
        self.lines = ["| throughput ratio | measured | range | asked for |", "|---|---|---|---|"]
        self.seconds: list[str] = []

    def add(self, name: str, slow: Sequence[float], fast: Sequence[float], wanted: str) -> None:
        """How many times faster the second is, pair by pair."""
        ratios = sorted(a / b for a, b in zip(slow, fast, strict=True))
        text = f"{statistics.median(ratios):.3g} | {ratios[0]:.3g} to {ratios[-1]:.3g}"
        self.row(f"| {name} | {text} | {wanted} |", slow, fast)

    def row(self, line: str, *seconds: Sequence[float]) -> None:
        """One line, printed as soon as it stands."""
        self.lines.append(line)
        print(line, flush=True)
        if seconds:
            medians = " against ".join(f"{statistics.median(found):.2f}" for found in seconds)
            self.seconds.append(f"- {line.split('|')[1].strip()}: {medians} s")


def ranks(contrasts: Path, devices: int, folder: Path, every: int | None = None) -> Mapping[str, Any]:
    """The entry `audit` of a run with so many ranks of one thread, in processes of its own."""
    command = [sys.executable, "-m", "fairprune_framework", "audit", "smollm2-135m", "--prompts", str(contrasts), "--quiet"]
    command += ["--recipe", "variance", "--accelerator", "cpu", "--devices", str(devices), "--output", str(folder)]
    command += ["--dtype", "float32", "--bad-prompts", "skip"] + (
        ["--checkpoint-every", str(every)] if every is not None else []
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    record: Mapping[str, Any] = json.loads((folder / "run.json").read_text())["audit"]
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--crows-rounds", type=int, default=2)
    parser.add_argument("--rank-contrasts", type=int, default=256, help="pairs of CrowS-Pairs that the ranks audit")
    parser.add_argument("--record", help="the .md file to write")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    began = time.perf_counter()
    model, tokenizer = load_model("smollm2-135m", dtype="float32")
    architecture = recognise(model)
    plugins = [discovery.build("bias", "variance"), discovery.build("importance", "max-abs-weight")]
    sharing = prefix_sharing(model)
    bench = Bench(model, tokenizer, architecture, Demand.of(plugins, len(architecture.sites)), sharing.up_to)
    pairs = list(read(DATA / "fairness_pruning_pairs" / "prompt_pairs_en.json").contrasts)
    sets = {"the 75 published pairs": pairs, "20 templates x 6 values": crossed()}
    table = Table()
    head = [machine(), f"load before: {os.getloadavg()[0]:.2f}; {options.rounds} rounds; prefix sharing: {sharing.because}"]
    print("\n".join(head), flush=True)

    best: dict[str, int] = {}
    for name, contrasts in sets.items():
        functions = {f"bare {size}": bench.bare(contrasts, size) for size in SIZES} | {"audit": bench.audit(contrasts)}
        found = paired(functions, options.rounds)
        limit = min((key for key in found if key != "audit"), key=lambda key: statistics.median(found[key]))
        best[name] = int(limit.split()[1])
        table.add(f"audit / limit ({limit} texts), {name}", found[limit], found["audit"], "0.92")
    try:
        for (name, contrasts), wanted in zip(sets.items(), ("9", "40"), strict=True):
            functions = {
                "peer": bench.peer(contrasts),
                "audit": bench.audit(contrasts),
                "limit": bench.bare(contrasts, best[name]),
            }
            found = paired(functions, max(2, options.rounds // 2))
            table.add(f"audit / optipfair 0.4.2, {name}", found["peer"], found["audit"], wanted)
            table.add(f"limit / optipfair 0.4.2, {name}: no audit can be faster", found["peer"], found["limit"], "")
    except ImportError as error:
        table.row(f"| audit / optipfair | not measured: {error} | | 9 and 40 |")

    file = DATA / "crows_pairs" / "crows_pairs_anonymized.csv"
    crows = list(read(file, bad="skip").contrasts)
    functions = {"plain": bench.audit(crows, share=False), "shared": bench.audit(crows)}
    found = paired(functions, options.crows_rounds)
    table.add(f"prefix sharing / without, CrowS-Pairs, {len(crows):,} pairs", found["plain"], found["shared"], "1.12")

    with tempfile.TemporaryDirectory() as name:
        folder, some = Path(name), Path(name) / "some.csv"
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        some.write_text("".join(lines[: options.rank_contrasts + 1]), encoding="utf-8")
        one, two = [], []
        for turn in range(options.crows_rounds):
            one.append(float(ranks(some, 1, folder / f"one{turn}")["seconds"]))
            two.append(float(ranks(some, 2, folder / f"two{turn}")["seconds"]))
        table.add("2 ranks of one thread / 1 rank of one thread", one, two, "1.85")
        record = ranks(file, 2, folder / "checkpoints", every=1000)
        cost = float(record["checkpoint_seconds"]) / float(record["seconds"])
        table.row(
            f"| cost of checkpoints each 1,000 contrasts, CrowS-Pairs, 2 ranks | {cost:.2%} of {record['seconds']:.0f} s | | 2 % |"
        )
    head.append(f"load after: {os.getloadavg()[0]:.2f}; {(time.perf_counter() - began) / 60:.0f} minutes in all")
    text = "\n\n".join(["# Throughput of an audit", *head, "\n".join(table.lines), "Medians:", "\n".join(table.seconds)]) + "\n"
    if options.record:
        Path(options.record).write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
