"""Heads and key-value groups: removed as zeroed, read again as removed, restored as it was; alone and beside neurons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from fairprune_framework.api.types import Operator, Plan
from fairprune_framework.errors import UserError
from fairprune_framework.models.architecture import Architecture, recognise
from fairprune_framework.models.loading import load_model
from fairprune_framework.models.weights import fingerprint, weights_digest
from fairprune_framework.recipes.recipe import PluginSpec
from fairprune_framework.surgery.equality import logits_of
from fairprune_framework.surgery.partial import Part
from fairprune_framework.surgery.record import Removal
from fairprune_framework.surgery.removal import save_pruned_model
from fairprune_framework.surgery.restore import restore_folder, restored_model
from fairprune_framework.testing.tiny import save_tiny, tiny_tokenizer

IDS = torch.randint(3, 300, (1, 9), generator=torch.Generator().manual_seed(0))
FAMILIES = {"llama": {"attention_bias": True}, "qwen2": {}, "gemma2": {}}
"""Family -> further options: queries, keys and values of the first two have biases."""


def read(folder: Path) -> Any:
    return load_model(str(folder))[0]


def opened(tmp_path: Path, family: str, adapter: str, **options: Any) -> tuple[Any, Architecture]:
    model = read(save_tiny(tmp_path / "whole", family, **{**FAMILIES.get(family, {}), **options}))
    torch.manual_seed(3)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("bias"):
                value.normal_()
    model.save_pretrained(tmp_path / "whole")
    return model, recognise(model, PluginSpec(plugin=adapter))


def prune(
    tmp_path: Path,
    model: Any,
    found: Architecture,
    sites: dict[str, tuple[int, ...]],
    operator: Operator = "remove",
    **how: Any,
) -> Removal:
    plan = Plan(
        model="tiny",
        fingerprint=fingerprint(model),
        operator=operator,
        factor=0.5 if operator == "scale" else None,
        sites=sites,
        requested={},
        achieved={},
    )
    return save_pruned_model(
        model,
        tiny_tokenizer(),
        plan,
        found,
        tmp_path / "run" / "model",
        probe_ids=IDS,
        reload=read,
        restoration=tmp_path / "run" / "restoration.safetensors",
        original=tmp_path / "whole",
        **how,
    )


@torch.no_grad()
def without_groups(model: Any, sites: dict[str, tuple[int, ...]], per: int, dim: int) -> torch.Tensor:
    """Logits with the columns of whole groups at zero in `o_proj`: written without the code under test."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name, groups in sites.items():
        if name.endswith("self_attn"):
            weight = model.get_submodule(name).o_proj.weight
            weight.view(weight.shape[0], -1, per * dim)[:, list(groups)] = 0
        else:
            model.get_submodule(name).down_proj.weight[:, list(groups)] = 0
    try:
        return logits_of(model, IDS)
    finally:
        model.load_state_dict(state)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapter", ["kv-groups", "glu+kv-groups"])
