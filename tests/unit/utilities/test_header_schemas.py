"""What a header may say beyond the types of its fields: units of the plan, pieces within parameters, micro-batches that there are."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from fairprune_framework.utilities.header_schemas import CheckpointHeader, FailureFile, RestorationHeader
from fairprune_framework.utilities.schemas import problem

SHA = "0" * 64
PIECE = {"site": "s", "parameter": "p", "role": "out", "axis": 1, "start": 0, "step": 1, "width": 1, "lead": [2]}
RESTORATION = {
    "plan": {"model": {"name": "m", "fingerprint": "f"}, "operator": "remove", "sites": {"s": [1, 3], "t": []}},
    "exact": False,
    "round_to": 1,
    "weights": SHA,
    "pruned": SHA,
    "config": {"intermediate_size": 8, "n_inner": None, "mlp_bias": False},
    "added": [],
    "units": {"s": [[1], [3]]},
    "parameters": {"p": {"shape": [3, 8], "sha256": SHA, "pieces": [PIECE]}},
}
CHECKPOINT = {
    "format": "x",
    "binding": {},
    "sequence": 0,
    "counts": {"contrasts": [1, 2]},
    "done": {"windows": [[0, 0, "5", 3], [0, 1, "0", 2]], "contents": SHA, "contrasts": 2, "tokens": 5},
    "splits": 0,
}


@pytest.mark.parametrize(
    ("schema", "change", "said"),
    [
        (RestorationHeader, lambda d: d["units"].update(s=[[1], []]), "the units must be those of the plan"),
        (RestorationHeader, lambda d: d["units"].update(t=[[0], []]), "the units must be those of the plan"),
        (RestorationHeader, lambda d: d["units"].update(s=[[1, 3]]), "'units.s'"),
        (RestorationHeader, lambda d: d["parameters"]["p"].update(shape=[2, 8]), "a piece must lie within its parameter"),
        (
            RestorationHeader,
            lambda d: d["parameters"]["p"]["pieces"][0].update(axis=0),
            "a piece must lie within its parameter",
        ),
        (
            RestorationHeader,
            lambda d: d["parameters"]["p"]["pieces"][0].update(axis=2),
            "a piece must lie within its parameter",
        ),
        (RestorationHeader, lambda d: d["parameters"]["p"]["pieces"][0].update(site="t"), "a piece must be of a planned site"),
        (RestorationHeader, lambda d: d["parameters"]["p"]["pieces"][0].update(parameter="q"), "and of its parameter"),
        (RestorationHeader, lambda d: d["config"].update(intermediate_size=True), "config.intermediate_size"),
        (RestorationHeader, lambda d: d["config"].update(intermediate_size=0), "config.intermediate_size"),
        (CheckpointHeader, lambda d: d["done"]["windows"][0].__setitem__(2, "d"), "more bits than there are micro-batches"),
        (CheckpointHeader, lambda d: d["done"]["windows"][0].__setitem__(2, "0x5"), "done.windows.0.bits"),
        (CheckpointHeader, lambda d: d["done"]["windows"][1].__setitem__(1, 0), "a window must stand once"),
        (CheckpointHeader, lambda d: d["done"]["windows"][1].pop(), "must be a list of a pass, a window"),
        (CheckpointHeader, lambda d: d["counts"].update(contrasts=[1, -2]), "'counts.contrasts.1'"),
    ],
)
def test_what_does_not_belong_together(schema: Any, change: Callable[[Any], object], said: str) -> None:
    data = json.loads(json.dumps(RESTORATION if schema is RestorationHeader else CHECKPOINT))
    assert problem(data, schema) is None
    change(data)
    found = problem(data, schema)
    assert found is not None
    assert said in found
    assert len(found) <= 500


def test_why_a_rank_failed() -> None:
    assert problem({"rank": 1, "reason": "no room"}, FailureFile) is None
    assert "'rank'" in str(problem({"rank": -1, "reason": "no room"}, FailureFile))
    assert "'reason'" in str(problem({"rank": 1}, FailureFile))
