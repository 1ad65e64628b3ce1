"""`fairprune prompts check`: what a prompt set holds, and how it lines up under a model's tokenizer."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from fairprune_framework.contrasts.alignment import AlignedContrast, align_all
from fairprune_framework.contrasts.schema import SPLITS, Contrast, Role
from fairprune_framework.contrasts.sentences import connections, joined, sentence
from fairprune_framework.contrasts.sets import ContrastSet
from fairprune_framework.contrasts.splits import shared_control_words
from fairprune_framework.functional.paired_bootstrap import MIN_CLUSTERS
from fairprune_framework.models.encoder import Encoder


def contrasts_of(
    source: Any,
    *,
    columns: Mapping[str, str] | None = None,
    bad: Literal["error", "skip"] = "error",
    split: str = "keep",
    seed: int = 0,
) -> tuple[list[Contrast], list[tuple[str, str]], str]:
    """Read and split a prompt set: contrasts, what was skipped (place, reason), and the hash of the source.

    With `skip`, a contrast whose text also stands on the other side of the split is left out of `select`; with `error` it is an error.
    """
    found = ContrastSet(source, columns=columns, bad=bad, split=split, seed=seed)
    return list(found), found.skipped, found.sha256


def check_prompts(
    source: str,
    model: str,
    *,
    split: str = "keep",
    columns: Mapping[str, str] | None = None,
    bad: Literal["error", "skip"] = "error",
    chat_template: bool = False,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """The report as JSON values; raises as the readers do."""
    from fairprune_framework.models.loading import limits_of, load_tokenizer

    found = ContrastSet(source, columns=columns, bad=bad, split=split)
    contrasts = list(found)
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    limit, rows = limits_of(model, trust_remote_code=trust_remote_code)
    encoder = Encoder(tokenizer, chat_template=chat_template, limit=limit, rows=rows)
    aligned, unusable = align_all(contrasts, encoder, bad)
    categories = []
    for category in sorted({contrast.category for contrast in contrasts}):
        categories.append(_category(category, contrasts, aligned))
    return {
        "set": source,
        "model": model,
        "sha256": found.sha256,
        "contrasts": len(contrasts),
        "texts": sum(len(contrast.variants) for contrast in contrasts),
        "distinct_texts": len({variant.text for contrast in contrasts for variant in contrast.variants}),
        "tokens": sum(len(tokens.ids) for contrast in aligned for tokens in contrast.variants),
        "longest": max(contrast.length for contrast in aligned),
        "context": encoder.limit,
        "equal_length": sum(contrast.equal_length for contrast in aligned),
        "without_suffix": sum(contrast.suffix == 0 for contrast in aligned),
        "roles": [_role(role, contrasts) for role in get_args(Role) if any(contrast.role == role for contrast in contrasts)],
        "categories": categories,
        "notes": found.notes + encoder.notes + notes(contrasts) + _long_words(contrasts, encoder),
        "skipped": [{"where": where, "reason": reason} for where, reason in [*found.skipped, *unusable]],
    }


def notes(contrasts: Sequence[Contrast]) -> list[str]:
    """What a verdict on this set will lack: categories of unequal weight, controls that are too few or share words."""
    found = []
    judging = [contrast for contrast in contrasts if contrast.split in ("heldout", "heldout-words")]
    for split in SPLITS:
        sizes = {
            category: len({contrast.template_id for contrast in mine})
            for category, mine in _by_category(c for c in contrasts if c.split == split and c.role == "demographic").items()
        }
        few, many = min(sizes, key=lambda name: sizes[name], default=""), max(sizes, key=lambda name: sizes[name], default="")
        if sizes and sizes[many] > sizes[few]:
            found.append(
                f"unequal categories in {split}: {few} has {sizes[few]} template(s), {many} {sizes[many]}; a mean counts each category "
                "alike"
            )
    controls = _units([contrast for contrast in judging if contrast.control])
    if judging and controls < MIN_CLUSTERS:
        found.append(
            f"{controls} control templates judge; with fewer than {MIN_CLUSTERS} nobody can tell whether an effect is specific to the "
            "demographic words"
        )
    found += _repeated(contrasts)
    if shared := shared_control_words(contrasts):
        names = ", ".join(word for word, _, _ in shared[:6]) + (", ..." if len(shared) > 6 else "")
        found.append(
            f"control words on both sides of the split: {names}; where controls take part in the choice, those that judge need others"
        )
    return found


def _units(contrasts: Sequence[Contrast]) -> int:
    """Templates, those of one sentence, or of one demographic template, together."""
    keys = [connections(sentence(each), each.neutral_of) for each in contrasts]
    clusters = [each.cluster for each in contrasts]
    return len({first or own for first, own in zip(joined(clusters, keys), clusters, strict=True)})


def _repeated(contrasts: Sequence[Contrast]) -> list[str]:
    """Sentences in which several templates of a role stand, and so are drawn together; and such as choose and judge."""
    found: dict[str, dict[str, set[tuple[str, str]]]] = {}
    of_role: dict[str, set[bool]] = {}
    for contrast in contrasts:
        if contrast.split is None or (stands_in := sentence(contrast)) is None:
            continue
        if not contrast.control:
            of_role.setdefault(stands_in, set()).add(contrast.split == "select")
        if contrast.split != "select":
            found.setdefault(contrast.role, {}).setdefault(stands_in, set()).add(contrast.cluster)
    notes = []
    for role, sentences in sorted(found.items(), key=lambda item: item[0] != "demographic"):
        repeated = {text: templates for text, templates in sentences.items() if len(templates) > 1}
        if repeated:
            text = min(repeated, key=lambda text: (-len(repeated[text]), text))
            notes.append(
                f"{len(set().union(*repeated.values()))} {role} templates that judge stand in {len(repeated)} sentence(s), such as "
                f"{text!r:.60}: what stands in one sentence is drawn together, and counts as one template in intervals and bounds"
            )
    if both := sorted(text for text, sides in of_role.items() if len(sides) > 1):
        notes.append(
            f"{len(both)} sentence(s) both choose and judge, with other words for the attribute, such as {both[0]!r:.60}: give them one "
            "'template_id' over all categories, or a 'split' of your own"
        )
    return notes


def _long_words(contrasts: Sequence[Contrast], encoder: Encoder) -> list[str]:
    """Right next words of several tokens."""
    words = {
        word: tokens
        for contrast in contrasts
        for variant in contrast.variants
        for word in variant.right
        if len(tokens := encoder.continued(variant.text, word)) > 1
    }
    if not words:
        return []
    some = ", ".join(sorted(words)[:6]) + (", ..." if len(words) > 6 else "")
    return [f"{len(words)} right next word(s) have several tokens, of which the first is scored: {some}"]


def _by_category(contrasts: Iterable[Contrast]) -> dict[str, list[Contrast]]:
    found: dict[str, list[Contrast]] = {}
    for contrast in contrasts:
        found.setdefault(contrast.category, []).append(contrast)
    return found


def _role(role: Role, contrasts: Sequence[Contrast]) -> dict[str, Any]:
    mine = [contrast for contrast in contrasts if contrast.role == role]
    return {
        "role": role,
        "categories": len({contrast.category for contrast in mine}),
        "contrasts": len(mine),
        "templates": len({contrast.cluster for contrast in mine}),
        "crossed": sum(contrast.neutral_of is not None for contrast in mine),
        "splits": dict(Counter(contrast.split or "none" for contrast in mine)),
    }


def _category(category: str, contrasts: Sequence[Contrast], aligned: Sequence[AlignedContrast]) -> dict[str, Any]:
    mine = [contrast for contrast in contrasts if contrast.category == category]
    tokens = [contrast for contrast in aligned if contrast.category == category]
    return {
        "category": category,
        "role": mine[0].role,
        "contrasts": len(mine),
        "templates": len({contrast.template_id for contrast in mine}),
        "contexts": len({contrast.context for contrast in mine}),
        "attributes": sorted({variant.attribute for contrast in mine for variant in contrast.variants}),
        "splits": dict(Counter(contrast.split or "none" for contrast in mine)),
        "equal_length": sum(contrast.equal_length for contrast in tokens),
        "mean_tokens": round(sum(contrast.length for contrast in tokens) / max(len(tokens), 1), 1),
    }


def render(report: Mapping[str, Any]) -> str:
    """The report for people, at most 100 columns wide."""
    lines = [
        f"{report['set']} under {report['model']}",
        f"{report['contrasts']} contrasts, {report['texts']} texts ({report['distinct_texts']} distinct), {report['tokens']} tokens, "
        f"longest {report['longest']}",
        f"equal token counts: {report['equal_length']} of {report['contrasts']}; nothing after the attribute: {report['without_suffix']}",
        "",
        f"{'category':<28}{'contrasts':>9}{'templates':>10}{'values':>7}{'equal':>7}{'tokens':>8}  split",
    ]
    for role in report["roles"]:
        crossed = f", {role['crossed']} crossed with demographic templates" if role["crossed"] else ""
        lines.append(
            f"{role['role']}: {role['contrasts']} of {role['templates']} templates{crossed}; {_splits(role['splits'])}"
        )
        for row in report["categories"]:
            if row["role"] == role["role"]:
                lines.append(
                    f"  {row['category'][:26]:<26}{row['contrasts']:>9}{row['templates']:>10}{len(row['attributes']):>7}"
                    f"{row['equal_length']:>7}{row['mean_tokens']:>8}  {_splits(row['splits'])}"
                )
    for text in report["notes"]:
        lines += textwrap.wrap(f"note: {text}", 100, subsequent_indent="      ")
    for item in report["skipped"]:
        lines.append(f"skipped {item['where']}: {item['reason']}")
    return "\n".join(lines)


def _splits(counts: Mapping[str, int]) -> str:
    return " ".join(f"{key}:{count}" for key, count in sorted(counts.items()))
