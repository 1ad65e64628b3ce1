"""A run over its folder: what is shared with the same run under another recipe, and calibration text that is not what was written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.errors import RunFolderError, UserError
from fairprune_framework.recipes.loading import with_options
from fairprune_framework.runs.open import open_run
from fairprune_framework.runs.run import Run
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_model, tiny_tokenizer

SHORT = {"calibration_tokens": 8, "calibration_documents": 4}


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


def opened(folder: Path | None, model: Any, **options: Any) -> Run:
    return open_run(folder, {**SHORT, **options}, model=model, tokenizer=tiny_tokenizer(), prompts=tiny_contrasts())


def test_another_recipe_shares_what_it_does_not_change(model: Any) -> None:
    run = opened(None, model)
    text = run.calibration
    again = run.with_recipe(with_options(run.recipe, {"budget": "3n"}))
    assert (again.loaded, again.prompts) == (run.loaded, run.prompts)
    assert again.calibration is text
    assert again.recipe.budget == "3n"
    other = run.with_recipe(with_options(run.recipe, {"seed": 3}))
    assert other.prompts is not run.prompts
    assert list(other.prompts.contrasts) == tiny_contrasts()


def test_calibration_text_is_made_once(tmp_path: Path, model: Any) -> None:
    run = opened(tmp_path / "run", model)
    assert not run.has_calibration
    text = run.calibration
    assert (len(text.documents), {len(each) for each in text.documents}) == (4, {8})
    again = opened(tmp_path / "run", model)
    assert again.has_calibration
    written = (tmp_path / "run" / "calibration.jsonl").stat().st_mtime_ns
    assert again.calibration.documents == text.documents
    assert (tmp_path / "run" / "calibration.jsonl").stat().st_mtime_ns == written
    assert not opened(tmp_path / "run", model, seed=1).has_calibration


@pytest.mark.parametrize("token", [0, 10**6])
def test_calibration_text_that_was_changed_is_refused(token: int, tmp_path: Path, model: Any) -> None:
    """By its hash; with the right hash, by tokens that the model does not have."""
    _ = opened(tmp_path / "run", model).calibration
    path, record = tmp_path / "run" / "calibration.jsonl", tmp_path / "run" / "run.json"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["ids"][0] = token
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RunFolderError, match=r"calibration\.jsonl is damaged or was changed: remove it"):
        _ = opened(tmp_path / "run", model).calibration
    if token:
        from fairprune_framework.calibration.text import Calibration

        data = json.loads(record.read_text())
        data["hashes"]["calibration"] = Calibration.load(path).hash
        record.write_text(json.dumps(data))
        with pytest.raises(RunFolderError, match=rf"holds the token {token}; the model has \d+: remove it"):
            _ = opened(tmp_path / "run", model).calibration
    path.unlink()
    assert opened(tmp_path / "run", model).calibration.documents


def test_micro_batches_as_asked_for_or_as_the_device_bears(model: Any) -> None:
    assert opened(None, model, micro_batch_tokens=77).micro_batch_tokens == 77
    assert opened(None, model).micro_batch_tokens > 77


def test_a_model_in_memory_is_not_read_tensor_by_tensor(model: Any) -> None:
    with pytest.raises(UserError, match="cannot be pruned shard by shard: it was read whole already"):
        opened(None, model).unread()


def test_what_models_compute_is_counted_in_one_process_alone(model: Any) -> None:
    import torch

    ids = torch.arange(5, 12).unsqueeze(0)
    counted: list[Any] = []
    for devices in (1, 2):
        run = opened(None, model, devices=devices)
        _ = run.loaded.model
        with run.counting("evaluate") as ledger, torch.no_grad():
            run.loaded.model(input_ids=ids)
        counted.append(ledger.to_json(None))
        run.watch(model, "original", "evaluate")  # after the stage: nothing is counted any more
        model(input_ids=ids)
        assert ledger.to_json(None) == counted[-1]
    assert counted[0] != counted[1]
