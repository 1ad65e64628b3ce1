"""Two prompts before and after, against the untouched forward of both models."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fairprune_framework.errors import RunFolderError, UserError
from fairprune_framework.exploring.compare import MOST_CHARACTERS, Explorer
from fairprune_framework.models.loading import load_model

FIRST, SECOND = "The young clerk said that", "The old clerk said that"


def test_next_tokens_are_those_of_transformers(explorer: Explorer, llama: Path, finished: Path) -> None:
    found = explorer.compare(FIRST, SECOND, top=4)
    for text, tokens in zip((FIRST, SECOND), found.next_tokens, strict=True):
        for folder, of in ((llama, "before"), (finished / "model", "after")):
            model: Any
            model, tokenizer = load_model(str(folder))
            with torch.no_grad():
                p = model(**tokenizer(text, return_tensors="pt")).logits[0, -1].double().softmax(-1)
            for one in tokens:  # several tokens may read alike
                alike = [float(p[i]) for i in range(len(p)) if tokenizer.decode([i]) == one.token]
                assert min(abs(getattr(one, of) - each) for each in alike) <= 1e-6
    assert found.after is not None
    assert (len(found.before.by_layer), found.layers) == (2, (0, 1))
    assert found.before.divergence != found.after.divergence


def test_what_cannot_be_compared_is_said(explorer: Explorer, tmp_path: Path) -> None:
    for first, second, text in (
        ("", FIRST, "first prompt is empty"),
        (FIRST, FIRST, "are equal"),
        (FIRST, "x" * (MOST_CHARACTERS + 1), "the limit is 10,000"),
    ):
        with pytest.raises(UserError, match=text):
            explorer.compare(first, second)
    with pytest.raises(RunFolderError, match="is not a run folder"):
        Explorer(tmp_path)


def test_an_abstained_run_is_masked(finished: Path, tmp_path: Path, explorer: Explorer) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(run / "model")
    masked = Explorer(run)
    assert "abstained" in masked.how
    one, two = masked.compare(FIRST, SECOND), explorer.compare(FIRST, SECOND)
    assert one.after is not None
    assert two.after is not None
    assert one.after.divergence == pytest.approx(two.after.divergence, rel=1e-3)
