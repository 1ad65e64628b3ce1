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
from fairprune_framework.surgery.partial import Part, without
from fairprune_framework.surgery.removal import save_pruned_model
from fairprune_framework.testing.families import small_model
from fairprune_framework.testing.tiny import FAMILIES, tiny_model, tiny_tokenizer

IDS = torch.randint(3, 500, (1, 8), generator=torch.Generator().manual_seed(0))


def reload(folder: Path) -> nn.Module:
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return model.eval()


def planned(model: nn.Module, counts: tuple[int, ...], operator: str) -> Plan:
    """Random units of each site, as many as `counts` says in turn; those of even index were chosen for a, of odd index for b."""
    architecture = recognise(model)
    draw = torch.Generator().manual_seed(1)
    sites = {
        name: tuple(sorted(torch.randperm(site.units, generator=draw)[: counts[place % len(counts)]].tolist()))
        for place, (name, site) in enumerate(architecture.sites.items())
    }
    words: dict[str, Any] = {"operator": operator, "category_names": ("a", "b")}
    words["categories"] = {name: tuple(1 + unit % 2 for unit in units) for name, units in sites.items()}
    if operator == "by unit":
        factors = {name: tuple(0.25 * (unit % 7) for unit in units) for name, units in sites.items()}
        words |= {"operator": "scale", "factors": factors}
    return Plan(model="tiny", fingerprint=fingerprint(model), sites=sites, requested={}, achieved={}, **words)


def carried_out(model: nn.Module, plan: Plan, folder: Path, widths: Any = "uniform") -> Path:
    file = folder / "restoration.safetensors"
    save_pruned_model(
        model,
        tiny_tokenizer(),
        plan,
        recognise(model),
        folder / "model",
        probe_ids=IDS,
        widths=widths,
        reload=lambda saved: fp.load_model(str(saved))[0],
        restoration=file,
    )
    return folder / "model"


def pruned(model: nn.Module, folder: Path, counts: tuple[int, ...], operator: str = "remove") -> Path:
    return carried_out(model, planned(model, counts, operator), folder)


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


PARTS: dict[str, dict[str, Any]] = {
    "layer": {"layers": (1,)},
    "category": {"categories": ("b",)},
    "both": {"layers": (0,), "categories": ("a",)},
    "one": {"neurons": ("FIRST",)},
}


@pytest.mark.parametrize(
    ("family", "counts", "operator", "widths", "what"),
    [
        ("llama", (19, 8), "remove", "uniform", "layer"),
        ("llama", (19, 8), "remove", "exact", "category"),
        ("llama", (7,), "by unit", "uniform", "both"),
        ("phi3", (9, 12), "remove", "exact", "both"),
        ("phi3", (7,), "zero", "uniform", "one"),
        ("mixtral", (9,), "remove", "uniform", "category"),
        ("mixtral", (8,), "remove", "exact", "layer"),
        ("mixtral", (7,), "by unit", "uniform", "one"),
        ("bitnet", (9, 12), "remove", "exact", "category"),
        ("bitnet", (7,), "zero", "uniform", "layer"),
        ("opt", (9, 12), "remove", "exact", "one"),
        ("opt", (7,), "by unit", "uniform", "category"),
        ("gpt2", (9, 12), "remove", "uniform", "category"),
        ("gpt2", (9, 12), "remove", "exact", "layer"),
    ],
)
def test_a_part_comes_back_as_if_it_had_not_been_planned(
    family: str, counts: tuple[int, ...], operator: str, widths: str, what: str, tmp_path: Path
) -> None:
    model: Any = tiny_model(family) if family in FAMILIES else small_model(family)
    plan = planned(model, counts, operator)
    sites = recognise(model).sites
    first = next(name for name, units in plan.sites.items() if units)
    asked = {
        name: tuple(each.replace("FIRST", f"{first}:{plan.sites[first][0]}") if name == "neurons" else each for each in value)
        for name, value in PARTS[what].items()
    }
    part = Part(**asked)
    rest = without(plan, part.of(plan, sites))
    assert 0 < rest.count < plan.count
    folder = carried_out(model, plan, tmp_path / "all", widths)
    expected, _ = fp.load_model(str(carried_out(model, rest, tmp_path / "rest", widths)))
    found, _ = fp.restore(folder, tmp_path / "some", **asked)
    on_disk, _ = fp.load_model(str(tmp_path / "some"))
    for each in (found, on_disk):
        state = each.state_dict()
        assert all(torch.equal(state[name], value) for name, value in expected.state_dict().items())
    assert json.loads((tmp_path / "some" / "config.json").read_text()) == json.loads(
        (tmp_path / "rest" / "model" / "config.json").read_text()
    )
    assert json.loads((tmp_path / "some" / "plan.json").read_text())["sites"] == {n: list(u) for n, u in rest.sites.items()}
    whole, _ = fp.restore(tmp_path / "some", tmp_path / "whole")
    assert all(torch.equal(whole.state_dict()[name], value) for name, value in model.state_dict().items())
    assert not (tmp_path / "whole" / "plan.json").exists()


