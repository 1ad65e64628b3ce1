"""What each stage of a run takes, beside the least work that it had to do at the rate of bare forwards in the same process.

    python benchmarks/run_profile.py [--model smollm2-135m] [--prompts builtin:en-small] [--threads 1] [--record FILE]

The least work is that of `run.json` (`models/work.py`): every text once in each model and under each mask, backward passes to the sites,
the head where logits were asked for. The rate is that of forwards of the decoder over micro-batches of the same contrasts, measured
between the stages. Of `evaluate` the parts are timed, and its whole is compared with a bare loop: one forward with head of each
distinct text in each model, and the generations. CPU seconds are compared, so that other programs on the machine matter less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from common import give, machine
from torch import nn

from fairprune_framework import plugin_sources
from fairprune_framework.api.decoders import text_decoder
from fairprune_framework.auditing.batches import compose
from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.evaluation import exhibits
from fairprune_framework.evaluation.metrics import generation
from fairprune_framework.models import weights
from fairprune_framework.models.head import answers_of, positions_before, vocabulary_of
from fairprune_framework.models.loading import load_model
from fairprune_framework.models.work import Sizes
from fairprune_framework.pipeline import run_stages
from fairprune_framework.runs.open import open_run
from fairprune_framework.runs.run import Run
from fairprune_framework.stages import evaluate
from fairprune_framework.utilities import integrity

STAGES = ("read", "audit", "score", "plan", "prune", "evaluate", "report")
PARTS = {
    "measured": "contrasts and generations of one model",
    "noise_floor": "noise floor",
    "random_sets_of": "random sets",
    "_text_cost": "judging text, if it was not kept",
    "compared": "rows and intervals",
    "_other_model": "loading the other model",
}
"""Functions that `evaluate` calls, each in words."""


HASHING = {
    "fingerprint": (weights, "of the model"),
    "weights_digest": (weights, "of what surgery wrote"),
    "cached_digest": (integrity, "of the files of stages"),
    "source_digest": (plugin_sources, "of plugins"),
}
"""Functions that hash, where each is, and of what."""


class Clock:
    """Wall and CPU seconds of named work."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[tuple[float, float]]] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add a measurement."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds.setdefault(name, []).append((time.perf_counter() - wall, time.process_time() - cpu))

    def cpu(self, name: str) -> float:
        """All CPU seconds of a name."""
        return sum(cpu for _, cpu in self.seconds.get(name, ()))

    def wall(self, name: str) -> float:
        """All wall seconds of a name."""
        return sum(wall for wall, _ in self.seconds.get(name, ()))

    def around(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.timed(name):
                return function(*args, **kwargs)

        return timed

    def everywhere(self, home: Any, name: str, words: str) -> None:
        """Time a function in every module that holds it."""
        function = getattr(home, name)
        timed = self.around(function, words)
        for module in [module for key, module in sys.modules.items() if key.startswith("fairprune_framework")]:
            if vars(module).get(name) is function:
                setattr(module, name, timed)


class Rate:
    """Tokens per CPU second of bare forwards of the decoder."""

    def __init__(self, run: Run) -> None:
        batches = list(compose(run.prompts.aligned, run.prompts.values, run.micro_batch_tokens))
        self._model, self._batches = run.loaded.model, batches[:: max(1, len(batches) // 3)][:3]
        self.rates: list[float] = []

    @torch.inference_mode()
    def measure(self) -> None:
        """Once more."""
        for turn in range(2):
            began = time.process_time()
            for batch in self._batches:
                text_decoder(self._model)(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
            if turn:
                self.rates.append(sum(batch.tokens for batch in self._batches) / (time.process_time() - began))


@torch.inference_mode()
def with_head(model: nn.Module, texts: Iterable[Sequence[int]], max_tokens: int, last: bool = False) -> None:
    """One forward of each distinct text, with logits at every position that predicts a token, or at the last alone."""
    batch: list[Sequence[int]] = []
    width = vocabulary_of(model)

    def compute() -> None:
        lengths = [len(ids) for ids in batch]
        ids = torch.zeros((len(batch), max(lengths)), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(batch):
            ids[row, : len(text)], mask[row, : len(text)] = torch.tensor(text), 1
        answers = answers_of(model, input_ids=ids, attention_mask=mask)
        answers.logits((torch.arange(len(batch)), torch.tensor(lengths) - 1))
        for _ in () if last else answers.parts(positions_before(lengths, ids.device), width):
            pass

    for text in sorted({tuple(text) for text in texts}, key=len, reverse=True):
        if batch and (len(batch) + 1) * len(batch[0]) > max_tokens:
            compute()
            batch = []
        batch.append(text)
    if batch:
        compute()


def texts_of(aligned: Iterable[AlignedContrast]) -> list[tuple[int, ...]]:
    """Token ids of all variants."""
    return [tuple(tokens.ids) for one in aligned for tokens in one.variants]


def bare_evaluation(run: Run, clock: Clock) -> None:
    """What `evaluate` cannot do without, in a plain loop: see the head of this file."""
    prompts, max_tokens = run.prompts, run.micro_batch_tokens
    own = texts_of((*prompts.aligned, *prompts.legitimate))
    judging = [one for one in prompts.aligned if one.split == "heldout" and one.role == "demographic"]
    pruned, _ = load_model(str(run.folder / "model"))
    for name, model, more in (("before", run.loaded.model, []), ("after", pruned, list(run.calibration.judging))):
        with clock.timed("bare: contrasts"):
            with_head(model, [*own, *more], max_tokens)
        with clock.timed("bare: generations"):
            generation.continue_prompts(
                model, run.loaded.tokenizer, run.loaded.encoder, [*generation.ARTICLE_PROMPTS, *run.recipe.generate]
            )
        if name == "before":
            with clock.timed("bare: random sets"):
                for _ in run.record.get("random_sets", ()):
                    with_head(model, texts_of(judging), max_tokens, last=True)


def times_of(run: Run, texts: Iterable[Sequence[int]]) -> str:
    """How often a text was computed in each model and mask of the run: the most of all texts, by state."""
    most: Counter[str] = Counter()
    names: dict[str, str] = {"": "bare"}
    for text in texts:
        total: Counter[str] = Counter()
        for ledger in run.work.values():
            for (model, _, mask), times in ledger.count(text).items():
                total[f"{model}, {names.setdefault(mask, f'mask {len(names)}')}"] += times
        for state, times in total.items():
            most[state] = max(most[state], times)
    masks = [times for state, times in most.items() if not state.endswith("bare")]
    bare = "; ".join(f"{state}: {times}" for state, times in sorted(most.items()) if state.endswith("bare"))
    return bare + (f"; {len(masks)} masks: at most {max(masks)} each" if masks else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--prompts", default="builtin:en-small")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--random-sets", type=int, default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--record", default=None, help="file for the record")
    parser.add_argument("--title", default="Profile of a run")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock, load = Clock(), os.getloadavg()[0]
    for module, name, words in [*((evaluate, name, words) for name, words in PARTS.items()), (exhibits, "collect", "exhibits")]:
        setattr(module, name, clock.around(getattr(module, name), words))
    for name, (home, words) in HASHING.items():
        clock.everywhere(home, name, f"hash {words}")
    with tempfile.TemporaryDirectory() as folder:
        given = {"recipe": options.recipe, "model": options.model, "prompts": options.prompts}
        more = {} if options.random_sets is None else {"random_sets": options.random_sets}
        run = open_run(Path(folder) / "run", more, fresh=True, **given)
        with clock.timed("loading"):
            _ = run.loaded.architecture, run.loaded.fingerprint, run.prompts.alignment
        rate = Rate(run)
        for name in STAGES:
            rate.measure()
            with clock.timed(name):
                run_stages(run, name)
        with clock.timed("bare"):
            bare_evaluation(run, clock)
        give(record(run, clock, rate, options, load), options.record)


def record(run: Run, clock: Clock, rate: Rate, options: argparse.Namespace, load: float) -> str:
    """The page."""
    tokens = statistics.median(rate.rates)
    flop = 2 * Sizes.of(run.loaded.model).decoder * tokens
    lines = [
        f"# {options.title}, {time.strftime('%d %B %Y')}",
        "",
        f"`python benchmarks/run_profile.py --model {options.model} --prompts {options.prompts} --threads {options.threads}`.",
        f"{machine()}.",
        f"Load {load:.1f} before and {os.getloadavg()[0]:.1f} after: other programs ran, so that CPU seconds count, not wall seconds.",
        f"Bare forwards between the stages: {tokens:,.0f} tokens per CPU second ({min(rate.rates):,.0f} to {max(rate.rates):,.0f}).",
        "",
        "| stage | wall s | CPU s | forwards | tokens | least tokens | backward | logits | generated | least s | least / CPU |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in ("loading", *STAGES):
        work = run.record.get("work", {}).get(name)
        cells = [f"{clock.wall(name):.1f}", f"{clock.cpu(name):.1f}"]
        if work:
            least = work["least_gflop"] * 1e9 / flop
            names = ("forwards", "tokens", "least_tokens", "backward_tokens", "logits", "generated")
            cells += [f"{work[each]:,.0f}" for each in names] + [f"{least:.1f}", f"{least / clock.cpu(name):.2f}"]
        else:
            cells += [""] * 8
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Generated tokens are no part of the least work of a stage.",
        "",
        "| part of `evaluate` | CPU s |",
        "|---|---|",
    ]
    lines += [f"| {words} | {clock.cpu(words):.1f} |" for words in (*PARTS.values(), "exhibits")]
    stages = sum(clock.cpu(name) for name in ("loading", *STAGES))
    hashed = {words: clock.cpu(f"hash {words}") for _, words in HASHING.values()}
    lines += ["", "| sha256, part of the stages above | CPU s |", "|---|---|"]
    lines += [f"| {words} | {seconds:.2f} |" for words, seconds in hashed.items()]
    lines += [
        "",
        f"Hashing: {sum(hashed.values()):.1f} of {stages:.0f} CPU seconds, {sum(hashed.values()) / stages:.2%} (wanted: 1 %).",
    ]
    bare = [name for name in clock.seconds if name.startswith("bare: ")]
    total = sum(clock.cpu(name) for name in bare)
    lines += ["", "| what it cannot do without, in a plain loop | CPU s |", "|---|---|"]
    lines += [f"| {name.removeprefix('bare: ')} | {clock.cpu(name):.1f} |" for name in bare]
    lines += ["", f"`evaluate` / that loop: {clock.cpu('evaluate') / total:.2f} (wanted: at most 1.15).", ""]
    lines += ["| texts | forwards of one text, by model and mask |", "|---|---|"]
    lines.append(f"| calibration, scoring half | {times_of(run, run.calibration.scoring)} |")
    lines.append(f"| calibration, judging half | {times_of(run, run.calibration.judging)} |")
    for split in ("select", "heldout"):
        texts = texts_of(one for one in run.prompts.aligned if one.split == split)
        lines.append(f"| contrasts, {split} | {times_of(run, texts)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
