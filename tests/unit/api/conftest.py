"""An observation of made-up activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fairprune_framework.api.interfaces import Observation, Pass

EMPTY = (
    "aligned_mask",
    "slot_weight",
    "reached",
    "attribute",
    "equal_length",
    "site",
    "tokens",
    "lean",
    "cluster",
    "category",
)
MAPS = ("grads", "aligned", "slots", "aligned_variance", "weights", "before")


@pytest.fixture
def observed() -> Callable[..., Observation]:
    """`observed(acts, mask, ...)`: the neuron tap alone; fields that were not given are empty."""

    def make(acts: torch.Tensor, mask: torch.Tensor, **given: Any) -> Observation:
        fields: dict[str, Any] = dict.fromkeys(EMPTY, torch.zeros(0)) | {name: {} for name in MAPS}
        return Observation(acts={"neuron": acts}, mask=mask, values=1, pass_=Pass(), **(fields | given))

    return make
