"""`fairprune finetune`: a pruned model is trained, saved beside `model/`, reloads plainly, and nothing that was removed comes back."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import fairprune_framework as fp
from fairprune_framework.errors import UserError
from fairprune_framework.evaluation.metrics.names import DIVERGENCE
from fairprune_framework.evaluation.results import Evaluation
from fairprune_framework.models.loading import load_model
from fairprune_framework.recovery import finetune as recovery
from fairprune_framework.recovery import options
from fairprune_framework.recovery.training import RecoveryModule
from fairprune_framework.surgery.equality import logits_of
from fairprune_framework.utilities import files, lock

IDS = torch.randint(3, 300, (1, 9), generator=torch.Generator().manual_seed(0))
SHORT = ("--batch-tokens", "32", "--steps", "3", "--learning-rate", "1e-3", "--quiet")
FULL = ("--distill", "--method", "full", *SHORT)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "o"))


def leftovers(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if files.is_unfinished(path) or path.name == lock.FILE]


def test_the_folder_loads_plainly_and_the_verdict_is_added(fairprune: Any, run: Path, snapshot: Any) -> None:
    before = snapshot(run / "model")
    answer = fairprune("finetune", run, *FULL, "--perplexity-only")
    assert answer.code == 0, answer.err
    assert "VERDICT" not in answer.out
    assert snapshot(run / "model") == before
    pruned, trained = (json.loads((run / name / "config.json").read_text()) for name in ("model", "finetuned"))
    assert pruned == trained
    model, info = AutoModelForCausalLM.from_pretrained(run / "finetuned", dtype="auto", output_loading_info=True)
    assert not any(info.values())
    torch.testing.assert_close(
        logits_of(model.eval(), IDS), logits_of(load_model(str(run / "finetuned"))[0], IDS), rtol=0, atol=0
    )
    old, new = (load_file(run / name / "model.safetensors") for name in ("model", "finetuned"))
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {name for name in old if "embed" not in name and "lm_head" not in name}
    weights = snapshot(run / "finetuned" / "model.safetensors", times=True)
    answer = fairprune("finetune", run, *FULL, "--json")
    record = json.loads(answer.out)
    assert record["verdict"]["word"] == "not-judged"  # of five templates
    assert "not trained afterwards" in record["verdict"]["null"]
    assert snapshot(run / "finetuned" / "model.safetensors", times=True) == weights
    evaluated = json.loads((run / "finetuned" / "evaluation.json").read_text())
    assert evaluated["applied_by"] == "removal and training"
    assert set(record["files"]) >= {"config.json", "model.safetensors", "evaluation.json", "evaluation_items.parquet"}
    (row,) = (
        one for one in record["measures"] if one["metric"] == DIVERGENCE and one["split"] == "heldout" and not one["control"]
    )
    of_pruning = Evaluation.load(run).find(DIVERGENCE, split="heldout")
    assert of_pruning is not None
    assert (row["original"], row["pruned"]) == (of_pruning.before, of_pruning.after)
    assert row["finetuned"] not in (None, row["original"], row["pruned"])
    assert leftovers(run) == []


def test_other_options_are_refused_until_overwritten(fairprune: Any, run: Path) -> None:
    assert fairprune("finetune", run, *FULL, "--perplexity-only").code == 0
    first = (run / "finetuned" / "model.safetensors").read_bytes()
    answer = fairprune("finetune", run, *FULL, "--seed", "1", "--perplexity-only")
    assert (answer.code, len(answer.errors)) == (2, 1)
    assert "give --overwrite" in answer.err
    assert fairprune("finetune", run, *FULL, "--seed", "1", "--perplexity-only", "--overwrite").code == 0
    assert (run / "finetuned" / "model.safetensors").read_bytes() != first
    assert fairprune("finetune", run, *FULL, "--perplexity-only", "--overwrite").code == 0
    assert (run / "finetuned" / "model.safetensors").read_bytes() == first
    (run / "finetuned" / "model.safetensors").write_bytes(first[:-4] + b"\0\0\0\1")
    answer = fairprune("finetune", run, *FULL, "--perplexity-only")
    assert (answer.code, len(answer.errors)) == (2, 1)
    assert "is damaged" in answer.err


def test_adapters_are_merged(fairprune: Any, run: Path) -> None:
    pytest.importorskip("peft")
    record = fp.finetune(run, text="builtin:en", batch_tokens=64, steps=3, learning_rate=1e-2, rank=2, verdict=False)
    old, new = (load_file(run / name / "model.safetensors") for name in ("model", "finetuned"))
    assert old.keys() == new.keys()
    assert {name for name in old if not torch.equal(old[name], new[name])} == {name for name in old if "_proj" in name}
    assert not (run / "finetuned" / "adapter_config.json").exists()
    assert set(record["perplexity"]) == {"held-out text", "judging text"}
    again = fp.finetune(
        run, run.parent / "two", text="builtin:en", batch_tokens=64, steps=3, learning_rate=1e-2, rank=2, verdict=False
    )
    assert again["hashes"] == record["hashes"]


def test_zeroed_neurons_stay_zero_and_dtypes_stay(
    fairprune: Any, llama: Path, prompts: Path, quick: Any, tmp_path: Path
) -> None:
    model, tokenizer = load_model(str(llama), dtype="bfloat16")
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "half")  # type: ignore[operator]
    run = tmp_path / "o"
    for words in (
        ("audit", tmp_path / "half", "--prompts", prompts, *quick),
        ("score",),
        ("plan", "--operator", "zero"),
        ("prune",),
    ):
        answer = fairprune(*words, "--output", run)
        assert answer.code == 0, answer.err
    methods = ["full"] + (["lora"] if options.find_spec("peft") else [])
    for method in methods:
        record = fp.finetune(
            run, tmp_path / method, method=method, distill=True, batch_tokens=32, steps=3, learning_rate=1e-2, verdict=False
        )
        old, new = (load_file(folder / "model.safetensors") for folder in (run / "model", tmp_path / method))
        assert {tensor.dtype for tensor in new.values()} == {torch.bfloat16}
        assert record["held"] > 0
        changed = 0
        for site, units in json.loads((run / "plan.json").read_text())["sites"].items():
            place = site if site.endswith("mlp") else f"{site}.mlp"
            for name in ("gate_proj", "up_proj", "down_proj"):
                full = next(key for key in new if key.endswith(f"{place}.{name}.weight"))
                rows = new[full].T if name == "down_proj" else new[full]
                assert not rows[units].any()
                changed += not torch.equal(new[full], old[full])
        assert changed


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("none", "--distill", "--method", "full"), "there is no run folder none"),
        (("o", "--method", "full"), "nothing to train on"),
        (("o", "--text", "empty.txt", "--method", "full"), "yields 0 documents"),
        (("o", "--text", "none.txt", "--method", "full"), "there is no training text none.txt"),
        (("o", "--distill", "--method", "full"), "64 tokens can be trained on, less than one step takes"),
        (("o", *FULL, "--output", "o/model"), "holds what is trained"),
        (("o", *FULL, "--output", "o"), "holds what is trained"),
        (("o", *FULL, "--output", "taken"), "holds no finetuned model"),
        (("o", *FULL, "--output", "empty.txt"), "empty.txt is a file"),
        (("o", *FULL, "--output", ""), "must not be empty"),
        (("o", *FULL, "--steps", "x"), "--steps must be a whole number. Got 'x' instead"),
        (("o", *FULL, "--learning-rate", "nan"), "--learning-rate must be a number. Got 'nan' instead"),
    ],
)
def test_bad_input(
    words: tuple[str, ...], expected: str, fairprune: Any, run: Path, snapshot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parent)
    Path("empty.txt").write_text("")
    Path("taken").mkdir()
    Path("taken/mine").write_text("x")
    before = snapshot(run.parent)
    answer = fairprune("finetune", *words)
    assert (answer.code, len(answer.errors)) == (2, 1), answer.err
    assert expected in answer.err
    assert snapshot(run.parent) == before


def test_a_run_without_a_model(fairprune: Any, run: Path) -> None:
    shutil.rmtree(run / "model")
    answer = fairprune("finetune", run, *FULL)
    assert (answer.code, len(answer.errors)) == (2, 1)
    assert "holds no pruned model" in answer.err


def test_without_peft(fairprune: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    answer = fairprune("finetune", run, "--distill", *SHORT)
    assert (answer.code, len(answer.errors)) == (2, 1)
    assert "pip install 'fairprune_framework[finetune]'" in answer.err


def test_a_second_writer_is_refused(run: Path) -> None:
    import fcntl

    with (run / lock.FILE).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="is being written"):
            fp.finetune(run, distill=True, method="full", batch_tokens=32, steps=1)


def test_sigterm_while_training_leaves_nothing(
    fairprune: Any, run: Path, snapshot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = RecoveryModule.training_step

    def stopped(self: Any, *args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    before = snapshot(run)
    with monkeypatch.context() as patch:
        patch.setattr(RecoveryModule, "training_step", stopped)
        assert fairprune("finetune", run, *FULL).code == 143
    assert snapshot(run) == before
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN


def test_a_full_disk_leaves_nothing(fairprune: Any, run: Path, snapshot: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **more: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = snapshot(run)
    monkeypatch.setattr(recovery, "save_like", full)
    answer = fairprune("finetune", run, *FULL)
    assert answer.code == 1
    assert "the disk is full" in answer.err
    assert snapshot(run) == before
