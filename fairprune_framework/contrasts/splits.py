"""Decides which contrasts may choose neurons (`select`) and which judge them (`heldout`).

| rule | select |
|---|---|
| `keep` | as the set says; a set that says nothing stays without splits (all of it selects, none of it judges) |
| `template:0.5` | that share of each category's templates, drawn by a hash of (seed, category, template_id) |
| `row:odd-even` | the odd rows; the first contrast of the set is row 1 |
| `templates:T1,T2,T3` | the templates of these ids, in every category |

Every rule but `keep` replaces what the set says; `heldout-words` (held-out templates with words that `select` never saw) is then
split as its templates are. A template, and a text, must lie on one side only: what chose the neurons cannot judge them. A control that is
crossed with a demographic template lies where that lies, and shares no attribute words with the controls of the other side.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation

from fairprune_framework.contrasts.readers import short_hash
from fairprune_framework.contrasts.schema import Contrast, stream_of
from fairprune_framework.errors import PromptError, UserError, did_you_mean

_SOME = 1024
"""Template ids that an error looks among."""
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
    refuse_shared_templates(assigned, rule)
    if overlap := overlapping(assigned):
        chosen, judge, text = overlap[0]
        raise PromptError(
            f"a text occurs on both sides of the split {rule!r}: in contrast {chosen!r} (select) and in {judge!r} "
            f"(heldout): {text!r}; {len(overlap)} contrast(s) of select repeat texts of heldout. Take them out, or skip bad "
            "prompts."
        )
    return assigned


def assign(contrasts: Sequence[Contrast], rule: str, seed: int) -> list[Contrast]:
    """Set the splits as `apply_split` does, without its look at what lies on both sides.

    Raises:
        UserError, PromptError: as `apply_split`, but for a template or text on both sides.
    """
    splitter = Splitter(rule, seed)
    for contrast in contrasts:
        splitter.see(contrast)
    splitter.close()
    return [splitter.split(contrast, row) for row, contrast in enumerate(contrasts)]


class Splitter:
    """A rule on a set that is gone through twice: once to `see` it, once to `split` it. It remembers templates by 8-byte hashes.

    Raises:
        UserError: no such rule, or a share outside (0, 1).
    """

    def __init__(self, rule: str, seed: int) -> None:
        self.rule, self._seed = rule, seed
        self._kind, _, rest = rule.partition(":")
        self._share: Decimal | None = None
        self._wanted: list[str] = []
        if self._kind == "template" and rest:
            self._share = _share(rest, rule)
        elif self._kind == "templates" and rest:
            self._wanted = [name.strip() for name in rest.split(",") if name.strip()]
        elif rule not in ("keep", "row:odd-even"):
            raise UserError(f"The split must be {FORMS}. Got {rule!r} instead.{did_you_mean(rule, ('keep', 'row:odd-even'))}")
        self._rows = self._named = 0
        self._bare: str | None = None
        self._draws: dict[str, array[int]] = {}
        self._limits: dict[str, int] = {}
        self._missing = set(self._wanted)
        self._some: dict[str, None] = {}

    def see(self, contrast: Contrast) -> None:
        """Look at one contrast."""
        self._rows += 1
        if contrast.split is not None:
            self._named += 1
        elif self._bare is None:
            self._bare = contrast.id
        if self._share is not None:
            category, template_id = contrast.origin
            drawn = self._draws.setdefault(category, array("Q"))
            drawn.append(_draw(self._seed, category, template_id))
            if len(drawn) >= 1 << 16 and len(drawn) & (len(drawn) - 1) == 0:  # now and then, what repeats goes
                self._draws[category] = array("Q", sorted(set(drawn)))
        elif self._wanted:
            self._missing.discard(contrast.origin[1])
            if len(self._some) < _SOME:
                self._some.setdefault(contrast.origin[1])

    def close(self) -> None:
        """All has been seen.

        Raises:
            PromptError: `keep` on a set of which only a part has splits.
            UserError: a template id that the set does not have, or nothing is left to select from.
        """
        if self.rule == "keep" and 0 < self._named < self._rows:
            raise PromptError(
                f"{self._named} of {self._rows} contrasts have a split, {self._bare!r} has none: give it to all or to none"
            )
        for name in (name for name in self._wanted if name in self._missing):
            known = sorted(self._some)
            some = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
            raise UserError(
                f"the split names the template {name!r}, which the set does not have: {some}.{did_you_mean(name, known)}"
            )
        for category, drawn in self._draws.items():
            ranked = sorted(set(drawn))
            count = int((self._share * len(ranked)).to_integral_value(ROUND_HALF_UP)) if self._share else 0
            self._limits[category] = ranked[count - 1] if count else -1
        self._draws = {}
        undrawn = bool(self._limits) and all(limit < 0 for limit in self._limits.values())
        if undrawn or (self._kind == "templates" and not self._wanted):
            raise UserError(f"the split {self.rule!r} leaves nothing to select from: all {self._rows} contrasts are heldout")

    def split(self, contrast: Contrast, row: int) -> Contrast:
        """The contrast, the `row`-th of the set counted from 0, with its split."""
        if self.rule == "keep":
            return contrast
        if self.rule == "row:odd-even":
            chosen = row % 2 == 0
        elif self._share is not None:
            chosen = _draw(self._seed, *contrast.origin) <= self._limits[contrast.origin[0]]
        else:
            chosen = contrast.origin[1] in self._wanted
        return replace(contrast, split="select" if chosen else "heldout")


def without_overlap(contrasts: Sequence[Contrast]) -> tuple[list[Contrast], list[tuple[str, str]]]:
    """Take out the contrasts of `select` of which a text occurs in `heldout` as well; what judges stays whole.

    This is what `--bad-prompts skip` does after `assign`. CrowS-Pairs needs it under `row:odd-even`: two of its rows are equal.

    Returns: the contrasts that stay, and (contrast id, reason) of the others.

    Raises:
        PromptError: a template on both sides; leaving out rows does not mend that.
    """
    refuse_shared_templates(contrasts, "of the set")
    bad = {chosen: judge for chosen, judge, _ in overlapping(contrasts)}
    kept = [contrast for contrast in contrasts if contrast.id not in bad]
    return kept, [(chosen, f"a text of it occurs in {judge!r}, which is heldout") for chosen, judge in bad.items()]


def refuse_roles(contrasts: Iterable[Contrast]) -> None:
    """Refuse what makes controls or legitimate differences of a set useless.

    Args:
        contrasts: gone through once; a set without crossed controls and legitimate differences cannot fail.

    Raises:
        PromptError: a category of which only a part is legitimate; `neutral_of` that names no demographic template of the set, or one
            of the other side; controls of one template that are neutral of two; crossed controls of both
            sides that share an attribute word.
    """
    sides: dict[str, str | None] = {}
    crossed: list[Contrast] = []
    controls: list[Contrast] = []
    legitimate: dict[str, Contrast] = {}
    filled: dict[tuple[str, ...], Contrast] = {}
    for contrast in contrasts:
        first = legitimate.setdefault(contrast.category, contrast)
        if first.legitimate != contrast.legitimate:
            lacks, has = (contrast, first) if first.legitimate else (first, contrast)
            raise PromptError(
                f"category {contrast.category!r} is legitimate by {has.id!r}, but contrast {lacks.id!r} has no right next words"
            )
        if contrast.role == "demographic":
            sides.setdefault("/".join(contrast.cluster), contrast.split)
        elif contrast.control:
            controls.append(contrast)
            other = filled.setdefault(contrast.cluster, contrast)
            if other.neutral_of != contrast.neutral_of:
                raise PromptError(
                    f"controls {other.id!r} and {contrast.id!r} are of one template, {contrast.template_id!r} of "
                    f"{contrast.category!r}, and neutral of {other.neutral_of or 'none'!r} and of {contrast.neutral_of or 'none'!r}: "
                    "give each a 'template_id' of its own"
                )
            if contrast.neutral_of is not None:
                crossed.append(contrast)
    for contrast in crossed:
        name = str(contrast.neutral_of)
        if name not in sides:
            raise PromptError(
                f"control {contrast.id!r} is neutral of {name!r}, which is no demographic template of the set.{did_you_mean(name, sides)}"
            )
        if (sides[name] == "select") != (contrast.split == "select"):
            raise PromptError(
                f"control {contrast.id!r} is {contrast.split}, the template {name!r} that it fills is {sides[name]}: what chooses neurons "
                "and what judges them share no template"
            )
    if crossed and (shared := shared_control_words(controls)):
        word, chosen, judge = shared[0]
        raise PromptError(
            f"the control word {word!r} stands in {chosen!r} (select) and in {judge!r} (heldout): neutral words that judge must be others "
            "than those that choose; 'keep' keeps the split of the set"
        )


def shared_control_words(contrasts: Iterable[Contrast]) -> list[tuple[str, str, str]]:
    """(word, id in select, id that judges) for each attribute value of controls on both sides of the split, in their order.

    Controls that feed no score may share words; where scores are made specific with them, what judges must have others.
    """
    words: dict[bool, dict[str, str]] = {True: {}, False: {}}
    for contrast in contrasts:
        if contrast.control and contrast.split is not None:
            for variant in contrast.variants:
                words[contrast.split == "select"].setdefault(variant.attribute, contrast.id)
    return [(word, identity, words[False][word]) for word, identity in words[True].items() if word in words[False]]


def refuse_shared(selecting: Sequence[Contrast], judging: Sequence[Contrast], name: str) -> None:
    """Refuse a set that judges alone where it shares a template or a text with a contrast that may choose neurons.

    Raises:
        PromptError: with the first of them.
    """
    chosen = [contrast for contrast in selecting if stream_of(contrast.role, contrast.split) is not None]
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


def split_hash(contrasts: Iterable[Contrast]) -> str:
    """Sum of SHA-256 over the pairs (id, split): equal for equal splits, whatever the order of the set."""
    return f"{sum(map(split_content, contrasts)) % 2**256:064x}"


def split_content(contrast: Contrast) -> int:
    """What one contrast adds to the hash of a split."""
    pair = json.dumps([contrast.id, contrast.split], ensure_ascii=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(pair.encode()).digest(), "big")


def _share(text: str, rule: str) -> Decimal:
    try:
        share = Decimal(text)
    except InvalidOperation:
        raise UserError(f"The share of the split 'template:' must be a number in (0, 1). Got {rule!r} instead.") from None
    if not (share.is_finite() and 0 < share < 1):
        raise UserError(f"The share of the split 'template:' must be in (0, 1). Got {text} instead.")
    return share


def _draw(seed: int, category: str, template_id: str) -> int:
    """The first 8 bytes of a hash: of each category the templates with the lowest are selected (5 templates at 0.5: 3)."""
    drawn = hashlib.sha256(json.dumps([seed, category, template_id], ensure_ascii=True).encode()).digest()
    return int.from_bytes(drawn[:8], "big")


def refuse_shared_templates(contrasts: Iterable[Contrast], rule: str) -> None:
    """Raise `PromptError` where a template lies on both sides: what chooses on one, all that judges on the other."""
    first: dict[tuple[str, str], tuple[str, str | None]] = {}
    for contrast in contrasts:
        other, side = first.setdefault(contrast.cluster, (contrast.id, contrast.split))
        if (side == "select") != (contrast.split == "select"):
            raise PromptError(
                f"template {contrast.template_id!r} of category {contrast.category!r} lies on both sides of the split "
                f"{rule!r}: contrast {other!r} is {side}, {contrast.id!r} is {contrast.split}; "
                "'template:0.5' keeps templates whole"
            )


def overlapping(contrasts: Iterable[Contrast], among: Collection[int] | None = None) -> list[tuple[str, str, str]]:
    """(id in select, id that judges, a text of both), once for each contrast of select that repeats a text of what judges.

    Args:
        contrasts: gone through twice.
        among: hashes of the texts that come into question; None: all do.
    """
    judges: dict[str, str] = {}
    for contrast in contrasts:
        if contrast.split not in (None, "select"):
            for variant in contrast.variants:
                if among is None or short_hash(variant.text) in among:
                    judges.setdefault(variant.text, contrast.id)
    found = []
    for contrast in contrasts if judges else ():
        shared = [variant.text for variant in contrast.variants if variant.text in judges]
        if contrast.split == "select" and shared:
            found.append((contrast.id, judges[shared[0]], shared[0]))
    return found
