"""The contract of selection policies, checked on synthetic scores for two tiny models: dense layers, and layers of experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from fairprune_framework.api.interfaces import PolicyContext, SelectionPolicy, SiteContext
from fairprune_framework.api.types import Budget, Choice, Measurement, Scores
from fairprune_framework.auditing.audit import audit
from fairprune_framework.auditing.demand import Demand, selecting
from fairprune_framework.auditing.statistics import CALIBRATION, CONTROLS, LEGITIMATE, Statistics
from fairprune_framework.calibration.text import Calibration
from fairprune_framework.contrasts.alignment import align_all, vocabularies
from fairprune_framework.models.architecture import Architecture, recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.selection.contexts import context, generator_for
from fairprune_framework.selection.planning import check_choice, no_replicates, trim
from fairprune_framework.surgery.slices import weights_of
from fairprune_framework.testing.interpreters import answers
from fairprune_framework.testing.report import Check, CheckSkipped, require
from fairprune_framework.testing.scorer_bench import in_pairs
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_legitimate, tiny_model, tiny_tokenizer

LAYOUTS = ("llama", "mixtral")
LABEL = "the policy under test"
DOCUMENTS = tuple(tuple(range(5 + i, 17 + 2 * i)) * 2 for i in range(6))
"""Calibration text: each document repeats its content once."""


def made_up(architecture: Architecture, seed: int = 0, levels: int | None = None) -> Scores:
    """Random scores for the sites of a model; with `levels`, many ties."""
    generator = torch.Generator().manual_seed(seed)

    def draw(units: int) -> Tensor:
        values = torch.rand(units, generator=generator, dtype=torch.float64)
        return values if levels is None else (values * levels).floor()

    bias = {name: draw(site.units) for name, site in architecture.sites.items()}
    return Scores(
        sites=architecture.sites,
        bias=bias,
        importance={name: draw(site.units) for name, site in architecture.sites.items()},
        by_category={"one": bias, "two": bias},
        observed={name: torch.ones(site.units, dtype=torch.bool) for name, site in architecture.sites.items()},
    )


class PolicyBench:
    """A policy on the sites of one tiny model."""

    def __init__(self, policy: SelectionPolicy, family: str, *, pairs: bool = False) -> None:
        self.policy, self.family = policy, family
        self.model = tiny_model(family, layers=3)
        found = recognise(self.model)
        self.architecture = in_pairs(found) if pairs else found
        self.scores = made_up(self.architecture)
        self._statistics: Statistics | None = None

    def choose(self, scores: Scores, budget: Budget, operator: str = "remove") -> tuple[Choice, dict[str, Tensor]]:
        """The choice of the policy, which must be valid, and the part that the core keeps."""
        choice = self.policy.select(scores, budget, self._context(scores, operator))
        require(
            isinstance(choice, Choice), f"{self.family}: select() must return a Choice. Got {type(choice).__name__} instead."
        )
        check_choice(choice, scores, LABEL)
        kept, _ = trim(choice, scores, budget)
        count = sum(map(len, kept.values()))
        require(count <= budget.units(scores.sites), f"{self.family}: {count} units for a budget of {budget}")
        return choice, kept

    def some(self, scores: Scores, budget: Budget) -> dict[str, Tensor]:
        """As `choose`; an empty result must have a reason."""
        choice, kept = self.choose(scores, budget)
        wasted = "" if not sum(map(len, choice.units.values())) else ": it chose ineligible units"
        require(kept or choice.reason, f"{self.family}: nothing of a budget of {budget} was used, without a reason{wasted}")
        return kept

    def _context(self, scores: Scores, operator: str) -> PolicyContext:
        def probe(choice: Choice, *, cost: bool = True) -> Measurement:
            count = sum(map(len, choice.units.values()))
            return Measurement(divergence=1 / (1 + count), cost=0.001 * count, retention=1 / (1 + 0.001 * count))

        def replicates() -> Iterator[Scores]:
            for seed in range(self.policy.needs().replicates):
                yield replace(made_up(self.architecture, seed + 1), observed=scores.observed)

        return PolicyContext(
            operator=operator,
            max_cost=0.05,
            at=self._at,
            replicates=replicates if self.policy.needs().replicates else no_replicates,
            probe=probe if self.policy.needs().probe else None,
            generator=generator_for(0, LABEL, self.family),
        )

    def _at(self, name: str) -> SiteContext:
        needs, site = self.policy.needs(), self.architecture.sites[name]
        if self._statistics is None:
            contrasts = [*tiny_contrasts(), *tiny_legitimate()]
            aligned, _ = align_all(contrasts, Encoder(tiny_tokenizer()))
            values = {category: len(names) for category, names in vocabularies(contrasts).items()}
            demand = Demand.of([self.policy], len({site.layer for site in self.architecture.sites.values()}))
            text = Calibration(documents=DOCUMENTS, source="contract") if demand.calibration else None
            self._statistics, _ = audit(
                self.model,
                self.architecture,
                selecting(aligned),
                values,
                demand,
                controls=selecting(aligned, CONTROLS),
                legitimate=selecting(aligned, LEGITIMATE),
                calibration=text,
                accelerator="cpu",
            )
        weights = weights_of(self.model, site) if needs.weights else {}
        return context(self._statistics, CALIBRATION, None, site, needs, weights, generator_for(0, LABEL, name))


def _as_sets(kept: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: sorted(units.tolist()) for name, units in kept.items()}


def policy_checks(policy: SelectionPolicy) -> dict[str, Check]:
    """All checks of a policy; each can run alone."""

    @cache
    def bench(family: str) -> PolicyBench:
        return PolicyBench(policy, family)

    def each(check: Callable[[PolicyBench], None]) -> None:
        for family in LAYOUTS:
            check(bench(family))

    def with_budget(*texts: str) -> Check:
        def check() -> None:
            for text in texts:
                each(lambda at, text=text: at.some(at.scores, Budget.parse(text)) and None)  # type: ignore[misc]

        return check

    def valid_units() -> None:
        def check(at: PolicyBench) -> None:
            choice, _ = at.choose(at.scores, Budget.parse("0.2"))
            for name, units in choice.units.items():
                require(units.dtype == torch.int64, f"the units of {name} must be int64. Got {units.dtype} instead.")
                require(units.device.type == "cpu", f"the units of {name} must be on the CPU")

        each(check)

    def descending() -> None:
        def check(at: PolicyBench) -> None:
            choice, _ = at.choose(at.scores, Budget.parse("0.2"))
            for name, order in choice.order.items():
                falls = not torch.isnan(order).any() and bool((order[1:] <= order[:-1]).all())
                require(falls, f"the order of {name} must be descending: most removable first. Got {order[:5].tolist()}...")

        each(check)

    def ties() -> None:
        def check(at: PolicyBench) -> None:
            scores = made_up(at.architecture, levels=2)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                first, _ = at.choose(scores, Budget.parse("0.2"))
                torch.manual_seed(2)
                second, _ = at.choose(scores, Budget.parse("0.2"))
            same = {n: u.tolist() for n, u in first.units.items()} == {n: u.tolist() for n, u in second.units.items()}
            require(same, f"{at.family}: equal scores with ties gave two different choices")

        each(check)

    def constant_scores() -> None:
        def check(at: PolicyBench) -> None:
            for value in (0.0, 1.0):
                flat = {name: torch.full_like(bias, value) for name, bias in at.scores.bias.items()}
                at.some(replace(at.scores, bias=flat, importance=flat), Budget.parse("0.2"))

        each(check)

    def protected() -> None:
        def check(at: PolicyBench) -> None:
            kept = at.some(at.scores, Budget.parse("0.2", protected_layers=frozenset({0, 2})))
            layers = {at.architecture.sites[name].layer for name in kept}
            require(layers <= {1}, f"{at.family}: units of protected layers: {sorted(layers - {1})}")

        each(check)

    def unobserved() -> None:
        def check(at: PolicyBench) -> None:
            bias, observed = {}, {}
            for name, values in at.scores.bias.items():
                observed[name] = torch.arange(len(values)) % 2 == 0
                bias[name] = values + 2.0 * ~observed[name]  # the most biased of all were never observed
            kept = at.some(replace(at.scores, bias=bias, observed=observed), Budget.parse("0.2"))
            require(
                all(observed[name][units].all() for name, units in kept.items()), f"{at.family}: units that were never observed"
            )

        each(check)

    def signed() -> None:
        def check(at: PolicyBench) -> None:
            bias = {name: values - 0.9 for name, values in at.scores.bias.items()}
            kept = at.some(replace(at.scores, bias=bias, signed=True), Budget.parse("0.2"))
            require(
                all((bias[name][units] > 0).all() for name, units in kept.items()), f"{at.family}: units that lower the bias"
            )

        each(check)

    def layer_share() -> None:
        def check(at: PolicyBench) -> None:
            kept = at.some(at.scores, Budget.parse("0.5", max_layer_share=0.1))
            for layer in {site.layer for site in at.architecture.sites.values()}:
                names = [name for name, site in at.architecture.sites.items() if site.layer == layer]
                size = sum(at.architecture.sites[name].units for name in names)
                require(
                    sum(len(kept.get(name, ())) for name in names) <= 0.1 * size,
                    f"{at.family}: layer {layer} loses more than its share",
                )

        each(check)

    def monotonicity() -> None:
        if policy.blind:
            raise CheckSkipped("the policy does not look at the bias")

        def check(at: PolicyBench) -> None:
            kept = at.some(at.scores, Budget.parse("0.2"))
            for name in sorted(kept)[:: max(1, len(kept) // 4)]:
                unit = int(kept[name][-1])
                raised = {site: values.clone() for site, values in at.scores.bias.items()}
                raised[name][unit] += 0.3
                more = replace(at.scores, bias=raised, by_category=dict.fromkeys(at.scores.by_category, raised))
                _, again = at.choose(more, Budget.parse("0.2"))
                stays = unit in again.get(name, torch.zeros(0)).tolist()
                require(stays, f"{at.family}: unit {unit} of {name} is chosen, and no longer where its bias is raised")

        each(check)

    def factors() -> None:
        def check(at: PolicyBench) -> None:
            for operator in ("remove", "zero"):
                choice, _ = at.choose(at.scores, Budget.parse("0.2"), operator)
                given = "factor" if choice.factor is not None else "factors" if choice.factors else None
                require(
                    given is None, f"{at.family}: a choice with {given} under the operator {operator!r}, which does not scale"
                )

        each(check)

    def site_order() -> None:
        def check(at: PolicyBench) -> None:
            backwards = replace(at.scores, sites=dict(reversed(list(at.scores.sites.items()))))
            _, first = at.choose(at.scores, Budget.parse("0.2"))
            _, second = at.choose(backwards, Budget.parse("0.2"))
            require(_as_sets(first) == _as_sets(second), f"{at.family}: a different order of the sites gives a different plan")

        each(check)

    def wide_units() -> None:
        at = PolicyBench(policy, "llama", pairs=True)
        at.some(at.scores, Budget.parse("0.2"))

    def hash_seed() -> None:
        one, other = answers("policy", policy)
        same = _as_sets(one) == _as_sets(other)
        require(
            same, "two interpreters choose differently: the choice depends on the order in which a set of words is gone through"
        )

    def no_mutation() -> None:
        def check(at: PolicyBench) -> None:
            groups = {"bias": at.scores.bias, "importance": at.scores.importance, "observed": at.scores.observed}
            before = {(kind, name): value.clone() for kind, group in groups.items() for name, value in group.items()}
            kept = dict(vars(policy))
            at.choose(at.scores, Budget.parse("0.2"))
            for kind, group in groups.items():
                changed = [name for name, value in group.items() if not torch.equal(value, before[kind, name])]
                for name in changed:
                    group[name].copy_(before[kind, name])  # the other checks share these scores
                require(not changed, f"{at.family}: select() modifies the {kind} scores of {', '.join(changed)}")
            require(vars(policy) == kept, "the policy keeps state between calls")

        each(check)

    return {
        "fraction-budget": with_budget("0.2", "0.0001"),
        "total-budget": with_budget("17n", "1n"),
        "per-layer-budget": with_budget("8/layer", "1/layer"),
        "unlimited-budget": with_budget("0.999", "100000n", "1000/layer"),
        "valid-units": valid_units,
        "descending-order": descending,
        "deterministic-with-ties": ties,
        "constant-scores": constant_scores,
        "protected-layers": protected,
        "unobserved-units": unobserved,
        "signed-scores": signed,
        "layer-share": layer_share,
        "monotonicity": monotonicity,
        "factors-under-scale": factors,
        "site-order": site_order,
        "wide-units": wide_units,
        "hash-seed": hash_seed,
        "no-mutation": no_mutation,
    }
