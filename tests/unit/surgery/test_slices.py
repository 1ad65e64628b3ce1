"""Views, cuts and in-place operations on slices against numpy indexing on every layout: plain, fused, interleaved, experts, wide units."""

from __future__ import annotations

import functools
import operator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fairprune_framework.api.types import Site, Slice
from fairprune_framework.errors import FairpruneError
from fairprune_framework.models.architecture import recognise
from fairprune_framework.surgery.slices import (
    cut,
    kept_positions,
    part,
    positions,
    scale_,
    set_parameter,
    unit_parameters,
    view,
    weights_of,
    zero_,
)
from fairprune_framework.testing.tiny import tiny_model

UNITS, HIDDEN, EXPERTS = 5, 3, 2


def filled(*shape: int) -> Tensor:
    """Every element differs."""
    return torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(shape)


LAYOUTS: dict[str, tuple[Slice, tuple[int, ...], list[list[int]]]] = {
    "rows": (Slice(parameter="p", role="gate", axis=0), (UNITS, HIDDEN), [[i] for i in range(UNITS)]),
    "columns": (Slice(parameter="p", role="out", axis=1), (HIDDEN, UNITS), [[i] for i in range(UNITS)]),
    "second half": (
        Slice(parameter="p", role="up", axis=0, start=UNITS),
        (2 * UNITS, HIDDEN),
        [[UNITS + i] for i in range(UNITS)],
    ),
    "interleaved": (
        Slice(parameter="p", role="up", axis=0, start=1, step=2),
        (2 * UNITS, HIDDEN),
        [[2 * i + 1] for i in range(UNITS)],
    ),
    "wide units": (
        Slice(parameter="p", role="gate", axis=0, step=2, width=2),
        (2 * UNITS, HIDDEN),
        [[2 * i, 2 * i + 1] for i in range(UNITS)],
    ),
    "an expert": (
        Slice(parameter="p", role="out", axis=2, lead=(1,)),
        (EXPERTS, HIDDEN, UNITS),
        [[i] for i in range(UNITS)],
    ),
    "a bias": (Slice(parameter="p", role="gate_bias", axis=0), (UNITS,), [[i] for i in range(UNITS)]),
}
"""name -> (slice, shape of its parameter, indices of each unit on the slice's axis, by hand)."""

layouts = pytest.mark.parametrize(("slice_", "shape", "owned"), LAYOUTS.values(), ids=list(LAYOUTS))


def own(array: np.ndarray, slice_: Slice) -> tuple[np.ndarray, int]:
    """The array that the slice leads to, and its axis there."""
    return array[slice_.lead], slice_.axis - len(slice_.lead)


def site_of(slice_: Slice) -> Site:
    return Site(name="s", layer=0, units=UNITS, slices=(slice_,), config_fields={}, width_group="w", taps=frozenset())


@layouts
def test_view(slice_: Slice, shape: tuple[int, ...], owned: list[list[int]]) -> None:
    parameter = filled(*shape)
    array, axis = own(parameter.numpy(), slice_)
    expected = np.moveaxis(np.take(array, functools.reduce(operator.iadd, owned, []), axis), axis, 0)
    found = view(parameter, slice_, UNITS)
    np.testing.assert_array_equal(found.numpy(), expected)
    found.zero_()  # a copy
    assert parameter.equal(filled(*shape))
    assert positions(slice_, torch.tensor([3, 0])).tolist() == owned[3] + owned[0]
    assert part(parameter, slice_)[0].data_ptr() == torch.from_numpy(array).data_ptr()


@layouts
def test_zero(slice_: Slice, shape: tuple[int, ...], owned: list[list[int]]) -> None:
    parameter, expected = filled(*shape) + 1, filled(*shape).numpy() + 1
    array, axis = own(expected, slice_)
    np.moveaxis(array, axis, 0)[owned[1] + owned[4]] = 0
    zero_({"p": parameter}, site_of(slice_), torch.tensor([1, 4]))
    np.testing.assert_array_equal(parameter.numpy(), expected)
    zero_({"p": parameter}, site_of(slice_), torch.tensor([0]), roles=frozenset({"inner_norm"}))
    np.testing.assert_array_equal(parameter.numpy(), expected)


@layouts
def test_only_output_weights_are_scaled(slice_: Slice, shape: tuple[int, ...], owned: list[list[int]]) -> None:
    parameter, expected = filled(*shape), filled(*shape).numpy()
    if slice_.role == "out":
        array, axis = own(expected, slice_)
        np.moveaxis(array, axis, 0)[owned[2] + owned[0]] *= 0.25
    scale_({"p": parameter}, site_of(slice_), torch.tensor([2, 0]), 0.25)
    np.testing.assert_array_equal(parameter.numpy(), expected)


