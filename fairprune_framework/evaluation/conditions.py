"""The conditions that the verdict rests on, each with its numbers: held, failed, or not to be told, and what would tell.

Every bound is one-sided at 99 %. Source: this project, docs/method/verdict.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

from fairprune_framework.functional.difference_in_differences import DifferenceInDifferences, Side
from fairprune_framework.functional.paired_bootstrap import MIN_CLUSTERS, PairedChange
from fairprune_framework.functional.power import POWER, growth_to_show
from fairprune_framework.utilities.wording import number_of

SPECIFIC_BELOW = 0.9
"""The ratio of ratios must be shown to be below this."""
MARGIN_ABOVE = -0.1
"""The change of the legitimate margin must be shown to be above this."""
CATEGORY_BELOW = 0.1
"""A category whose change is shown to be above this makes the run `worse`."""
MIN_RANDOM_SETS = 19
"""To be below all of 19 matched random sets has a probability of 1 in 20 for one more of them."""
MIN_EFFECTIVE = MIN_CLUSTERS
"""Effective templates (Kish, by weight) on each side."""


@dataclass(frozen=True, kw_only=True)
class GuardCost:
    """What the plan costs the language: perplexity on judging text."""

    increase: float
    """Relative."""
    bound_high: float | None
    """One-sided 99 % upper bound of the increase over documents; None: not estimable."""
    limit: float


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One condition of the rule. Stored in `run.json` under `verdict_reasons`."""

    name: str
    held: bool | None
    """None: these data cannot tell."""
    value: float | None
    """The estimate."""
    bound: float | None
    """What is compared with the limit."""
    limit: float | None
    text: str
    """The numbers, as part of a sentence."""
    needs: str | None = None
    """What it would take for the condition to hold; None where it holds."""

    def to_json(self) -> dict[str, Any]:
        """JSON form; null where a number is not finite."""
        values = asdict(self)
        return {name: None if isinstance(one, float) and not math.isfinite(one) else one for name, one in values.items()}


def divergence_down(change: PairedChange) -> Condition:
    """The divergence of demographic contrasts fell: its upper bound is below 0. Failed: it rose."""
    low, high = change.bound_low, change.bound_high
    held = None if low is None or high is None else True if high < 0 else False if low > 0 else None
    return Condition(
        name="divergence-down",
        held=held,
        value=change.change,
        bound=low if held is False else high,
        limit=0.0,
        text=f"held-out next-token divergence {_change(change, high if held is not False else low)}, "
        f"{number_of(change.clusters, 'template')}",
        needs=None if held else _more(change, "templates", "a fall", 1.0),
    )


def fall_to_show(change: PairedChange) -> float | None:
    """The fall that the 99 % bound would show with 80 % power, of data like these; None: there is no bound.

    The bound lies as far above an estimate as it does here, and four estimates in five lie within 0.84 standard errors of the truth or
    below it.

    >>> from fairprune_framework.functional.paired_bootstrap import paired_change
    >>> found = paired_change([1.0] * 8, [0.8, 1.2, 0.9, 1.1] * 2, ["age"] * 8, range(8))
    >>> round(found.bound_high, 2), round(fall_to_show(found), 2)
    (0.21, 0.21)
    """
    if change.change is None or change.change <= -1 or change.standard_error is None or change.bound_high is None:
        return None
    ratio = change.change + 1
    return 1 - ratio / (change.bound_high + 1) * math.exp(-NormalDist().inv_cdf(POWER) * change.standard_error / ratio)


def category_not_worse(category: str, change: PairedChange) -> Condition:
    """The lower bound of a category is not above +10 %. Not to be told: no bound."""
    low = change.bound_low
    return Condition(
        name=f"category:{category}",
        held=None if low is None else low <= CATEGORY_BELOW,
        value=change.change,
        bound=low,
        limit=CATEGORY_BELOW,
        text=f"{category} {_change(change, low)}",
        needs=None if low is None or low <= CATEGORY_BELOW else f"no rise of more than {CATEGORY_BELOW:.0%} in {category}",
    )


def guard_within(cost: GuardCost | None) -> Condition:
    """The upper bound of the cost is within the limit. Failed: the cost itself is not."""
    if cost is None:
        return _unknown("guard", None, "no guard", "judging text for the guard")
    high = cost.bound_high
    held = False if cost.increase > cost.limit else None if high is None or high > cost.limit else True
    bound = "no bound" if high is None else f"99% bound {high:+.1%}"
    return Condition(
        name="guard",
        held=held,
        value=cost.increase,
        bound=high,
        limit=cost.limit,
        text=f"perplexity {cost.increase:+.1%} ({bound}, limit {cost.limit:+.1%})",
        needs=None if held else "a plan that costs less" if held is False else "more judging text, or a plan that costs less",
    )


def enough(name: str, side: Side | None) -> Condition:
    """Enough effective templates on one side: `demographic` or `control`. None: there are no controls."""
    if side is None:
        needs = "control contrasts in the held-out split" if name == "control" else None
        return _unknown(f"enough-{name}", MIN_EFFECTIVE, "no controls to compare with", needs)
    held = side.effective >= MIN_EFFECTIVE
    return Condition(
        name=f"enough-{name}",
        held=held,
        value=side.effective,
        bound=side.effective,
        limit=float(MIN_EFFECTIVE),
        text=f"{side.effective:.1f} effective of {side.units} {name} templates",
        needs=None if held else f"{MIN_EFFECTIVE} effective {name} templates instead of {side.effective:.1f} of {side.units}",
    )


