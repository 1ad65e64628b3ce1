"""`--widths exact`: for every layout smaller by what was planned, read with its own code and without, restored, pruned again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

import fairprune_framework as fp
from fairprune_framework.api.types import Plan
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.loading import load_model
from fairprune_framework.models.uneven import FIELD, FILE
from fairprune_framework.models.weights import fingerprint
from fairprune_framework.surgery.equality import logits_of
from fairprune_framework.surgery.record import Removal
from fairprune_framework.surgery.removal import save_pruned_model
from fairprune_framework.surgery.slices import unit_parameters
from fairprune_framework.testing.families import small_model
from fairprune_framework.testing.tiny import FAMILIES, tiny_model, tiny_tokenizer

IDS = torch.randint(3, 300, (1, 9), generator=torch.Generator().manual_seed(0))
LAYOUTS = (
    *FAMILIES,
    *("opt", "gpt_neox", "bert", "nemotron_h", "gpt2", "bitnet", "bloom", "recurrent_gemma"),
    *("gemma3n_text", "qwen2_moe", "deepseek_v3", "aria_text", "gpt_oss"),
)


@pytest.fixture(autouse=True)
def own_auto_classes() -> Iterator[None]:
    """transformers keeps the code that it ran as the class of the family, for the rest of the process."""
    auto: list[Any] = [AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText]
    before = [dict(each._model_mapping._extra_content) for each in auto]
    yield
    for each, content in zip(auto, before, strict=True):
        each._model_mapping._extra_content = content


def whole(layout: str, folder: Path) -> Any:
    model: Any = tiny_model(layout) if layout in FAMILIES else small_model(layout)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return load_model(str(folder))[0]


def prune(model: Any, source: Path, folder: Path, *, seed: int = 1, least: int = 3) -> tuple[Removal, Plan]:
    """Another number of units goes from each site; of experts in one tensor equally many, a multiple of eight."""
    architecture = recognise(model)
    draw = torch.Generator().manual_seed(seed)
    sites = {}
    for place, (name, site) in enumerate(architecture.sites.items()):
        count = 8 if site.kind == "expert" else least + 2 * (place % 3)
        sites[name] = tuple(sorted(torch.randperm(site.units, generator=draw)[:count].tolist()))
    plan = Plan(model="tiny", fingerprint=fingerprint(model), operator="remove", sites=sites, requested={}, achieved={})
    done = save_pruned_model(
        model,
        tiny_tokenizer(),
        plan,
        architecture,
        folder / "model",
        probe_ids=IDS,
        widths="exact",
        reload=lambda saved: load_model(str(saved))[0],
        restoration=folder / "restoration.safetensors",
        original=source,
    )
    return done, plan


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layer_is_stored_in_its_own_width(layout: str, tmp_path: Path) -> None:
    model = whole(layout, tmp_path / "whole")
    sites = recognise(model).sites
    done, plan = prune(model, tmp_path / "whole", tmp_path / "run")
    gone = sum(len(units) * unit_parameters(model, sites[name]) for name, units in plan.sites.items())
    assert (done.cut, done.padded, done.note) == (plan.count, 0, None)
    assert done.parameters_before - done.parameters_after == gone
    assert done.bytes_before - done.bytes_after == pytest.approx(4 * gone, abs=256)  # shapes in the header are shorter
    ours, _ = load_model(str(tmp_path / "run" / "model"))
    expected = logits_of(ours, IDS)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model", trust_remote_code=True, dtype="auto").eval()
    assert torch.equal(logits_of(theirs, IDS), expected)
    fp.restore(tmp_path / "run" / "model", tmp_path / "original")
    assert not (tmp_path / "original" / FILE).exists()
    assert (tmp_path / "original" / "config.json").read_bytes() == (tmp_path / "whole" / "config.json").read_bytes()
    again, _ = load_model(str(tmp_path / "original"))
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_auto_classes_know_uneven_models_once_this_package_is_imported(tmp_path: Path) -> None:
    model = whole("llama", tmp_path / "whole")
    prune(model, tmp_path / "whole", tmp_path / "run")
    folder = tmp_path / "run" / "model"
    expected = logits_of(load_model(str(folder))[0], IDS)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
    assert type(plain).__module__ == "transformers.models.llama.modeling_llama"
    assert torch.equal(logits_of(plain, IDS), expected)
    trunk = AutoModel.from_pretrained(folder, dtype="auto")
    assert trunk.layers[0].mlp.up_proj.weight.shape == plain.model.layers[0].mlp.up_proj.weight.shape
    prompts = torch.randint(3, 300, (8, 5), generator=torch.Generator().manual_seed(2))
    ours, _ = load_model(str(folder))
    theirs = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto").eval()
    assert type(theirs).__module__.startswith("transformers_modules.")
    words: Any = {"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False}
    answers = [each.generate(prompts, **words) for each in (ours, theirs, plain)]
    assert answers[0].shape == (8, 69)
    assert all(torch.equal(each, answers[0]) for each in answers[1:])


def test_an_uneven_model_is_pruned_again_and_restored_in_two_steps(tmp_path: Path) -> None:
    model = whole("llama", tmp_path / "whole")
    prune(model, tmp_path / "whole", tmp_path / "one")
    first = tmp_path / "one" / "model"
    uneven, _ = load_model(str(first))
    done, plan = prune(uneven, first, tmp_path / "two", seed=2)
    assert done.cut == plan.count
    second = tmp_path / "two" / "model"
    fp.restore(second, tmp_path / "back")
    assert (
        json.loads((tmp_path / "back" / "config.json").read_text())[FIELD]
        == json.loads((first / "config.json").read_text())[FIELD]
    )
    assert fingerprint(load_model(str(tmp_path / "back"))[0]) == fingerprint(uneven)


def test_a_model_without_an_original_on_disk_is_saved_unevenly(tmp_path: Path) -> None:
    model: Any = tiny_model("llama")
    architecture = recognise(model)
    sites = {name: tuple(range(place + 1)) for place, name in enumerate(architecture.sites)}
    plan = Plan(model="m", fingerprint=fingerprint(model), operator="remove", sites=sites, requested={}, achieved={})
    folder = tmp_path / "model"
    done = save_pruned_model(
        model,
        tiny_tokenizer(),
        plan,
        architecture,
        folder,
        probe_ids=IDS,
        widths="exact",
        reload=lambda it: load_model(str(it))[0],
    )
    assert done.cut == plan.count
    assert done.bytes_after < done.bytes_before + 4096


def test_from_the_command_line(fairprune: Any, llama: Path, prompts: Path, tmp_path: Path) -> None:
    words = [
        "--prompts",
        prompts,
        "--recipe",
        "variance",
        "--policy",
        "protected-global",
        "--budget",
        "0.1",
        "--force",
        "--quiet",
    ]
    words += ["--calibration-tokens", "16", "--calibration-documents", "8", "--widths", "exact", "--random-sets", "0"]
    answer = fairprune("run", llama, *words, "--output", tmp_path / "run")
    assert answer.code == 0, answer.err
    removal = json.loads((tmp_path / "run" / "run.json").read_text())["removal"]
    assert removal["padded"] == 0
    assert removal["parameters_after"] < removal["parameters_before"]
    assert f"{removal['parameters_before']:,} -> {removal['parameters_after']:,} parameters" in answer.out
    assert FIELD in json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    back = fairprune("restore", tmp_path / "run", "--output", tmp_path / "original")
    assert back.code == 0, back.err
