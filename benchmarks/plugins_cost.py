"""What many plugins cost: listing them, and all forward-only bias scorers from one audit against an audit for one.

    python benchmarks/plugins_cost.py --record benchmarks/plugins_cost_xeon-2core_202611.md
    python benchmarks/plugins_cost.py --model made-up --profile

Discovery: `fairprune plugins list` as a process of its own, with 200 made-up distributions on the path, 60 of which hold a plugin whose
module raises when it is imported. Audits: in turns in one process, on the first contrasts of `select`; ratios are of a pair, of CPU
time, which other programs of a shared machine change least. `made-up` is a random Llama with layers as wide as those of smollm2-135m, a
fifth as many, and a tokenizer trained on the prompts: no download. `--profile` says what CPU time each statistic takes.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import give, machine, paired, ratio

from fairprune_framework import discovery
from fairprune_framework.auditing.audit import audit
from fairprune_framework.auditing.demand import Demand, selecting
from fairprune_framework.auditing.statistics import CONTRASTS
from fairprune_framework.contrasts.builtin import builtin
from fairprune_framework.runs.open import open_run
from fairprune_framework.selection.scoring import score
from fairprune_framework.testing.tiny import tiny_model

MADE_UP = "made-up"
HEAVY = ("expertise", "linear-probe")
"""Forward-only, but with large sums or a second reading: measured apart."""


def listing(rounds: int, distributions: int = 200, plugins: int = 60) -> tuple[list[float], int]:
    """Seconds of `plugins list`, and how many made-up plugins it named."""
    with tempfile.TemporaryDirectory() as folder:
        for number in range(distributions):
            info = Path(folder) / f"made_up_{number}-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: made-up-{number}\nVersion: 1.0\n")
            if number < plugins:
                (info / "entry_points.txt").write_text(f"[fairprune.bias_scorers]\nmade-up-{number} = made_up_{number}:Score\n")
                (Path(folder) / f"made_up_{number}.py").write_text("raise RuntimeError('imported')\n")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])}
        seconds, named = [], 0
        for _ in range(rounds):
            began = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", "fairprune_framework", "plugins", "list"],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            )
            seconds.append(time.perf_counter() - began)
            named = sum("made-up-" in line for line in done.stdout.splitlines())
    return sorted(seconds), named


def forward_only() -> dict[str, Any]:
    """Name -> bias scorers that need one forward of the contrasts, and nothing else."""
    found = {}
    for entry in discovery.entries("bias"):
        plugin = discovery.build("bias", entry.name)
        passes = [each for statistic in plugin.needs().statistics for each in statistic.passes(1)]
        if passes and all(each.objective is None and each.stream == CONTRASTS for each in passes) and entry.name not in HEAVY:
            found[entry.name] = plugin
    return found


def made_up_tokenizer() -> Any:
    """About a token a word of the prompts, as tokenizers of 49 thousand tokens have it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    variants = [variant for contrast in builtin("en") for variant in contrast.variants]
    backend.train_from_iterator((" ".join([each.text, *each.right, *each.right]) for each in variants), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def opened(model: str) -> Any:
    """A run with the model and the prompts `builtin:en`, of which nothing has been computed."""
    words: dict[str, Any] = {"model": model}
    if model == MADE_UP:
        layers = {"layers": 6, "hidden": 576, "width": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
        made: Any = tiny_model("llama", vocab_size=4096, initializer_range=0.04, **layers)
        words = {"model": made, "tokenizer": made_up_tokenizer()}
    return open_run(None, {}, recipe="variance", prompts="builtin:en", notify=lambda text: None, **words)


def profile(audited: Callable[[], object]) -> list[str]:
    """What CPU time each statistic takes in its summands, and the core around them; shared parts count for the first that asks."""
    profiler = cProfile.Profile(time.process_time)
    profiler.runcall(audited)
    rows: dict[str, float] = {}
    found: Any = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    for (file, line, name), (_, _, _, seconds, _) in found.items():
        where = Path(file)
        if name == "summands":
            rows[f"{where.parent.name}, line {line}"] = seconds
    return [f"{name}: {seconds:.2f}" for name, seconds in sorted(rows.items(), key=lambda row: -row[1])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--contrasts", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="print what CPU time each statistic takes")
    parser.add_argument("--record", help="the .md file to write; by default it is printed")
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    seconds, named = listing(5)
    run = opened(words.model)
    loaded = run.loaded
    every = selecting(run.prompts.aligned)
    contrasts = every[:: max(1, len(every) // words.contrasts)][: words.contrasts]  # of all categories
    many = forward_only()

    def audited(plugins: Any) -> Any:
        demand = Demand.of(plugins, len(loaded.layers))
        return audit(loaded.model, loaded.architecture, contrasts, run.prompts.values, demand, accelerator="cpu")[0]

    one = [many["variance"]]
    spent = paired({"one": lambda: audited(one), "all": lambda: audited(list(many.values()))}, words.rounds, time.process_time)
    if words.profile:
        print("CPU seconds of summands in an audit for all:", *profile(lambda: audited(list(many.values()))), sep="\n")
    statistics, importance = audited(list(many.values())), discovery.build("importance", "random")
    began = time.process_time()
    for plugin in many.values():
        score(statistics, loaded.model, loaded.architecture, plugin, importance, ("bias", "importance"))  # type: ignore[arg-type]
    scoring = time.process_time() - began
    text = "\n".join(
        [
            "# What many plugins cost",
            "",
            f"`benchmarks/plugins_cost.py`, on {machine()}. The machine was shared: seconds of lists are upper bounds; those of audits",
            "and scores are CPU time of the process; ratios are of pairs.",
            "",
            f"- `fairprune plugins list` with 200 further distributions, {named} of their plugins: {median(seconds):.2f} s (median of "
            f"{len(seconds)}, {seconds[0]:.2f} to {seconds[-1]:.2f}), start of Python included; no plugin was imported (each would raise).",
            f"- {words.model}, {len(contrasts)} contrasts of `builtin:en`: an audit for {len(many)} forward-only bias scorers takes "
            f"{ratio(spent['all'], spent['one'])} of one for `variance` (median, lowest and highest of {words.rounds}); "
            f"{median(spent['all']):.1f} s against {median(spent['one']):.1f} s.",
            f"- Scoring all {len(many)} of them: {scoring:.1f} s.",
            "",
            f"The scorers: {', '.join(f'`{name}`' for name in many)}. Not among them, for their large sums or second reading: "
            f"{', '.join(f'`{name}`' for name in HEAVY)}.",
            "",
        ]
    )
    give(text, words.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
