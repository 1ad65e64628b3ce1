"""What an audit would cost on many GPUs: arithmetic, bytes and hours, from measured constants and named assumptions.

    python benchmarks/scale_model.py                       the table of docs/scale.md
    python benchmarks/scale_model.py --tokens 40 --contrasts 1e8 --variants 6
    python benchmarks/scale_model.py --measure             the constants, measured on this machine

Nothing here was run on the machines it speaks of: the table is a calculation, and each of its inputs is printed above it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, log2
from pathlib import Path


@dataclass(frozen=True)
class Model:
    """A dense model with gated MLPs."""

    name: str
    parameters: float
    """Without the embeddings and the head: the trunk."""
    layers: int
    neurons: int
    """Of one layer."""
    hidden: int

    @property
    def units(self) -> int:
        """All neurons."""
        return self.layers * self.neurons


MODELS = (
    Model("8B (Llama-3.1-8B)", 6.98e9, 32, 14336, 4096),
    Model("70B (Llama-3.1-70B)", 68.5e9, 80, 28672, 8192),
)


@dataclass(frozen=True)
class Assumptions:
    """What the table rests on. The four constants of our own code are measured (`--measure`), the others are assumed."""

    contrasts: float = 1e7
    variants: int = 2
    tokens: float = 15
    """Of a text, padding and what a shared prefix saves taken together."""
    categories: int = 9
    rows: int = 1
    """Quantities that a statistic sums per neuron: 1 for `variance`, 2 for `attribution`."""
    peak: float = 989e12
    """FLOP/s of one GPU (H100, dense bfloat16)."""
    utilisation: float = 0.4
    """Share of it that a forward reaches."""
    memory: float = 80e9
    """Bytes of one GPU."""
    bandwidth: float = 2.3e12
    """Bytes/s of a GPU's memory that elementwise kernels reach (70 % of H100's 3.35e12)."""
    network: float = 40e9
    """Bytes/s into one GPU while the weights of a divided model are gathered."""
    touched: float = 6
    """Bytes that the statistics read and write for each neuron and token, in bfloat16 and float32: counted in the code."""
    micro_batch: int = 16384
    """Tokens of a micro-batch on one GPU."""
    checkpoint_every: float = 1e5
    batch_overhead: float = 2.7e-3
    """Measured: seconds of composing, collating and Lightning's loop for each micro-batch."""
    site_overhead: float = 4.5e-4
    """Measured: seconds of Python and dispatch for each site of each micro-batch."""
    reduction: float = 1.9e8
    """Measured: bytes/s of sending, receiving and adding sums between two ranks over gloo."""
    checkpoint: float = 4.8e8
    """Measured: bytes/s of writing a checkpoint, checksum and fsync."""


@dataclass(frozen=True)
class Cost:
    """One row of the table."""

    gpus: int
    divided: int
    """GPUs that hold one copy of the model."""
    flops: float
    hours: float
    statistics: float
    """Share of the forward's time."""
    gathering: float
    """Share of the forward's time that gathering weights takes, were nothing of it hidden behind computing."""
    state: float
    """Bytes of the sums on one GPU."""
    network: float
    """Bytes that all ranks send to add their sums up, once."""
    reduction_seconds: float
    disk: float
    """Bytes of all checkpoints at a time."""
    checkpointing: float
    """Share of the time."""


def cost(model: Model, gpus: int, given: Assumptions) -> Cost:
    """The arithmetic. bfloat16 weights; a model that fills more than 60 % of a GPU is divided (FSDP2) over as few GPUs as hold it."""
    weights = 2 * model.parameters
    divided = 1
    while weights / divided > 0.6 * given.memory:
        divided *= 2
    tokens = given.contrasts * given.variants * given.tokens
    flops = 2 * model.parameters * tokens
    mine = tokens / gpus
    batches = ceil(mine / given.micro_batch)
    forward = 2 * model.parameters * mine / (given.peak * given.utilisation)
    kernels = model.units * given.touched * mine / given.bandwidth + batches * given.batch_overhead
    kernels += batches * model.layers * given.site_overhead
    gathering = 0.0 if divided == 1 else batches * weights / given.network
    state = 2 * 8 * given.categories * (given.rows * model.units + 2 * model.layers)
    network = state * (gpus - 1)
    reduction = ceil(log2(gpus)) * state / given.reduction
    written = ceil(given.contrasts / given.checkpoint_every)
    checkpointing = written * state / given.checkpoint
    seconds = forward + kernels + gathering + checkpointing + reduction
    return Cost(
        gpus=gpus,
        divided=divided,
        flops=flops,
        hours=seconds / 3600,
        statistics=kernels / forward,
        gathering=gathering / forward,
        state=state,
        network=network,
        reduction_seconds=reduction,
        disk=2 * state * gpus,
        checkpointing=checkpointing / seconds,
    )


