"""A part of a plan: the neurons of a layer, of a category, or single ones, and the plan without them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fairprune_framework.api.types import Plan, Site
from fairprune_framework.errors import UserError, did_you_mean
from fairprune_framework.models.neurons import located


@dataclass(frozen=True, kw_only=True)
class Part:
    """Which planned neurons are meant: those of these layers and categories (one that is empty names all), and single ones.

    A neuron that was chosen for several categories belongs to each of them.
    """

    layers: tuple[int, ...] = ()
    categories: tuple[str, ...] = ()
    neurons: tuple[str, ...] = ()
    """`LAYER:UNIT`, or `SITE:UNIT` where a layer has several sites."""

    def __bool__(self) -> bool:
        return bool(self.layers or self.categories or self.neurons)

    def of(self, plan: Plan, sites: Mapping[str, Site]) -> dict[str, frozenset[int]]:
        """Site -> the planned units that are meant.

        Args:
            sites: of the original model.

        Raises:
            UserError: a layer, category or neuron that the plan does not name, or none that fits all that was asked for.
        """
        found: dict[str, set[int]] = {}
        for text in self.neurons:
            site, unit = located(text, sites, "--neuron")
            if unit not in plan.sites.get(site.name, ()):
                raise UserError(f"--neuron {text}: the plan did not take unit {unit} of {site.name}")
            found.setdefault(site.name, set()).add(unit)
        if self.layers or self.categories:
            self._check(plan, sites)
            wanted = sum(1 << plan.category_names.index(name) for name in set(self.categories))
            for name, units in plan.sites.items():
                bits = plan.categories.get(name, (0,) * len(units))
                if not self.layers or sites[name].layer in self.layers:
                    mine = {unit for unit, of in zip(units, bits, strict=True) if not wanted or of & wanted}
                    found.setdefault(name, set()).update(mine)
        if not any(found.values()):
            raise UserError(
                f"no planned neuron is of {_named('layer', self.layers)} and of {_named('category', self.categories)}"
            )
        return {name: frozenset(units) for name, units in found.items() if units}

    def _check(self, plan: Plan, sites: Mapping[str, Site]) -> None:
        planned = sorted({sites[name].layer for name, units in plan.sites.items() if units})
        for layer in self.layers:
            if layer not in planned:
                raise UserError(f"the plan took no neuron from layer {layer}; it did from {', '.join(map(str, planned))}")
        if self.categories and not plan.categories:
            raise UserError("the plan does not say for which category a neuron was chosen: name layers or neurons")
        for category in self.categories:
            if category not in plan.category_names:
                known = ", ".join(plan.category_names)
                raise UserError(f"no category {category!r}; there is {known}.{did_you_mean(category, plan.category_names)}")


def _named(what: str, given: Iterable[object]) -> str:
    return f"{what} {' or '.join(map(str, given))}" if given else f"any {what}"


def without(plan: Plan, part: Mapping[str, Collection[int]]) -> Plan:
    """The plan as it would be without these units; what was asked for and achieved is of the whole."""
    stay = {name: [unit not in part.get(name, ()) for unit in units] for name, units in plan.sites.items()}

    def kept(values: Mapping[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        rest = {
            name: tuple(value for value, stays in zip(each, stay[name], strict=True) if stays) for name, each in values.items()
        }
        return {name: each for name, each in rest.items() if each}

    return replace(
        plan, sites=kept(plan.sites), factors=kept(plan.factors), means=kept(plan.means), categories=kept(plan.categories)
    )
