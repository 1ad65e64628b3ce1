"""What is chosen on one category, judged on every other."""

from __future__ import annotations

import json

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

import fairprune_framework as fp
from fairprune_framework.analysis.common import chosen_by_category
from fairprune_framework.analysis.transfer import render, spillover
from fairprune_framework.functional.paired_bootstrap import PairedChange, paired_change
from fairprune_framework.runs.run import Run
from fairprune_framework.surgery.masking import masked


def test_transfer_judges_on_held_out_contrasts(run: Run) -> None:
    found = fp.transfer(run)
    assert (found["split"], found["categories"]) == ("heldout", ["age", "gender", "race"])
    changes = np.array(found["change"], dtype=float)
    assert changes.shape == (3, 3)
    assert (changes < 0).all()  # the planted neurons answer to every category


def test_a_cell_is_the_change_of_a_masked_model(run: Run) -> None:
    """Of the categories' held-out contrasts, by softmax of the untouched forward under a mask."""
    import torch

    found = fp.transfer(run)
    assert found == json.loads((run.folder / "transfer.json").read_text())
    plan = chosen_by_category(run)["age"]

    def divergence(category: str) -> float:
        by_template: dict[str, list[float]] = {}
        for one in run.prompts.aligned:
            if (one.category, one.split) == (category, "heldout"):
                with torch.no_grad():
                    logits = [run.loaded.model(input_ids=torch.tensor([t.ids])).logits[0, -1].double() for t in one.variants]
                p = torch.stack(logits).softmax(-1)
                entropy = torch.special.entr(p.mean(0)).sum() - torch.special.entr(p).sum(-1).mean()
                by_template.setdefault(one.template_id, []).append(entropy.item())
        return float(np.mean([np.mean(values) for values in by_template.values()]))

    row = found["categories"].index("age")
    for column, category in enumerate(found["judged"]):
        before = divergence(category)
        with masked(run.loaded.model, run.loaded.architecture, plan.sites, 0.0):
            after = divergence(category)
        assert found["change"][row][column] == pytest.approx(after / before - 1, rel=1e-3)


def test_p_values_are_adjusted_over_the_whole_matrix(run: Run) -> None:
    found = fp.transfer(run)
    flat = [value for values in found["p_values"] for value in values if value is not None]
    adjusted = [value for values in found["p_adjusted"] for value in values if value is not None]
    if flat:
        np.testing.assert_allclose(adjusted, multipletests(flat, method="holm")[1])
    assert [[value is None for value in values] for values in found["p_values"]] == [
        [value is None for value in values] for values in found["p_adjusted"]
    ]


def test_spillover_counts_the_cells_of_other_categories() -> None:
    rng = np.random.default_rng(0)
    before = rng.gamma(9, 0.1, 40)

    def changed(by: float, spread: float = 0.02, n: int = 40) -> PairedChange:
        after = before[:n] * (1 + by) * np.exp(rng.normal(-(spread**2) / 2, spread, n))
        return paired_change(before[:n], after, ["a"] * n, [str(i) for i in range(n)])

    found = spillover([changed(0.3), changed(0.05), changed(-0.2), changed(0.0, 1.0), changed(0.3, n=4), None])
    assert (found["cells"], found["worse"], found["not_harmed"], found["not_estimable"]) == (6, 2, 2, 2)
    assert found["share_worse"] == 0.5
    assert spillover([None])["share_worse"] is None


def test_spillover_of_a_run_leaves_out_the_diagonal_and_controls(run: Run) -> None:
    found = fp.transfer(run)
    low, high = (np.array(found[bound], dtype=float) for bound in ("ci_low", "ci_high"))
    other = ~np.eye(3, dtype=bool)
    known = other & np.isfinite(low)
    told = found["spillover"]
    assert told["cells"] == 6
    assert told["worse"] == int((low[known] > 0).sum())
    assert told["not_harmed"] + told["not_estimable"] >= int((high[known] < 0.1).sum())


def test_as_text() -> None:
    answer = {
        "categories": ["age"],
        "judged": ["age", "stature"],
        "controls": [False, True],
        "split": "heldout",
        "change": [[-0.314, None]],
        "p_adjusted": [[0.01, None]],
        "spillover": {"cells": 6, "worse": 1, "not_harmed": 2, "not_estimable": 2, "margin": 0.1},
    }
    lines = render(answer).splitlines()
    assert lines[2].split() == ["age", "(stature)"]
    assert lines[3].split() == ["age", "-31%*"]
    assert "(heldout)" in lines[0]
    told = "spillover: 1 of 4 other categories significantly worse (95 %, uncorrected), 2 shown not to be worse by 10%"
    assert lines[-1] == f"{told}; 2 more not estimable"
