"""The contract suite over every plugin that is installed, and how many checks it has."""

from __future__ import annotations

import pytest

from fairprune_framework import discovery
from fairprune_framework.models.architecture import recognise
from fairprune_framework.testing.adapter_contract import adapter_checks
from fairprune_framework.testing.contracts import check_plugin
from fairprune_framework.testing.families import EXAMPLES, small_model
from fairprune_framework.testing.tiny import FAMILIES, tiny_model

CHECKS = {"bias": 26, "importance": 24, "policy": 25, "architecture": 23}
"""How many checks there are; fewer would be a promise taken back."""

NO_TEXT = {"order-invariance", "batch-split-invariance", "grouping-invariance", "padding-invariance", "masks-respected"}
WEIGHTS_ALONE = ("max-abs-weight", "peak-to-peak", "weight-variance", "product-of-norms", "l2-norm")
UNPAIRED = ("eta-squared", "d-prime", "sign-rate", "mutual-information", "expertise")
SKIPPED = {
    **{("importance", name): NO_TEXT for name in WEIGHTS_ALONE},
    ("bias", "paired-effect"): {"zero-difference", "precision", "padding-invariance"},
    ("importance", "random"): NO_TEXT | {"permutation-equivariance"},
    ("policy", "random"): {"monotonicity"},
    ("policy", "annealing"): {"monotonicity"},
    ("policy", "gates"): {"signed-scores", "factors-under-scale"},
    ("bias", "vocabulary-spread"): NO_TEXT | {"zero-difference"},
    **{("bias", name): {"zero-difference"} for name in UNPAIRED},
    ("bias", "expertise"): {"zero-difference", "precision"},
}
"""What plugins cannot be checked for: those that read weights alone, and those that declare an exemption."""
COUNTS = {"bias": 20, "importance": 15, "policy": 16}
"""How many scores and policies ship."""

QUICKER = {("bias", "integrated-gradients"): {"steps": 2}}
"""Options under which a plugin is checked here, since its defaults only do the same more often."""

OF_HEADS = {"heads", "kv-groups"}
"""Adapters that are used where they are named."""

INSTALLED = [entry for kind in discovery.GROUPS for entry in discovery.entries(kind)]


def test_all_built_ins_are_installed() -> None:
    found = {(entry.kind, entry.name) for entry in INSTALLED}
    assert {("bias", "variance"), ("importance", "max-abs-weight"), ("policy", "uniform"), ("architecture", "glu")} <= found


@pytest.mark.parametrize(("kind", "count"), COUNTS.items())
def test_as_many_ship_as_are_promised(kind: discovery.Kind, count: int) -> None:
    assert sum(entry.distribution == "fairprune_framework" for entry in discovery.entries(kind)) >= count


@pytest.mark.parametrize("entry", [e for e in INSTALLED if e.kind != "architecture"], ids=lambda e: f"{e.kind}-{e.name}")
def test_installed_plugins_keep_the_contract(entry: discovery.Entry) -> None:
    plugin = discovery.make(entry, discovery.load(entry), QUICKER.get((entry.kind, entry.name), {}))  # type: ignore[arg-type]
    report = check_plugin(entry.kind, plugin).raise_if_failed()
    assert len(report.checks) == CHECKS[entry.kind]
    assert set(report.skipped) == SKIPPED.get((entry.kind, entry.name), set())
    assert f"{len(report.ran)} of {CHECKS[entry.kind]} checks ran, 0 failed" in str(report)


@pytest.mark.parametrize("family", FAMILIES)
def test_installed_adapters_keep_the_contract(family: str) -> None:
    adapter = recognise(tiny_model(family)).adapter
    report = check_plugin("architecture", adapter, model=lambda: tiny_model(family)).raise_if_failed()
    assert len(report.ran) == len(report.checks) == CHECKS["architecture"]


@pytest.mark.parametrize("family", EXAMPLES)
def test_installed_adapters_keep_the_contract_on_every_layout(family: str) -> None:
    adapter = recognise(small_model(family)).adapter
    for name, check in adapter_checks(adapter, lambda: small_model(family)).items():
        try:
            check()
        except Exception as error:
            raise AssertionError(f"{family}: {name}: {error}") from error


def test_every_installed_adapter_has_a_tiny_family() -> None:
    models = [*(tiny_model(family) for family in FAMILIES), *(small_model(family) for family in EXAMPLES)]
    known = {name.partition(":")[2] for model in models for name in recognise(model).name.split("+")}
    ours = {entry.name for entry in INSTALLED if entry.kind == "architecture" and entry.distribution == "fairprune_framework"}
    assert ours == known | OF_HEADS


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
@pytest.mark.parametrize("name", sorted(OF_HEADS))
def test_adapters_of_heads_keep_the_contract(name: str, family: str) -> None:
    adapter = discovery.build("architecture", name)
    report = check_plugin("architecture", adapter, model=lambda: tiny_model(family)).raise_if_failed()
    shared = {"zeroed-equals-removed", "removed-equals-reloaded"} if name == "heads" else set()
    assert set(report.skipped) == shared


@pytest.mark.parametrize("name", [entry.name for entry in INSTALLED if entry.kind == "architecture"])
def test_the_suite_finds_a_model_for_each_installed_adapter(name: str) -> None:
    adapter = discovery.build("architecture", name)
    report = check_plugin("architecture", adapter, only=("sites-complete", "foreign-model-refused")).raise_if_failed()
    assert len(report.ran) == 2


HOLDING = {
    "protected-global": {"recall": True, "exchange": 0.5},
    "knapsack": {"recall": True, "legitimate": True, "specific": True, "spare": -0.5, "spare_margin": 0.5},
}
"""Policies with options that read slopes of units."""


@pytest.mark.parametrize("name", HOLDING)
def test_policies_that_hold_something_choose_units_of_several_columns(name: str) -> None:
    check_plugin("policy", discovery.build("policy", name, HOLDING[name]), only=("wide-units",)).raise_if_failed()


def test_variance_keeps_the_contract_with_its_option_too() -> None:
    report = check_plugin("bias", discovery.build("bias", "variance", {"relative": True})).raise_if_failed()
    assert len(report.ran) == CHECKS["bias"]
