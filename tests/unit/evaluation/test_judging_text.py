"""Losses of the judging text come back as they were, under their own key alone."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.api.types import Plan
from fairprune_framework.errors import RunFolderError
from fairprune_framework.evaluation.judging_text import FILE, key_of, load, save
from fairprune_framework.evaluation.metrics.perplexity import LanguageCost, TextLoss
from fairprune_framework.testing.tiny import tiny_model

DOCUMENTS = ((1, 2, 3), (4, 5))
COST = LanguageCost(before=TextLoss(nll=(3.1, 0.1), tokens=(2, 1)), after=TextLoss(nll=(3.3, 1 / 3), tokens=(2, 1)), kl=0.07)


def plan(**changes: Any) -> Plan:
    return replace(
        Plan(model="m", fingerprint="f", sites={"a": (1, 2)}, operator="remove", requested={}, achieved={}),
        **changes,
    )


def key(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"fingerprint": "f", "plan": plan(), "documents": DOCUMENTS, "max_tokens": 64, **changes}
    return key_of(model=tiny_model("llama"), **given)


def test_back_as_they_were(tmp_path: Path) -> None:
    assert load(tmp_path, key()) is None
    assert save(tmp_path, key(), COST) == [FILE]
    assert load(tmp_path, key()) == COST


@pytest.mark.parametrize(
    "changes",
    [
        {"fingerprint": "g"},
        {"plan": plan(sites={"a": (1, 3)})},
        {"plan": plan(operator="scale", factor=0.5)},
        {"documents": DOCUMENTS[:1]},
        {"max_tokens": 65},
    ],
    ids=["model", "units", "factor", "text", "batches"],
)
def test_under_another_key_they_are_not_there(changes: dict[str, Any], tmp_path: Path) -> None:
    save(tmp_path, key(), COST)
    assert load(tmp_path, key(**changes)) is None


def test_what_is_no_number_is_not_kept(tmp_path: Path) -> None:
    assert save(tmp_path, key(), replace(COST, after=TextLoss(nll=(math.inf, 1.0), tokens=(2, 1)))) == []
    assert not list(tmp_path.iterdir())


def test_damage_is_named(tmp_path: Path) -> None:
    save(tmp_path, key(), COST)
    data = json.loads((tmp_path / FILE).read_text())
    data["kl"] = "much"
    (tmp_path / FILE).write_text(json.dumps(data))
    with pytest.raises(RunFolderError, match="kl"):
        load(tmp_path, key())
