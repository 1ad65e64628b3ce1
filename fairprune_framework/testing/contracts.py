"""The contract suite for plugin authors: one line in a pytest function verifies the contract of a plugin.

    def test_contract() -> None:
        check_plugin("bias", MyScorer()).raise_if_failed()

Statistics run through the real callback and Trainer on tiny models. An inapplicable check is skipped by name, with a reason, and
counted: `check_plugin(..., skip={"permutation-equivariance": "draws its scores"})`. What a plugin cannot keep by its definition, its
class says in `exemptions`.
"""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Collection, Mapping
from typing import Any

import yaml
from torch import nn

from fairprune_framework import discovery
from fairprune_framework.api.declared import needs_of, passes_at
from fairprune_framework.api.interfaces import (
    API_VERSION,
    ArchitectureAdapter,
    BiasScorer,
    ImportanceScorer,
    Plugin,
    SelectionPolicy,
)
from fairprune_framework.auditing.demand import with_earlier
from fairprune_framework.errors import FairpruneError
from fairprune_framework.selection.scoring import needs_of_scorer
from fairprune_framework.testing.adapter_contract import adapter_checks
from fairprune_framework.testing.policy_contract import policy_checks
from fairprune_framework.testing.report import Check, CheckFailed, CheckSkipped, Report, require, run_checks
from fairprune_framework.testing.scorer_contract import scorer_checks

__all__ = ["CheckFailed", "CheckSkipped", "Report", "check_plugin"]


def check_plugin(
    kind: discovery.Kind,
    plugin: Plugin | type[Plugin],
    *,
    model: Callable[[], nn.Module] | None = None,
    skip: Mapping[str, str] | None = None,
    only: Collection[str] | None = None,
) -> Report:
    """Check a plugin against the contract of its interface.

    Args:
        kind: `bias`, `importance`, `policy` or `architecture`.
        plugin: the plugin, or its class, which is then instantiated with its defaults.
        model: for an adapter: a factory of a small random float32 model of its family, which transformers can save and load. By
            default the first tiny family that the adapter accepts.
        skip: check -> why it does not apply to this plugin, beside the exemptions that the plugin declares.
        only: run only these checks; the others count as skipped.

    Raises:
        ValueError: an unknown kind or check, an exemption without a reason, or an adapter that accepts no tiny family.
    """
    if kind not in discovery.GROUPS:
        raise ValueError(f"The 'kind' must be one of {', '.join(discovery.GROUPS)}. Got {kind!r} instead.")
    if model is not None and kind != "architecture":
        raise ValueError(f"a model is for adapters; the kind is {kind!r}")
    made: Any = plugin() if isinstance(plugin, type) else plugin
    checks: dict[str, Check] = dict(_common(kind, made))
    if kind == "architecture":
        checks |= adapter_checks(made, model)
    elif kind == "policy":
        checks |= policy_checks(made)
    else:
        checks |= scorer_checks(kind, made)
    return run_checks(kind, type(made).__name__, checks, {**made.exemptions, **(skip or {})}, only)


def _common(kind: discovery.Kind, plugin: Any) -> dict[str, Check]:
    bases: dict[str, type[Plugin]] = {
        "bias": BiasScorer,
        "importance": ImportanceScorer,
        "policy": SelectionPolicy,
        "architecture": ArchitectureAdapter,
    }
    plugin_class = type(plugin)

    def interface() -> None:
        require(isinstance(plugin, bases[kind]), f"{plugin_class.__name__} is not a {discovery.INTERFACES[kind]}")
        said = (plugin_class.__doc__ or "").strip()
        require(
            said and not said.startswith(f"{plugin_class.__name__}("),  # as a dataclass without one is given
            f"{plugin_class.__name__} has no docstring: state what it computes, and the unit",
        )

    def api_version() -> None:
        declared = plugin_class.api_version
        require(declared == API_VERSION, f"written for interface version {declared}; this is version {API_VERSION}")

    def frozen_dataclass() -> None:
        require(dataclasses.is_dataclass(plugin_class), f"{plugin_class.__name__} must be a dataclass")
        require(
            "__dataclass_params__" in vars(plugin_class),
            f"{plugin_class.__name__} inherits from a dataclass, but is not one itself",
        )
        require(vars(plugin_class)["__dataclass_params__"].frozen, f"{plugin_class.__name__} must be frozen")
        loose = [field.name for field in dataclasses.fields(plugin_class) if field.init and not field.kw_only]
        require(not loose, f"the options must be keyword-only: {', '.join(loose)}")

    def options_round_trip() -> None:
        options = discovery.options_of(plugin)
        entry = discovery.Entry(kind=kind, name=plugin_class.__name__, distribution="under-test", version="0", value="")
        again = discovery.make(entry, plugin_class, yaml.safe_load(yaml.safe_dump(options)))
        require(
            again == plugin, f"after a round trip through a recipe the options give a different plugin: {plugin} became {again}"
        )

    def equal_by_value() -> None:
        twin = plugin_class(**discovery.options_of(plugin))
        require(
            twin == plugin and hash(twin) == hash(plugin), "two plugins with equal options must be equal and have equal hashes"
        )

    def picklable() -> None:
        require(pickle.loads(pickle.dumps(plugin)) == plugin, "the plugin differs after a pickle round trip")

    def declared_needs() -> None:
        try:
            needs = needs_of(plugin) if kind in ("policy", "architecture") else needs_of_scorer(plugin, plugin_class.__name__)
            for statistic in with_earlier(needs.statistics):
                for layers in (1, 3):
                    passes_at(statistic, layers)
        except FairpruneError as error:
            raise CheckFailed(str(error)) from error
        require(
            plugin.needs() == needs,
            "needs() must return equal values on each call: statistics are frozen dataclasses, equal by value",
        )
        names = [statistic.name for statistic in needs.statistics]
        require(len(set(names)) == len(names), f"two statistics have the same name: {', '.join(names)}")
        for statistic in needs.statistics:
            require(pickle.loads(pickle.dumps(statistic)) == statistic, f"{statistic!r} differs after a pickle round trip")

    return {
        "interface": interface,
        "api-version": api_version,
        "frozen-dataclass": frozen_dataclass,
        "options-round-trip": options_round_trip,
        "equal-by-value": equal_by_value,
        "picklable": picklable,
        "declared-needs": declared_needs,
    }
