"""The stage `read`: prompt set -> `contrasts.jsonl`, and what could not be used -> `skipped.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterator

from fairprune_framework.contrasts.build import write_jsonl
from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.contrasts.splits import split_content
from fairprune_framework.runs.folder import CONTRASTS
from fairprune_framework.runs.run import Run
from fairprune_framework.utilities.files import write_text
from fairprune_framework.utilities.wording import number_of


def check(run: Run) -> None:
    """Raise `UserError` where the prompt set or its alignment under the tokenizer cannot be used."""
    _ = run.prompts.alignment


def run(run: Run) -> list[str]:
    """Do the stage; returns the files that it left."""
    contrasts, alignment = run.prompts.contrasts, run.prompts.alignment
    left_out = [{"where": where, "reason": reason} for where, reason in [*contrasts.skipped, *alignment.skipped]]
    unusable = {identity for identity, _ in alignment.skipped}
    split_hash = 0

    def usable() -> Iterator[Contrast]:
        nonlocal split_hash
        for contrast in contrasts:
            split_hash += split_content(contrast)
            if contrast.id not in unusable:
                yield contrast

    run.folder.begin("read")
    write_jsonl(usable(), run.folder / CONTRASTS)
    if left_out:
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in left_out)
        write_text(run.folder / "skipped.jsonl", lines)
        run.notify(f"{number_of(len(left_out), 'contrast')} skipped: see {run.folder / 'skipped.jsonl'}")
    for note in contrasts.notes:
        run.notify(note)
    for category, count in contrasts.others.items():
        if category not in contrasts.summed:
            continue
        run.notify(
            f"category {category!r} has more than {len(contrasts.vocabularies[category])} attribute values: {count} variants are "
            "counted as 'other' in statistics"
        )
    run.folder.note(
        hashes={"prompts": contrasts.sha256, "split": f"{split_hash % 2**256:064x}", "model": run.fingerprint},
        contrasts={"used": alignment.contrasts, "skipped": len(left_out), "others": contrasts.others},
        architecture=run.loaded.architecture.name,
    )
    run.prompts = run.prompts.stored_at(run.folder / CONTRASTS)
    return [CONTRASTS] + (["skipped.jsonl"] if left_out else [])
