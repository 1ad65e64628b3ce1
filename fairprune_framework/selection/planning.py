"""From scores and a budget to a plan: the policy chooses, the core checks and trims."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fairprune_framework.api.interfaces import PolicyContext, Probe, SelectionPolicy
from fairprune_framework.api.types import MAX_FACTOR, Budget, Choice, Operator, Plan, Scores, check_factor
from fairprune_framework.errors import ContractViolation, FairpruneError
from fairprune_framework.utilities.aside import plugin_call

INTEGERS = frozenset({torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8})
FACTORS = (0.0, 0.25, 0.5, 0.75, 1.25, 1.5, 2.0)
"""What `--factor auto` tries."""


def make_plan(
    scores: Scores,
    policy: SelectionPolicy,
    budget: Budget,
    context: PolicyContext,
    label: str,
    *,
    model: str,
    fingerprint: str,
    operator: Operator,
    factor: float | None = None,
    search: Probe | None = None,
    means: Callable[[], Mapping[str, Tensor]] | None = None,
) -> Plan:
    """Ask the policy, then trim its choice to what may go; for the operator `scale` without a factor, search one.

    Args:
        factor: of the operator `scale`; the policy's own goes before it.
        search: probe with which a factor is searched where nobody gave one.
        means: for the operator `mean`: site -> (N, width) mean activations.

    Raises:
        ContractViolation: unknown sites, indices out of range or repeated.
        BrokenPlugin: the policy raised; its own error is chained.
    """
    if policy.blind:
        scores = replace(scores, signed=False)
    with plugin_call(label):
        choice = policy.select(scores, budget, context)
    check_choice(choice, scores, label)
    if choice.factor is not None and operator != "scale":
        raise ContractViolation(f"{label} chose the factor {choice.factor}, but the operator {operator!r} does not scale")
    if choice.factors and operator != "scale":
        raise ContractViolation(f"{label} chose factors for its units, but the operator {operator!r} does not scale")
    kept, left_out = trim(choice, scores, budget)
    achieved: dict[str, Any] = {}
    reason = choice.reason
    factor = None if choice.factors else factor if choice.factor is None else choice.factor
    if operator == "scale" and factor is None and kept and not choice.factors:
        assert search is not None, "a factor to search needs a probe"
        factor, achieved["factors"] = best_factor(kept, search, context.max_cost)
        if factor is None:
            kept, reason = {}, "no factor that --max-perplexity-increase allows lowers the divergence on select"
    held: Mapping[str, Tensor] = {}
    if operator == "mean" and kept:
        assert means is not None, "units are held at means"
        held = means()
    count = sum(len(units) for units in kept.values())
    total = sum(site.units for site in scores.sites.values())
    per_layer: dict[str, int] = {}
    for name, units in kept.items():
        layer = str(scores.sites[name].layer)
        per_layer[layer] = per_layer.get(layer, 0) + len(units)
    if budget.units(scores.sites) == 0:
        reason = f"the budget {budget} of {total} neurons is less than one neuron"
    if count == 0 and reason is None:
        chosen = sum(map(len, choice.units.values()))
        reason = f"{label} chose no neuron"
        if chosen:
            reason = (
                f"of {chosen} neurons that {label} chose, none may go: {', '.join(f'{k} {v}' for k, v in left_out.items())}"
            )
    achieved |= {"units": count, "fraction": count / total, "per_layer": per_layer, **left_out}
    return Plan(
        model=model,
        fingerprint=fingerprint,
        operator=operator,
        factor=factor,
        factors=factors_of(choice, kept),
        means={name: tuple(map(tuple, held[name][kept[name].sort().values].tolist())) for name in kept if held},
        categories=categories_of(choice, kept, scores),
        category_names=tuple(sorted(scores.by_category)) if kept else (),
        sites={name: tuple(sorted(units.tolist())) for name, units in kept.items()},
        requested={"budget": str(budget), "units": budget.units(scores.sites)},
        achieved=achieved,
        abstained=count == 0,
        reason=reason,
    )


def factors_of(choice: Choice, kept: dict[str, Tensor]) -> dict[str, tuple[float, ...]]:
    """site -> the factors of the units that were kept, in the order of their indices; empty where the choice has none."""
    found: dict[str, tuple[float, ...]] = {}
    for name, units in kept.items() if choice.factors else ():
        known = dict(zip(choice.units[name].tolist(), choice.factors[name].double().tolist(), strict=True))
        found[name] = tuple(known[unit] for unit in sorted(units.tolist()))
    return found


def categories_of(choice: Choice, kept: dict[str, Tensor], scores: Scores) -> dict[str, tuple[int, ...]]:
    """site -> the bit masks of the units that were kept, in the order of their indices: those of the choice, or where it has none the
    categories in which the unit's bias has the highest rank among all units."""
    found: dict[str, tuple[int, ...]] = {}
    ranks: list[Tensor] = []
    values = [scores.by_category[category] for category in sorted(scores.by_category)]
    for name, units in kept.items():
        ordered = units.sort().values
        if name in choice.categories:
            known = dict(zip(choice.units[name].tolist(), choice.categories[name].tolist(), strict=True))
            found[name] = tuple(known[unit] for unit in ordered.tolist())
        elif values and all(name in each for each in values):
            ranks = ranks or [torch.cat([each[site].double() for site in sorted(each)]).sort().values for each in values]
            shares = [
                torch.searchsorted(ranked, each[name][ordered].double()) / len(ranked)
                for ranked, each in zip(ranks, values, strict=True)
            ]
            best = torch.stack(shares) == torch.stack(shares).amax(0)
            found[name] = tuple(sum(1 << bit for bit, one in enumerate(column) if one) for column in best.T.tolist())
    return found


