"""What hooks and statistics cost on top of the forwards, and what attribution costs on top of an audit that only goes forward.

    python benchmarks/kernel_overhead.py [--rounds 15] [--threads 2] [--pairs 75] [--cpu-seconds]

The embedded model, float32, the 75 published English pairs, the same micro-batches and the same loop in turn in one process: without
anything attached, and with the callback and the statistics of a scorer. The same of gradient passes, against a loop of forward, head at
the last token, and backward to the sites. Then whole audits: attribution against variance.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from common import DATA, machine, paired, ratio
from torch import nn

from fairprune_framework import discovery
from fairprune_framework.auditing.audit import audit
from fairprune_framework.auditing.batches import compose
from fairprune_framework.auditing.callback import ActivationStatisticsCallback
from fairprune_framework.auditing.demand import Demand
from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.auditing.objectives import frozen, last_token_only
from fairprune_framework.auditing.runner import TrunkModule
from fairprune_framework.contrasts.alignment import align_all, vocabularies
from fairprune_framework.contrasts.readers import read
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.models.loading import load_model

SCORERS = {"variance": {}, "relative variance": {"relative": True}, "gate-up-difference": {}}


def bare_gradients(model: nn.Module, batches: Sequence[MicroBatch]) -> None:
    """What a pass with an objective has to compute: forward, head, gradients of the sites' inputs; no weight's."""
    sites = [module for name, module in model.named_modules() if name.endswith("down_proj")]
    taps: list[torch.Tensor] = []

    def tap(_module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        taps.append(arguments[0] if arguments[0].requires_grad else arguments[0].detach().requires_grad_())
        return (taps[-1], *arguments[1:])

    hooks = [site.register_forward_pre_hook(tap) for site in sites]
    try:
        for batch in batches:
            taps.clear()
            last = batch.attention_mask.sum(1) - 1
            mask = None if bool(batch.attention_mask.all()) else batch.attention_mask
            with torch.enable_grad(), frozen(model), last_token_only(model, lambda last=last: last):
                logits = model(input_ids=batch.input_ids, attention_mask=mask, use_cache=False).logits
                torch.autograd.grad(logits.logsumexp(-1).sum(), taps)
    finally:
        for hook in hooks:
            hook.remove()


def loop(module: TrunkModule, batches: Sequence[MicroBatch], callback: ActivationStatisticsCallback | None) -> None:
    """Compute all micro-batches; with a callback, as Lightning would call it."""
    trainer: object = None
    with torch.no_grad() if any(batch.pass_.objective for batch in batches) else torch.inference_mode():
        if callback is None:
            for batch in batches:
                module.compute(batch)
            return
        callback.on_predict_start(trainer, module)  # type: ignore[arg-type]
        for number, batch in enumerate(batches):
            callback.on_predict_batch_start(trainer, module, batch, number)  # type: ignore[arg-type]
            callback.on_predict_batch_end(trainer, module, module.compute(batch), batch, number)  # type: ignore[arg-type]
        callback.on_predict_end(trainer, module)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=75)
    parser.add_argument(
        "--cpu-seconds", action="store_true", help="of this process, where other programs run; without whole audits"
    )
    parser.add_argument("--budget", type=int, default=512, help="padded tokens of a micro-batch")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_seconds else time.perf_counter
    torch.set_num_threads(options.threads)
    model, tokenizer = load_model("smollm2-135m")
    contrasts = read(DATA / "fairness_pruning_pairs" / "prompt_pairs_en.json").contrasts[: options.pairs]
    aligned, _ = align_all(contrasts, Encoder(tokenizer))
    values = {category: len(found) for category, found in vocabularies(contrasts).items()}
    architecture = recognise(model)
    batches = list(compose(aligned, values, options.budget))
    module = TrunkModule(model)

    def demand(name: str, **given: object) -> Demand:
        return Demand.of([discovery.build("bias", name, given)], len(architecture.sites))

    def listening(name: str, early: bool, **given: object) -> Callable[[], None]:
        callback = ActivationStatisticsCallback(
            model=model,
            adapter=architecture.adapter,
            sites=list(architecture.sites.values()),
            statistics=demand(name, **given).statistics,
            categories={"contrasts": sorted(values)},
            early=early,
        )
        return lambda: loop(module, batches, callback)

    functions: dict[str, Callable[[], object]] = {"bare forward": lambda: loop(module, batches, None)}
    for label, given in SCORERS.items():
        functions[label] = listening(label.split()[-1], False, **given)
    functions["variance, without the last projection"] = listening("variance", True)
    seconds = paired(functions, options.rounds, clock)
    print(machine())
    tokens = sum(batch.tokens for batch in batches)
    size = f"{len(aligned)} pairs, {tokens} padded tokens in {len(batches)} micro-batches"
    print(f"{size}, {options.rounds} rounds, load {os.getloadavg()[0]:.2f}")
    for name, found in seconds.items():
        print(f"{name:40} median {statistics.median(found):.3f} s; over bare {ratio(found, seconds['bare forward'])}")
    print("wanted of variance: at most 1.05")

    (pass_,) = demand("attribution").statistics[0].passes(len(architecture.sites))
    with_gradients = list(compose(aligned, values, options.budget, pass_=pass_))
    callback = ActivationStatisticsCallback(
        model=model,
        adapter=architecture.adapter,
        sites=list(architecture.sites.values()),
        statistics=demand("attribution").statistics,
        categories={"contrasts": sorted(values)},
    )
    functions = {
        "bare forward, head, backward": lambda: bare_gradients(model, with_gradients),
        "attribution": lambda: loop(module, with_gradients, callback),
    }
    seconds = paired(functions, max(3, options.rounds // 2), clock)
    share = ratio(seconds["bare forward, head, backward"], seconds["attribution"])
    print(f"gradient passes: bare loop / attribution {share}; wanted: at least 0.90")
    if options.cpu_seconds:
        return

    def whole(name: str) -> Callable[[], object]:
        wanted = demand(name)
        return lambda: audit(model, architecture, aligned, values, wanted, micro_batch_tokens=options.budget, accelerator="cpu")

    functions = {name: whole(name) for name in ("variance", "attribution")}
    seconds = paired(functions, max(3, options.rounds // 3))
    print(f"\naudit with attribution over audit with variance: {ratio(seconds['attribution'], seconds['variance'])}")
    print("wanted: at most 3.2")


if __name__ == "__main__":
    main()
