"""How often a run computes a text: the judging text once in each model, with and without the mask."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaModel

Row = tuple[int, ...]


class Forwards:
    """What every Llama in this process computed: (number of the model, dtype, tokens of a row) -> the last hidden state of each time."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.models: list[Any] = []  # kept, so that no two have one id
        self.rows: dict[tuple[int, str, Row], list[torch.Tensor]] = {}
        forward = LlamaModel.forward

        def counted(model: Any, input_ids: Any = None, attention_mask: Any = None, **more: Any) -> Any:
            output = forward(model, input_ids=input_ids, attention_mask=attention_mask, **more)
            if not any(model is known for known in self.models):
                self.models.append(model)
            place = next(i for i, known in enumerate(self.models) if known is model)
            for row, ids in enumerate(input_ids):
                mask = attention_mask
                length = len(ids) if mask is None or mask.dim() != 2 else int(mask[row].sum())
                key = (place, str(output[0].dtype), tuple(ids[:length].tolist()))
                self.rows.setdefault(key, []).append(output[0][row, length - 1].detach().clone())
            return output

        patch.setattr(LlamaModel, "forward", counted)


FLOAT32, BFLOAT16 = "torch.float32", "torch.bfloat16"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--force",), [(FLOAT32, 2), (FLOAT32, 1)]),
        (("--force", "--dtype", "bfloat16"), [(FLOAT32, 2), (BFLOAT16, 2), (BFLOAT16, 1)]),
        (("--max-perplexity-increase", "0"), [(FLOAT32, 2)]),
    ],
    ids=["pruned", "in bfloat16, judged in float32", "abstained"],
)
def test_the_judging_text_is_computed_once_in_each_model_and_mask(
    options: tuple[str, ...],
    expected: list[tuple[str, int]],
    fairprune: Any,
    llama: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The original bare and masked, then the smaller model; where the run abstains, the original alone."""
    forwards = Forwards(monkeypatch)
    short = ("--calibration-tokens", 80, "--calibration-documents", 8)  # longer than what `prune` verifies a saved model on
    text = ("--recipe", "exchange", "--budget", "0.1", *short)
    answer = fairprune("run", llama, "--prompts", prompts, "--output", tmp_path, *text, *options)
    assert answer.code == 0, answer.err
    assert json.loads((tmp_path / "run.json").read_text())["abstained"] is (len(expected) == 1)
    documents = [tuple(json.loads(line)["ids"]) for line in (tmp_path / "calibration.jsonl").read_text().splitlines()][1::2]
    assert len(documents) == 4
    for ids in documents:
        seen = [(place, dtype, states) for (place, dtype, row), states in forwards.rows.items() if row == ids]
        assert [(dtype, len(states)) for _, dtype, states in seen] == expected
        bare, masked = seen[0][2]
        assert not torch.allclose(bare, masked, rtol=1e-3)
        if expected[1:] == [(FLOAT32, 1)]:
            assert seen[1][0] != seen[0][0]
            torch.testing.assert_close(seen[1][2][0], masked, rtol=1e-3, atol=1e-4)


def test_losses_of_the_guard_are_those_of_an_evaluation_without_them(fairprune: Any, finished: Path, tmp_path: Path) -> None:
    """Found again or measured anew: the same rows, bit by bit; under another key they are not used."""
    rows = []
    for name in ("kept", "none", "other"):
        folder = tmp_path / name
        shutil.copytree(finished, folder)
        record = json.loads((folder / "run.json").read_text())
        path = folder / "judging_text.json"
        if name != "kept":
            data = json.loads(path.read_text())
            data["key"]["micro_batch_tokens"] += 1
            data["before"] = [2 * value for value in data["before"]]
            path.write_text(json.dumps(data))
            stored = record["stages"]["prune"]["files"]["judging_text.json"]
            stored |= {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
        if name == "none":
            path.unlink()
            del record["stages"]["prune"]["files"]["judging_text.json"]
        (folder / "run.json").write_text(json.dumps(record))
        answer = fairprune("evaluate", "--output", folder, "--overwrite")
        assert answer.code == 0, answer.err
        rows.append(json.loads((folder / "evaluation.json").read_text())["results"])
    assert rows[0] == rows[1] == rows[2]
    text = [row["metric"] for row in rows[0] if row["metric"] in ("perplexity", "kl-to-original")]
    assert sorted(text) == ["kl-to-original", "perplexity"]


def test_damaged_losses_are_named(fairprune: Any, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "judging_text.json"
    path.write_text(path.read_text().replace("before", "behind"))
    answer = fairprune("evaluate", "--output", tmp_path / "run", "--overwrite")
    assert answer.code == 2
    assert "judging_text.json" in answer.errors[-1]
