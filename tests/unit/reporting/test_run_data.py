"""What the report reads from a folder, and what it names where something is missing or broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fairprune_framework.errors import RunFolderError
from fairprune_framework.reporting.run_data import ContrastLine, Source, layer_of, read_source, sites_of
from fairprune_framework.utilities.schemas import problem


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A finished run that may be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_whole_folder_misses_nothing(finished: Path) -> None:
    found = read_source(finished)
    assert (found.missing, found.damaged, found.ablation, dict(found.more)) == ((), (), None, {})
    assert found.plan == json.loads((finished / "plan.json").read_text())
    assert list(found.rows) == json.loads((finished / "evaluation.json").read_text())["results"]
    for name, values in load_file(finished / "scores.safetensors").items():
        np.testing.assert_array_equal(found.scores[name], values)
    assert found.recipe_text == (finished / "recipe.yaml").read_text()
    assert len(found.contrasts) == 12
    assert found.fingerprint == found.record["hashes"]["model"]
    assert found.layers == {"model.layers.0.mlp": 0, "model.layers.1.mlp": 1}
    assert found.planned("model.layers.0.mlp") == found.plan["sites"].get("model.layers.0.mlp", [])
    assert found.judged_split == "heldout"


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("contrasts.jsonl", "audit"),
        ("scores.safetensors", "score"),
        ("plan.json", "plan"),
        ("evaluation.json", "evaluate"),
        ("exhibits.json", "evaluate --overwrite"),
        ("exhibits.safetensors", "evaluate --overwrite"),
    ],
)
def test_a_missing_file_is_named_with_its_command(folder: Path, name: str, command: str) -> None:
    (folder / name).unlink()
    (missing,) = read_source(folder).missing
    assert (missing.file, missing.command) == (name, f"fairprune {command} --output {folder}")


@pytest.mark.parametrize("name", ["contrasts.jsonl", "scores.safetensors", "plan.json", "evaluation.json", "recipe.yaml"])
def test_a_broken_file_is_named_with_its_reason(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"{ not this\n\n\xff")
    found = read_source(folder)
    assert [file for file, _ in found.damaged] == [name]
    assert "\n" not in found.damaged[0][1]
    assert found.missing == ()


def test_optional_files_are_read_where_they_are(folder: Path) -> None:
    causal = {"format": "fairprune-causal/1", "split": None, "units": 1, "operator": "zero", "random": [], "p_value": 0.5}
    causal |= {"demographic": None, "control": None}
    (folder / "causal.json").write_text(json.dumps(causal))
    (folder / "overlap.json").write_text("[")
    (folder / "stability.json").write_text('{"format": "fairprune-stability/1", "replicates": "many"}')
    (folder / "other.json").write_text("{}")
    found = read_source(folder)
    assert dict(found.more) == {"causal": causal}
    assert [file for file, _ in found.damaged] == ["overlap.json", "stability.json"]
    assert "'replicates': input should be a valid integer. Got 'many' instead" in found.damaged[1][1]


def test_a_folder_of_an_ablation_alone(tmp_path: Path) -> None:
    (tmp_path / "ablation.json").write_text(json.dumps({"format": "fairprune-ablation/1", "cells": [], "model": {"name": "m"}}))
    found = read_source(tmp_path)
    assert (found.model, found.rows, found.missing) == ("m", (), ())
    assert found.ablation is not None


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="there is no run folder"):
        read_source(tmp_path / "absent")
    with pytest.raises(RunFolderError, match=r"is not a run folder: it contains neither run\.json nor ablation\.json"):
        read_source(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"cannot read .*run\.json"):
        read_source(tmp_path)


def test_rows_are_found_by_all_their_fields() -> None:
    base = {"metric": "m", "split": None, "control": False, "category": None, "layer": None}
    rows: Any = ({**base, "layer": 0}, {**base, "control": True}, {**base, "before": 1}, {**base, "category": "x"})
    source = Source(folder=Path("x"), rows=rows)
    assert source.find("m") == rows[2]
    assert source.find("m", category="x") == rows[3]
    assert source.find("m", control=True, category="x") is None


@pytest.mark.parametrize(
    ("splits", "expected"), [(["select", "heldout"], "heldout"), (["select"], "select"), ([None], None), ([], None)]
)
def test_the_split_that_judges(splits: list[str | None], expected: str | None) -> None:
    rows = tuple({"metric": "next-token-divergence", "split": split, "control": False} for split in splits)
    control = {"metric": "next-token-divergence", "split": "heldout", "control": True}
    assert Source(folder=Path("x"), rows=(control, *rows)).judged_split == expected


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"recipe": {"model": "m"}, "plan": {"model": {"name": "p"}}}, "m"),
        ({"recipe": {"model": None}, "plan": {"model": {"name": "p"}}}, "p"),
        ({"ablation": {"model": "a"}}, "a"),
        ({}, "a model in memory"),
    ],
)
def test_the_name_of_the_model(more: dict[str, Any], expected: str) -> None:
    assert Source(folder=Path("x"), **more).model == expected


def test_sites_are_sorted_by_layer_not_by_name() -> None:
    names = ["model.layers.10.mlp", "model.layers.9.mlp", "model.layers.9.mlp.experts.1", "x.mlp"]
    assert sites_of({f"bias/{name}": 0 for name in names} | {"importance/model.layers.0.mlp": 0}) == [
        "x.mlp",
        "model.layers.9.mlp",
        "model.layers.9.mlp.experts.1",
        "model.layers.10.mlp",
    ]
    assert [layer_of(name) for name in names] == [10, 9, 9, 0]


@pytest.mark.parametrize("absent", ["id", "category", "control", "split", "variants"])
def test_a_line_of_contrasts_has_all_that_the_report_shows(absent: str, finished: Path) -> None:
    line = json.loads((finished / "contrasts.jsonl").read_text().splitlines()[0])
    assert problem(line, ContrastLine) is None
    del line[absent]
    assert absent in str(problem(line, ContrastLine))
