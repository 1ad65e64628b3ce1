"""What is saved answers alike in the oldest reader that it is meant for: transformers 4.57, in a process of its own.

`make older-reader` installs it in `build/transformers4` and runs these tests; they are skipped where it is not there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fairprune_framework.testing.tiny import save_tiny

READER = Path(os.environ.get("TRANSFORMERS4", Path(__file__).parents[2] / "build" / "transformers4"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (READER / "transformers").is_dir(), reason=f"transformers 4.57 is not in {READER}: make older-reader"
    ),
]
TEXT = "The young clerk walked into the office and said that"
SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(sys.argv[2], torch_dtype="auto").eval()
ids = tokenizer(sys.argv[3], return_tensors="pt").input_ids
torch.save(model(ids).logits, sys.argv[4])
out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=64, pad_token_id=0)
print(json.dumps({"version": transformers.__version__, "ids": ids[0].tolist(), "continued": out[0].tolist()}))
"""


@torch.no_grad()
def answers_alike(folder: Path, scratch: Path, limit: float = 1e-4) -> None:
    """Equal token ids, equal logits up to rounding, and 64 equal greedy tokens."""
    command = [sys.executable, "-s", "-c", SCRIPT, str(READER), str(folder), TEXT, str(scratch / "logits.pt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    old = json.loads(done.stdout.splitlines()[-1])
    assert old["version"].startswith("4.57.")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    assert ids[0].tolist() == old["ids"]
    torch.testing.assert_close(torch.load(scratch / "logits.pt"), model(ids).logits, rtol=0, atol=limit)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=64, pad_token_id=0)
    assert out[0].tolist() == old["continued"]


@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3", "mixtral", "stablelm"])
def test_a_pruned_folder_as_transformers_4_wrote_it(
    family: str, fairprune: Any, prompts: Path, quick: tuple[str, ...], tmp_path: Path
) -> None:
    """`config.json` with a rotary base that is not the default, under the old names; the file is kept but for the width."""
    folder = save_tiny(tmp_path / "m", family)
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = 3 * rope.get("full_attention", rope)["rope_theta"]
    config["rope_local_base_freq"] = 5000.0
    if "partial_rotary_factor" in rope:
        config["partial_rotary_factor"] = rope["partial_rotary_factor"]
    config["torch_dtype"] = config.pop("dtype")
    (folder / "config.json").write_text(json.dumps(config))
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "add_prefix_space": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    answer = fairprune("prune", *pruned(fairprune, folder, prompts, quick, tmp_path / "run"))
    assert answer.code == 0, answer.err
    answers_alike(folder, tmp_path)
    answers_alike(tmp_path / "run" / "model", tmp_path)


def pruned(fairprune: Any, folder: Path, prompts: Path, quick: tuple[str, ...], run: Path) -> tuple[object, ...]:
    for command in ("audit", "score", "plan"):
        more = (folder, "--prompts", prompts, *quick) if command == "audit" else ()
        answer = fairprune(command, *more, "--output", run)
        assert answer.code == 0, answer.err
    return ("--output", run)


@pytest.mark.embedded
def test_the_embedded_model_and_what_is_made_of_it(
    fairprune: Any, prompts: Path, quick: tuple[str, ...], tmp_path: Path
) -> None:
    from fairprune_framework.models.loading import folder_of

    folder = folder_of("smollm2-135m")
    assert folder is not None
    answer = fairprune("prune", *pruned(fairprune, "smollm2-135m", prompts, quick, tmp_path / "run"))  # type: ignore[arg-type]
    assert answer.code == 0, answer.err
    answers_alike(folder, tmp_path, 1e-3)
    answers_alike(tmp_path / "run" / "model", tmp_path, 1e-3)
