"""Options of plugins, and the fields of their statistics, are given by name: a new one may stand anywhere. What is made does not change."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from fairprune_framework import discovery
from fairprune_framework.errors import UserError

ROOT = Path(__file__).parents[3]

PACKAGES = (
    "fairprune_activation_norms",
    "fairprune_allocations",
    "fairprune_attribution",
    "fairprune_differences",
    "fairprune_effects",
    "fairprune_expertise",
    "fairprune_gate_up_difference",
    "fairprune_gates",
    "fairprune_greedy",
    "fairprune_linear_probe",
    "fairprune_max_abs_weight",
    "fairprune_output_norm",
    "fairprune_peak_to_peak",
    "fairprune_protected_global",
    "fairprune_random",
    "fairprune_reconstruction",
    "fairprune_saliency",
    "fairprune_search",
    "fairprune_set_difference",
    "fairprune_signs",
    "fairprune_specificity",
    "fairprune_taylor",
    "fairprune_uniform",
    "fairprune_variance",
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
        with pytest.raises(dataclasses.FrozenInstanceError):
            one.anything = 1
        for field in dataclasses.fields(cls):
            value = getattr(one, field.name)
            assert cls(**{field.name: value}) == one
            with pytest.raises(TypeError):
                cls(value)
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(one, field.name, value)


def test_a_statistic_by_itself_sums_what_its_scorer_asks_for() -> None:
    """The fields that an option of a scorer sets are by default what the option is."""
    same = 0
    for package in PACKAGES:
        for cls in made_of(package):
            scorer = cls()
            for statistic in scorer.needs().statistics if hasattr(scorer, "needs") else ():
                alone = type(statistic)()
                for name in vars(alone).keys() & vars(scorer).keys():
                    assert getattr(alone, name) == getattr(scorer, name)
                    same += 1
    assert same >= 8


DEFAULTS: dict[str, dict[str, tuple[str, float]]] = {
    "bias attribution": {"weight": ("attribution", 0.5)},
    "bias integrated-gradients": {"weight": ("attribution", 0.5), "steps": ("integrated-gradients", 8)},
    "bias paired-effect": {"fdr": ("effects", 1)},
    "bias vocabulary-spread": {"rows": ("writing", 128)},
    "bias snip-difference": {"minus": ("saliency", 1)},
    "bias linear-probe": {"ridge": ("linear-probe", 0.1), "rank": ("linear-probe", 64)},
    "bias expertise": {"bins": ("expertise", 16)},
    "importance taylor": {"power": ("taylor", 1)},
    "importance obs": {"damping": ("obs", 0.01)},
    "policy greedy": {"steps": ("greedy", 8), "patience": ("greedy", 2), "protect": ("greedy", 0.1)},
    "policy protected-global": {
        "protect": ("protected-global", 0.1),
        "exchange": ("protected-global", 0),
        "margin": ("protected-global", 0.5),
    },
    "policy random": {"protect": ("random", 0)},
    "policy set-difference": {"biased": ("set-difference", 0.02), "useful": ("set-difference", 0.1)},
    "policy uniform": {"weight": ("uniform", 0.8)},
    "policy two-stage": {"gamma": ("allocations", 0.3)},
    "policy outlier-weighted": {"m": ("allocations", 5), "spread": ("allocations", 0.5)},
    "policy knapsack": {"cost": ("search", 0.01), "lift": ("search", 0)},
    "policy category-intersection": {"share": ("search", 0.2), "least": ("search", 0)},
    "policy stable": {"frequency": ("search", 0.75), "replicates": ("search", 20)},
    "policy annealing": {"steps": ("search", 40), "pool": ("search", 4), "weight": ("search", 0.1), "heat": ("search", 0.05)},
    "policy gates": {"cap": ("gates", 0.5), "cost": ("gates", 0.0005)},
}
"""Plugin -> option -> its page below docs/method, and what it is where a user gives none."""


@pytest.mark.parametrize("name", DEFAULTS)
def test_an_option_that_is_not_given_is_what_its_page_says(name: str) -> None:
    plugin: Any = discovery.build(*name.split(), {})  # type: ignore[call-arg]
    for option, (page, value) in DEFAULTS[name].items():
        assert getattr(plugin, option) == value
        text = " ".join((ROOT / "docs" / "method" / f"{page}.md").read_text(encoding="utf-8").split())
        said = rf"`{option}`[^;]{{0,120}}?(?<![\d.]){re.escape(f'{value:g}')}(?![.\d])"
        assert re.search(said, text), f"docs/method/{page}.md does not say that {option} is {value:g} by default"


JUST = 1e-9
LIMITS: dict[str, dict[str, tuple[tuple[float, ...], tuple[float, ...]]]] = {
    "bias attribution": {"weight": ((0.0, 1.0), (-JUST, 1 + JUST))},
    "bias integrated-gradients": {"weight": ((0.0, 1.0), (-JUST, 1 + JUST)), "steps": ((1, 2), (0, -1))},
    "bias paired-effect": {"fdr": ((JUST, 1.0), (0.0, 1 + JUST))},
    "bias vocabulary-spread": {"rows": ((1,), (0, -1))},
    "bias snip-difference": {"minus": ((0.0, 0.5), (-JUST,))},
    "bias linear-probe": {"ridge": ((JUST, 0.5, 2.0), (0.0, -JUST)), "rank": ((1,), (0,))},
    "bias expertise": {"bins": ((2,), (1, 0))},
    "importance taylor": {"power": ((1, 2), (0, 3))},
    "importance obs": {"damping": ((JUST, 0.5, 2.0), (0.0, -JUST))},
    "policy greedy": {"steps": ((1,), (0,)), "patience": ((1,), (0,)), "protect": ((0.0, 1 - JUST), (-JUST, 1.0))},
    "policy protected-global": {
        "protect": ((0.0, 1 - JUST), (-JUST, 1.0)),
        "exchange": ((0.0, 2.0), (-JUST, 2 + JUST)),
        "margin": ((0.0, 2.0), (-JUST,)),
    },
    "policy random": {"protect": ((0.0, 1 - JUST), (-JUST, 1.0))},
    "policy set-difference": {"biased": ((0.0, 1 - JUST), (-JUST, 1.0)), "useful": ((0.0, 1 - JUST), (-JUST, 1.0))},
    "policy uniform": {"weight": ((0.0, 1.0), (-JUST, 1 + JUST))},
    "policy two-stage": {"gamma": ((JUST, 1 - JUST), (0.0, 1.0))},
    "policy outlier-weighted": {"m": ((JUST, 0.5), (0.0, -JUST)), "spread": ((0.0, 1 - JUST), (-JUST, 1.0))},
    "policy knapsack": {"cost": ((JUST, 1.0), (0.0, 1 + JUST)), "lift": ((0.0, 2.0), (-JUST, float("inf"), float("nan")))},
    "policy category-intersection": {"share": ((JUST, 1.0), (0.0, 1 + JUST)), "least": ((0, 1), (-1,))},
    "policy stable": {"frequency": ((JUST, 1.0), (0.0, 1 + JUST)), "replicates": ((2,), (1, 0))},
    "policy annealing": {
        "steps": ((1,), (0,)),
        "pool": ((1.0, 1 + JUST), (1 - JUST,)),
        "weight": ((0.0, 2.0), (-JUST,)),
        "heat": ((0.0, 2.0), (-JUST,)),
    },
    "policy gates": {
        "cap": ((JUST, 1.0), (0.0, 1 + JUST)),
        "cost": ((JUST, 1.0), (0.0, 1 + JUST)),
        "lift": ((0.0, 2.0), (-JUST, float("inf"), float("nan"))),
    },
}
"""Plugin -> option -> numbers at the ends of what is allowed, and the next ones beyond."""


@pytest.mark.parametrize("name", LIMITS)
def test_options_at_their_limits_and_beyond(name: str) -> None:
    for option, (allowed, refused) in LIMITS[name].items():
        for value in allowed:
            assert getattr(discovery.build(*name.split(), {option: value}), option) == value  # type: ignore[call-arg]
        for value in refused:
            with pytest.raises(UserError, match=option):
                discovery.build(*name.split(), {option: value})  # type: ignore[call-arg]
