"""An export that does not answer as the model is not kept; what is stored is copied without what belongs to its pruning."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fairprune_framework.errors import UserError, VerificationFailed
from fairprune_framework.models import loading
from fairprune_framework.surgery.export import export, misfit
from fairprune_framework.testing.tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def model(tmp_path: Path, llama: Path) -> Path:
    """With a plan and a restoration beside its weights, as `restore` of a part leaves it."""
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    (folder / "plan.json").write_text("{}")
    save_file({"x": torch.zeros(1)}, folder / "restoration.safetensors")
    return folder


@pytest.mark.parametrize("format", ["hf", "vllm"])
def test_weights_and_tokenizer_are_copied(format: str, model: Path, tmp_path: Path) -> None:
    done = export(model, tmp_path / "out", format)
    assert done.filled == 0
    assert done.bytes == (model / "model.safetensors").stat().st_size
    assert done.to_json()["output"] == str(tmp_path / "out")
    wanted = {path.name for path in model.iterdir()} - {"plan.json", "restoration.safetensors"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == wanted
    assert all((tmp_path / "out" / name).read_bytes() == (model / name).read_bytes() for name in wanted)


def test_what_answers_otherwise_is_not_kept(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = loading.load_model

    def damaged(name: str, **options: Any) -> Any:
        found = usual(name, **options)
        if Path(name) != model:
            with torch.no_grad():
                next(iter(found[0].parameters())).add_(1.0)
        return found

    monkeypatch.setattr(loading, "load_model", damaged)
    with pytest.raises(VerificationFailed, match="answers otherwise: logits differ by"):
        export(model, tmp_path / "out", "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_format_that_cannot_hold_a_model_says_why(tmp_path: Path, model: Path) -> None:
    moe = tiny_model("mixtral")
    assert misfit("hf", moe, tiny_tokenizer()) is None
    assert misfit("vllm", moe, tiny_tokenizer()) is None
    assert "MixtralForCausalLM" in str(misfit("gguf", moe, tiny_tokenizer()))
    with pytest.raises(UserError, match=r"--format must be hf, vllm or gguf\. Got 'onnx'"):
        export(model, tmp_path / "out", "onnx")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").touch()
    with pytest.raises(UserError, match="taken exists: choose another --output"):
        export(model, tmp_path / "taken", "vllm")
