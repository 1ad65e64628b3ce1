from __future__ import annotations

from typing import Any

import pytest
import torch

from fairprune_framework.api.types import Plan
from fairprune_framework.errors import VerificationFailed
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.weights import fingerprint
from fairprune_framework.recovery.held import Held, remaining
from fairprune_framework.surgery.changes import carry_out
from fairprune_framework.surgery.restoration import capture
from fairprune_framework.surgery.slices import weights_of
from fairprune_framework.surgery.widths import stored_widths
from fairprune_framework.testing.tiny import tiny_model


def planned(model: Any, operator: Any, sites: dict[str, tuple[int, ...]], **more: Any) -> Plan:
    return Plan(model="m", fingerprint=fingerprint(model), operator=operator, sites=sites, requested={}, achieved={}, **more)


def test_units_are_found_behind_those_that_were_cut() -> None:
    """One layer loses two neurons, so that of the other's four two are cut and two are stored as zeros."""
    model = tiny_model("llama")
    sites = recognise(model).sites
    first, second = list(sites)[:2]
    plan = planned(model, "remove", {first: (3, 5), second: (2, 4, 6, 9)} | dict.fromkeys(list(sites)[2:], (0, 1)))
    widths = stored_widths(plan, sites, 1)
    restoration = capture(model, plan, sites, widths, "")
    with carry_out(model, plan, sites, widths):
        found = remaining(restoration)
        assert set(found) == {second}
        weights = weights_of(model, recognise(model).sites[second])
        zero = {int(unit) for unit in (weights["out"].abs().sum(1) == 0).nonzero()}
        assert set(found[second]) == zero
        assert len(zero) == 2


@pytest.mark.parametrize("family", ["llama", "phi3", "mixtral"])
def test_what_a_step_changed_is_put_back(family: str) -> None:
    model = tiny_model(family)
    sites = recognise(model).sites
    units = dict.fromkeys(sites, (1, 4))
    before = {name: weights_of(model, site) for name, site in sites.items()}
    held = Held(model, sites, units)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    with pytest.raises(VerificationFailed, match="changed planned neurons"):
        held.check(model)
    held.put_back(model)
    held.check(model)
    for name, site in sites.items():
        now = weights_of(model, site)
        for role, wanted in before[name].items():
            torch.testing.assert_close(now[role][[1, 4]], wanted[[1, 4]], rtol=0, atol=0)
            torch.testing.assert_close(now[role][[0, 2]], wanted[[0, 2]] + 1)