@layouts
def test_cut(slice_: Slice, shape: tuple[int, ...], owned: list[list[int]]) -> None:
    parameter = filled(*shape)
    gone = [(slice_, torch.tensor([1, 3]))]
    if slice_.lead:  # every expert must lose equally many
        gone.append((Slice(parameter="p", role="out", axis=2, lead=(0,)), torch.tensor([0, 4])))
        expected = np.stack([parameter[0].numpy()[:, [1, 2, 3]], parameter[1].numpy()[:, [0, 2, 4]]])
    else:
        expected = np.delete(parameter.numpy(), owned[1] + owned[3], slice_.axis)
    found = cut(parameter, gone)
    np.testing.assert_array_equal(found.numpy(), expected)
    assert found.is_contiguous()
    assert parameter.equal(filled(*shape))


def test_both_halves_of_a_fused_parameter_lose_their_own() -> None:
    gate, up = Slice(parameter="p", role="gate", axis=0), Slice(parameter="p", role="up", axis=0, start=UNITS)
    found = cut(filled(2 * UNITS, HIDDEN), [(gate, torch.tensor([0])), (up, torch.tensor([4]))])
    np.testing.assert_array_equal(found.numpy(), np.delete(filled(2 * UNITS, HIDDEN).numpy(), [0, 2 * UNITS - 1], 0))
    assert kept_positions(2 * UNITS, [(gate, torch.tensor([], dtype=torch.long))]).tolist() == list(range(2 * UNITS))


@pytest.mark.parametrize("family", ["llama", "phi3", "mixtral", "qwen2"])
def test_weights_of_a_site_give_the_output_of_its_mlp(family: str) -> None:
    """The unfused weights, used by hand, are the MLP (or the expert) that transformers computes."""
    model: Any = tiny_model(family, dtype=torch.bfloat16)
    site = next(iter(recognise(model).sites.values()))
    weights = weights_of(model, site)
    assert {values.dtype for values in weights.values()} == {torch.float32}
    assert set(weights) == {"gate", "up", "out"}
    assert {values.shape for values in weights.values()} == {(site.units, model.config.hidden_size)}
    hidden = torch.randn(7, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    by_hand = (nn.functional.silu(hidden @ weights["gate"].T) * (hidden @ weights["up"].T)) @ weights["out"]
    block = model.float().model.layers[0].mlp
    with torch.no_grad():
        if family == "mixtral":
            everyone = torch.zeros(7, 1, dtype=torch.long)  # every token to the first expert, with weight 1
            expected = block.experts(hidden, everyone, torch.ones(7, 1))
        else:
            expected = block(hidden)
    torch.testing.assert_close(by_hand, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "phi3", "mixtral"])
def test_parameters_of_a_unit_are_what_its_removal_saves(family: str) -> None:
    """Against the parameter counts of two models that differ by eight neurons everywhere."""
    small: Any = tiny_model(family, width=40)
    large: Any = tiny_model(family, width=48)
    sites = recognise(large).sites
    saved = sum(p.numel() for p in large.parameters()) - sum(p.numel() for p in small.parameters())
    assert sum(8 * unit_parameters(large, site) for site in sites.values()) == saved


def test_a_parameter_is_replaced_and_put_back() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5))
    model[0].weight.requires_grad_(False)
    before = model[0].weight
    old = set_parameter(model, "0.weight", torch.ones(4, 3))
    assert old is before
    assert (model[0].in_features, model[0].out_features) == (3, 4)
    assert not model[0].weight.requires_grad
    assert dict(model.named_parameters())["0.weight"].shape == (4, 3)
    set_parameter(model, "0.weight", old)
    assert model[0].weight is before
    assert model[0].out_features == 5
    set_parameter(model, "1.bias", torch.zeros(5))
    assert model[1].normalized_shape == (5,)


class Shard(Tensor):
    """A parameter that is spread over devices, as `DTensor` is: here is a part of it."""

    @staticmethod
    def of(whole: Tensor, local: Tensor) -> Any:
        found: Any = whole.as_subclass(Shard)
        found.to_local = lambda: local
        return found


def test_a_shard_is_read_as_a_part_or_not_at_all() -> None:
    class Model:
        def __init__(self, weight: Tensor) -> None:
            self.weight = weight

        def get_parameter(self, _: str) -> Any:
            return self

        def detach(self) -> Tensor:
            return self.weight

    whole = filled(4, 3)
    slice_ = Slice(parameter="p", role="gate", axis=0)
    common: dict[str, Any] = {"name": "s", "layer": 0, "units": 4, "config_fields": {}, "width_group": "w", "taps": frozenset()}
    mine = Site(slices=(slice_,), local=slice(2, 4), **common)
    model: Any = Model(Shard.of(whole, whole[2:]))
    assert weights_of(model, mine)["gate"].equal(whole[2:])
    for site in (Site(slices=(slice_,), **common), Site(slices=(slice_,), local=slice(0, 3), **common)):
        with pytest.raises(FairpruneError, match=r"p is sharded over devices, \(2, 3\) of \(4, 3\) here"):
            weights_of(model, site)
