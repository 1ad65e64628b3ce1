"""The model card: the hub's own classes read it back with the run's numbers, nothing of the machine leaks, hostile names stay text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results

from fairprune_framework.reporting.card import base_of, card, write_card
from fairprune_framework.reporting.run_data import read_source


def loaded(path: Path) -> Any:
    return ModelCard.load(path, ignore_metadata_errors=False)


def test_it_reads_back_with_the_numbers_of_the_run(finished: Path) -> None:
    """`ModelCard.load` without ignoring errors is the hub client's own check of the metadata."""
    found = loaded(finished / "model" / "README.md")
    results = {(r.metric_type, r.dataset_name): r for r in found.data.eval_results}
    wanted = json.loads((finished / "evaluation.json").read_text())["results"]
    overall = [r for r in wanted if r["category"] is None and r["layer"] is None and r["after"] is not None]
    assert len(results) == len(overall) > 0
    for row in overall:
        (one,) = [r for r in results.values() if r.metric_type == row["metric"] and r.metric_value == row["after"]][:1]
        assert one.metric_args["before"] == row["before"]
        if row["ci_low"] is not None:
            assert (one.metric_args["ci_low"], one.metric_args["ci_high"]) == (row["ci_low"], row["ci_high"])
    name, again = model_index_to_eval_results(found.data.to_dict()["model-index"])
    assert name == "llama-fairpruned"
    assert len(again) == len(overall)


def test_it_tells_what_was_done(finished: Path, llama: Path) -> None:
    text = (finished / "model" / "README.md").read_text()
    record = json.loads((finished / "run.json").read_text())
    plan = json.loads((finished / "plan.json").read_text())
    assert record["verdict"] in text
    assert f"{plan['achieved']['units']:,} neurons" in text
    for digest in record["hashes"].values():
        assert digest in text
    for entry in record["plugins"].values():
        assert f"| {entry['name']} |" in text
    for package, version in record["versions"].items():
        assert f"{package} {version}" in text
    assert "Unknown: the card of" in text
    assert json.loads((finished / "model" / "plan.json").read_text()) == plan
    assert str(llama.parent) not in text
    assert str(finished.parent) not in text


def test_the_licence_is_inherited_from_the_cards_at_hand(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    assert base_of(str(folder)) == (None, None)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# base\n")
    assert base_of(str(folder)) == (None, "mit")
    (folder / "README.md").write_text("---\nlicense: [broken\n---\n")
    assert base_of(str(folder)) == (None, None)
    assert base_of("smollm2-135m") == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
    assert base_of("owner/never-downloaded") == ("owner/never-downloaded", None)


def test_a_run_without_a_model_has_no_card(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(run / "model")
    assert write_card(run) == []
    assert not (run / "model").exists()


def test_hostile_names_stay_text(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    recipe = (run / "recipe.yaml").read_text()
    lines = [
        "prompts: '<script>alert(1)</script> | `x` {{ 7*7 }}'" if at.startswith("prompts:") else at for at in recipe.split("\n")
    ]
    (run / "recipe.yaml").write_text("\n".join(lines))
    text = card(read_source(run)).text
    assert "<script>" not in text.replace("\\<script\\>", "")
    assert "49" not in text.partition("contrasts, ")[0][-60:]
    assert isinstance(card(read_source(run)).data, ModelCardData)


@pytest.mark.embedded
def test_what_a_stranger_wrote_into_the_record_is_text(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    path = folder / "run.json"
    evil = "<script>x</script> [click](https://evil.example) `code`\n# heading"
    record = json.loads(path.read_text())
    record |= {"verdict": "abstained", "abstained": True, "abstained_because": evil, "verdict_because": evil}
    record["hashes"]["prompts"] = evil
    record["versions"]["fairprune_framework"] = evil
    path.write_text(json.dumps(record))
    text = str(card(read_source(folder)))
    assert "evil.example" in text
    assert "<script" not in text.replace("\\<script", "")
    assert "[click](" not in text.replace("\\[click\\](", "")
    assert "\n# heading" not in text


def test_the_embedded_model_is_named(finished: Path, tmp_path: Path, fairprune: Callable[..., Any]) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    recipe = (run / "recipe.yaml").read_text().split("\n")
    (run / "recipe.yaml").write_text("\n".join("model: smollm2-135m" if at.startswith("model:") else at for at in recipe))
    data = card(read_source(run)).data
    assert (data.base_model, data.license) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
