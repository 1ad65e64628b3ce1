"""One word for a run, decided by rule: `fairer`, `no-difference`, `worse`, `abstained` or `not-judged`."""

from __future__ import annotations

from dataclasses import dataclass

from fairprune_framework.functional.paired_bootstrap import MIN_CLUSTERS, PairedChange, minimum_detectable_change


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The word, and the sentence that it rests on."""

    word: str
    because: str


def decide(change: PairedChange | None, *, applied: bool, why_not: str | None, guard_held: bool) -> Verdict:
    """Decide on the change of next-token divergence over held-out contrasts, no controls, all categories.

    Args:
        change: None where the set has no `heldout` split.
        applied: the plan was carried out; otherwise `why_not` says why it was not.
        guard_held: False: it failed, and the plan was forced.
    """
    if not applied:
        return Verdict(word="abstained", because=why_not or "nothing was applied")
    if not guard_held:
        return Verdict(word="worse", because="the guard failed and the plan was forced")
    if change is None:
        return Verdict(word="not-judged", because="the prompt set has no split 'heldout': see --split")
    if change.ci_low is None or change.ci_high is None or change.change is None:
        if change.clusters < MIN_CLUSTERS:
            return Verdict(
                word="not-judged", because=f"{change.clusters} held-out templates are too few; {MIN_CLUSTERS} are needed"
            )
        return Verdict(word="not-judged", because="the held-out divergence before cannot be told from 0")
    interval = f"{change.change:+.1%} [{change.ci_low:+.1%}, {change.ci_high:+.1%}]"
    measured = f"held-out next-token divergence changed by {interval}, {change.clusters} templates"
    if change.ci_high < 0:
        return Verdict(word="fairer", because=measured)
    if change.ci_low > 0:
        return Verdict(word="worse", because=measured)
    smallest = minimum_detectable_change(change)
    detectable = f"; a change of {smallest:.0%} would have been seen with 80 % power" if smallest is not None else ""
    return Verdict(word="no-difference", because=measured + detectable)