def best_factor(units: dict[str, Tensor], probe: Probe, max_cost: float) -> tuple[float | None, dict[str, Any]]:
    """The factor of the lowest divergence on `select` among those that cost no more than allowed; ties go to the mildest.

    Returns: the factor, None where none lowers the divergence, and what was measured for each.
    """
    choice = Choice(units=units)
    before = probe(Choice(units={})).divergence
    seen = {factor: probe(replace(choice, factor=factor)) for factor in FACTORS}
    affordable = {factor: found.divergence for factor, found in seen.items() if found.cost <= max_cost}
    best = min(affordable, key=lambda factor: (affordable[factor], abs(factor - 1)), default=None)
    if best is not None and affordable[best] >= before:
        best = None
    return best, {f"{factor:g}": {"divergence": found.divergence, "cost": found.cost} for factor, found in seen.items()}


def check_choice(choice: Choice, scores: Scores, label: str) -> None:
    """Raise `ContractViolation` unless every chosen unit exists and is named once."""
    if not isinstance(choice, Choice):
        raise ContractViolation(f"{label}: select() must return a Choice. Got {type(choice).__name__} instead.")
    if not isinstance(choice.reason, str | None):
        raise ContractViolation(f"{label}: the reason of a choice is a text. Got {type(choice.reason).__name__} instead.")
    if choice.factor is not None:
        check_factor(choice.factor, f"the choice of {label}")
    for kind in ("units", "order", "factors", "categories"):
        given = getattr(choice, kind)
        if not isinstance(given, Mapping):
            raise ContractViolation(
                f"{label}: the {kind} of a choice are a mapping from sites. Got {type(given).__name__} instead."
            )
        for name, value in given.items():
            if name not in scores.sites:
                raise ContractViolation(f"{label} chose {kind} of {name!r}, which is no site")
            if not isinstance(value, Tensor):
                raise ContractViolation(f"{label}: the {kind} of {name} must be a tensor. Got {type(value).__name__} instead.")
    for name, units in choice.units.items():
        if units.ndim != 1 or units.dtype not in INTEGERS:
            raise ContractViolation(
                f"{label}: the units of {name} must be (n,) integers. Got {tuple(units.shape)} {units.dtype} instead."
            )
        if len(units) and (int(units.min()) < 0 or int(units.max()) >= scores.sites[name].units):
            raise ContractViolation(f"{label} chose units of {name} outside 0..{scores.sites[name].units - 1}")
        if len(set(units.tolist())) < len(units):
            raise ContractViolation(f"{label} chose a unit of {name} twice")
        if name in choice.order and choice.order[name].shape != units.shape:
            raise ContractViolation(f"{label}: the order of {name} has another length than its units")
        if name in choice.order and (choice.order[name].is_complex() or bool(choice.order[name].isnan().any())):
            raise ContractViolation(f"{label}: the order of {name} holds what is no number that can be compared")
        bits = choice.categories.get(name)
        if bits is not None and (bits.shape != units.shape or bits.dtype not in INTEGERS or bool((bits < 0).any())):
            raise ContractViolation(f"{label}: the categories of {name} must be one bit mask, an integer, for each unit")
        if not choice.factors:
            continue
        if choice.factor is not None or name not in choice.factors or choice.factors[name].shape != units.shape:
            raise ContractViolation(
                f"{label}: factors name one number for each unit of each site, and no other factor beside them"
            )
        factors = choice.factors[name].double()
        if not ((factors >= 0) & (factors <= MAX_FACTOR)).all():
            raise ContractViolation(f"{label}: the factors of {name} must be in [0, {MAX_FACTOR:g}]")


