"""`finetune.json`: the manifest of a finetuned model's folder, its card, and what the terminal shows of it."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from fairprune_framework.errors import RunFolderError
from fairprune_framework.models.saving import README
from fairprune_framework.recovery.measuring import MODELS
from fairprune_framework.utilities import integrity
from fairprune_framework.utilities.files import write_json
from fairprune_framework.utilities.schemas import Count, Inside, Number, Schema, StoredFile, read_checked

FILE = "finetune.json"
WIDTH = 80


class OptionsRecord(Schema):
    """What was trained, on what, and for how long."""

    text: str | None
    distill: bool
    method: str
    steps: Count
    learning_rate: Number
    rank: Count | None


class TextRecord(Schema):
    """The text of the training."""

    source: str
    training_documents: Count
    training_tokens: Count
    heldout_documents: Count
    left_out: Count


class ChangeRecord(Schema):
    """A relative change of perplexity, with its 95 % interval."""

    change: Number | None
    ci_low: Number | None
    ci_high: Number | None


class PerplexityRecord(Schema):
    """Perplexity on one text."""

    original: Number
    pruned: Number
    finetuned: Number
    changes: dict[str, ChangeRecord]
    texts: Count


class VerdictRecord(Schema):
    """The verdict on the finetuned model against the original."""

    word: str
    because: str
    null: str


class MeasureRecord(ChangeRecord):
    """A metric of all three models; the change is from the original to the finetuned one."""

    metric: str
    split: str | None
    control: bool
    original: Number | None
    pruned: Number | None
    finetuned: Number | None


class FinetuneFile(Schema):
    """`finetune.json`."""

    FORMAT = "fairprune-finetune/1"
    key: str
    options: OptionsRecord
    text: TextRecord
    held: Count
    trained_parameters: Count
    trained_tokens: Count
    losses: list[Number]
    perplexity: dict[str, PerplexityRecord]
    verdict: VerdictRecord | None
    measures: list[MeasureRecord]
    files: dict[Inside, StoredFile]


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a folder.

    Raises:
        RunFolderError: there is none, or a file of the folder is not what was written.
    """
    record = read_checked(folder / FILE, FinetuneFile)
    if (damage := integrity.damage(folder, record["files"])) is not None:
        raise RunFolderError(f"{damage}: give --overwrite to train again")
    return record


def write(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Seal every file of a folder but its card, which says what the manifest says, and write the manifest; returns it."""
    names = [
        path.name for path in sorted(folder.iterdir()) if path.name not in (FILE, README) and not path.name.startswith(".")
    ]
    record = {"format": FinetuneFile.FORMAT, **record, "files": integrity.seal(folder, names)}
    write_json(folder / FILE, record)
    return record


def card(record: dict[str, Any], name: str) -> str:
    """`README.md` of the folder: what the model is and what was measured.

    Args:
        name: of the original, as the public knows it.
    """
    options, text = record["options"], record["text"]
    verdict = record["verdict"]
    lines = [
        "# A pruned model after recovery training",
        "",
        f"`{name}` without some of its MLP neurons, then trained by fairprune_framework: {_training(record)}, on "
        f"{text['training_tokens']:,} tokens of {'the calibration text' if options['text'] is None else 'a text of the user'}. "
        f"{record['held']} planned neurons that are still in the tensors kept the weights that the plan left.",
        "",
        "| perplexity | " + " | ".join(MODELS) + " | pruned -> finetuned |",
        "|---" * 5 + "|",
    ]
    for where, row in record["perplexity"].items():
        numbers = " | ".join(f"{row[model]:.4g}" for model in MODELS)
        lines.append(f"| {where} | {numbers} | {_change(row['changes']['pruned -> finetuned'])} |")
    if verdict is not None:
        lines += [
            "",
            f"Verdict against the original: `{verdict['word']}`: {verdict['because']}.",
            "",
            f"Null: {verdict['null']}.",
        ]
    return "\n".join(lines) + "\n"


def render(record: dict[str, Any]) -> str:
    """What the terminal shows: of the manifest, and of `folder` beside it."""
    lines = []
    if (verdict := record["verdict"]) is not None:
        lines += _wrapped(f"VERDICT  {verdict['word']}: {verdict['because']}")
        lines += _wrapped(f"null     {verdict['null']}")
    text = record["text"]
    lines += _wrapped(f"training {_training(record)}; loss {record['losses'][0]:.4g} -> {record['losses'][-1]:.4g}")
    more = f", {text['left_out']} documents left out, part of what measures" if text["left_out"] else ""
    lines += _wrapped(f"text     {text['source']}: {text['training_tokens']:,} tokens{more}")
    if record["held"]:
        lines += _wrapped(f"held     {record['held']} planned neurons, still in the tensors, as the plan left them")
    lines += ["", f"{'perplexity':<16}" + "".join(f"{model:>11}" for model in MODELS) + "  pruned -> finetuned [95 %]"]
    for where, row in record["perplexity"].items():
        numbers = "".join(f"{row[model]:>11.4g}" for model in MODELS)
        lines.append(f"{where:<16}{numbers}  {_change(row['changes']['pruned -> finetuned'])}")
    if record["measures"]:
        lines += ["", f"{'':42}" + "".join(f"{model:>10}" for model in MODELS) + "  original -> finetuned [95 %]"]
    for row in record["measures"]:
        name = f"{row['metric']}, {'control ' if row['control'] else ''}{row['split'] or 'all prompts'}"
        numbers = "".join(f"{'' if row[model] is None else format(row[model], '.4g'):>10}" for model in MODELS)
        lines.append(f"{name:<42}{numbers}  {'' if row['change'] is None else _change(row)}".rstrip())
    lines += ["", f"folder   {record['folder']}"]
    return "\n".join(lines)


def _training(record: dict[str, Any]) -> str:
    options = record["options"]
    how = f"LoRA of rank {options['rank']}" if options["method"] == "lora" else "full fine-tune"
    aim = "distilled from the original" if options["distill"] else "on the next token"
    return f"{how}, {aim}, {options['steps']} steps, {record['trained_tokens']:,} tokens, {record['trained_parameters']:,} parameters"


def _change(row: dict[str, Any]) -> str:
    if row["change"] is None:
        return "not estimable"
    if row["ci_low"] is None or row["ci_high"] is None:
        return f"{row['change']:+.1%}"
    return f"{row['change']:+.1%} [{100 * row['ci_low']:+.1f}, {100 * row['ci_high']:+.1f}]"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=" " * 9, break_long_words=False)
