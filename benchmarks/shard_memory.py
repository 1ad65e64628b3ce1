"""How much memory do `fairprune prune --shard-by-shard` and `fairprune restore` take? Peak resident memory, on a synthetic checkpoint.

    python benchmarks/shard_memory.py [--gigabytes 8] [--share 0.05] [--folder /tmp] [--record FILE]

A checkpoint of Llama's shape (hidden 4096, MLP 11008, bfloat16, two layers in a shard) is written shard by shard, and a random plan is
carried out on it with exact widths, in a process of its own. Then the original is restored in another, and one layer in a third. Every
tensor is a stretch of one pool of normal numbers. It takes 3.2 times the size of free disk, and everything is removed at the end.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from common import give, machine

HIDDEN, WIDTH, WORDS, HEADS, GROUPS = 4096, 11008, 32000, 32, 8
POOL = 2**24
LAYERS_IN_SHARD = 2


def peak() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make(folder: Path, size: int) -> None:
    """Write a checkpoint of about `size` bytes, one shard at a time."""
    import torch
    from transformers import LlamaConfig

    from fairprune_framework.testing.tiny import tiny_tokenizer
    from fairprune_framework.utilities.tensor_files import write_one_by_one

    normal = torch.randn(POOL, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    pool = normal.repeat(-(-WORDS * HIDDEN // POOL) + 1)
    offsets = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> torch.Tensor:
        count, start = torch.Size(shape).numel(), int(torch.randint(POOL, (), generator=offsets))
        return pool[start : start + count].reshape(shape)

    per_layer = 2 * (HIDDEN * HIDDEN * 2 + 2 * HIDDEN * HIDDEN * GROUPS // HEADS + 3 * HIDDEN * WIDTH)
    layers = max(round((size - 4 * WORDS * HIDDEN) / per_layer), 1)
    folder.mkdir()
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        vocab_size=WORDS,
        hidden_size=HIDDEN,
        intermediate_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        tie_word_embeddings=False,
    ).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    groups = [list(range(start, min(start + LAYERS_IN_SHARD, layers))) for start in range(0, layers, LAYERS_IN_SHARD)]
    known: dict[str, str] = {}
    total = 0
    for number, group in enumerate([*groups, None], 1):
        name = f"model-{number:05}-of-{len(groups) + 1:05}.safetensors"
        tensors: dict[str, torch.Tensor] = {}
        if group is None:
            tensors = {"model.embed_tokens.weight": drawn(WORDS, HIDDEN), "lm_head.weight": drawn(WORDS, HIDDEN)}
            tensors["model.norm.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
        for layer in group or ():
            place = f"model.layers.{layer}"
            for part, rows in (("q", HEADS), ("k", GROUPS), ("v", GROUPS), ("o", HEADS)):
                tensors[f"{place}.self_attn.{part}_proj.weight"] = drawn(rows * HIDDEN // HEADS, HIDDEN)
            for part in ("gate", "up"):
                tensors[f"{place}.mlp.{part}_proj.weight"] = drawn(WIDTH, HIDDEN)
            tensors[f"{place}.mlp.down_proj.weight"] = drawn(HIDDEN, WIDTH)
            for part in ("input", "post_attention"):
                tensors[f"{place}.{part}_layernorm.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
        write_one_by_one(folder / name, tensors, tensors.__getitem__, {"format": "pt"})
        known |= dict.fromkeys(tensors, name)
        total += sum(each.numel() * each.element_size() for each in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": known}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def child(folder: Path, share: float) -> None:
    """Carry a random plan out in this process, and print what it took."""
    import torch

    from fairprune_framework.api.types import Plan
    from fairprune_framework.models.architecture import recognise
    from fairprune_framework.models.checkpoint import open_checkpoint
    from fairprune_framework.surgery.by_shard import prune_by_shard

    torch.set_num_threads(1)
    checkpoint = open_checkpoint(str(folder / "model"))
    architecture = recognise(checkpoint.model)
    imported = peak()
    clock = time.process_time(), time.perf_counter()
    draw, chosen = torch.Generator().manual_seed(2), {}
    for place, (name, site) in enumerate(architecture.sites.items()):
        count = int(share * site.units) + place  # another number in each layer
        chosen[name] = tuple(sorted(torch.randperm(site.units, generator=draw)[:count].tolist()))
    fingerprint = checkpoint.digests[0]
    plan = Plan(model="synthetic", fingerprint=fingerprint, operator="remove", sites=chosen, requested={}, achieved={})
    done = prune_by_shard(
        checkpoint,
        plan,
        architecture,
        folder / "run" / "model",
        restoration=folder / "run" / "restoration.safetensors",
        widths="exact",
    )
    seconds = time.process_time() - clock[0], time.perf_counter() - clock[1]
    print(json.dumps({"imported": imported, "peak": peak(), "seconds": seconds, **done.to_json()}))


def restored(folder: Path, output: Path, layer: str) -> None:
    """Restore in this process, all or a layer, and print what it took."""
    import torch

    from fairprune_framework.models.checkpoint import open_checkpoint
    from fairprune_framework.surgery.partial import Part
    from fairprune_framework.surgery.restore import restore_folder

    torch.set_num_threads(1)
    open_checkpoint(str(folder / "run" / "model"))
    imported = peak()
    clock = time.process_time(), time.perf_counter()
    done = restore_folder(folder / "run" / "model", output, part=Part(layers=(int(layer),)) if layer else None)
    seconds = time.process_time() - clock[0], time.perf_counter() - clock[1]
    print(json.dumps({"imported": imported, "peak": peak(), "seconds": seconds, "back": done.back, "out": done.out}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--share", type=float, default=0.05, help="of the neurons")
    parser.add_argument("--folder", default=None, help="where the checkpoint is made; by default the temporary folder")
    parser.add_argument("--record", default=None, help="file for the record")
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--restore", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = int(options.gigabytes * 1e9)
    if options.make:
        make(Path(options.make), size)
        return
    if options.child:
        child(Path(options.child), options.share)
        return
    if options.restore:
        folder, output, layer = options.restore
        restored(Path(folder), Path(output), layer)
        return
    with tempfile.TemporaryDirectory(prefix="shard-memory-", dir=options.folder) as name:
        if (free := shutil.disk_usage(name).free) < 3.2 * size:
            sys.exit(f"{3.2 * options.gigabytes:.1f} GB of free disk are needed, and {free / 1e9:.1f} GB are there")
        words = ("--gigabytes", str(options.gigabytes), "--share", str(options.share))
        subprocess.run([sys.executable, __file__, *words, "--make", f"{name}/model"], check=True, stdout=subprocess.DEVNULL)
        shards = [path.stat().st_size for path in Path(name, "model").glob("*.safetensors")]
        done = subprocess.run(
            [sys.executable, __file__, *words, "--child", name], stdout=subprocess.PIPE, text=True, check=True
        )
        taken = (Path(name) / "run" / "restoration.safetensors").stat().st_size
        back = []
        for layer in ("", "0"):
            output = Path(name) / "back"
            told = subprocess.run(
                [sys.executable, __file__, "--restore", name, str(output), layer],
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            back.append(json.loads(told.stdout.splitlines()[-1]))
            files = sorted((Path(name) / "model").glob("*.safetensors"))
            if not layer and not all(filecmp.cmp(file, output / file.name, shallow=False) for file in files):
                sys.exit("what was restored is not the original")
            shutil.rmtree(output)
    found = json.loads(done.stdout.splitlines()[-1])
    mlp = 2 * 3 * HIDDEN * WIDTH
    columns = [("prune", found), ("restore", back[0]), ("restore --layer 0", back[1])]

    def row(what: str, values: Iterable[str]) -> str:
        return f"| {what} | {' | '.join(values)} |"

    rows = [
        f"# Memory of a surgery shard by shard, {time.strftime('%d %B %Y')}",
        "",
        f"`python benchmarks/shard_memory.py --gigabytes {options.gigabytes:g} --share {options.share:g}`;",
        f"load {os.getloadavg()[0]:.1f}. {machine()}.",
        "",
        f"- weights of the checkpoint: {found['bytes_before'] / 1e9:.3f} GB in {len(shards)} shards, largest {max(shards) / 1e9:.3f} GB",
        f"- MLP of a layer: {mlp / 1e9:.3f} GB, its largest tensor {mlp / 3e9:.3f} GB",
        f"- pruned: {found['bytes_after'] / 1e9:.3f} GB without {found['cut']:,} neurons; restoration {taken / 1e9:.3f} GB",
        f"- restored: all shards byte for byte; of the layer {back[1]['back']:,} neurons, {back[1]['out']:,} stay out",
        "",
        row("", [name for name, _ in columns]),
        "|---" * (len(columns) + 1) + "|",
        row("peak resident memory", [f"{each['peak'] / 1e9:.3f} GB" for _, each in columns]),
        row("the same when the checkpoint was opened", [f"{each['imported'] / 1e9:.3f} GB" for _, each in columns]),
        row("added", [f"{(each['peak'] - each['imported']) / 1e9:.3f} GB" for _, each in columns]),
        row(
            "added, of the weights", [f"{(each['peak'] - each['imported']) / found['bytes_before']:.3f}" for _, each in columns]
        ),
        row("allowed: a shard and a layer", [f"{(max(shards) + mlp) / 1e9:.3f} GB"] * len(columns)),
        row("seconds", [f"{each['seconds'][1]:.0f}" for _, each in columns]),
        row("of the processor", [f"{each['seconds'][0]:.0f}" for _, each in columns]),
    ]
    give("\n".join(rows) + "\n", options.record)


if __name__ == "__main__":
    main()