def table(given: Assumptions) -> Iterator[str]:
    """Markdown."""
    yield "| model | GPUs | a copy on | FLOP | time | statistics | gathering | sums on a GPU | added up | checkpoints |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for model in MODELS:
        for gpus in (8, 64, 512):
            one = cost(model, gpus, given)
            yield (
                f"| {model.name} | {gpus} | {one.divided} | {one.flops:.1e} | {_time(one.hours)} | {one.statistics:.0%} | "
                f"{one.gathering:.0%} | {one.state / 1e6:.0f} MB | {one.network / 1e9:.1f} GB in {one.reduction_seconds:.1f} s | "
                f"{one.disk / 1e9:.1f} GB, {one.checkpointing:.1%} |"
            )


def _time(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"


# -- constants -------------------------------------------------------------------------------------------------------------


def measured_overhead(count: int = 600) -> tuple[float, float]:
    """Seconds for each micro-batch, and for each site of it, that are no arithmetic: audits of models so tiny that they compute next to
    nothing, minus bare forwards of the same micro-batches, with 2 layers and with 10; one thread."""
    import torch

    from fairprune_framework import discovery
    from fairprune_framework.auditing.audit import audit
    from fairprune_framework.auditing.batches import compose
    from fairprune_framework.auditing.demand import Demand
    from fairprune_framework.auditing.runner import TrunkModule
    from fairprune_framework.contrasts.alignment import align_all, vocabularies
    from fairprune_framework.contrasts.schema import Contrast, Variant
    from fairprune_framework.models.architecture import recognise
    from fairprune_framework.models.encoder import Encoder
    from fairprune_framework.testing.tiny import tiny_model, tiny_tokenizer

    torch.set_num_threads(1)
    contrasts = []
    for i in range(count):
        variants = tuple(
            Variant(attribute=v, text=f"The {v} nurse number {i} walked into the store .") for v in ("Black", "white")
        )
        contrasts.append(Contrast(id=str(i), category="race", template_id=str(i), variants=variants))
    aligned, _ = align_all(contrasts, Encoder(tiny_tokenizer()))
    values = {category: len(names) for category, names in vocabularies(contrasts).items()}
    batches = list(compose(aligned, values, 64))
    found = {}
    for layers in (2, 10):
        model = tiny_model("llama", layers=layers)
        architecture, module = recognise(model), TrunkModule(model)
        demand = Demand.of([discovery.build("bias", "variance")], len(architecture.sites))
        seconds = []
        for _ in range(3):
            with torch.inference_mode():
                began = time.perf_counter()
                for batch in batches:
                    module.compute(batch)
                bare = time.perf_counter() - began
            outcome = audit(model, architecture, aligned, values, demand, micro_batch_tokens=64, accelerator="cpu")[1]
            seconds.append(outcome.seconds - bare)
        found[layers] = sorted(seconds)[1] / len(batches)
    site = (found[10] - found[2]) / 8
    return found[2] - 2 * site, site


def measured_checkpoint(size: int = 2**27) -> float:
    """Bytes/s of a checkpoint."""
    import torch

    from fairprune_framework.auditing.distributed.checkpoint import Checkpoint, Part

    part = Part(words={f"site{i}": torch.rand(2, 1, 1, size // 16 // 32) for i in range(32)})
    part.words = {key: value.double() for key, value in part.words.items()}
    with tempfile.TemporaryDirectory() as name:
        checkpoint = Checkpoint(Path(name), {})
        seconds = []
        for _ in range(4):
            began = time.perf_counter()
            checkpoint.keep(part, 0)
            seconds.append(time.perf_counter() - began)
    return size / sorted(seconds)[1]


def _rank(rank: int, port: int, size: int, queue: object) -> None:
    import torch
    from torch import distributed as dist

    from fairprune_framework.auditing.distributed.checkpoint import Part
    from fairprune_framework.auditing.distributed.reduce import reduce_parts

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    words = {f"site{i}": torch.rand(2, 1, 1, size // 16 // 32, dtype=torch.float64) for i in range(32)}
    seconds = []
    for _ in range(4):
        dist.barrier()
        began = time.perf_counter()
        reduce_parts(Part(words=dict(words)), dist.group.WORLD)
        seconds.append(time.perf_counter() - began)
    if rank == 0:
        queue.put(sorted(seconds)[1])  # type: ignore[attr-defined]
    dist.destroy_process_group()


def measured_reduction(size: int = 2**27) -> float:
    """Bytes/s of adding the sums of two ranks up, over the loopback."""
    import socket

    from torch import multiprocessing

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    ranks = [context.Process(target=_rank, args=(rank, port, size, queue)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = float(queue.get(timeout=300))
    for process in ranks:
        process.join()
    return size / found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure the constants of our own code on this machine")
    for name, value in vars(Assumptions()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value) if name != "contrasts" else float, default=value)
    options = vars(parser.parse_args())
    if options.pop("measure"):
        from common import machine

        print(f"{machine()}\n")
        batch, site = measured_overhead()
        print(f"batch_overhead  {batch:.2e} s a micro-batch")
        print(f"site_overhead   {site:.2e} s a site and micro-batch")
        print(f"reduction       {measured_reduction():.2e} bytes/s")
        print(f"checkpoint      {measured_checkpoint():.2e} bytes/s")
        return
    given = Assumptions(**options)
    print("\n".join(table(given)))


if __name__ == "__main__":
    main()
