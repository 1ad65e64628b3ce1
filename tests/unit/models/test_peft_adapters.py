"""An adapter beside or inside a model is never left out in silence."""

from __future__ import annotations

import json
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from fairprune_framework.errors import UserError
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.peft_adapters import refuse_adapter_folder
from fairprune_framework.testing.tiny import tiny_model

LORA = {"peft_type": "LORA", "base_model_name_or_path": "acme/base", "r": 4, "target_modules": ["q_proj"]}


@pytest.mark.parametrize("beside", [True, False])
def test_a_folder_with_an_adapter_is_refused(
    beside: bool, tmp_path: Path, llama: Path, prompts: Path, fairprune: Callable[..., Any]
) -> None:
    model = tmp_path / "m"
    if beside:
        shutil.copytree(llama, model)
    else:
        model.mkdir()
    (model / "adapter_config.json").write_text(json.dumps(LORA))
    for command in (("audit", model), ("evaluate", model)):
        answer = fairprune(*command, "--prompts", prompts, "--output", tmp_path / "o")
        assert answer.code == 2
        assert len(answer.errors) == 1
        assert "holds a PEFT adapter ('LORA' of 'acme/base')" in answer.err
        assert "merge_and_unload().save_pretrained" in answer.err
        assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("text", ["", "[1]", '{"peft_type": 3}', '{"base_model_name_or_path": ["x"]}', "\xff"])
def test_a_damaged_adapter_is_refused_too(text: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="holds a PEFT adapter"):
        refuse_adapter_folder(tmp_path)


@pytest.mark.parametrize("place", ["model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"])
def test_modules_of_peft_in_memory_are_refused(place: str) -> None:
    class LoraLayer(nn.Linear):
        pass

    LoraLayer.__module__ = types.ModuleType("peft.tuners.lora.layer").__name__  # what PEFT's own modules say of themselves
    model: Any = tiny_model("llama")
    found = model.get_submodule(place)
    model.set_submodule(place, LoraLayer(found.in_features, found.out_features))
    with pytest.raises(UserError, match=rf"holds a PEFT adapter \(LoraLayer at {place}\): pass model.merge_and_unload"):
        recognise(model)
