"""Options of plugins, and the fields of their statistics, are given by name: a new one may stand anywhere. What is made does not change."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import pytest

PACKAGES = (
    "fairprune_activation_norms",
    "fairprune_attribution",
    "fairprune_differences",
    "fairprune_effects",
    "fairprune_expertise",
    "fairprune_gates",
    "fairprune_greedy",
    "fairprune_linear_probe",
    "fairprune_random",
    "fairprune_saliency",
    "fairprune_search",
    "fairprune_specificity",
    "fairprune_weight_norms",
    "fairprune_writing",
)


def made_of(package: str) -> list[Any]:
    module = importlib.import_module(package)
    classes = [value for value in vars(module).values() if dataclasses.is_dataclass(value) and isinstance(value, type)]
    own = [value for value in classes if value.__module__ == package]
    return [value for value in own if all(field.default is not dataclasses.MISSING for field in dataclasses.fields(value))]


@pytest.mark.parametrize("package", PACKAGES)
def test_by_name_alone_and_unchanged(package: str) -> None:
    made = made_of(package)
    assert made
    for cls in made:
        one = cls()
        assert hash(one) == hash(cls())
        for field in dataclasses.fields(cls):
            value = getattr(one, field.name)
            assert cls(**{field.name: value}) == one
            with pytest.raises(TypeError):
                cls(value)
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(one, field.name, value)
