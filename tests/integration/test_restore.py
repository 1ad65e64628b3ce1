"""Restoring gives back, bit by bit, the model that was pruned: for every layout of weights, and from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

import fairprune_framework as fp
from fairprune_framework.api.types import Plan
from fairprune_framework.errors import UserError, VerificationFailed
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.weights import fingerprint
from fairprune_framework.surgery.removal import save_pruned_model
from fairprune_framework.testing.tiny import tiny_model, tiny_tokenizer

IDS = torch.randint(3, 500, (1, 8), generator=torch.Generator().manual_seed(0))


def reload(folder: Path) -> nn.Module:
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return model.eval()


def pruned(model: nn.Module, folder: Path, counts: tuple[int, ...], operator: Any = "remove") -> Path:
    """Random units of each site go, as many as `counts` says in turn."""
    architecture = recognise(model)
    draw = torch.Generator().manual_seed(1)
    sites = {
        name: tuple(sorted(torch.randperm(site.units, generator=draw)[: counts[place % len(counts)]].tolist()))
        for place, (name, site) in enumerate(architecture.sites.items())
    }
    words: dict[str, Any] = {"operator": operator}
    if operator == "by unit":
        factors = {name: tuple(0.25 * (unit % 7) for unit in units) for name, units in sites.items()}
        words = {"operator": "scale", "factors": factors}
    plan = Plan(model="tiny", fingerprint=fingerprint(model), sites=sites, requested={}, achieved={}, **words)
    file = folder / "restoration.safetensors"
    save_pruned_model(
        model, tiny_tokenizer(), plan, architecture, folder / "model", probe_ids=IDS, reload=reload, restoration=file
    )
    return folder / "model"


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "phi3", "mixtral"])
@pytest.mark.parametrize(
    ("counts", "operator"), [((16,), "remove"), ((19, 8), "remove"), ((9, 0), "remove"), ((7,), "zero"), ((7,), "by unit")]
)
def test_every_weight_comes_back(family: str, counts: tuple[int, ...], operator: str, tmp_path: Path) -> None:
    model: Any = tiny_model(family)
    folder = pruned(model, tmp_path, counts, operator)
    changed: Any = reload(folder)
    assert not torch.equal(changed(input_ids=IDS).logits, model(input_ids=IDS).logits)
    again, _ = fp.restore(folder, tmp_path / "original")
    on_disk = reload(tmp_path / "original")
    assert again.config.get_text_config().intermediate_size == model.config.get_text_config().intermediate_size
    for found in (again, on_disk):
        state = found.state_dict()
        assert list(state) == list(model.state_dict())
        for name, value in model.state_dict().items():
            assert state[name].dtype == value.dtype
            assert torch.equal(state[name], value), name


def test_bfloat16_comes_back_in_bfloat16(tmp_path: Path) -> None:
    tiny_model("llama").bfloat16().save_pretrained(tmp_path / "whole")  # type: ignore[operator]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.bfloat16).eval()
    again, _ = fp.restore(pruned(model, tmp_path, (8,)))
    for name, value in model.state_dict().items():
        assert again.state_dict()[name].dtype == torch.bfloat16
        assert torch.equal(again.state_dict()[name], value), name


def test_what_belongs_to_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    pruned(tiny_model("llama"), tmp_path / "one", (8,))
    other = pruned(tiny_model("llama", seed=1), tmp_path / "two", (8,))
    with pytest.raises(UserError, match="the restoration is for another model"):
        fp.restore(other, tmp_path / "out", restoration=tmp_path / "one" / "restoration.safetensors")
    assert not (tmp_path / "out").exists()


def test_a_changed_value_in_the_file_is_found(tmp_path: Path) -> None:
    from safetensors import safe_open

    folder = pruned(tiny_model("llama"), tmp_path, (8,))
    path = tmp_path / "restoration.safetensors"
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] += 1e-3
    save_file(tensors, path, metadata=header)
    with pytest.raises(VerificationFailed, match="damaged"):
        fp.restore(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("bit", "error"), [(0, VerificationFailed), (30, UserError)], ids=["below rounding", "large"])
def test_a_change_of_a_weight_that_was_not_pruned_is_found(bit: int, error: type[Exception], tmp_path: Path) -> None:
    folder = pruned(tiny_model("llama"), tmp_path, (8,))
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"].view(torch.int32)[5, 3] ^= 1 << bit
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(error):
        fp.restore(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_from_the_command_line(fairprune: Any, finished: Path, llama: Path, tmp_path: Path) -> None:
    answer = fairprune("restore", finished, "--output", tmp_path / "original", "--json")
    assert answer.code == 0, answer.err
    original, again = reload(llama), reload(tmp_path / "original")
    assert json.loads(answer.out)["fingerprint"] == fingerprint(original)
    for name, value in original.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert (tmp_path / "original" / "tokenizer.json").is_file()
    assert "bit by bit the original" in fairprune("restore", finished / "model", "--output", tmp_path / "two").out


def test_bad_input_is_one_line(fairprune: Any, finished: Path, llama: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    out = tmp_path / "out"

    def refused(*words: Any) -> str:
        answer = fairprune("restore", *words)
        assert answer.code == 2, answer
        assert len(answer.errors) == 1
        return str(answer.errors[0])

    assert "neither a run folder" in refused(tmp_path / "nothing", "--output", out)
    assert "is not empty" in refused(run, "--output", run / "model")
    assert "restoration.safetensors" in refused(llama, "--output", out)
    (run / "restoration.safetensors").write_bytes(b"no tensors")
    assert "is damaged" in refused(run, "--output", out)
    save_file({"a": torch.ones(1)}, run / "restoration.safetensors")
    assert "is damaged" in refused(run, "--output", out)
    shutil.rmtree(run / "model")
    assert "holds no pruned model" in refused(run, "--output", out)
    assert not out.exists()
