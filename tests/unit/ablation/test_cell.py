"""Cells are judged on contrasts that chose nothing, by the metric that the grid names, against log p by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fairprune_framework.ablation.ablate import ablate
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.testing.planted import Planted


@pytest.mark.parametrize("metric", ["sequence-gap", "stereotype-preference"])
def test_cells_judged_by_sentences(
    case: Planted, tmp_path: Path, metric: str, grid: dict[str, Any], given: dict[str, Any]
) -> None:
    pairs = [one for one in case.contrasts if len(one.variants) == 2]
    named = []
    for one in pairs:  # the likelier text is the stereotype
        likelier = _log_probability(case, one.variants[0].text) > _log_probability(case, one.variants[1].text)
        names = ("stereotype", "anti-stereotype") if likelier else ("anti-stereotype", "stereotype")
        named.append(replace(one, variants=tuple(replace(v, attribute=a) for v, a in zip(one.variants, names, strict=True))))
    given_here = {**given, "prompts": named}
    bias = [{"plugin": "attribution", "objective": "preference"}]
    grid = {**grid, "bias": bias, "operator": "zero", "control_seeds": 1, "judge": metric}
    record = ablate(grid, tmp_path / "grid", confirm=1, **given_here)
    assert record is not None
    assert record["judged_by"] == metric
    seen = [json.loads(line) for line in (tmp_path / "grid/search/contrasts.jsonl").read_text().splitlines()]
    judged = {row["id"]: row["category"] for row in seen if row["split"] == "heldout"}
    by_category: dict[str, list[float]] = {}
    for one in named:
        if one.id in judged:
            found = {variant.attribute: _log_probability(case, variant.text) for variant in one.variants}
            first, second = found["stereotype"], found["anti-stereotype"]
            value = abs(first - second) if metric == "sequence-gap" else float(first > second)
            by_category.setdefault(one.category, []).append(value)
    expected = np.mean([np.mean(values) for values in by_category.values()])
    assert all(cell["bias_before"] == pytest.approx(expected, rel=1e-4) for cell in record["cells"])
    if metric == "sequence-gap":  # a share of few may stand still
        assert len({cell["bias_after"] for cell in record["cells"]}) > 1
    confirmed = record["confirmed"]["results"][0]
    rows = json.loads((tmp_path / "grid" / confirmed["folder"] / "evaluation.json").read_text())["results"]
    (row,) = (r for r in rows if (r["metric"], r["split"], r["category"], r["control"]) == (metric, "heldout", None, False))
    assert confirmed["change"] == row["change"]


def _log_probability(case: Planted, text: str) -> float:
    ids = torch.tensor([Encoder(case.tokenizer).ids(text)])
    with torch.no_grad():
        log_p = torch.log_softmax(case.model(input_ids=ids).logits[0, :-1].double(), -1)
    return float(log_p.gather(-1, ids[0, 1:, None]).sum())


def test_cells_are_judged_on_select_alone_and_never_on_what_chose(case: Planted, done: Path) -> None:
    held_out = {variant.text for c in case.contrasts if c.split == "heldout" for variant in c.variants}
    seen = [json.loads(line) for line in (done / "search" / "contrasts.jsonl").read_text().splitlines()]
    fit = {v["text"] for row in seen if row["split"] == "select" for v in row["variants"]}
    judge = {v["text"] for row in seen if row["split"] == "heldout" for v in row["variants"]}
    assert fit
    assert judge
    assert not fit & judge
    assert not (fit | judge) & held_out
    assert {row["id"] for row in seen} == {c.id for c in case.contrasts if c.split == "select"}
