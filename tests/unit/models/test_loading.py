"""Models from folders, and what is said where there is none; fingerprints."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fairprune_framework.errors import FairpruneError, UserError
from fairprune_framework.models.loading import (
    context_length,
    limits_of,
    load_model,
    load_tokenizer,
    parameter_count,
    quietly,
    refuse_infinite,
)
from fairprune_framework.testing.families import small_model
from fairprune_framework.testing.tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def copied(llama: Path, tmp_path: Path) -> Path:
    """A tiny Llama that may be damaged."""
    return Path(shutil.copytree(llama, tmp_path / "model"))


def rewritten(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_folder_is_loaded_as_transformers_loads_it(llama: Path) -> None:
    model, tokenizer = load_model(str(llama))
    expected: Any = AutoModelForCausalLM.from_pretrained(llama)
    assert not model.training
    theirs = dict(expected.named_parameters())
    assert all(value.equal(theirs[name]) for name, value in model.named_parameters())
    text = "The nurse walked home ."
    assert tokenizer(text)["input_ids"] == AutoTokenizer.from_pretrained(llama)(text)["input_ids"]
    assert load_tokenizer(str(llama))(text)["input_ids"] == tokenizer(text)["input_ids"]
    rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    assert limits_of(str(llama)) == (context_length(model), rows) == (512, 656)
    assert parameter_count(model) == expected.num_parameters()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_dtypes(llama: Path, dtype: str) -> None:
    model, _ = load_model(str(llama), dtype=dtype)
    assert {value.dtype for value in model.parameters()} == {getattr(torch, dtype)}


def test_a_missing_weight_is_never_made_up(copied: Path) -> None:
    rewritten(copied, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(UserError, match=r"is incomplete: its files contain no model\.layers\.1\.mlp\.up_proj\.weight \(1 "):
        load_model(str(copied))


def test_a_weight_of_another_shape_is_named(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "intermediate_size": 40}))
    with pytest.raises(UserError, match=r"down_proj\.weight is \(32, 48\), the config says \(32, 40\)"):
        load_model(str(copied))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_damaged_weight_is_named(copied: Path, value: float) -> None:
    rewritten(copied, lambda weights: weights["model.norm.weight"].__setitem__(3, value))
    with pytest.raises(FairpruneError, match=r"are damaged: model\.norm\.weight holds NaN or Inf"):
        load_model(str(copied))


def test_sums_that_overflow_are_no_damage() -> None:
    """Finite weights of which the sum is not: they are looked at one by one."""
    refuse_infinite("model", "weight", torch.full((4,), 3e38))
    with pytest.raises(UserError, match="weight holds NaN or Inf"):
        refuse_infinite("model", "weight", torch.tensor([3e38, 3e38, float("nan")]))


def test_a_stored_buffer_is_a_weight(tmp_path: Path) -> None:
    model: Any = small_model("deepseek_v3")
    (bias,) = {name for name, _ in model.named_buffers() if name.endswith("layers.1.mlp.gate.e_score_correction_bias")}
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    load_model(str(tmp_path))
    rewritten(tmp_path, lambda weights: weights[bias].__setitem__(0, float("nan")))
    with pytest.raises(UserError, match=rf"the weights of .* are damaged: {re.escape(bias)} holds NaN"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "no model is named"),
        ("  ", "no model is named"),
        ("./nowhere", "there is no model folder ./nowhere"),
        ("/nowhere/model", "there is no model folder"),
        ("a/b/c", "there is no model folder a/b/c"),
        ("nowhere.gguf", "there is no model file nowhere.gguf"),
        ("smollm2-136m", "Did you mean 'smollm2-135m'?"),
    ],
)
def test_no_such_model(name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for load in (load_model, load_tokenizer, limits_of):
        with pytest.raises(UserError) as caught:
            load(name)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a model: it contains no config\.json"):
        load_model(str(tmp_path))
    file = tmp_path / "model.bin"
    file.write_text("x")
    with pytest.raises(UserError, match=r"is a file, but not a \.gguf file"):
        load_model(str(file))


def test_a_broken_config_is_one_line(copied: Path) -> None:
    (copied / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot load the model") as caught:
        load_model(str(copied))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["config.json", "model.safetensors.index.json"])
def test_a_key_that_occurs_twice(field: str, copied: Path) -> None:
    """transformers would take the last one, without a word."""
    (copied / field).write_text('{"vocab_size": 5, "vocab_size": 6}')
    with pytest.raises(UserError, match="the key 'vocab_size' occurs twice"):
        load_model(str(copied))


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_tokenizer_that_takes_no_text(load: Callable[[str], Any], copied: Path) -> None:
    config = json.loads((copied / "tokenizer_config.json").read_text())
    (copied / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": "x"}))
    with pytest.raises(UserError, match=r"cannot load the model .*: TypeError"):
        load(str(copied))


def test_quiet_is_undone(capsys: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity()
    with pytest.raises(ValueError, match="stop"), quietly():
        assert logging.get_verbosity() == logging.ERROR
        print("bar", file=sys.stderr)
        raise ValueError("stop")
    assert logging.get_verbosity() == before
    assert capsys.readouterr().err == ""


# -- parameters ------------------------------------------------------------------------------------------------------------


def test_tied_weights_count_once() -> None:
    tied: Any = tiny_model("llama", tie_word_embeddings=True)
    assert parameter_count(tied) == tied.num_parameters()
    assert parameter_count(tiny_model("llama")) - parameter_count(tied) == tied.lm_head.weight.numel()


def test_a_sentencepiece_model_without_the_package(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    folder = Path(shutil.copytree(llama, tmp_path / "m"))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    monkeypatch.setattr("fairprune_framework.models.loading.find_spec", lambda name: None)
    for load in (load_model, load_tokenizer):
        with pytest.raises(UserError, match=r"reading tokenizer\.model needs sentencepiece: pip install sentencepiece"):
            load(str(folder))
    (folder / "tokenizer.model").write_bytes(b"IQ== 0\n")  # lines of tiktoken: another package
    with pytest.raises(UserError, match="tiktoken"):
        load_tokenizer(str(folder))
