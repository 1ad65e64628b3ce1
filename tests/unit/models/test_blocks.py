"""Where file tensors lie in parameters: experts in one packed parameter, several names for one model, and layouts that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fairprune_framework.api.types import Slice
from fairprune_framework.errors import UserError
from fairprune_framework.models.blocks import Block, Layout, _stretches
from fairprune_framework.testing.tiny import tiny_model


def on_meta(family: str) -> Any:
    model: Any = tiny_model(family)
    return model.to("meta")


def stored_names(model: Any) -> dict[str, torch.Tensor]:
    """What `save_pretrained` would write, by transformers itself."""
    from transformers.core_model_loading import revert_weight_conversion

    found: dict[str, torch.Tensor] = revert_weight_conversion(model, dict(model.named_parameters()))
    return found


def test_experts_lie_one_after_another_in_the_packed_parameter() -> None:
    """The values of transformers' own files, put where the layout says, are the parameter."""
    model: Any = tiny_model("mixtral")
    stored = stored_names(model)
    layout = Layout(tiny_model("mixtral").to("meta"), stored)
    for name, parameter in model.named_parameters():
        parts = [stored[theirs].reshape(-1) for theirs in layout.stored_as[name]]
        assert torch.equal(torch.cat(parts), parameter.detach().reshape(-1)), name
        for theirs in layout.stored_as[name]:
            block = layout.blocks[theirs]
            assert torch.equal(parameter[block.lead][block.start : block.stop], stored[theirs])
            assert layout.shape(theirs) == tuple(stored[theirs].shape)
    experts = layout.stored_as["model.layers.0.mlp.experts.gate_up_proj"]
    assert [name.rsplit(".", 3)[1:3] for name in experts[:3]] == [["0", "w1"], ["0", "w3"], ["1", "w1"]]


def test_a_slice_of_an_expert_is_one_of_its_tensor() -> None:
    layout = Layout(on_meta("mixtral"), stored_names(tiny_model("mixtral")))
    place = "model.layers.1.mlp.experts"
    width = layout.like[f"{place}.down_proj"].shape[2]
    up = Slice(parameter=f"{place}.gate_up_proj", role="up", axis=1, start=width, lead=(2,))
    found = layout.within(up, width)
    assert (found.parameter.rsplit(".", 3)[1:3], found.axis, found.start, found.lead) == (["2", "w3"], 0, 0, ())
    down = layout.within(Slice(parameter=f"{place}.down_proj", role="out", axis=2, lead=(1,)), width)
    assert (down.parameter.rsplit(".", 3)[1:3], down.axis, down.lead) == (["1", "w2"], 1, ())
    both = Slice(
        parameter=f"{place}.gate_up_proj", role="up", axis=1, step=2, lead=(0,)
    )  # gate and up in turns: in no one tensor
    with pytest.raises(
        UserError, match=r"no tensor of the files holds the up weights of model.layers.1.mlp.experts.gate_up_proj"
    ):
        layout.within(both, width)


def test_names_may_begin_otherwise() -> None:
    stored = {
        f"language_model.{name}": value for name, value in stored_names(tiny_model("mixtral")).items() if "lm_head" not in name
    }
    model = on_meta("mixtral").model
    assert set(Layout(model, {name.replace("language_model.model.", "text.") for name in stored}).blocks) == {
        name.replace("language_model.model.", "text.") for name in stored
    }


def test_what_is_no_stretch_of_rows_is_refused() -> None:
    value, numbers = torch.empty(4, 6, 3), torch.arange(24).reshape(4, 6, 1).expand(-1, -1, 2)
    assert _stretches("p", value, {"a": numbers}) == {"a": Block(parameter="p", stop=4)}
    assert _stretches("p", value, {"b": numbers[2:], "a": numbers[:2]}) == {
        "a": Block(parameter="p", stop=2),
        "b": Block(parameter="p", start=2, stop=4),
    }
    assert _stretches("p", value, {"a": numbers[:, ::2], "b": numbers[:, 1::2]}) is None
    assert _stretches("p", value, {"a": numbers.transpose(0, 1)}) is None
    assert _stretches("p", value, {"a": numbers[:3]}) is None
    assert _stretches("p", value, {"a": numbers + 1}) is None
    assert _stretches("p", value, {"a": numbers[..., 0]}) is None
    with pytest.raises(KeyError, match=r"down_proj"):
        Layout(on_meta("llama"), [name for name in stored_names(tiny_model("llama")) if "down_proj" not in name])