def test_all_parts_are_the_whole(tmp_path: Path) -> None:
    folder = pruned(tiny_model("llama"), tmp_path, (8,))
    fp.restore(folder, tmp_path / "out", layers=(0, 1))
    assert not (tmp_path / "out" / "restoration.safetensors").exists()


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


def test_a_changed_value_in_the_file_is_found(fairprune: Any, tmp_path: Path) -> None:
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
    answer = fairprune("restore", folder, "--output", tmp_path / "out")
    assert (answer.code, len(answer.errors)) == (2, 1), answer.err
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


def test_a_part_from_the_command_line(fairprune: Any, finished: Path, tmp_path: Path) -> None:
    plan = json.loads((finished / "plan.json").read_text())
    name, units = next((name, units) for name, units in plan["sites"].items() if units)
    count = sum(map(len, plan["sites"].values()))
    out = tmp_path / "out"
    answer = fairprune("restore", finished, "--output", out, "--neuron", f"{name}:{units[0]}")
    assert answer.code == 0, answer.err
    assert f"1 neuron is back and {count - 1} still out" in answer.out
    layer = name.split(".")[2]
    answer = fairprune("restore", finished, "--output", tmp_path / "layer", "--layer", layer, "--json")
    assert json.loads(answer.out)["neurons_back"] >= len(units)
    category, total = plan["category_names"][0], 0
    for bits in plan["categories"].values():
        total += sum(each & 1 for each in bits)
    answer = fairprune("restore", finished, "--output", tmp_path / "of", "--category", category, "--json")
    assert json.loads(answer.out)["neurons_back"] == total, answer.err
    free = next(unit for unit in range(99) if unit not in units)
    for words, expected in (
        (("--neuron", f"{name}:{free}"), f"the plan did not take unit {free}"),
        (("--neuron", "0"), "--neuron must be SITE:I"),
        (("--neuron", f"{name}:100000"), "counted from 0. Got 100000"),
        (("--layer", "77"), "the plan took no neuron from layer 77; it did from"),
        (("--layer", "x"), "--layer must be the number of a layer"),
        (("--category", "nonsense"), "no category 'nonsense'; there is"),
        (("--neuron", f"{name}:{units[0]}", "--architecture", "nonsense"), "no architecture named 'nonsense'"),
    ):
        answer = fairprune("restore", finished, "--output", tmp_path / "no", *words)
        assert answer.code == 2, answer
        assert len(answer.errors) == 1
        assert expected in answer.errors[0]
        assert not (tmp_path / "no").exists()


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
    assert "--architecture says where" in refused(run, "--output", out, "--architecture", "glu")
    assert "restoration.safetensors" in refused(llama, "--output", out)
    (run / "restoration.safetensors").write_bytes(b"no tensors")
    assert "is damaged" in refused(run, "--output", out)
    save_file({"a": torch.ones(1)}, run / "restoration.safetensors")
    assert "is damaged" in refused(run, "--output", out)
    shutil.rmtree(run / "model")
    assert "holds no pruned model" in refused(run, "--output", out)
    assert not out.exists()
