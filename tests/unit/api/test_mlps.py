"""Adapters of MLPs whose projections are modules: sites and taps read off `Projections`, against what the modules compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fairprune_framework.api.mlps import Projections, child, features, is_projection, linear_trio
from fairprune_framework.api.types import Site
from fairprune_framework.models.architecture import recognise
from fairprune_framework.testing.families import small_model
from fairprune_framework.testing.tiny import tiny_model

IDS = torch.randint(3, 300, (2, 7), generator=torch.Generator().manual_seed(0))


def mlp(**linears: tuple[int, int]) -> nn.Module:
    return nn.ModuleDict({name: nn.Linear(*sizes) for name, sizes in linears.items()})


@pytest.mark.parametrize(
    ("linears", "expected"),
    [
        ({"gate_proj": (3, 7), "up_proj": (3, 7), "down_proj": (7, 3)}, ("gate_proj", "up_proj", "down_proj")),
        ({"w1": (3, 7), "w2": (7, 3), "w3": (3, 7)}, ("w1", "w3", "w2")),
        ({"wi_0": (3, 7), "wi_1": (3, 7), "wo": (7, 3), "extra": (3, 3)}, ("wi_0", "wi_1", "wo")),
        ({"gate_proj": (3, 7), "up_proj": (3, 6), "down_proj": (7, 3)}, None),
        ({"gate_proj": (3, 7), "up_proj": (3, 7), "down_proj": (3, 7)}, None),
        ({"gate_proj": (3, 7), "down_proj": (7, 3)}, None),
    ],
)
def test_three_linears(linears: dict[str, tuple[int, int]], expected: tuple[str, ...] | None) -> None:
    found = linear_trio(mlp(**linears))
    assert found == (None if expected is None else Projections(gate=expected[0], up=expected[1], out=expected[2]))


def test_projections_are_linears_and_conv1d() -> None:
    assert [is_projection(module) for module in (nn.Linear(3, 7), Conv1D(7, 3), nn.LayerNorm(3), nn.Conv1d(3, 7, 1))] == [
        True,
        True,
        False,
        False,
    ]
    assert features(nn.Linear(3, 7)) == features(Conv1D(7, 3)) == (3, 7)
    nested = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Identity()})})
    assert child(nested, "a.b") is nested["a"]["b"]  # type: ignore[index]
    assert child(nested, "a.c") is None


def shown(model: Any, site: Site) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}

    def keep(_site: Site, tap: str, values: Tensor, _rows: Any) -> None:
        seen[tap] = values.clone()

    with torch.no_grad(), recognise(model).adapter.tap(model, [site], site.taps, keep):
        model(input_ids=IDS)
    assert seen.keys() == site.taps
    return seen


@pytest.mark.parametrize("bias", [False, True])
def test_a_gated_mlp(bias: bool) -> None:
    model: Any = tiny_model("llama", mlp_bias=bias)
    site = recognise(model).sites["model.layers.1.mlp"]
    assert (site.units, site.layer, site.surgery, dict(site.config_fields)) == (48, 1, None, {"intermediate_size": 1})
    assert {s.role: (s.axis, tuple(model.get_parameter(s.parameter).shape)) for s in site.slices} == {
        "gate": (0, (48, 32)),
        "up": (0, (48, 32)),
        "out": (1, (32, 48)),
        **({"gate_bias": (0, (48,)), "up_bias": (0, (48,))} if bias else {}),
    }
    seen, block = shown(model, site), model.model.layers[1].mlp
    torch.testing.assert_close(nn.functional.silu(seen["gate"]) * seen["up"], seen["neuron"])
    torch.testing.assert_close(block(seen["mlp_input"]), seen["mlp"])
    assert seen["down"].equal(seen["mlp"])


def test_two_conv1d_are_transposed_linears() -> None:
    model: Any = small_model("gpt2")
    site = recognise(model).sites["transformer.h.1.mlp"]
    assert {s.role: (s.axis, tuple(model.get_parameter(s.parameter).shape)) for s in site.slices} == {
        "up": (1, (32, 128)),
        "up_bias": (0, (128,)),
        "out": (0, (128, 32)),
    }
    assert dict(site.config_fields) == {"n_inner": 1}
    seen, block = shown(model, site), model.transformer.h[1].mlp
    torch.testing.assert_close(seen["mlp_input"] @ block.c_fc.weight + block.c_fc.bias, seen["up"])
    torch.testing.assert_close(block.act(seen["up"]), seen["neuron"])
    torch.testing.assert_close(seen["neuron"] @ block.c_proj.weight + block.c_proj.bias, seen["mlp"])


def test_two_linears_in_two_modules_of_a_layer() -> None:
    model: Any = small_model("bert")
    site = recognise(model).sites["bert.encoder.layer.2"]
    assert [s.parameter.removeprefix("bert.encoder.layer.2.") for s in site.slices] == [
        "intermediate.dense.weight",
        "intermediate.dense.bias",
        "output.dense.weight",
    ]
    seen, layer = shown(model, site), model.bert.encoder.layer[2]
    torch.testing.assert_close(layer.intermediate(seen["mlp_input"]), seen["neuron"])
    torch.testing.assert_close(layer.output.dense(seen["neuron"]), seen["mlp"])


@pytest.mark.parametrize("family", ["glm", "modernbert-decoder"])
def test_fused_halves(family: str) -> None:
    model: Any = tiny_model("glm") if family == "glm" else small_model(family)
    site = next(site for site in recognise(model).sites.values() if site.layer == 1)
    roles = {s.role: s for s in site.slices}
    assert (roles["gate"].parameter, roles["gate"].start, roles["up"].start) == (roles["up"].parameter, 0, site.units)
    seen, block = shown(model, site), model.get_submodule(site.name)
    activate = getattr(block, "activation_fn", None) or block.act
    torch.testing.assert_close(activate(seen["gate"]) * seen["up"], seen["neuron"])


def test_an_inner_norm_comes_after_the_neurons() -> None:
    model: Any = small_model("bitnet")
    site = recognise(model).sites["model.layers.1.mlp"]
    assert site.slices[-1].role == "inner_norm"
    seen, block = shown(model, site), model.model.layers[1].mlp
    torch.testing.assert_close(block.act_fn(seen["gate"]) * seen["up"], seen["neuron"])
    torch.testing.assert_close(block.down_proj(block.ffn_sub_norm(seen["neuron"])), seen["down"])


def test_shared_experts_in_one_mlp() -> None:
    model = small_model("aria_text")
    site = next(site for site in recognise(model).sites.values() if "shared" in site.name)
    assert (site.units, site.unit_width, site.width_group) == (48, 2, "intermediate_size")
    assert {(s.step, s.width) for s in site.slices} == {(2, 2)}


def test_packed_weights_are_audited_and_not_cut() -> None:
    model: Any = tiny_model("llama")

    class Linear4bit(nn.Linear):
        pass

    packed = Linear4bit(48, 32, bias=False)
    packed.weight = nn.Parameter(torch.zeros(32 * 48 // 2, 1))
    model.model.layers[0].mlp.down_proj = packed
    from fairprune_framework.discovery import build

    site = build("architecture", "glu").sites(model)[0]  # type: ignore[attr-defined]
    assert site.surgery == "model.layers.0.mlp.down_proj holds packed weights (Linear4bit): load the model in bfloat16"


def test_projections_without_a_field_have_no_field_and_no_obstacle_of_their_own() -> None:
    site = next(iter(recognise(small_model("bloom")).sites.values()))
    assert (site.surgery, dict(site.config_fields)) == (None, {})
