from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

pytest.importorskip("peft")

from fairprune_framework.api.types import Site
from fairprune_framework.models.architecture import recognise
from fairprune_framework.recovery.adapters import add_adapters, linear_modules, merge
from fairprune_framework.recovery.held import Held
from fairprune_framework.surgery.equality import logits_of
from fairprune_framework.surgery.slices import zero_
from fairprune_framework.testing.families import small_model
from fairprune_framework.testing.tiny import FAMILIES, tiny_model

IDS = torch.randint(3, 300, (1, 9), generator=torch.Generator().manual_seed(0))


def with_zeros(family: str) -> tuple[Any, dict[str, Site], dict[str, tuple[int, ...]]]:
    model: Any = tiny_model(family) if family in FAMILIES else small_model(family)
    sites = dict(recognise(model).sites)
    units = dict.fromkeys(sites, (1, 4))
    for name, site in sites.items():
        parameters = {one.parameter: model.get_parameter(one.parameter).data for one in site.slices}
        zero_(parameters, site, torch.tensor(units[name]))
    return model, sites, units


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "mixtral"])
def test_merged_adapters_answer_alike_and_revive_nothing(family: str) -> None:
    model, sites, units = with_zeros(family)
    before = copy.deepcopy(model)
    held = Held(model, sites, units)
    assert linear_modules(model)
    adapted = add_adapters(model, rank=4)
    with torch.no_grad():  # as if trained: B is zero at first
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    held.put_back(model)
    expected = logits_of(model, IDS)
    merged = merge(adapted)
    held.check(merged)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(logits_of(merged, IDS), expected, rtol=1e-3, atol=1e-2)
    assert not torch.allclose(logits_of(before, IDS), expected, atol=1e-2)


def test_nothing_but_adapters_is_trained() -> None:
    model, _, _ = with_zeros("llama")
    add_adapters(model, rank=2)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    assert not any("lm_head" in name or "embed" in name for name in trained)
