"""Uneven widths: what a config and a modelling file say, and who reads them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, LlamaForCausalLM

from fairprune_framework.errors import UserError
from fairprune_framework.models.loading import load_model
from fairprune_framework.models.uneven import FIELD, FILE, check_plain, forget, mark, narrow, put, source_of, uneven_shapes
from fairprune_framework.testing.tiny import tiny_model, tiny_tokenizer

IDS = torch.randint(3, 300, (2, 9), generator=torch.Generator().manual_seed(0))
NAMES = [f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")]


def cut(model: Any, width: int = 29) -> Any:
    """The first layer keeps its first neurons."""
    mlp = model.model.layers[0].mlp
    for linear in (mlp.gate_proj, mlp.up_proj):
        put(linear, "weight", nn.Parameter(linear.weight.detach()[:width].clone()))
    put(mlp.down_proj, "weight", nn.Parameter(mlp.down_proj.weight.detach()[:, :width].clone()))
    return model


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Any, Path]:
    """An uneven Llama in memory, and its folder."""
    model: Any = cut(tiny_model("llama"))
    folder = tmp_path / "uneven"
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    mark(folder, model, NAMES)
    return model, folder


def test_shapes_are_those_that_the_config_does_not_say() -> None:
    model: Any = cut(tiny_model("llama"))
    hidden = model.config.hidden_size
    assert uneven_shapes(model, [*NAMES, "lm_head.weight", "model.layers.1.mlp.up_proj.weight"]) == {
        NAMES[2]: [hidden, 29],
        NAMES[0]: [29, hidden],
        NAMES[1]: [29, hidden],
    }
    assert (model.model.layers[0].mlp.up_proj.out_features, model.model.layers[0].mlp.down_proj.in_features) == (29, 29)


@torch.no_grad()
def test_transformers_with_its_code_and_load_model_without_read_the_same(saved: tuple[Any, Path]) -> None:
    model, folder = saved
    ours, _ = load_model(str(folder))
    assert type(ours) is LlamaForCausalLM
    theirs = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    trunk = AutoModel.from_pretrained(folder, trust_remote_code=True)  # what vLLM builds
    expected = model(input_ids=IDS).logits
    assert torch.equal(ours(input_ids=IDS).logits, expected)
    assert torch.equal(theirs(input_ids=IDS).logits, expected)
    assert torch.equal(model.lm_head(trunk(input_ids=IDS).last_hidden_state), expected)
    assert theirs.model.layers[0].mlp.up_proj.out_features == 29


def test_the_file_needs_no_package_of_ours(saved: tuple[Any, Path]) -> None:
    text = (saved[1] / FILE).read_text()
    assert text == source_of(saved[0])
    imports = {line for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert not [line for line in imports if "fairprune" in line]
    assert len(text.splitlines()) < 60
    content = json.loads((saved[1] / "config.json").read_text())
    assert content["auto_map"] == {
        "AutoModel": "modeling_uneven.LlamaModel",
        "AutoModelForCausalLM": "modeling_uneven.LlamaForCausalLM",
    }


def test_a_model_that_is_whole_again_has_neither_field_nor_file(saved: tuple[Any, Path]) -> None:
    model, folder = load_model(str(saved[1]))[0], saved[1]
    whole: Any = tiny_model("llama")
    for name in NAMES:
        path, _, attribute = name.rpartition(".")
        put(model.get_submodule(path), attribute, whole.get_parameter(name))
    mark(folder, model, NAMES)
    assert not {FIELD, "auto_map"} & json.loads((folder / "config.json").read_text()).keys()
    assert not (folder / FILE).exists()
    forget(model, NAMES)
    assert not {FIELD, "auto_map"} & vars(model.config).keys()


def test_a_class_of_the_user_is_refused() -> None:
    class Own(LlamaForCausalLM):
        pass

    with pytest.raises(UserError, match="--widths exact needs a class of transformers, and Own comes from"):
        check_plain(Own(tiny_model("llama").config))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [[10**9, 10**9], [0, 4], ["a"], [], 7, [True, 4], {"a": 1}])
def test_shapes_that_the_weights_do_not_hold_are_refused(saved: tuple[Any, Path], shape: Any) -> None:
    path = saved[1] / "config.json"
    content = json.loads(path.read_text())
    content[FIELD][NAMES[0]] = shape
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="which its weights do not hold"):
        load_model(str(saved[1]))


@pytest.mark.parametrize(
    "change",
    [{FIELD: {"model.nothing.weight": [3, 4]}}, {FIELD: [1]}, {"architectures": ["os"]}, {"architectures": None}],
)
def test_a_config_that_names_what_is_not_there_is_one_line(saved: tuple[Any, Path], change: dict[str, Any]) -> None:
    path = saved[1] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError):
        load_model(str(saved[1]))


def test_narrow_takes_the_prefix_of_a_trunk() -> None:
    model: Any = tiny_model("llama")
    hidden = model.config.hidden_size
    narrow(model.model, {NAMES[0]: [5, hidden]}, "model.")
    assert model.model.layers[0].mlp.gate_proj.weight.shape == (5, hidden)
    assert model.model.layers[0].mlp.gate_proj.out_features == 5


def test_vllm_finds_the_entry_point_that_spares_the_flag(saved: tuple[Any, Path]) -> None:
    program = """
import sys
from importlib.metadata import entry_points
for entry in entry_points(group="vllm.general_plugins"):
    entry.load()()
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=False)
print([tuple(layer.mlp.down_proj.weight.shape) for layer in model.model.layers])
"""
    model, folder = saved
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([tuple(layer.mlp.down_proj.weight.shape) for layer in model.model.layers])
