"""Removing equals zeroing, reloading equals removing, and the model in memory is as before, for nine families."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from fairprune_framework.api.types import Plan
from fairprune_framework.errors import UserError, VerificationFailed
from fairprune_framework.models.architecture import Architecture, recognise
from fairprune_framework.models.weights import fingerprint
from fairprune_framework.surgery.record import Removal
from fairprune_framework.surgery.removal import save_pruned_model
from fairprune_framework.testing.tiny import tiny_model, tiny_tokenizer

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "mixtral")
WIDTH = 48
IDS = torch.randint(3, 500, (2, 12), generator=torch.Generator().manual_seed(0))


def stored(family: str, width: int) -> int:
    """Experts are stored in multiples of 8: their grouped matrix product refuses other rows."""
    return -(-width // 8) * 8 if family == "mixtral" else width


def reload(folder: Path) -> nn.Module:
    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return model.eval()


def plan_for(model: nn.Module, architecture: Architecture, counts: tuple[int, ...], operator: Any = "remove") -> Plan:
    """Random units, as many of each site as `counts` says in turn."""
    generator = torch.Generator().manual_seed(1)
    sites = {}
    for place, (name, site) in enumerate(architecture.sites.items()):
        chosen = torch.randperm(site.units, generator=generator)[: counts[place % len(counts)]]
        sites[name] = tuple(sorted(chosen.tolist()))
    return Plan(model="tiny", fingerprint=fingerprint(model), operator=operator, sites=sites, requested={}, achieved={})


def snapshot(model: Any) -> dict[str, Any]:
    """Everything that pruning could leave behind."""
    return {
        "config": {**model.config.to_dict(), "architectures": None},  # transformers writes this when it saves
        "generation": model.generation_config.to_dict(),
        "training": model.training,
        "linears": {n: (m.in_features, m.out_features) for n, m in model.named_modules() if isinstance(m, nn.Linear)},
        "identities": {name: id(parameter) for name, parameter in model.named_parameters()},
        "hooks": {n: len(m._forward_hooks) + len(m._forward_pre_hooks) for n, m in model.named_modules()},
        "attributes": {n: sorted(vars(m)) for n, m in model.named_modules()},
    }


class Unchanged:
    """Fails unless the model leaves the block as it entered it, bit by bit."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.before = snapshot(self.model)
        self.state = {name: value.clone() for name, value in self.model.state_dict().items()}

    def __exit__(self, *_: object) -> None:
        assert snapshot(self.model) == self.before
        state = self.model.state_dict()
        assert list(state) == list(self.state)
        for name, value in state.items():
            assert value.dtype == self.state[name].dtype
            assert torch.equal(value, self.state[name]), name


def prune(
    model: nn.Module, target: Path, counts: tuple[int, ...], *, operator: str = "remove", round_to: int = 1
) -> tuple[Removal, Architecture, Plan]:
    architecture = recognise(model)
    plan = plan_for(model, architecture, counts, operator)
    with Unchanged(model):
        done = save_pruned_model(
            model, tiny_tokenizer(), plan, architecture, target, probe_ids=IDS, round_to=round_to, reload=reload
        )
    return done, architecture, plan


