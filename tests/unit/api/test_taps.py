"""Hooks against plain PyTorch hooks: what is seen, what is replaced, and that nothing stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairprune_framework.api.taps import TapPoint, layer_index, layer_path, layer_points, layer_taps, tapped
from fairprune_framework.api.types import Site
from fairprune_framework.models.architecture import recognise
from fairprune_framework.testing.tiny import FAMILIES, tiny_model

SITE = Site(name="0", layer=0, units=4, slices=(), config_fields={}, width_group="w", taps=frozenset())
IDS = torch.randint(3, 300, (2, 7), generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A Linear that is called in one of the ways in which transformers calls modules, and answers in one of theirs."""

    def __init__(self, call: str, answer: str) -> None:
        super().__init__()
        self.linear, self.call, self.answer = Inner(answer), call, answer

    def forward(self, x: Tensor) -> Tensor:
        if self.call == "positional":
            found = self.linear(x, 1)
        elif self.call == "named":
            found = self.linear(scale=1, hidden_states=x)
        else:
            found = self.linear(values=x)
        return found[0] if self.answer == "tuple" else found


class Inner(nn.Linear):
    def __init__(self, answer: str) -> None:
        super().__init__(3, 4)
        self.answer = answer

    def forward(self, hidden_states: Any = None, scale: int = 1, values: Any = None) -> Any:
        out = super().forward(values if hidden_states is None else hidden_states) * scale
        return (out, "more") if self.answer == "tuple" else out


CALLS = pytest.mark.parametrize("call", ["positional", "named", "first named"])
ANSWERS = pytest.mark.parametrize("answer", ["tensor", "tuple"])


@CALLS
@ANSWERS
@pytest.mark.parametrize("at", ["input", "output"])
def test_values_are_seen_as_rows_and_may_be_replaced(call: str, answer: str, at: Any) -> None:
    block = Block(call, answer)
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    expected = block(x)
    seen: list[Tensor] = []

    def handler(site: Site, tap: str, values: Tensor, rows: Tensor | None) -> Tensor | None:
        assert (site, tap, rows) == (SITE, "neuron", None)
        seen.append(values)
        return None

    point = TapPoint(site=SITE, tap="neuron", module="linear", at=at)
    with tapped(block, [point], frozenset({"neuron"}), handler):
        assert block(x).equal(expected)
    assert seen[0].equal((x if at == "input" else expected).reshape(10, -1))
    bias = block.linear.bias
    doubled = 2 * (expected - bias) + bias if at == "input" else 2 * expected
    with tapped(block, [point], frozenset({"neuron"}), lambda s, t, values, r: values * 2):
        torch.testing.assert_close(block(x), doubled)
    with tapped(block, [point], frozenset({"gate"}), lambda *_: 1 / 0):  # type: ignore[arg-type,return-value]
        assert block(x).equal(expected)
    assert not block.linear._forward_hooks
    assert not block.linear._forward_pre_hooks


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (2, 4), (1, 3)])
def test_columns_of_a_fused_output(start: int, stop: int) -> None:
    block = Block("positional", "tensor")
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    expected = block(x).clone()
    expected[..., start:stop] = -expected[..., start:stop]
    point = TapPoint(site=SITE, tap="gate", module="linear", at="output", start=start, stop=stop)
    with tapped(block, [point], frozenset({"gate"}), lambda s, t, values, r: -values):
        assert block(x).equal(expected)


def test_nothing_stays_when_the_handler_raises() -> None:
    block = Block("positional", "tensor")
    points = [TapPoint(site=SITE, tap="neuron", module="linear", at=at) for at in ("input", "output")]  # type: ignore[arg-type]

    def handler(*_: Any) -> Tensor | None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), tapped(block, points, frozenset({"neuron"}), handler):
        block(torch.zeros(1, 3))
    assert not block.linear._forward_hooks
    assert not block.linear._forward_pre_hooks


def test_a_module_that_is_not_there_leaves_no_hook() -> None:
    block = Block("positional", "tensor")
    points = [TapPoint(site=SITE, tap="neuron", module=name, at="input") for name in ("linear", "absent")]
    with pytest.raises(AttributeError), tapped(block, points, frozenset({"neuron"}), lambda *_: None):
        pass
    assert not block.linear._forward_pre_hooks


@pytest.mark.parametrize(
    ("name", "index", "path"),
    [
        ("model.layers.7.mlp.experts.3", 7, "model.layers.7"),
        ("transformer.h.11.mlp", 11, "transformer.h.11"),
        ("layers.0", 0, "layers.0"),
        ("3.mlp", 3, "3"),
        ("model.layers2.mlp", None, ""),
        ("model.norm", None, ""),
        ("", None, ""),
    ],
)
def test_layers_of_paths(name: str, index: int | None, path: str) -> None:
    assert (layer_index(name), layer_path(name)) == (index, path)


@pytest.mark.parametrize("family", FAMILIES)
def test_taps_of_a_layer_are_those_of_transformers_modules(family: str) -> None:
    """The layer's own taps of every family, against PyTorch hooks on modules named by hand."""
    model: Any = tiny_model(family)
    architecture = recognise(model)
    sites = list(architecture.sites.values())
    taps = layer_taps(model, sites[0].name)
    assert {"layer_input", "layer", "attention"} <= taps
    assert ("norm" in taps) is hasattr(model.model.layers[0], "input_layernorm")
    expected: dict[tuple[str, int], Tensor] = {}
    found: dict[tuple[str, int], Tensor] = {}

    def first(value: Any) -> Tensor:
        return (value[0] if isinstance(value, tuple) else value).flatten(0, -2)

    def keep(site: Site, tap: Any, values: Tensor, rows: Tensor | None) -> None:
        assert (tap, site.layer) not in found
        found[tap, site.layer] = values.clone()

    handles = []
    for i, layer in enumerate(model.model.layers):
        handles += [
            layer.register_forward_hook(lambda m, a, out, i=i: expected.__setitem__(("layer", i), first(out))),
            layer.register_forward_pre_hook(
                lambda m, a, k, i=i: expected.__setitem__(("layer_input", i), first(a[0] if a else k["hidden_states"])),
                with_kwargs=True,
            ),
            layer.self_attn.register_forward_hook(lambda m, a, out, i=i: expected.__setitem__(("attention", i), first(out))),
        ]
        if "norm" in taps:
            norm = layer.input_layernorm
            handles.append(norm.register_forward_hook(lambda m, a, out, i=i: expected.__setitem__(("norm", i), first(out))))
    points = layer_points(model, sites)
    assert len(points) == len(taps) * 2
    with torch.no_grad(), tapped(model, points, taps, keep):
        model(input_ids=IDS)
    for handle in handles:
        handle.remove()
    assert found.keys() == expected.keys()
    assert all(found[key].equal(expected[key]) for key in expected)