def test_groups_are_removed_and_restored(family: str, adapter: str, tmp_path: Path) -> None:
    model, found = opened(tmp_path, family, adapter, num_attention_heads=8, num_key_value_heads=4, head_dim=8)
    before, digest = dict(model.config.to_dict()), weights_digest(model)
    sites = {name: (0, 3) if site.kind == "heads" else (1, 4, 7) for name, site in found.sites.items()}
    assert len(sites) == (2 if adapter == "kv-groups" else 4)
    done = prune(tmp_path, model, found, sites)
    assert (done.cut, done.padded, done.note) == (done.units, 0, None)
    assert {**model.config.to_dict(), "architectures": None} == {**before, "architectures": None}
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text(encoding="utf-8"))
    assert [config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim")] == [4, 2, 8]
    assert config["intermediate_size"] == (48 if adapter == "kv-groups" else 45)
    plain: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").eval()
    attention = plain.model.layers[1].self_attn
    assert [attention.q_proj.out_features, attention.v_proj.out_features, attention.o_proj.in_features] == [32, 16, 32]
    expected = without_groups(model, sites, 2, 8)
    assert (logits_of(plain, IDS) - expected).abs().max() < 1e-4
    assert (logits_of(model, IDS) - expected).abs().max() > 0.01
    again = plain.generate(IDS, max_new_tokens=4, do_sample=False)
    full = plain.generate(IDS, max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(again, full)  # the cache of keys and values has as many groups
    restored, _ = restored_model(tmp_path / "run" / "model")
    restore_folder(tmp_path / "run" / "model", tmp_path / "back")
    assert weights_digest(restored) == weights_digest(read(tmp_path / "back")) == digest
    assert torch.equal(logits_of(read(tmp_path / "back"), IDS), logits_of(model, IDS))


def test_one_layer_gets_its_groups_and_neurons_back(tmp_path: Path) -> None:
    model, found = opened(tmp_path, "qwen2", "glu+kv-groups")
    sites = {name: (1,) if site.kind == "heads" else (1, 4, 7) for name, site in found.sites.items()}
    prune(tmp_path, model, found, sites)
    done = restore_folder(
        tmp_path / "run" / "model",
        tmp_path / "back",
        part=Part(neurons=("model.layers.0.self_attn:1",)),
        architecture=PluginSpec(plugin="glu+kv-groups"),
    )
    assert (done.back, done.out) == (1, 7)
    kept = {name: units for name, units in sites.items() if name != "model.layers.0.self_attn"}
    assert (logits_of(read(tmp_path / "back"), IDS) - without_groups(model, kept, 2, 8)).abs().max() < 1e-4
    restore_folder(tmp_path / "back", tmp_path / "whole again")
    assert weights_digest(read(tmp_path / "whole again")) == weights_digest(model)


def test_layers_with_different_numbers_of_groups(tmp_path: Path) -> None:
    sites = {"model.layers.0.self_attn": (0, 1, 3), "model.layers.1.self_attn": (2,)}
    model, found = opened(tmp_path, "llama", "kv-groups", num_attention_heads=8, num_key_value_heads=4, head_dim=8)
    done = prune(tmp_path, model, found, sites, widths="exact")
    assert (done.cut, done.padded) == (4, 0)
    again = read(tmp_path / "run" / "model")
    assert [layer.self_attn.k_proj.out_features for layer in again.model.layers] == [8, 24]
    assert (logits_of(again, IDS) - without_groups(model, sites, 2, 8)).abs().max() < 1e-4
    restored, _ = restored_model(tmp_path / "run" / "model")
    assert weights_digest(restored) == weights_digest(model)


def test_a_number_of_heads_that_the_config_refuses_is_filled_with_zeros(tmp_path: Path) -> None:
    """Llama wants the hidden size, 32, to be a multiple of its heads: 6 cannot be stored, 4 can; Qwen2 takes both."""
    sites = {f"model.layers.{layer}.self_attn": (2,) for layer in (0, 1)}
    for family, cut in (("llama", 0), ("qwen2", 2)):
        folder = tmp_path / family
        model, found = opened(folder, family, "kv-groups", num_attention_heads=8, num_key_value_heads=4, head_dim=8)
        done = prune(folder, model, found, sites)
        assert (done.cut, done.padded) == (cut, 2 - cut)
        assert (logits_of(read(folder / "run" / "model"), IDS) - without_groups(model, sites, 2, 8)).abs().max() < 1e-4


@pytest.mark.parametrize("operator", ["zero", "scale"])
def test_single_query_heads_are_zeroed_or_scaled_and_not_removed(operator: Operator, tmp_path: Path) -> None:
    model, found = opened(tmp_path, "gemma2", "heads")
    sites = dict.fromkeys(found.sites, (1, 2))
    with pytest.raises(UserError, match="2 query heads share keys and values: --operator zero and scale keep them"):
        prune(tmp_path, model, found, sites)
    done = prune(tmp_path, model, found, sites, operator)
    assert (done.cut, done.units) == (0, 4)
    again = read(tmp_path / "run" / "model")
    for name in sites:
        old, new = (each.get_submodule(name) for each in (model, again))
        part = new.o_proj.weight[:, 8:24]
        assert torch.equal(part, old.o_proj.weight[:, 8:24] * (0.5 if operator == "scale" else 0.0))
        assert torch.equal(new.o_proj.weight[:, :8], old.o_proj.weight[:, :8])
        assert torch.equal(new.v_proj.weight, old.v_proj.weight)
    assert weights_digest(restored_model(tmp_path / "run" / "model")[0]) == weights_digest(model)
