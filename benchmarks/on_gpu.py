"""What `on_gpu.sh` runs: correctness against the CPU, throughput against a bare forward and the card's peak, memory.

Weights are random and made on the device; texts are synthetic, so that nothing is downloaded. Each part has its share of the time
budget; a part that fails or finds no time left is named, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from common import machine, paired
from torch import nn

from fairprune_framework import discovery
from fairprune_framework.auditing.audit import audit
from fairprune_framework.auditing.autotune import max_tokens_on
from fairprune_framework.auditing.batches import compose
from fairprune_framework.auditing.demand import Demand
from fairprune_framework.calibration.text import Calibration
from fairprune_framework.contrasts.alignment import AlignedContrast, Tokens
from fairprune_framework.models.architecture import Architecture, recognise
from fairprune_framework.testing.tiny import save_tiny

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "8b": {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32},
}
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 FLOP/s of a card, by a part of its name: from the makers' data sheets."""


def model_of(shape: str, device: torch.device, dtype: torch.dtype, vocabulary: int = 32_768) -> nn.Module:
    """A Llama with random weights, made on the device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SHAPES[shape], vocab_size=vocabulary, max_position_embeddings=4096, tie_word_embeddings=True)
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM(config).to(dtype).eval()


def contrasts_of(count: int, length: int, vocabulary: int, seed: int = 0) -> list[AlignedContrast]:
    """Contrasts of four variants that differ in one token, all of one length."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(4, vocabulary, (count, length), generator=generator).tolist()
    found = []
    for i, row in enumerate(rows):
        variants = []
        for v in range(4):
            ids = (*row[: length // 3], 5 + v + 7 * (i % 9), *row[length // 3 + 1 :])
            variants.append(Tokens(ids=ids, start=length // 3, end=length // 3 + 1))
        found.append(
            AlignedContrast(
                id=str(i),
                category=f"k{i % 4}",
                template_id=str(i),
                control=False,
                split=None,
                variants=tuple(variants),
                attributes=(0, 1, 2, 3),
            )
        )
    return found


VALUES = {f"k{i}": 4 for i in range(4)}


def forward_and_backward(model: nn.Module, sites: Sequence[nn.Module], ids: torch.Tensor) -> None:
    """What a pass with an objective has to compute: forward, head, and the gradients of the sites' inputs; no weight's."""
    taps: list[torch.Tensor] = []

    def tap(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        x = arguments[0] if arguments[0].requires_grad else arguments[0].detach().requires_grad_()
        taps.append(x)
        return (x, *arguments[1:])

    model.requires_grad_(False)
    hooks = [site.register_forward_pre_hook(tap) for site in sites]
    try:
        with torch.enable_grad():
            loss = model(input_ids=ids, use_cache=False).logits.logsumexp(-1).sum()
            torch.autograd.grad(loss, taps)
    finally:
        for hook in hooks:
            hook.remove()


class Bench:
    """The device, and everything measured on it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device, self.shape = torch.device(options.device), options.shape
        self.ends = time.monotonic() + options.seconds
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.accelerator = "gpu" if self.device.type == "cuda" else "cpu"
        self.results: dict[str, Any] = {"machine": machine(), "device": self.name, "shape": options.shape}
        self.small = self.device.type != "cuda"

    @property
    def name(self) -> str:
        """Of the card."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    def part(self, name: str, measure: Callable[[], Any]) -> None:
        """Measure one part, if there is time left; a failure is its result."""
        if time.monotonic() > self.ends:
            self.results[name] = "not reached: the time was up"
        else:
            began = time.monotonic()
            try:
                self.results[name] = measure()
            except Exception as error:
                traceback.print_exc()
                self.results[name] = f"failed: {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            finally:
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                self.results.setdefault("seconds", {})[name] = round(time.monotonic() - began, 1)
        print(f"[{name}] {json.dumps(self.results[name])}", flush=True)

    def demand(self, architecture: Architecture, bias: str = "variance", importance: str = "max-abs-weight") -> Demand:
        """What these two scorers want."""
        plugins = [discovery.build("bias", bias), discovery.build("importance", importance)]
        return Demand.of(plugins, len(architecture.sites))

    def synchronised(self, work: Callable[[], object]) -> Callable[[], None]:
        """The work, and waiting for the device."""

        def done() -> None:
            work()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

        return done

    # -- parts ----------------------------------------------------------------------------------------------------------

    def correctness(self) -> dict[str, float]:
        """float32: sums of `variance` on the device against the CPU, and the overlap of the 1 % of highest scores."""
        model = model_of("tiny", torch.device("cpu"), torch.float32, 512)
        architecture, contrasts = recognise(model), contrasts_of(64, 24, 512)
        demand = self.demand(architecture)
        cpu, _ = audit(model, architecture, contrasts, VALUES, demand, accelerator="cpu")
        there = model.to(self.device)
        gpu, _ = audit(there, architecture, contrasts, VALUES, demand, accelerator=self.accelerator)
        worst, same, chosen = 0.0, 0, 0
        for site in architecture.sites:
            for group in range(len(cpu.categories)):
                for name, expected in cpu.of("contrasts", site, group).items():
                    value = gpu.of("contrasts", site, group)[name]
                    worst = max(worst, float((value - expected).abs().max() / expected.abs().max().clamp_min(1e-30)))
                    k = max(1, expected.shape[1] // 100)
                    first, second = (set(x[0].topk(k).indices.tolist()) for x in (expected, value))
                    same, chosen = same + len(first & second), chosen + k
        return {"largest_relative_difference": worst, "selection_overlap": same / chosen}

    def throughput(self) -> dict[str, Any]:
        """bf16: padded tokens per second of the audit and of bare trunk forwards, in one process; share of the card's peak."""
        return self.audited(self.shape, 64 if self.small else 2048, 1 if self.small else 3)

    def larger(self) -> dict[str, Any]:
        """As `throughput`, of a model shaped like one of 8 billion weights."""
        return self.audited("tiny", 16, 1) if self.small else self.audited("8b", 512, 2)

    def audited(self, shape: str, count: int, rounds: int) -> dict[str, Any]:
        """The audit of `count` contrasts of four variants beside bare forwards of the same micro-batches."""
        model = model_of(shape, self.device, self.dtype)
        architecture = recognise(model)
        length = 32 if self.small else 128
        contrasts = contrasts_of(count, length, 32_768)
        max_tokens = max_tokens_on(model, self.device, length, gradients=False) if not self.small else 2048
        batches = [batch.input_ids.to(self.device) for batch in compose(contrasts, VALUES, max_tokens)]
        trunk: Any = model.get_decoder()  # type: ignore[operator]

        def bare() -> None:
            with torch.inference_mode():
                for ids in batches:
                    trunk(input_ids=ids, use_cache=False)

        demand = self.demand(architecture)
        options = {"micro_batch_tokens": max_tokens, "accelerator": self.accelerator}
        functions = {
            "bare": self.synchronised(bare),
            "audit": self.synchronised(lambda: audit(model, architecture, contrasts, VALUES, demand, **options)),
        }
        seconds = paired(functions, rounds)
        tokens = sum(batch.numel() for batch in batches)
        layers = [p for name, p in model.named_parameters() if "embed" not in name and "lm_head" not in name]
        flops = 2 * sum(p.numel() for p in layers) * tokens
        peak = next((value for name, value in PEAKS.items() if name in self.name), None)
        rates = {name: tokens / statistics.median(found) for name, found in seconds.items()}
        return {
            "micro_batch_tokens": max_tokens,
            "tokens": tokens,
            "seconds": {name: [round(one, 3) for one in found] for name, found in seconds.items()},
            "tokens_per_second": rates,
            "audit_over_bare": rates["audit"] / rates["bare"],
            "share_of_bf16_peak": None if peak is None else flops / statistics.median(seconds["audit"]) / peak,
            "share_of_bf16_peak_bare": None if peak is None else flops / statistics.median(seconds["bare"]) / peak,
        }

    def gradients(self) -> dict[str, Any]:
        """Attribution: seconds of an audit with objectives beside a bare loop of forward, head and backward to the sites."""
        model = model_of(self.shape, self.device, self.dtype)
        architecture = recognise(model)
        length, count = (24, 24) if self.small else (64, 1024)
        contrasts = contrasts_of(count, length, 32_768)
        demand = self.demand(architecture, "attribution")
        max_tokens = 1024 if self.small else max_tokens_on(model, self.device, length, gradients=True)
        options: dict[str, Any] = {"micro_batch_tokens": max_tokens, "accelerator": self.accelerator}
        batches = [batch.input_ids.to(self.device) for batch in compose(contrasts, VALUES, max_tokens)]
        downs = [module for name, module in model.named_modules() if name.endswith("down_proj")]

        def bare() -> None:
            for ids in batches:
                forward_and_backward(model, downs, ids)

        seconds = paired(
            {
                "bare": self.synchronised(bare),
                "audit": self.synchronised(lambda: audit(model, architecture, contrasts, VALUES, demand, **options)),
            },
            1 if self.small else 2,
        )
        tokens = sum(batch.numel() for batch in batches)
        rates = {name: tokens / statistics.median(found) for name, found in seconds.items()}
        return {
            "micro_batch_tokens": max_tokens,
            "tokens": tokens,
            "tokens_per_second": rates,
            "audit_over_bare": rates["audit"] / rates["bare"],
        }

    def with_text(self) -> dict[str, Any]:
        """Attribution and taylor with calibration text, in one audit: that both run on the device, and their seconds."""
        model = model_of(self.shape, self.device, self.dtype)
        architecture = recognise(model)
        text = Calibration(documents=tuple(one.variants[0].ids for one in contrasts_of(8, 64, 32_768, 1)), source="random")
        demand = self.demand(architecture, "attribution", "taylor")
        options: dict[str, Any] = {"accelerator": self.accelerator, "calibration": text, "micro_batch_tokens": 1024}
        contrasts = contrasts_of(8 if self.small else 64, 24, 32_768)
        began = time.perf_counter()
        self.synchronised(lambda: audit(model, architecture, contrasts, VALUES, demand, **options))()
        return {"seconds": time.perf_counter() - began}

    def out_of_memory(self) -> dict[str, int]:
        """A budget that cannot fit is split in halves until it does."""
        if self.device.type != "cuda":
            return {"splits": 0}
        model = model_of(self.shape, self.device, self.dtype)
        architecture = recognise(model)
        free, _ = torch.cuda.mem_get_info(self.device)
        hoard = torch.empty(int(free * 0.9), dtype=torch.uint8, device=self.device)
        options = {"micro_batch_tokens": 1 << 17, "accelerator": self.accelerator}
        _, outcome = audit(model, architecture, contrasts_of(256, 128, 32_768), VALUES, self.demand(architecture), **options)
        del hoard
        return {"splits": outcome.splits}

    def memory(self) -> dict[str, Any]:
        """Peak memory of the device for 1,000 and 20,000 contrasts (64 and 256 in the rehearsal)."""
        model = model_of("tiny", self.device, self.dtype)
        architecture, demand = recognise(model), None
        demand = self.demand(architecture)
        peaks = {}
        for count in (64, 256) if self.small else (1_000, 20_000):
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
            audit(
                model,
                architecture,
                contrasts_of(count, 24, 32_768),
                VALUES,
                demand,
                micro_batch_tokens=4096,
                accelerator=self.accelerator,
            )
            peaks[count] = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
        return {str(count): value for count, value in peaks.items()}

    def compiled(self) -> dict[str, Any]:
        """Bare forwards with torch.compile (default, and with CUDA graphs) against without: seconds of one batch."""
        model = model_of(self.shape, self.device, self.dtype)
        trunk: Any = model.get_decoder()  # type: ignore[operator]
        ids = torch.randint(4, 512, (8, 64), device=self.device)
        modes: Sequence[tuple[str, str | None]] = (
            [("off", None)] if self.small else [("off", None), ("default", "default"), ("graphs", "reduce-overhead")]
        )
        found = {}
        for name, mode in modes:
            forward = trunk if mode is None else torch.compile(trunk, mode=mode)

            def once(forward: Any = forward) -> None:
                with torch.inference_mode():
                    forward(input_ids=ids, use_cache=False)

            found[name] = statistics.median(paired({"forward": self.synchronised(once)}, 5)["forward"])
        return found

    def peer(self) -> dict[str, Any]:
        """optipfair 0.4.2 on 20 pairs beside our audit of the same pairs: same model, same device, same process."""
        from optipfair.bias.activations import analyze_neuron_bias
        from transformers import AutoTokenizer

        from fairprune_framework.contrasts.alignment import align_all, vocabularies
        from fairprune_framework.contrasts.builtin import builtin
        from fairprune_framework.models.encoder import Encoder

        logging.getLogger("optipfair").setLevel(logging.WARNING)
        with tempfile.TemporaryDirectory() as folder:
            save_tiny(Path(folder), "llama")
            tokenizer = AutoTokenizer.from_pretrained(folder)
        model = model_of(self.shape, self.device, self.dtype)
        contrasts = [replace(one, variants=one.variants[:2]) for one in builtin("en-1")[:20]]
        aligned, _ = align_all(contrasts, Encoder(tokenizer))
        values = {name: len(known) for name, known in vocabularies(contrasts).items()}
        architecture = recognise(model)
        demand, pairs = self.demand(architecture), [(a.text, b.text) for a, b in (one.variants for one in contrasts)]
        layer, options = (
            ["down_proj_input"],
            {"accelerator": self.accelerator, "micro_batch_tokens": 2048 if self.small else 16_384},
        )
        functions = {
            "optipfair": lambda: analyze_neuron_bias(model, tokenizer, pairs, target_layers=layer, show_progress=False),
            "audit": lambda: audit(model, architecture, aligned, values, demand, **options),
        }
        seconds = paired({name: self.synchronised(work) for name, work in functions.items()}, 1 if self.small else 5)
        return {"pairs": len(pairs), **{name: statistics.median(found) for name, found in seconds.items()}}


def record(results: dict[str, Any]) -> str:
    """The dated record."""
    lines = [f"# On a GPU: {results['device']}", "", f"{results['machine']}; shape {results['shape']}; seed 0.", ""]
    lines += ["| part | measured |", "|---|---|"]
    lines += [
        f"| {name} | `{json.dumps(value)}` |" for name, value in results.items() if name not in ("machine", "device", "shape")
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every part and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="1b")
    parser.add_argument("--seconds", type=int, default=440, help="no part begins after that")
    parser.add_argument("--output", default=".", help="folder for on_gpu.json and the record")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("on_gpu: error: PyTorch finds no GPU; --rehearse runs the script on the CPU")
    bench = Bench(options)
    for name in (
        "correctness",
        "throughput",
        "gradients",
        "with_text",
        "peer",
        "memory",
        "out_of_memory",
        "larger",
        "compiled",
    ):
        bench.part(name, getattr(bench, name))
    folder = Path(options.output)
    (folder / "on_gpu.json").write_text(json.dumps(bench.results, indent=1) + "\n", encoding="utf-8")
    stamp = date.today().strftime("%Y%m")
    (folder / f"on_gpu_{options.device}_{stamp}.md").write_text(record(bench.results), encoding="utf-8")
    failed = [name for name, value in bench.results.items() if isinstance(value, str) and value.startswith("failed")]
    print(f"written to {folder}" + (f"; failed: {', '.join(failed)}" if failed else ""))


if __name__ == "__main__":
    main()
