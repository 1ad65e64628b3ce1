"""`fairprune evaluate` with suites, other judging sets and another model: rows, files, resumption, and what is refused."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

OCCUPATIONS = ("baker", "pilot", "clerk", "nurse", "farmer")


@pytest.fixture(scope="module")
def winobias(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty invented pairs in the layout of WinoBias."""
    folder = tmp_path_factory.mktemp("winobias")
    pairs = list(enumerate(itertools.permutations(OCCUPATIONS, 2), start=1))
    for side, word in (("pro", "she"), ("anti", "he")):
        lines = [f"{i} [The {a}] thanked the {b} because [{word}] had waited." for i, (a, b) in pairs]
        (folder / f"{side}_stereotyped_type1.txt.dev").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Invented items of boolq."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "boolq").mkdir()
    rows = [{"question": f"is the {name} in", "passage": f"The {name} is in.", "label": 1} for name in OCCUPATIONS * 2]
    (folder / "boolq" / "made.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows over all splits' first, categories and layers, by metric."""
    found = json.loads((folder / "evaluation.json").read_text())["results"]
    return {row["metric"]: row for row in found if row["category"] is None and row["layer"] is None}


def test_a_run_is_judged_by_more(fairprune: Any, finished: Path, winobias: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    decisions = tmp_path / "decisions.jsonl"
    asked = [
        {"template_id": name, "attribute": "age", "group": g, "text": f"The {g} {name}"} for name in OCCUPATIONS for g in "ab"
    ]
    decisions.write_text("".join(json.dumps(row) + "\n" for row in asked))
    words = ["evaluate", "--output", tmp_path / "run", "--judge-prompts", f"wino={winobias}", "--suite", "boolq"]
    words += [
        "--task-data",
        data,
        "--task-limit",
        9,
        "--cache",
        tmp_path / "cache",
        "--continuations",
        "--decisions",
        decisions,
    ]
    answer = fairprune(*words, "--overwrite")
    assert answer.code == 0, answer.err
    items = pq.read_table(tmp_path / "run" / "evaluation_items.parquet").to_pylist()
    heard = [item for item in items if item["sentiment_before"]]
    assert heard
    for item in heard:
        assert len(item["sentiment_before"]) == len(item["sentiment_after"]) == len(item["attributes"])
        assert {len(samples) for samples in (*item["sentiment_before"], *item["sentiment_after"])} == {16}
    metrics = {row["metric"] for row in json.loads((tmp_path / "run" / "evaluation.json").read_text())["results"]}
    assert {"sentiment-distance", "negative-share-of-group", "negative-share-gap", "decisions/gap-age"} <= metrics
    rows = rows_of(tmp_path / "run")
    assert {"wino/next-token-divergence", "wino/sequence-gap", "wino/stereotype-preference", "boolq/acc"} <= rows.keys()
    assert (rows["boolq/acc"]["n"], rows["wino/stereotype-preference"]["n"]) == (9, 20)
    samples = pq.read_table(tmp_path / "run" / "evaluation_samples.parquet").to_pylist()
    taken = {sample["id"] for sample in samples if sample["source"] == "boolq"}
    assert len(taken) == 9
    kept = {path.name for path in (tmp_path / "cache").iterdir()}
    before = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    again = fairprune(*words, "--overwrite")
    assert "measuring" not in again.err
    assert {path.name for path in (tmp_path / "cache").iterdir()} == kept
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["results"] == before["results"]


def test_continuations_of_nothing_are_said(fairprune: Any, llama: Path, write_prompts: Any, tmp_path: Path) -> None:
    variants = [{"attribute": word, "text": f"The {word} nurse said that"} for word in ("old", "young")]
    path = write_prompts(tmp_path / "select.jsonl", [{"category": "age", "split": "select", "variants": variants}])
    small = ("--calibration-tokens", "16", "--calibration-documents", "16", "--output", tmp_path / "run")
    answer = fairprune("evaluate", llama, "--prompts", path, "--continuations", *small)
    assert answer.code == 0, answer.err
    assert "no contrast is held out, so that nothing is continued" in " ".join(answer.err.split())


def test_identical_models_differ_by_exactly_nothing(fairprune: Any, llama: Path, prompts: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "twin")
    options = ("--calibration-tokens", "16", "--calibration-documents", "16", "--output", tmp_path / "run")
    answer = fairprune("evaluate", llama, "--against", tmp_path / "twin", "--prompts", prompts, *options)
    assert answer.code == 0, answer.err
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert found["applied_by"] == "another model"
    assert {row["difference"] for row in found["results"]} == {0.0}
    assert {row["change"] for row in found["results"] if row["note"] is None} == {0.0}
    assert {row["change"] for row in found["results"]} == {
        0.0,
        None,
    }  # None: too few templates for an interval, as the note says
    assert {row["p_value"] for row in found["results"]} <= {1.0, None}
    assert [line["first_difference"] for line in found["generations"]] == [None, None]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--suite", "boolq,bbq", "--task-data", "{data}"], "the data of the task 'bbq' are absent: put"),
        (["--generate", " "], "--generate ' ' is no text to go on from"),
        (["--suite", "boolq", "--task-limit", "many"], "--task-limit must be a number"),
        (["--suite", "boolq", "--task-limit", "bolq=3"], "Did you mean 'boolq'?"),
        (["--judge-prompts", "own={prompts}"], "the set 'own' cannot judge: its contrast"),
        (["--judge-prompts", "own"], "--judge-prompts must be NAME=SET"),
        (["--against", "{llama}"], "--against compares two models, without a plan"),
    ],
)
def test_what_is_refused(
    fairprune: Any,
    snapshot: Any,
    finished: Path,
    llama: Path,
    prompts: Path,
    data: Path,
    tmp_path: Path,
    options: list[str],
    text: str,
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    before = snapshot(tmp_path / "run")
    words = [word.format(data=data, prompts=prompts, llama=llama) for word in options]
    answer = fairprune("evaluate", "--output", tmp_path / "run", "--overwrite", *words)
    assert answer.code == 2
    (line,) = answer.errors
    assert text in line
    assert snapshot(tmp_path / "run") == before


def test_legitimate_differences_are_measured_and_have_no_part_in_the_divergence(
    fairprune: Any, llama: Path, prompts: Path, quick: Any, tmp_path: Path
) -> None:
    """Their margin has rows of its own, before and after; all other rows are those of the set without them."""
    lines = prompts.read_text().splitlines()
    for split in ("select", "heldout"):
        variants = [
            {"attribute": "man", "text": f"the man at the {split} said", "right": ["he"]},
            {"attribute": "woman", "text": f"the woman at the {split} said", "right": ["she"]},
        ]
        legitimate = {"id": f"legit-{split}", "category": "legit-pronoun", "template_id": split, "legitimate": True}
        lines.append(json.dumps({**legitimate, "split": split, "variants": variants}))
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(lines) + "\n")
    rows = {}
    for name, source in (("with", file), ("without", prompts)):
        answer = fairprune("run", llama, "--prompts", source, "--output", tmp_path / name, *quick)
        assert answer.code == 0, answer.err
        rows[name] = json.loads((tmp_path / name / "evaluation.json").read_text())["results"]
    margins = [row for row in rows["with"] if row["metric"] == "legitimate-margin"]
    assert {(row["split"], row["category"]) for row in margins} == {
        (split, category) for split in ("select", "heldout") for category in (None, "legit-pronoun")
    }
    assert all(row["before"] is not None and row["after"] is not None for row in margins)
    divergence = {
        name: [(row["split"], row["control"], row["category"]) for row in found if row["metric"] == "next-token-divergence"]
        for name, found in rows.items()
    }
    assert divergence["with"] == divergence["without"]
