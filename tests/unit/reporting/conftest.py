"""Folders for the report: a finished run with every optional file, the same with hostile texts, and a driver for Chromium."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HOSTILE = (
    "<script>document.title='owned'</script><b>bold</b>",
    "\"quotes\" & 'more' </script><img src=x onerror=alert(1)>",
    "הרופאה אמרה שלום مرحبا",
    "👩🏽‍⚕️ said 🦙",
    "long " * 2000,
)
"""Each is to be shown as text: markup, quotes, right-to-left, emoji, 10,000 characters."""
CATEGORIES = ["age", "race"]


def add_optional(folder: Path) -> None:
    """What other commands leave: overlap, transfer, stability, causal, an ablation, a benchmark."""
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    like = next(row for row in evaluation["results"] if row["metric"] == "perplexity")
    benchmark = {**like, "metric": "boolq/acc", "before": 0.5, "after": 0.4, "change": -0.2, "ideal": 1.0, "n": 20}
    evaluation["results"].append(benchmark)
    (folder / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    overlap = {
        "format": "fairprune-overlap/1",
        "categories": CATEGORIES,
        "units": [9, 9],
        "population": 96,
        "counts": [[9, 3], [3, 9]],
        "jaccard": [[1.0, 0.2], [0.2, 1.0]],
        "p_values": [[0.0, 0.01], [0.01, 0.0]],
        "p_adjusted": [[0.0, 0.02], [0.02, 0.0]],
    }
    transfer = {
        "format": "fairprune-transfer/1",
        "categories": CATEGORIES,
        "judged": CATEGORIES,
        "controls": [False, False],
        "split": "heldout",
        "units": [9, 9],
        "p_values": [[0.01, 0.5], [0.5, 0.01]],
        "p_adjusted": [[0.02, 0.5], [0.5, 0.02]],
        "spillover": {"cells": 2, "worse": 0, "share_worse": 0.0, "not_harmed": 0, "not_estimable": 0, "margin": 0.1},
        "change": [[-0.2, 0.03], [0.01, -0.1]],
        "ci_low": [[-0.3, -0.1], [-0.1, None]],
        "ci_high": [[-0.1, 0.1], [0.1, None]],
    }
    cells = [
        {
            "cell": f"c{place}",
            "bias": bias,
            "importance": "taylor",
            "policy": "uniform",
            "operator": "remove",
            "budget": "0.01",
            "seed": 0,
            "control": control,
            "units": 9,
            "guard_held": True,
            "bias_change": change,
            "ci_low": change - 0.1,
            "ci_high": change + 0.1,
            "perplexity_change": cost,
            "pareto": pareto,
        }
        for place, (bias, control, change, cost, pareto) in enumerate(
            [
                ("variance", False, -0.1, 0.01, True),
                ("attribution", False, -0.3, 0.02, True),
                ("random", True, 0.0, 0.01, False),
            ]
        )
    ]
    ablation = {"format": "fairprune-ablation/1", "cells": [*cells, {"cell": "failed"}], "confirmed": None}
    stability = {
        "format": "fairprune-stability/1",
        "replicates": 20,
        "groups": {"age": 3, "race": 3},
        "planned": 2,
        "mean_frequency": 0.6,
        "stable_75": 1,
        "mean_jaccard": 0.4,
        "units": [
            {"site": "model.layers.0.mlp", "unit": 3, "frequency": 0.9, "planned": True},
            {"site": "model.layers.1.mlp", "unit": 5, "frequency": 0.4, "planned": False},
            {"site": "model.layers.0.mlp", "unit": 4, "frequency": 0.3, "planned": True},
        ],
        "units_ever_chosen": 7,
    }
    effect = {"before": 0.2, "after": 0.1, "change": -0.5, "ci_low": -0.6, "ci_high": -0.4, "p_value": 0.001, "clusters": 12}
    causal = {
        "format": "fairprune-causal/1",
        "split": "heldout",
        "units": 9,
        "operator": "zero",
        "demographic": effect,
        "control": {**effect, "change": -0.1, "ci_low": None, "ci_high": None},
        "random": [{"change": -0.02, "control_change": None}, {"change": None, "control_change": None}, {"change": 0.03}],
        "p_value": 0.25,
    }
    more = {"overlap": overlap, "transfer": transfer, "ablation": ablation, "stability": stability, "causal": causal}
    for name, content in more.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    reseal(folder)


def reseal(folder: Path) -> None:
    """Take what the folder holds now for what its stages wrote."""
    from fairprune_framework.utilities.integrity import seal

    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    for stage in record["stages"].values():
        stage["files"] = seal(folder, stage["files"])
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")


def make_hostile(folder: Path) -> None:
    """Put the hostile texts wherever texts of a user can stand."""
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    evaluation["generations"] = [
        {
            "prompt": text,
            "before": text,
            "after": text[::-1],
            "first_difference": {"token": 0, "before": [0, 2], "after": [0, 2]},
        }
        for text in HOSTILE
    ]
    exhibits = json.loads((folder / "exhibits.json").read_text(encoding="utf-8"))
    for place, projection in enumerate(exhibits["projections"]):
        for variant in projection["variants"]:
            variant["text"] = variant["attribute"] = HOSTILE[place % len(HOSTILE)]
            variant["tokens"] = [HOSTILE[i % len(HOSTILE)] for i in range(len(variant["tokens"]))]
    for unit in exhibits["units"]:
        for contrast in unit["contrasts"]:
            contrast["category"] = HOSTILE[0]
            for place, variant in enumerate(contrast["variants"]):
                variant["text"] = f"{HOSTILE[place % len(HOSTILE)]} {place}"
    for row in evaluation["results"]:
        if row["category"]:
            row["category"] = f"{row['category']} {HOSTILE[0]}"
    contrasts = [
        {"id": text, "category": text, "template_id": "t", "context": "", "control": False, "split": None,
         "variants": [{"attribute": "a", "text": text}, {"attribute": "b", "text": f"{text} b"}]}
        for text in HOSTILE
    ]  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    (folder / "exhibits.json").write_text(json.dumps(exhibits), encoding="utf-8")
    (folder / "contrasts.jsonl").write_text("".join(json.dumps(c) + "\n" for c in contrasts), encoding="utf-8")
    skipped = [{"where": text, "reason": f"because of {text}"} for text in HOSTILE]
    (folder / "skipped.jsonl").write_text("".join(json.dumps(s) + "\n" for s in skipped), encoding="utf-8")
    reseal(folder)


@pytest.fixture(scope="session")
def hostile_texts() -> tuple[str, ...]:
    """The texts that are to be shown as text."""
    return HOSTILE


@pytest.fixture(scope="session")
def full(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with every optional file. Read only."""
    folder = Path(shutil.copytree(finished, tmp_path_factory.mktemp("report") / "full"))
    add_optional(folder)
    return folder


@pytest.fixture(scope="session")
def hostile(full: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, hostile. Read only."""
    folder = Path(shutil.copytree(full, tmp_path_factory.mktemp("report") / "hostile"))
    make_hostile(folder)
    return folder


@pytest.fixture(scope="session")
def pages(full: Path, hostile: Path, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages by name: `full`, `hostile`, and `both`, a comparison."""
    from fairprune_framework.reporting.report import make_report

    folder = tmp_path_factory.mktemp("pages")
    found = {name: folder / f"{name}.html" for name in ("full", "hostile", "both")}
    make_report([full], found["full"])
    make_report([hostile], found["hostile"])
    make_report([full, finished], found["both"])
    return found


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless Chromium that logs its console and its requests."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no Chromium with its driver on this machine (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(driver))
    found.set_script_timeout(120)
    yield found
    found.quit()
