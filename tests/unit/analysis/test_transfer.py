"""What is chosen on one category, judged on every other."""

from __future__ import annotations

import json

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

import fairprune_framework as fp
from fairprune_framework.analysis.common import chosen_by_category
from fairprune_framework.analysis.transfer import render
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


def test_as_text() -> None:
    answer = {
        "categories": ["age"],
        "judged": ["age", "stature"],
        "controls": [False, True],
        "split": "heldout",
        "change": [[-0.314, None]],
        "p_adjusted": [[0.01, None]],
    }
    lines = render(answer).splitlines()
    assert lines[2].split() == ["age", "(stature)"]
    assert lines[3].split() == ["age", "-31%*"]
    assert "(heldout)" in lines[0]
