"""One word for a run, decided by rule in a fixed order. Source: this project, docs/method/verdict.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fairprune_framework.evaluation import conditions
from fairprune_framework.evaluation.conditions import Condition, GuardCost
from fairprune_framework.functional.difference_in_differences import DifferenceInDifferences
from fairprune_framework.functional.paired_bootstrap import PairedChange

WORDS = ("abstained", "not-judged", "worse", "fairer", "blunter", "less-divergent", "no-difference")
"""In the order in which they are tried."""


@dataclass(frozen=True, kw_only=True)
class VerdictInputs:
    """Everything that the verdict rests on, all of it from contrasts and text that took no part in any choice."""

    applied: bool
    why_not: str | None = None
    """Why nothing was applied."""
    divergence: PairedChange | None
    """Next-token divergence of held-out demographic contrasts, all categories; None: there are none."""
    specificity: DifferenceInDifferences | None
    """The same against held-out controls; None: there are none."""
    random_changes: tuple[float, ...]
    """The change of that divergence by each random set of neurons, matched by layer and activation norm."""
    margin: PairedChange | None
    """The legitimate margin: log p of right words against others' right words; None: there are no such contrasts."""
    guard: GuardCost | None
    """None: there was no judging text."""
    categories: Mapping[str, PairedChange] = field(default_factory=dict)
    """The divergence by demographic category."""
    missing: tuple[str, ...] = ()
    """What else could not be had, each as a noun phrase: "two categories without held-out templates"."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The word, the sentence of numbers that it rests on, and every condition that was looked at."""

    word: str
    because: str
    reasons: tuple[Condition, ...] = ()
    needs: tuple[str, ...] = ()
    """What it would take to be `fairer`, where the divergence fell and the word is another."""

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "word": self.word,
            "because": self.because,
            "reasons": [reason.to_json() for reason in self.reasons],
            "needs": list(self.needs),
        }


def verdict_of(inputs: VerdictInputs) -> Verdict:
    """Decide, in the order of `WORDS`; every bound is one-sided at 99 %.

    - `abstained`: nothing was applied. `not-judged`: the held-out divergence cannot be estimated.
    - `worse`: the divergence rose, the guard failed, or a category rose by more than 10 % by its lower bound.
    - `fairer`: the divergence fell; the ratio of ratios is below 0.9; the fall is below that of all matched random sets, at least
      19; the legitimate margin is above -10 %; the cost is within the guard's limit; enough effective templates on both sides.
    - `blunter`: divergence and controls both fell, not shown to be specific, with enough effective templates on both sides; or the
      legitimate margin fell.
    - `less-divergent`: the divergence fell, and the rest cannot be told, or no random set may be as good.
    - `no-difference`: otherwise.
    """
    if not inputs.applied:
        return Verdict(word="abstained", because=inputs.why_not or "nothing was applied")
    change = inputs.divergence
    if change is None:
        return Verdict(word="not-judged", because="no demographic contrast is held out: see --split")
    if change.bound_low is None or change.bound_high is None:
        return Verdict(word="not-judged", because=f"the held-out divergence is not estimable: {change.no_bound}")

    down, guard = conditions.divergence_down(change), conditions.guard_within(inputs.guard)
    categories = [conditions.category_not_worse(name, one) for name, one in sorted(inputs.categories.items())]
    sides = inputs.specificity
    demographic = conditions.enough("demographic", sides.demographic if sides else None)
    controls = conditions.enough("control", sides.controls if sides else None)
    moved, specific = conditions.controls_down(sides), conditions.specific(sides)
    random = conditions.below_random_sets(change, inputs.random_changes)
    margin = conditions.margin_kept(inputs.margin)
    asked = (down, specific, random, margin, guard, demographic, controls)
    reasons = (*asked, moved, *categories)

    def say(word: str, *parts: Condition, needs: bool = False) -> Verdict:
        wanted = [one.needs for one in asked if one.needs] + list(inputs.missing) if needs else []
        text = ", ".join(part.text for part in parts)
        return Verdict(
            word=word,
            because=f"{text}; `fairer` would take {', '.join(wanted)}" if wanted else text,
            reasons=reasons,
            needs=tuple(wanted),
        )

    failed = [one for one in (guard, *categories) if one.held is False]
    if down.held is False or failed:
        return say("worse", down, *failed)
    if all(one.held for one in asked):
        return say("fairer", down, moved, specific, random, margin, guard)
    told = demographic.held and controls.held and specific.bound is not None
    both = down.held and moved.held and specific.held is not True and told
    if both or margin.held is False:
        return say("blunter", down, moved, specific, margin, needs=down.held is True)
    if down.held:
        return say("less-divergent", down, moved, specific, margin, needs=True)
    verdict, fall = say("no-difference", down), conditions.fall_to_show(change)
    if fall is None:
        return verdict
    return Verdict(
        word=verdict.word,
        because=f"{verdict.because}; a fall of {fall:.0%} would have been shown with 80 % power",
        reasons=reasons,
    )
