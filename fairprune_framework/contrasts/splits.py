"""Decides which contrasts may choose neurons (`select`) and which judge them (`heldout`).

| rule | select |
|---|---|
| `keep` | as the set says; a set that says nothing stays without splits (all of it selects, none of it judges) |
| `template:0.5` | that share of each category's templates, drawn by a hash of (seed, category, template_id) |
| `row:odd-even` | the odd rows; the first contrast of the set is row 1 |
| `templates:T1,T2,T3` | the templates of these ids, in every category |

Every rule but `keep` replaces what the set says. A template, and a text, must lie on one side only: what chose the neurons
cannot judge them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation

from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.errors import PromptError, UserError, did_you_mean

FORMS = "keep, template:0.5, row:odd-even or templates:T1,T2,T3"


def apply_split(contrasts: Sequence[Contrast], rule: str, seed: int) -> list[Contrast]:
    """Return the contrasts in their order, with their split set by the rule, and nothing on both sides.

    Args:
        contrasts: a prompt set.
        rule: one of the four forms above.
        seed: of the run; only `template:` draws.

    Raises:
        UserError: no such rule, a share outside (0, 1), a template id that the set does not have, or a rule that leaves
            nothing to select from.
        PromptError: `keep` on a set of which only a part has splits; a template or a text on both sides.
    """
    assigned = assign(contrasts, rule, seed)
    _refuse_shared_templates(assigned, rule)
    if overlap := _overlap(assigned):
        chosen, judge, text = overlap[0]
        raise PromptError(
            f"a text occurs on both sides of the split {rule!r}: in contrast {chosen.id!r} (select) and in {judge.id!r} "
            f"(heldout): {text!r}; {len(overlap)} contrast(s) of select repeat texts of heldout. Take them out, or skip bad "
            "prompts."
        )
    return assigned


def assign(contrasts: Sequence[Contrast], rule: str, seed: int) -> list[Contrast]:
    """Set the splits as `apply_split` does, without its look at what lies on both sides.

    Raises:
        UserError, PromptError: as `apply_split`, but for a template or text on both sides.
    """
    kind, _, rest = rule.partition(":")
    if rule == "keep":
        named = [contrast for contrast in contrasts if contrast.split is not None]
        if named and len(named) < len(contrasts):
            bare = next(contrast for contrast in contrasts if contrast.split is None)
            raise PromptError(
                f"{len(named)} of {len(contrasts)} contrasts have a split, {bare.id!r} has none: give it to all or to none"
            )
        return list(contrasts)
    if rule == "row:odd-even":
        chosen = [index % 2 == 0 for index in range(len(contrasts))]
    elif kind == "template" and rest:
        selected = _drawn(contrasts, _share(rest, rule), seed)
        chosen = [contrast.cluster in selected for contrast in contrasts]
    elif kind == "templates" and rest:
        wanted = _listed(contrasts, rest)
        chosen = [contrast.template_id in wanted for contrast in contrasts]
    else:
        raise UserError(f"The split must be {FORMS}. Got {rule!r} instead.{did_you_mean(rule, ('keep', 'row:odd-even'))}")
    if not any(chosen):
        raise UserError(f"the split {rule!r} leaves nothing to select from: all {len(contrasts)} contrasts are heldout")
    return [
        replace(contrast, split="select" if select else "heldout") for contrast, select in zip(contrasts, chosen, strict=True)
    ]


def without_overlap(contrasts: Sequence[Contrast]) -> tuple[list[Contrast], list[tuple[str, str]]]:
    """Take out the contrasts of `select` of which a text occurs in `heldout` as well; what judges stays whole.

    This is what `--bad-prompts skip` does after `assign`. CrowS-Pairs needs it under `row:odd-even`: two of its rows are equal.

    Returns: the contrasts that stay, and (contrast id, reason) of the others.

    Raises:
        PromptError: a template on both sides; leaving out rows does not mend that.
    """
    _refuse_shared_templates(contrasts, "of the set")
    bad = {chosen.id: judge.id for chosen, judge, _ in _overlap(contrasts)}
    kept = [contrast for contrast in contrasts if contrast.id not in bad]
    return kept, [(chosen, f"a text of it occurs in {judge!r}, which is heldout") for chosen, judge in bad.items()]


def refuse_shared(selecting: Sequence[Contrast], judging: Sequence[Contrast], name: str) -> None:
    """Refuse a set that judges alone where it shares a template or a text with a contrast that may choose neurons.

    Raises:
        PromptError: with the first of them.
    """
    chosen = [contrast for contrast in selecting if contrast.split != "heldout" and not contrast.control]
    templates = {contrast.cluster: contrast for contrast in chosen}
    texts = {variant.text: contrast for contrast in chosen for variant in contrast.variants}
    for contrast in judging:
        if (other := templates.get(contrast.cluster)) is not None:
            raise PromptError(
                f"the set {name!r} cannot judge: its contrast {contrast.id!r} has the template {contrast.template_id!r} of category "
                f"{contrast.category!r}, as has {other.id!r}, which chooses neurons"
            )
        for variant in contrast.variants:
            if (other := texts.get(variant.text)) is not None:
                raise PromptError(
                    f"the set {name!r} cannot judge: its contrast {contrast.id!r} has a text of {other.id!r}, which chooses "
                    f"neurons: {variant.text!r}"
                )


def split_hash(contrasts: Sequence[Contrast]) -> str:
    """SHA-256 over the pairs (id, split), sorted by id: equal for equal splits, whatever the order of the set."""
    pairs = sorted(([contrast.id, contrast.split] for contrast in contrasts), key=lambda pair: str(pair[0]))
    return hashlib.sha256(json.dumps(pairs, ensure_ascii=True, separators=(",", ":")).encode()).hexdigest()


def _share(text: str, rule: str) -> Decimal:
    try:
        share = Decimal(text)
    except InvalidOperation:
        raise UserError(f"The share of the split 'template:' must be a number in (0, 1). Got {rule!r} instead.") from None
    if not (share.is_finite() and 0 < share < 1):
        raise UserError(f"The share of the split 'template:' must be in (0, 1). Got {text} instead.")
    return share


def _drawn(contrasts: Sequence[Contrast], share: Decimal, seed: int) -> set[tuple[str, str]]:
    """Of each category the templates with the lowest hashes; the count is rounded, halves up (5 templates at 0.5: 3)."""
    categories: dict[str, set[str]] = {}
    for contrast in contrasts:
        categories.setdefault(contrast.category, set()).add(contrast.template_id)
    selected: set[tuple[str, str]] = set()
    for category, templates in categories.items():
        count = int((share * len(templates)).to_integral_value(ROUND_HALF_UP))
        drawn = sorted(templates, key=lambda template: (_draw(seed, category, template), template))
        selected.update((category, template) for template in drawn[:count])
    return selected


def _draw(seed: int, category: str, template_id: str) -> str:
    return hashlib.sha256(json.dumps([seed, category, template_id], ensure_ascii=True).encode()).hexdigest()


def _listed(contrasts: Sequence[Contrast], rest: str) -> set[str]:
    known = {contrast.template_id for contrast in contrasts}
    wanted = [name.strip() for name in rest.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            some = ", ".join(sorted(known)[:12]) + (", ..." if len(known) > 12 else "")
            raise UserError(
                f"the split names the template {name!r}, which the set does not have: {some}.{did_you_mean(name, known)}"
            )
    return set(wanted)


def _refuse_shared_templates(contrasts: Sequence[Contrast], rule: str) -> None:
    first: dict[tuple[str, str], Contrast] = {}
    for contrast in contrasts:
        other = first.setdefault(contrast.cluster, contrast)
        if other.split != contrast.split:
            raise PromptError(
                f"template {contrast.template_id!r} of category {contrast.category!r} lies on both sides of the split "
                f"{rule!r}: contrast {other.id!r} is {other.split}, {contrast.id!r} is {contrast.split}; "
                "'template:0.5' keeps templates whole"
            )


def _overlap(contrasts: Sequence[Contrast]) -> list[tuple[Contrast, Contrast, str]]:
    """(contrast of select, contrast of heldout, a text of both), once for each of select that repeats one."""
    judges: dict[str, Contrast] = {}
    for contrast in contrasts:
        if contrast.split == "heldout":
            for variant in contrast.variants:
                judges.setdefault(variant.text, contrast)
    found = []
    for contrast in contrasts:
        shared = [variant.text for variant in contrast.variants if variant.text in judges]
        if contrast.split == "select" and shared:
            found.append((contrast, judges[shared[0]], shared[0]))
    return found