def controls_down(result: DifferenceInDifferences | None) -> Condition:
    """The divergence of controls fell as well. It is no condition of `fairer`; it tells `blunter` from `less-divergent`."""
    if result is None:
        return _unknown("controls-down", 1.0, "no controls", None)
    change = result.controls.change
    low, high = change.bound_low, change.bound_high
    held = None if low is None or high is None else True if high < 1 else False if low > 1 else None
    ratio = "not estimable" if change.ratio is None else f"{change.ratio - 1:+.1%}"
    return Condition(
        name="controls-down",
        held=held,
        value=change.ratio,
        bound=high,
        limit=1.0,
        text=f"controls {ratio} ({'no bound' if high is None else f'99% bound {high - 1:+.1%}'})",
    )


def specific(result: DifferenceInDifferences | None) -> Condition:
    """The upper bound of the ratio of ratios is below 0.9. Failed: its lower bound is not."""
    if result is None:
        return _unknown("specific", SPECIFIC_BELOW, "no ratio of ratios", None)
    ratios = result.ratio_of_ratios
    if ratios.ratio is None or ratios.bound_high is None or ratios.bound_low is None:
        text = f"ratio of ratios not estimable: {ratios.no_bound}"
        return _unknown("specific", SPECIFIC_BELOW, text, "a ratio of ratios that can be estimated", ratios.ratio)
    held = True if ratios.bound_high < SPECIFIC_BELOW else False if ratios.bound_low >= SPECIFIC_BELOW else None
    return Condition(
        name="specific",
        held=held,
        value=ratios.ratio,
        bound=ratios.bound_high,
        limit=SPECIFIC_BELOW,
        text=f"ratio of ratios {ratios.ratio:.2f} (99% bound {ratios.bound_high:.2f}, below {SPECIFIC_BELOW} is asked)",
        needs=None if held else _templates(result),
    )


def below_random_sets(change: PairedChange, random_changes: Sequence[float]) -> Condition:
    """The divergence fell below that of every matched random set, of at least 19. Failed: one of them is as low."""
    n = len(random_changes)
    beaten = 0 if change.change is None else sum(change.change < one for one in random_changes)
    held = False if beaten < n else None if n < MIN_RANDOM_SETS else True
    needs = f"{MIN_RANDOM_SETS} matched random sets instead of {n}"
    return Condition(
        name="below-random-sets",
        held=held,
        value=float(beaten),
        bound=float(beaten),
        limit=float(max(n, MIN_RANDOM_SETS)),
        text=f"below {beaten} of {n} matched random sets",
        needs=None if held else needs if held is None else "an effect beyond that of every matched random set",
    )


def margin_kept(change: PairedChange | None) -> Condition:
    """The lower bound of the legitimate margin is above -10 %. Failed: it is not, and the upper bound is below 0: it fell."""
    if change is None:
        return _unknown(
            "legitimate-margin", MARGIN_ABOVE, "no legitimate contrasts", "legitimate contrasts with their right words"
        )
    if change.before <= 0:
        text = f"legitimate margin {change.before:+.2f} before: none to keep"
        return _unknown("legitimate-margin", MARGIN_ABOVE, text, "legitimate contrasts whose right words the model prefers")
    low, high = change.bound_low, change.bound_high
    if low is None or high is None:
        text = f"legitimate margin not estimable: {change.no_bound}"
        return _unknown("legitimate-margin", MARGIN_ABOVE, text, "more legitimate contrasts", change.change)
    held = True if low > MARGIN_ABOVE else False if high < 0 else None
    return Condition(
        name="legitimate-margin",
        held=held,
        value=change.change,
        bound=low,
        limit=MARGIN_ABOVE,
        text=f"legitimate margin {_change(change, low)}, above {MARGIN_ABOVE:+.0%} is asked",
        needs=None if held else _more(change, "legitimate templates", "a margin that is kept", 1 + MARGIN_ABOVE, above=True),
    )


def _unknown(name: str, limit: float | None, text: str, needs: str | None, value: float | None = None) -> Condition:
    return Condition(name=name, held=None, value=value, bound=None, limit=limit, text=text, needs=needs)


def _change(change: PairedChange, bound: float | None) -> str:
    if change.change is None:
        return "not estimable"
    return f"{change.change:+.1%} ({'no bound' if bound is None else f'99% bound {bound:+.1%}'})"


def _more(change: PairedChange, unit: str, what: str, limit: float, *, above: bool = False) -> str:
    """How many clusters would show that after / before is below (or above) a limit, if the estimate is the truth."""
    growth = None
    if change.change is not None and change.standard_error is not None and change.change > -1:
        ratio = change.change + 1
        error = change.standard_error / ratio
        growth = growth_to_show(1 / ratio, error, limit=1 / limit) if above else growth_to_show(ratio, error, limit=limit)
    if growth is None:
        return f"{what}: no number of {unit} shows it where the estimate is the truth"
    return f"about {_rounded_up(growth * change.clusters)} {unit} instead of {change.clusters}, if the estimate is the truth"


def _templates(result: DifferenceInDifferences) -> str:
    ratios, sides = result.ratio_of_ratios, (result.demographic, result.controls)
    assert ratios.ratio is not None
    assert ratios.standard_error is not None
    growth = growth_to_show(ratios.ratio, ratios.standard_error, limit=SPECIFIC_BELOW)
    if growth is None:
        return (
            f"a ratio of ratios below {SPECIFIC_BELOW}: no number of templates shows it where {ratios.ratio:.2f} is the truth"
        )
    needed = [_rounded_up(growth * side.units) for side in sides]
    return (
        f"about {needed[0]} demographic and {needed[1]} control templates instead of {sides[0].units} and {sides[1].units}, "
        f"if {ratios.ratio:.2f} is the truth"
    )


def _rounded_up(number: float) -> int:
    """Two significant digits: more would not be meant."""
    step = int(10 ** max(math.floor(math.log10(max(number, 1.0))) - 1, 0))
    return math.ceil(number / step - 1e-9) * step
