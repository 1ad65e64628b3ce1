"""Grids on the planted model, whose biased neurons are known: cells, restarts, one look at held-out contrasts; and the questions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import fairprune_framework as fp
from fairprune_framework.ablation.ablate import ablate
from fairprune_framework.errors import RunFolderError, UserError
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.testing.planted import Planted, planted_model

TEXT = {"calibration_tokens": 16, "calibration_documents": 8, "max_perplexity_increase": 5.0}
GRID: dict[str, Any] = {
    "bias": ["variance", "attribution"],
    "importance": "max-abs-weight",
    "policy": [{"plugin": "protected-global", "protect": 0.0}],
    "operator": ["zero", {"operator": "scale", "factor": 0.5}],
    "budget": "12n",
    "controls": [{"plugin": "random", "matched": True}],
    "control_seeds": 2,
    **TEXT,
}


@pytest.fixture(scope="module")
def case() -> Planted:
    return planted_model(count=4)


def given(case: Planted) -> dict[str, Any]:
    return {"model": case.model, "tokenizer": case.tokenizer, "prompts": case.contrasts}


@pytest.fixture(scope="module")
def done(case: Planted, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablations") / "done"
    assert ablate(GRID, folder, **given(case)) is not None
    return folder


def test_the_planted_neurons_beat_every_control(case: Planted, done: Path) -> None:
    record = json.loads((done / "ablation.json").read_text())
    cells = record["cells"]
    assert len(cells) == 8
    assert record["cells_looked_at"] == 8
    assert record["confirmed"] is None
    for operator in ("zero", "scale"):
        mine = [c["bias_change"] for c in cells if c["operator"] == operator and not c["control"]]
        controls = [c["bias_change"] for c in cells if c["operator"] == operator and c["control"]]
        assert max(mine) < -0.2 < min(controls)
    assert all(cell["units"] == 12 for cell in cells)
    assert all(0 < cell["masking_ms"] < 50 for cell in cells)
    assert any(cell["pareto"] for cell in cells)
    table = pq.read_table(done / "results.parquet").to_pylist()
    assert [row["bias_change"] for row in table] == [cell["bias_change"] for cell in cells]


@pytest.mark.parametrize("metric", ["sequence-gap", "stereotype-preference"])
def test_cells_judged_by_sentences(case: Planted, tmp_path: Path, metric: str) -> None:
    pairs = [one for one in case.contrasts if len(one.variants) == 2]
    named = []
    for one in pairs:  # the likelier text is the stereotype
        likelier = _log_probability(case, one.variants[0].text) > _log_probability(case, one.variants[1].text)
        names = ("stereotype", "anti-stereotype") if likelier else ("anti-stereotype", "stereotype")
        named.append(replace(one, variants=tuple(replace(v, attribute=a) for v, a in zip(one.variants, names, strict=True))))
    given_here = {**given(case), "prompts": named}
    bias = [{"plugin": "attribution", "objective": "preference"}]
    grid = {**GRID, "bias": bias, "operator": "zero", "control_seeds": 1, "judge": metric}
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


def test_a_preference_needs_stereotypes(case: Planted, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="those of select name none"):
        ablate({**GRID, "judge": "stereotype-preference"}, tmp_path / "grid", **given(case))
    assert not (tmp_path / "grid").exists()


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


def test_a_stopped_grid_goes_on_and_a_grown_one_does_its_new_cells(case: Planted, done: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(done, tmp_path / "copy"))
    cells = sorted((folder / "cells").iterdir())
    kept = {path.name: path.stat().st_mtime_ns for path in cells[1:]}
    before = json.loads(cells[0].read_text())
    cells[0].unlink()
    (folder / "ablation.json").unlink()
    messages: list[str] = []
    record = ablate({**GRID, "budget": ["12n"]}, folder, **given(case), notify=messages.append)
    assert record is not None
    again = json.loads(cells[0].read_text())
    assert [before[name] for name in ("units", "bias_change", "perplexity_change")] == [
        again[name] for name in ("units", "bias_change", "perplexity_change")
    ]
    assert {name: (folder / "cells" / name).stat().st_mtime_ns for name in kept} == kept
    assert "audit: done before" in messages
    assert ablate(GRID, folder, **given(case), notify=pytest.fail) is not None  # nothing is left to do
    with pytest.raises(RunFolderError, match="other shared options"):
        ablate({**GRID, "max_perplexity_increase": 4.0}, folder, **given(case))


def test_parts_share_the_cells_of_one_folder(case: Planted, tmp_path: Path) -> None:
    grid = {**GRID, "bias": "variance", "operator": "zero", "budget": ["6n", "12n"], "controls": []}
    with pytest.raises(UserError, match="part 0 makes it"):
        ablate(grid, tmp_path / "a", part=(1, 2), **given(case))
    assert ablate(grid, tmp_path / "a", part=(0, 2), **given(case)) is None
    record = ablate(grid, tmp_path / "a", part=(1, 2), **given(case))
    assert record is not None
    assert [cell["units"] for cell in record["cells"]] == [6, 12]


def test_held_out_contrasts_are_looked_at_once(case: Planted, done: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(done, tmp_path / "copy"))
    record = ablate(GRID, folder, confirm=1, **given(case))
    assert record is not None
    confirmed = record["confirmed"]
    assert (confirmed["complete"], confirmed["cells_looked_at"], len(confirmed["results"])) == (True, 8, 1)
    best = min((c for c in record["cells"] if not c["control"]), key=lambda c: c["bias_change"])
    assert confirmed["chosen"] == [best["cell"]]
    result = confirmed["results"][0]
    assert result["verdict"] == "fairer"
    run = fp.Run(fp.Recipe(), folder / result["folder"])  # an ordinary run folder, with the real splits
    row = run.read_evaluation().find("next-token-divergence", split="heldout")
    assert row is not None
    assert (row.change, row.n) == (result["change"], sum(c.split == "heldout" for c in case.contrasts))
    with pytest.raises(RunFolderError, match=r"looked at already, for .* after 8 cells"):
        ablate(GRID, folder, confirm=1, **given(case))
    assert ablate(GRID, folder, **given(case)) is not None
    anew = ablate({**GRID, "bias": "variance", "controls": []}, folder, overwrite=True, **given(case))
    assert anew is not None
    assert (anew["cells_looked_at"], anew["earlier_cells"], anew["confirmed"]) == (2 + 8, 8, None)


def test_nothing_is_written_for_a_bad_grid(
    case: Planted, fairprune: Callable[..., Any], llama: Path, prompts: Path, tmp_path: Path
) -> None:
    path = tmp_path / "grid.yaml"
    for text, expected in (
        ("bias: [variance, variance]\n", "duplicate cell"),
        ("operator: scale\n", "needs its factor"),
        ("budget: [0.1\n", "is no YAML"),
        ("protected_layers: [9]\nbudget: 3n\n", "names layer 9"),
    ):
        path.write_text(text)
        answer = fairprune("ablate", path, "--model", llama, "--prompts", prompts, "--output", tmp_path / "out")
        assert (answer.code, len(answer.errors)) == (2, 1), answer.err
        assert expected in answer.err
        assert not (tmp_path / "out").exists()
    assert "needs a folder" in fairprune("ablate", path).err
    assert "--part must be" in fairprune("ablate", path, "--output", tmp_path / "out", "--part", "2").err
    assert "no recipe file" in fairprune("ablate", tmp_path / "nothing.yaml", "--output", tmp_path / "out").err
    one = [c for c in case.contrasts if c.template_id == "t0"]
    with pytest.raises(UserError, match="too few templates"):
        ablate(GRID, tmp_path / "out", model=case.model, tokenizer=case.tokenizer, prompts=one)


def test_a_run_scales_by_a_searched_factor(
    fairprune: Callable[..., Any], llama: Path, prompts: Path, quick: tuple[str, ...], tmp_path: Path
) -> None:
    words = (
        "run",
        llama,
        "--prompts",
        prompts,
        "--output",
        tmp_path / "run",
        *quick,
        "--operator",
        "scale",
        "--factor",
        "auto",
    )
    assert fairprune(*words, "--max-perplexity-increase", "9").code == 0
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    seen = plan["achieved"]["factors"]
    assert plan["factor"] == min((float(factor) for factor in seen), key=lambda f: seen[f"{f:g}"]["divergence"])
    removal = json.loads((tmp_path / "run" / "run.json").read_text())["removal"]
    assert (removal["operator"], removal["scaled"]) == ("scale", plan["achieved"]["units"])
