"""Does a run with a large vocabulary hold (tokens x vocabulary) in memory? Peak memory over the weights, stage by stage.

    python benchmarks/vocabulary_memory.py [--words 262144] [--record FILE]

A random model with Gemma 3's proportions (hidden 640, tied head) and few layers, float32, a small prompt set, the default recipe,
`fairprune run` as a function in a process of its own. From every peak the memory after all imports is subtracted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import give, machine

STAGES = ("read", "audit", "score", "plan", "prune", "evaluate", "report")
CALIBRATION = {"calibration_documents": 8, "calibration_tokens": 64, "random_sets": 2}


def of_process(field: str) -> int:
    """Bytes that the kernel names: `VmRSS` now, `VmHWM` at most since `reset`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def reset() -> None:
    """The peak begins anew."""
    Path("/proc/self/clear_refs").write_text("5")


def save_model(folder: Path, words: int) -> int:
    """A random model and a tokenizer; returns the bytes of its weights."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    from fairprune_framework.testing.tiny import tiny_tokenizer

    config = Gemma3TextConfig(
        vocab_size=words,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(config)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return sum(each.numel() * each.element_size() for each in model.parameters())


def child(folder: Path) -> None:
    """Do the run in this process and print what each stage took."""
    import lightning.pytorch  # noqa: F401
    import plotly  # noqa: F401
    import torch
    import transformers.models.gemma3.modeling_gemma3  # noqa: F401

    import fairprune_framework.stages.evaluate
    import fairprune_framework.stages.prune  # noqa: F401
    from fairprune_framework.pipeline import run_stages
    from fairprune_framework.runs.open import open_run

    torch.set_num_threads(1)
    imported, peaks, seconds = of_process("VmRSS"), {}, {}
    reset()
    given = {"recipe": "default", "model": str(folder / "model"), "prompts": str(folder / "contrasts.jsonl")}
    run = open_run(folder / "run", {**CALIBRATION, "force": True}, fresh=True, **given)
    _ = run.loaded.architecture
    peaks["loading"] = of_process("VmHWM")
    for name in STAGES:
        reset()
        began = time.process_time()
        run_stages(run, name)
        peaks[name], seconds[name] = of_process("VmHWM"), time.process_time() - began
    print(json.dumps({"imported": imported, "peaks": peaks, "seconds": seconds, "abstained": run.record["abstained"]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=262_144)
    parser.add_argument("--record", default=None, help="file for the record")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(Path(options.child))
        return
    from fairprune_framework.testing.tiny import tiny_contrasts

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = save_model(folder / "model", options.words)
        lines = "".join(json.dumps(one.to_json()) + "\n" for one in tiny_contrasts())
        (folder / "contrasts.jsonl").write_text(lines)
        done = subprocess.run([sys.executable, __file__, "--child", name], stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    rows = [
        f"# Memory of a run with a large vocabulary, {time.strftime('%d %B %Y')}",
        "",
        f"`python benchmarks/vocabulary_memory.py --words {options.words}`; load {os.getloadavg()[0]:.1f}.",
        f"{machine()}.",
        "",
        f"Weights {weights / 1e9:.3f} GB in float32; {found['imported'] / 1e9:.3f} GB after all imports, subtracted below.",
        f"Calibration: {CALIBRATION['calibration_documents']} documents of at most {CALIBRATION['calibration_tokens']} tokens.",
        "",
        "| stage | peak GB | peak / weights | CPU s |",
        "|---|---|---|---|",
    ]
    over = {stage: value - found["imported"] for stage, value in found["peaks"].items()}
    for stage, value in over.items():
        cpu = f"{found['seconds'][stage]:.1f}" if stage in found["seconds"] else ""
        rows.append(f"| {stage} | {value / 1e9:.3f} | {value / weights:.2f} | {cpu} |")
    rows += [
        "",
        f"Highest: {max(over.values()) / weights:.2f} x weights (wanted: at most 2.2); abstained: {found['abstained']}.",
    ]
    give("\n".join(rows) + "\n", options.record)


if __name__ == "__main__":
    main()
