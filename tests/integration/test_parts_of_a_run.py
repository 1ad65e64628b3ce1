"""No command writes its answer into a folder that the stages of a run write, and remove with what lies in it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.parametrize("part", ["model", "checkpoint", "logs", "cache", "finetuned"])
@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["export", "{run}", "--format", "hf", "--output", "{part}/for-llama"], "--output"),
        (["export", "{run}", "--format", "gguf", "--output", "{part}/one.gguf"], "--output"),
        (["restore", "{run}", "--output", "{part}/as-it-was"], "--output"),
        (["report", "{run}", "--output", "{part}/page.html"], "--output"),
        (["report", "{run}", "--figures", "{part}"], "--figures"),
        (["report", "{run}", "--figures", "{part}/charts"], "--figures"),
        (["prompts", "build", "{templates}", "{values}", "--output", "{part}/mine.jsonl"], "--output"),
        (["prompts", "build", "{templates}", "{values}", "--output", "{run}/contrasts.jsonl"], "--output"),
        (["plugins", "new", "mine", "--kind", "bias", "--output", "{part}"], "--output"),
        (["ablate", "{grid}", "--output", "{part}/grid"], "--output"),
        (["run", "{llama}", "--prompts", "{prompts}", "--output", "{part}/another"], "--output"),
    ],
)
def test_refused(
    fairprune: Any,
    snapshot: Any,
    finished: Path,
    llama: Path,
    prompts: Path,
    tmp_path: Path,
    part: str,
    words: list[str],
    option: str,
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    folder = tmp_path / "run" / part
    folder.mkdir(exist_ok=True)
    templates, values = tmp_path / "templates.csv", tmp_path / "values.csv"
    templates.write_text("category,template_id,context,text\nage,one,work,The {attribute} cook said that\n")
    values.write_text("category,attribute\nage,young\nage,old\n")
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        f"model: {llama}\nprompts: {prompts}\nbias: [variance]\nimportance: [max-abs-weight]\npolicy: [uniform]\nbudget: [0.1]\n"
    )
    places = {
        "grid": grid,
        "run": tmp_path / "run",
        "part": folder,
        "llama": llama,
        "prompts": prompts,
        "templates": templates,
        "values": values,
    }
    before = snapshot(tmp_path / "run")
    answer = fairprune(*(word.format(**places) for word in words))
    assert answer.code == 2, answer.out
    (line,) = answer.errors
    assert option in line
    assert any(
        text in line for text in ("which belongs to a run", "which is read", "there is no folder", "is a file of a run")
    ), line
    assert snapshot(tmp_path / "run") == before


def test_beside_them_and_under_their_names_elsewhere_is_allowed(fairprune: Any, finished: Path, tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "model"
    shutil.copytree(finished, run)
    elsewhere.mkdir()
    for place in (run / "page.html", run / "report.html", elsewhere / "page.html"):
        answer = fairprune("report", run, "--output", place)
        assert (answer.code, place.is_file()) == (0, True), answer.err
    answer = fairprune("report", run, "--figures", run / "figures")
    assert answer.code == 0, answer.err
    assert list((run / "figures").iterdir())


def test_through_a_link_it_is_the_same_place(fairprune: Any, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "link").symlink_to(tmp_path / "run" / "model")
    answer = fairprune("report", tmp_path / "run", "--output", tmp_path / "link" / "page.html")
    assert answer.code == 2
    assert "which belongs to a run: choose another place" in answer.err
