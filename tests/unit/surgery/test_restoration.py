"""What was taken is written, read and put back; files that are no restoration are refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fairprune_framework.api.types import Plan
from fairprune_framework.errors import UserError, VerificationFailed
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.weights import fingerprint
from fairprune_framework.surgery import restoration as kept
from fairprune_framework.surgery import undoing
from fairprune_framework.surgery.changes import pruned_in_place
from fairprune_framework.surgery.slices import set_parameter
from fairprune_framework.surgery.widths import stored_widths
from fairprune_framework.testing.tiny import tiny_model


def pruned(family: str, sites: dict[str, tuple[int, ...]]) -> tuple[Any, Any, kept.Restoration]:
    """The original, a pruned copy, and what undoes it."""
    original: Any = tiny_model(family)
    model: Any = tiny_model(family)
    found = recognise(model).sites
    plan = Plan(model="m", fingerprint=fingerprint(model), operator="remove", sites=sites, requested={}, achieved={})
    widths = stored_widths(plan, found, 1)
    with pruned_in_place(model, plan, found, widths):
        values = {name: value.detach().clone() for name, value in model.named_parameters()}
        width, mark = model.config.intermediate_size, fingerprint(model)
    restoration = kept.capture(model, plan, found, widths, mark)
    for name, value in values.items():
        set_parameter(model, name, value)
    model.config.intermediate_size = width
    return original, model, restoration


CASES = {
    "llama": {"model.layers.0.mlp": (1, 5, 40), "model.layers.1.mlp": (0,)},
    "phi3": {"model.layers.0.mlp": (2, 3), "model.layers.1.mlp": (46, 47)},
    "mixtral": {f"model.layers.{i}.mlp.experts.{e}": tuple(range(e, 9 + e)) for i in range(2) for e in range(4)},
}


@pytest.mark.parametrize("family", CASES)
def test_there_and_back_through_a_file(family: str, tmp_path: Path) -> None:
    original, model, restoration = pruned(family, CASES[family])
    kept.save(restoration, tmp_path / kept.FILE)
    undoing.restore_in_place(model, kept.load(tmp_path / kept.FILE))
    expected = dict(original.named_parameters())
    assert all(value.equal(expected[name]) for name, value in model.named_parameters())
    assert model.config.intermediate_size == original.config.intermediate_size
    ids = torch.arange(5, 15).unsqueeze(0)
    with torch.no_grad():
        assert model(input_ids=ids).logits.equal(original(input_ids=ids).logits)


def test_a_damaged_tensor_is_found() -> None:
    _, model, restoration = pruned("llama", CASES["llama"])
    next(iter(restoration.tensors.values()))[0] += 1
    with pytest.raises(VerificationFailed, match=r"would not be what it was"):
        undoing.restore_in_place(model, restoration)


def test_another_model_is_refused() -> None:
    original, _, restoration = pruned("llama", CASES["llama"])
    with pytest.raises(UserError, match="the restoration is for another model"):
        undoing.restore_in_place(original, restoration)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_the_hash_is_of_the_bytes(dtype: torch.dtype) -> None:
    values = torch.arange(24).reshape(4, 6).to(dtype).T
    expected = hashlib.sha256(values.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
    assert kept.bytes_hash([values]) == expected


def test_what_is_no_restoration(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*: only `fairprune prune`"):
        kept.load(tmp_path / "absent")
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"must be of format 'fairprune-restoration/3'\. Got None"):
        kept.load(path)
    save_file({"x": torch.zeros(1)}, path, metadata={"format": kept.FORMAT, "fairprune": "{}"})
    with pytest.raises(UserError, match="is damaged: the field 'plan': field required"):
        kept.load(path)
    path.write_bytes(b"no safetensors")
    with pytest.raises(UserError, match="is damaged: "):
        kept.load(path)
