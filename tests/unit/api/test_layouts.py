"""Reading gated MLPs and experts off models, and what hinders their surgery."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairprune_framework.api.layouts import (
    GLU_TAPS,
    LinearTrio,
    experts_tapped,
    linear_trio,
    surgery_obstacle,
    text_config,
    trio_points,
    trio_site,
)
from fairprune_framework.api.taps import tapped
from fairprune_framework.api.types import Site
from fairprune_framework.models.architecture import recognise
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
        ({"gate_proj": (3, 7), "w1": (3, 7), "up_proj": (3, 7), "down_proj": (7, 3)}, None),
    ],
)
def test_three_linears(linears: dict[str, tuple[int, int]], expected: tuple[str, ...] | None) -> None:
    assert linear_trio(mlp(**linears)) == expected


@pytest.mark.parametrize("bias", [False, True])
def test_the_site_of_three_linears_computes_what_the_mlp_computes(bias: bool) -> None:
    model: Any = tiny_model("llama", mlp_bias=bias)
    names = LinearTrio("gate_proj", "up_proj", "down_proj")
    site = trio_site(model, "model.layers.1.mlp", names, 1)
    assert (site.units, site.layer, site.surgery) == (48, 1, None)
    assert {s.role: (s.axis, tuple(model.get_parameter(s.parameter).shape)) for s in site.slices} == {
        "gate": (0, (48, 32)),
        "up": (0, (48, 32)),
        "out": (1, (32, 48)),
        **({"gate_bias": (0, (48,)), "up_bias": (0, (48,))} if bias else {}),
    }
    seen: dict[str, Tensor] = {}
    with torch.no_grad(), tapped(model, trio_points(site, names), GLU_TAPS, lambda s, t, v, r: seen.__setitem__(t, v.clone())):
        model(input_ids=IDS)
    assert seen.keys() == GLU_TAPS
    assert site.taps > GLU_TAPS
    torch.testing.assert_close(nn.functional.silu(seen["gate"]) * seen["up"], seen["neuron"])
    block = model.model.layers[1].mlp
    torch.testing.assert_close(block(seen["mlp_input"]), seen["mlp"])
    assert seen["down"].equal(seen["mlp"])


def test_the_config_of_the_text_model() -> None:
    model: Any = tiny_model("llama")
    assert text_config(model) is model.config
    assert text_config(nn.Linear(2, 2)) is None

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = type("Config", (), {"get_text_config": lambda self: "text"})()

    assert text_config(Wrapper()) == "text"


def test_what_hinders_surgery() -> None:
    model: Any = tiny_model("llama")
    site = "model.layers.0.mlp"
    assert surgery_obstacle(model, site, "gate_proj", 48) is None
    assert surgery_obstacle(model, site, "gate_proj", 47) == f"the config says intermediate_size=48, but {site} has 47 neurons"
    assert "moe_size=None" in str(surgery_obstacle(model, site, "gate_proj", 48, "moe_size"))

    class Linear4bit(nn.Linear):
        """Weights of two to a byte, in one column."""

    packed = Linear4bit(32, 48)
    packed.weight = nn.Parameter(torch.zeros(32 * 48 // 2, 1))
    model.model.layers[0].mlp.gate_proj = packed
    assert surgery_obstacle(model, site, "gate_proj", 48) == (
        f"{site}.gate_proj holds packed weights (Linear4bit): load the model in bfloat16"
    )


def test_a_module_of_experts_is_tapped_once_at_a_time() -> None:
    model: Any = tiny_model("mixtral")
    sites = list(recognise(model).sites.values())
    taps = frozenset({"neuron"})

    def forward(module: nn.Module, show: Any) -> Any:
        return lambda *args: None

    with (
        experts_tapped(model, sites, taps, lambda *_: None, forward),  # type: ignore[arg-type]
        pytest.raises(RuntimeError, match=r"model\.layers\.0\.mlp\.experts is tapped already"),
        experts_tapped(model, sites, taps, lambda *_: None, forward),  # type: ignore[arg-type]
    ):
        pass
    assert not any("forward" in vars(module) for module in model.modules())


def test_experts_are_shown_to_the_handler_that_asked() -> None:
    """The adapter's own forward: what each expert computes is what its weights give for the tokens routed to it."""
    model: Any = tiny_model("mixtral")
    architecture = recognise(model)
    wanted = [site for site in architecture.sites.values() if site.name.endswith((".1", ".3"))]
    seen: dict[tuple[str, str], tuple[Tensor, Any]] = {}
    inputs: list[Tensor] = []
    handle = model.model.layers[0].mlp.register_forward_pre_hook(lambda m, args: inputs.append(args[0].flatten(0, -2)))

    def keep(site: Site, tap: str, values: Tensor, rows: Tensor | None) -> None:
        seen[site.name, tap] = (values.clone(), rows)

    with torch.no_grad(), architecture.adapter.tap(model, wanted, frozenset({"gate", "up", "neuron"}), keep):
        model(input_ids=IDS)
    handle.remove()
    assert {name for name, _ in seen} == {site.name for site in wanted}
    values, rows = seen["model.layers.0.mlp.experts.3", "gate"]
    fused = model.model.layers[0].mlp.experts.gate_up_proj[3]
    torch.testing.assert_close(values, inputs[0][rows] @ fused[:48].T, rtol=1e-4, atol=1e-5)
    up, _ = seen["model.layers.0.mlp.experts.3", "up"]
    torch.testing.assert_close(seen["model.layers.0.mlp.experts.3", "neuron"][0], nn.functional.silu(values) * up)
