"""Experts that one module holds as stacked parameters: tapped once at a time, and shown to who asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairprune_framework.api.experts import experts_tapped
from fairprune_framework.api.types import Site
from fairprune_framework.models.architecture import recognise
from fairprune_framework.testing.tiny import tiny_model

IDS = torch.randint(3, 300, (2, 7), generator=torch.Generator().manual_seed(0))


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
