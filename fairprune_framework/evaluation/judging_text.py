"""What a plan does to the judging text: measured once in a run, by the guard, and used again by `evaluate`.

Stored as `judging_text.json` under a key of all that the numbers depend on, as cached measurements are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from fairprune_framework.api.types import Plan
from fairprune_framework.evaluation.cache import model_key
from fairprune_framework.evaluation.metrics.perplexity import LanguageCost, TextLoss
from fairprune_framework.utilities.files import digest, write_json
from fairprune_framework.utilities.schemas import Number, Schema, read_checked
from fairprune_framework.utilities.versions import versions

FILE = "judging_text.json"


class _Losses(Schema):
    FORMAT: ClassVar[str | None] = "fairprune-judging-text/1"
    key: dict[str, Any]
    tokens: list[int]
    before: list[Number]
    after: list[Number]
    kl: Number


def key_of(
    fingerprint: str, model: nn.Module, plan: Plan, documents: Sequence[Sequence[int]], max_tokens: int
) -> dict[str, Any]:
    """All that the losses of a model and of the same model with the plan masked depend on, both in float32.

    Args:
        fingerprint: of the model.
        documents: token ids.
        max_tokens: padded tokens per forward.
    """
    known = versions()
    return {
        "model": model_key(fingerprint, plan.sites, plan.scaling, "float32"),
        "device": next(model.parameters()).device.type,
        "micro_batch_tokens": max_tokens,
        "text": digest([list(document) for document in documents]),
        "versions": {name: known[name] for name in ("fairprune_framework", "torch", "transformers")},
    }


def save(folder: Path, key: Mapping[str, Any], cost: LanguageCost) -> list[str]:
    """Write the losses of each document: nats, summed over its tokens but the first. Returns the files: none where one is no number."""
    losses = {"before": cost.before.nll, "after": cost.after.nll}
    if not all(map(math.isfinite, (*cost.before.nll, *cost.after.nll, cost.kl))):
        return []
    values = {"tokens": cost.before.tokens, **losses}
    write_json(
        folder / FILE,
        {"format": _Losses.FORMAT, "key": dict(key), "kl": cost.kl, **{name: list(each) for name, each in values.items()}},
    )
    return [FILE]


def load(folder: Path, key: Mapping[str, Any]) -> LanguageCost | None:
    """The losses, if they are there and were measured under this key.

    Raises:
        RunFolderError: the file is damaged.
    """
    if not (folder / FILE).is_file():
        return None
    kept = read_checked(folder / FILE, _Losses)
    if kept["key"] != key:
        return None
    before, after = (TextLoss(nll=tuple(kept[when]), tokens=tuple(kept["tokens"])) for when in ("before", "after"))
    return LanguageCost(before=before, after=after, kl=kept["kl"])