@torch.no_grad()
def zeroed_logits(model: Any, architecture: Architecture, plan: Plan) -> Tensor:
    """Logits with the output columns of the plan's units at zero: written without the code under test."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name, units in plan.sites.items():
        path, _, last = name.rpartition(".")
        if architecture.sites[name].kind == "expert":
            model.get_submodule(path).down_proj[int(last)][:, list(units)] = 0
        else:
            model.get_submodule(name).down_proj.weight[:, list(units)] = 0
    try:
        return model(input_ids=IDS).logits  # type: ignore[no-any-return]
    finally:
        model.load_state_dict(state)


@torch.no_grad()
def check_saved(model: Any, target: Path, architecture: Architecture, plan: Plan, width: int) -> Any:
    again: Any = reload(target)
    assert again.config.get_text_config().intermediate_size == width
    off = (again(input_ids=IDS).logits - zeroed_logits(model, architecture, plan)).abs().max()
    plain = (model(input_ids=IDS).logits - zeroed_logits(model, architecture, plan)).abs().max()
    assert off <= 1e-3
    assert plain > 0.05  # the plan does something, so that the line above says something
    return again


@pytest.mark.parametrize("family", FAMILIES)
def test_removed_equals_zeroed_and_reloaded(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    done, architecture, plan = prune(model, tmp_path / "model", (11,))
    width = stored(family, WIDTH - 11)
    again = check_saved(model, tmp_path / "model", architecture, plan, width)
    sites = len(architecture.sites)
    assert (done.units, done.cut) == (plan.count, sites * (WIDTH - width))
    assert done.padded == plan.count - done.cut
    assert done.note is None
    assert done.max_difference <= 1e-3
    assert set(done.widths.values()) == {(WIDTH, width)}
    per_unit = 3 * 32 + biases(model)
    assert sum(parameter.numel() for parameter in again.parameters()) == done.parameters_after
    assert done.parameters_before - done.parameters_after == per_unit * done.cut
    assert done.parameters_before - done.parameters_effective == per_unit * plan.count


def biases(model: nn.Module) -> int:
    """Bias values of one unit."""
    return sum(
        1
        for name, _ in model.named_parameters()
        if ".layers.0.mlp." in name and name.endswith(("gate_proj.bias", "up_proj.bias"))
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_width_is_rounded_up_and_the_rest_stored_as_zeros(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    done, architecture, plan = prune(model, tmp_path / "model", (11,), round_to=8)
    again = check_saved(model, tmp_path / "model", architecture, plan, 40)
    assert done.cut == 8 * len(plan.sites)
    assert done.padded == 3 * len(plan.sites)
    assert done.parameters_effective < done.parameters_after < done.parameters_before
    for name in plan.sites:
        assert zero_columns(again, architecture, name) == 3


def zero_columns(model: Any, architecture: Architecture, name: str) -> int:
    path, _, last = name.rpartition(".")
    expert = architecture.sites[name].kind == "expert"
    weight = model.get_submodule(path).down_proj[int(last)] if expert else model.get_submodule(name).down_proj.weight
    return int((weight == 0).all(0).sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_uneven_plans_are_padded_to_the_least_cut_site(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    done, architecture, plan = prune(model, tmp_path / "model", (9, 5))
    width = stored(family, WIDTH - 5)
    again = check_saved(model, tmp_path / "model", architecture, plan, width)
    assert done.cut == (WIDTH - width) * len(plan.sites)
    assert done.padded == plan.count - done.cut > 0
    for name, units in plan.sites.items():
        assert zero_columns(again, architecture, name) == len(units) - (WIDTH - width)


@pytest.mark.parametrize("family", ["llama", "phi3", "mixtral"])
def test_a_site_that_keeps_its_width_keeps_all(family: str, tmp_path: Path) -> None:
    done, architecture, plan = prune(model := tiny_model(family), tmp_path / "model", (9, 0))
    check_saved(model, tmp_path / "model", architecture, plan, WIDTH)
    assert done.cut == 0
    assert done.note == "zeroed, not smaller"


@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3", "mixtral"])
def test_operator_zero_keeps_every_shape(family: str, tmp_path: Path) -> None:
    done, architecture, plan = prune(model := tiny_model(family), tmp_path / "model", (9, 4), operator="zero")
    again = check_saved(model, tmp_path / "model", architecture, plan, WIDTH)
    assert [tuple(p.shape) for p in again.parameters()] == [tuple(p.shape) for p in model.parameters()]
    assert done.cut == 0
    assert done.parameters_after == done.parameters_before > done.parameters_effective
    assert done.note == "zeroed, not smaller"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3", "mixtral"])
def test_operator_scale_writes_scaled_output_weights(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """The weights are those of transformers times the factor; `save_pruned_model` compared the logits with those of the mask."""
    tiny_model(family).to(dtype).save_pretrained(tmp_path / "whole")  # type: ignore[operator]
    model = reload(tmp_path / "whole")
    architecture = recognise(model)
    plan = replace(plan_for(model, architecture, (9, 4)), operator="scale", factor=0.3)
    with Unchanged(model):
        done = save_pruned_model(model, tiny_tokenizer(), plan, architecture, tmp_path / "model", probe_ids=IDS, reload=reload)
    assert (done.scaled, done.cut, done.padded, done.note) == (plan.count, 0, 0, "scaled, not smaller")
    assert done.parameters_after == done.parameters_before == done.parameters_effective
    again, changed = reload(tmp_path / "model").state_dict(), 0
    for name, value in model.state_dict().items():
        expected = value.clone()
        for site in architecture.sites.values():
            for piece in site.slices:
                if (piece.parameter, piece.role) == (name, "out"):
                    rows = expected[piece.lead] if piece.lead else expected
                    rows[:, list(plan.sites[site.name])] *= 0.3
                    changed += 1
        assert torch.equal(again[name], expected), name
    assert changed == len(architecture.sites)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_models_are_saved_in_bfloat16(family: str, tmp_path: Path) -> None:
    """As loaded from a folder in bfloat16: verified in float32, stored as it was."""
    tiny_model(family).bfloat16().save_pretrained(tmp_path / "whole")  # type: ignore[operator]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.bfloat16).eval()
    done, *_ = prune(model, tmp_path / "model", (8,))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert done.cut > 0
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}
    assert again.config.get_text_config().intermediate_size == WIDTH - 8


class Broken(Exception):
    pass


def failing_save(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*_: object, **__: object) -> None:
        raise Broken("disk full")

    monkeypatch.setattr(model, "save_pretrained", save)


@pytest.fixture(params=["llama", "phi3", "mixtral"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return tiny_model(request.param)


@pytest.mark.parametrize("counts", [(8,), (16, 8)])
@pytest.mark.parametrize("stage", ["save", "reload", "other-model-reloaded"])
def test_a_failure_leaves_the_model_and_the_folder_as_they_were(
    model: nn.Module, counts: tuple[int, ...], stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture = recognise(model)
    plan = plan_for(model, architecture, counts)

    def broken(folder: Path) -> nn.Module:
        if stage == "reload":
            raise Broken("cannot be read")
        found = reload(folder)
        next(found.parameters()).data += 1
        return found

    if stage == "save":
        failing_save(model, monkeypatch)
    with Unchanged(model), pytest.raises(VerificationFailed if stage == "other-model-reloaded" else Broken):
        save_pruned_model(model, tiny_tokenizer(), plan, architecture, tmp_path / "model", probe_ids=IDS, reload=broken)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_for_another_model_is_refused(tmp_path: Path) -> None:
    model, other = tiny_model("llama"), tiny_model("llama", seed=1)
    architecture = recognise(model)
    plan = plan_for(other, recognise(other), (8,))
    with Unchanged(model), pytest.raises(UserError, match="for another model"):
        save_pruned_model(model, tiny_tokenizer(), plan, architecture, tmp_path / "model", probe_ids=IDS, reload=reload)
    assert list(tmp_path.iterdir()) == []
