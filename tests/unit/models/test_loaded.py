"""The model of a run: loaded once and when asked for, the same under a recipe that does not concern it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fairprune_framework.errors import UserError
from fairprune_framework.models import loading
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.loaded import LoadedModel
from fairprune_framework.models.weights import fingerprint
from fairprune_framework.recipes.recipe import PluginSpec, Recipe
from fairprune_framework.testing.tiny import tiny_model, tiny_tokenizer


def test_it_is_loaded_once_and_when_asked_for(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    real = loading.load_model
    monkeypatch.setattr(loading, "load_model", lambda name, **words: calls.append(name) or real(name, **words))
    loaded = LoadedModel(Recipe(model=str(llama), accelerator="cpu"))
    assert (loaded.name, loaded.in_memory, calls) == (str(llama), False, [])
    model = loaded.model
    assert loaded.model is model
    assert loaded.tokenizer("A man")["input_ids"] == tiny_tokenizer()("A man")["input_ids"]
    assert calls == [str(llama)]
    assert loaded.fingerprint == fingerprint(real(str(llama))[0])
    assert loaded.layers == (0, 1)
    assert loaded.architecture.sites == recognise(model).sites
    assert loaded.encoder.limit == 512


def test_options_of_loading_reach_the_model(llama: Path) -> None:
    loaded = LoadedModel(Recipe(model=str(llama), dtype="bfloat16", accelerator="cpu"))
    assert {value.dtype for value in loaded.model.parameters()} == {torch.bfloat16}
    named = LoadedModel(Recipe(model="elsewhere", accelerator="cpu"), place=str(llama))
    assert named.model.get_parameter("lm_head.weight").shape[1] == 32
    assert named.name == "elsewhere"


def test_a_model_in_memory() -> None:
    model: Any = tiny_model("llama")
    loaded = LoadedModel(Recipe(), model=model, tokenizer=tiny_tokenizer())
    assert (loaded.model, loaded.name, loaded.in_memory) == (model, "in-memory", True)
    with pytest.raises(UserError, match="needs its tokenizer"):
        _ = LoadedModel(Recipe(), model=model).model
    with pytest.raises(UserError, match="no model is named"):
        _ = LoadedModel(Recipe()).model


def test_only_what_concerns_the_model_makes_another_one(llama: Path) -> None:
    recipe = Recipe(model=str(llama), accelerator="cpu")
    loaded = LoadedModel(recipe, place=str(llama))
    assert loaded.under(replace(recipe, budget="3n", seed=5, prompts="x")) is loaded
    changes: list[dict[str, Any]] = [
        {"model": "other"},
        {"dtype": "bfloat16"},
        {"revision": "r"},
        {"chat_template": True},
        {"architecture": PluginSpec(plugin="glu")},
        {"trust_remote_code": True},
    ]
    for change in changes:
        other = loaded.under(replace(recipe, **change))
        assert other is not loaded, change
        assert (other._place is None) is ("model" in change)
    given = LoadedModel(recipe, model=tiny_model("llama"), tokenizer=tiny_tokenizer())
    assert given.under(replace(recipe, dtype="bfloat16")).in_memory


def test_an_accelerator_that_is_not_there() -> None:
    assert LoadedModel(Recipe(accelerator="cpu")).device == torch.device("cpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--accelerator gpu: PyTorch finds none on this machine"):
            _ = LoadedModel(Recipe(accelerator="gpu")).device


def test_sites_that_no_token_reaches_are_told() -> None:
    model: Any = tiny_model("mixtral")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "mlp.gate" in name:
                value.zero_()
    heard: list[str] = []
    _ = LoadedModel(Recipe(), model=model, tokenizer=tiny_tokenizer(), notify=heard.append).architecture
    assert heard == ["4 sites could not be verified: no token reached them"]


def test_a_model_that_fsdp2_has_sharded_is_refused(llama: Path, tmp_path: Path) -> None:
    """Under `inference_mode` its parameters could not be gathered."""
    import torch
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    from fairprune_framework.models.loading import load_model

    model, tokenizer = load_model(str(llama))
    distributed.init_process_group("gloo", store=distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        fully_shard(model, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))
        with pytest.raises(UserError, match="is sharded over a device mesh"):
            _ = LoadedModel(Recipe(), model=model, tokenizer=tokenizer).model
    finally:
        distributed.destroy_process_group()