def trim(choice: Choice, scores: Scores, budget: Budget) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Cut the tail of a choice to the budget; count what was left out and why.

    Left out are units that were not observed or (signed scores, where a unit has no factor of its own) not above 0, those of
    protected layers, those beyond a layer's share
    or count, the last unit of a site, and at last what exceeds the budget in all.
    """
    left: dict[str, int] = {}
    kept: dict[str, Tensor] = {}
    room = budget.room(scores.sites)

    def drop(reason: str, before: int, after: int) -> None:
        if before > after:
            left[reason] = left.get(reason, 0) + before - after

    for layer in sorted(room):
        names = [name for name in choice.units if scores.sites[name].layer == layer]
        if layer in budget.protected_layers:
            drop("in_protected_layers", sum(len(choice.units[name]) for name in names), 0)
            continue
        usable = {}
        for name in names:
            units = choice.units[name].cpu()
            allowed = scores.observed[name] & (scores.bias[name] > 0 if scores.signed and not choice.factors else True)
            able = units[allowed[units]]
            drop("not_observed", len(units), len(able))
            usable[name] = able[: scores.sites[name].units - 1]
            drop("last_unit_of_site", len(able), len(usable[name]))
        trimmed = _tail(usable, choice, room[layer], scores)
        drop("beyond_layer_limit", sum(map(len, usable.values())), sum(map(len, trimmed.values())))
        kept |= trimmed
    total = _tail(kept, choice, budget.units(scores.sites), scores)
    drop("beyond_budget", sum(map(len, kept.values())), sum(map(len, total.values())))
    return {name: units for name, units in total.items() if len(units)}, left


def _tail(units: dict[str, Tensor], choice: Choice, most: int, scores: Scores) -> dict[str, Tensor]:
    """The `most` first units of a choice; ties go by layer and name, in whatever order the policy went through the sites."""
    count = sum(map(len, units.values()))
    if count <= most:
        return units
    ordered = all(name in choice.order for name in units)
    entries = []
    for name, chosen in units.items():
        place = (scores.sites[name].layer, len(name), name)  # the 2nd expert is before the 10th
        value = dict(zip(choice.units[name].tolist(), choice.order[name].tolist(), strict=True)) if ordered else {}
        for rank, unit in enumerate(chosen.tolist()):  # without an order, each site keeps the same share of what it has here
            entries.append((-value[unit] if ordered else (2 * rank + 1) / len(chosen), *place, rank))
    keep: dict[str, int] = dict.fromkeys(units, 0)
    for *_, name, _ in sorted(entries)[:most]:
        keep[name] += 1
    return {name: chosen[: keep[name]] for name, chosen in units.items()}


def no_replicates() -> Iterator[Scores]:
    """The replicates of a context for policies that declared none."""
    raise FairpruneError("the policy did not declare replicates in needs()")


def policy_context(
    operator: str,
    max_cost: float,
    at: Any,
    generator: torch.Generator,
    probe: Probe | None = None,
    replicates: Callable[[], Iterator[Scores]] = no_replicates,
) -> PolicyContext:
    """The context of a policy; by default of one that declared no replicates."""
    return PolicyContext(operator=operator, max_cost=max_cost, at=at, replicates=replicates, probe=probe, generator=generator)
