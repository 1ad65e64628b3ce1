"""`fairprune prompts check`: what a prompt set holds, and how it lines up under a model's tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fairprune_framework.contrasts.alignment import AlignedContrast, align_all
from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.contrasts.sets import ContrastSet
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
) -> dict[str, Any]:
    """The report as JSON values; raises as the readers do."""
    from fairprune_framework.models.loading import context_limit, load_tokenizer

    contrasts, skipped, source_hash = contrasts_of(source, columns=columns, bad=bad, split=split)
    encoder = Encoder(load_tokenizer(model), chat_template=chat_template, limit=context_limit(model))
    aligned, unusable = align_all(contrasts, encoder, bad)
    categories = []
    for category in sorted({contrast.category for contrast in contrasts}):
        categories.append(_category(category, contrasts, aligned))
    return {
        "set": source,
        "model": model,
        "sha256": source_hash,
        "contrasts": len(contrasts),
        "texts": sum(len(contrast.variants) for contrast in contrasts),
        "distinct_texts": len({variant.text for contrast in contrasts for variant in contrast.variants}),
        "tokens": sum(len(tokens.ids) for contrast in aligned for tokens in contrast.variants),
        "longest": max(contrast.length for contrast in aligned),
        "context": encoder.limit,
        "equal_length": sum(contrast.equal_length for contrast in aligned),
        "without_suffix": sum(contrast.suffix == 0 for contrast in aligned),
        "categories": categories,
        "skipped": [{"where": where, "reason": reason} for where, reason in [*skipped, *unusable]],
    }


def _category(category: str, contrasts: Sequence[Contrast], aligned: Sequence[AlignedContrast]) -> dict[str, Any]:
    mine = [contrast for contrast in contrasts if contrast.category == category]
    tokens = [contrast for contrast in aligned if contrast.category == category]
    return {
        "category": category,
        "control": any(contrast.control for contrast in mine),
        "contrasts": len(mine),
        "templates": len({contrast.template_id for contrast in mine}),
        "contexts": len({contrast.context for contrast in mine}),
        "attributes": sorted({variant.attribute for contrast in mine for variant in contrast.variants})[:16],
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
    for row in report["categories"]:
        name = f"{row['category']} (control)" if row["control"] else row["category"]
        splits = " ".join(f"{key}:{count}" for key, count in sorted(row["splits"].items()))
        lines.append(
            f"{name[:28]:<28}{row['contrasts']:>9}{row['templates']:>10}{len(row['attributes']):>7}{row['equal_length']:>7}"
            f"{row['mean_tokens']:>8}  {splits}"
        )
    for item in report["skipped"]:
        lines.append(f"skipped {item['where']}: {item['reason']}")
    return "\n".join(lines)
