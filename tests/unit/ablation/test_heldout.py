"""Held-out contrasts are looked at once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import fairprune_framework as fp
from fairprune_framework.ablation.ablate import ablate
from fairprune_framework.errors import RunFolderError
from fairprune_framework.testing.planted import Planted


def test_held_out_contrasts_are_looked_at_once(
    case: Planted, done: Path, tmp_path: Path, grid: dict[str, Any], given: dict[str, Any]
) -> None:
    folder = Path(shutil.copytree(done, tmp_path / "copy"))
    record = ablate(grid, folder, confirm=1, **given)
    assert record is not None
    confirmed = record["confirmed"]
    assert (confirmed["complete"], confirmed["cells_looked_at"], len(confirmed["results"])) == (True, 8, 1)
    best = min((c for c in record["cells"] if not c["control"]), key=lambda c: c["bias_change"])
    assert confirmed["chosen"] == [best["cell"]]
    result = confirmed["results"][0]
    assert result["verdict"] == "not-judged"  # the planted set has three held-out sentences, each for three categories
    run = fp.Run(fp.Recipe(), folder / result["folder"])  # an ordinary run folder, with the real splits
    row = run.read_evaluation().find("next-token-divergence", split="heldout")
    assert row is not None
    assert (row.change, row.n) == (result["change"], sum(c.split == "heldout" for c in case.contrasts))
    with pytest.raises(RunFolderError, match=r"have already judged .* after 8 cells"):
        ablate(grid, folder, confirm=1, **given)
    assert ablate(grid, folder, **given) is not None
    anew = ablate({**grid, "bias": "variance", "controls": []}, folder, overwrite=True, **given)
    assert anew is not None
    assert (anew["cells_looked_at"], anew["earlier_cells"], anew["confirmed"]) == (2 + 8, 8, None)
