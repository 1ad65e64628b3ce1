"""What `fairprune doctor MODEL` says of formats is what `fairprune export` does, in both widths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import pre_tokenizers

import fairprune_framework as fp
from fairprune_framework.analysis.model import examine, render
from fairprune_framework.api.types import Plan
from fairprune_framework.errors import UserError
from fairprune_framework.models import gguf_writing
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.loading import load_model
from fairprune_framework.models.weights import fingerprint
from fairprune_framework.recipes.loading import load_recipe
from fairprune_framework.surgery.removal import save_pruned_model
from fairprune_framework.testing.families import small_model
from fairprune_framework.testing.tiny import FAMILIES, tiny_model, tiny_tokenizer

IDS = torch.randint(3, 300, (1, 5), generator=torch.Generator().manual_seed(0))


def saved(layout: str, folder: Path, *, prefix_space: bool = False) -> Path:
    model: Any = tiny_model(layout) if layout in FAMILIES else small_model(layout)
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.save_pretrained(folder)
    return folder


def pruned(source: Path, target: Path, widths: Any) -> Path:
    model, tokenizer = load_model(str(source))
    architecture = recognise(model)
    sites = {name: tuple(range(8 if site.kind == "expert" else 4)) for name, site in architecture.sites.items()}
    plan = Plan(model="m", fingerprint=fingerprint(model), operator="remove", sites=sites, requested={}, achieved={})
    how: dict[str, Any] = {"probe_ids": IDS, "reload": lambda folder: load_model(str(folder))[0], "original": source}
    save_pruned_model(model, tokenizer, plan, architecture, target, widths=widths, **how)
    return target


def refusal(folder: Path, format: Any, out: Path) -> str | None:
    """What export says against it, and then nothing is there."""
    try:
        fp.export(folder, out, format=format)
    except UserError as error:
        assert not out.exists()
        return str(error)
    assert out.exists()
    return None


@pytest.mark.parametrize("layout", ["llama", "qwen2", "phi3", "mixtral", "gpt2", "bloom", "falcon", "bitnet"])
def test_the_doctor_and_the_export_agree(layout: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    source = saved(layout, tmp_path / "source")
    report = examine(load_recipe(None, {"model": str(source)}))
    assert report["exact_widths"] is None
    for widths, said in (("uniform", report["formats"]), ("exact", report["exact_formats"])):
        if widths == "uniform" and report["operators"]["remove"] is not None:  # no config field: exact widths alone
            continue
        folder = pruned(source, tmp_path / widths, widths)
        for name in ("hf", "vllm", "gguf"):
            found = refusal(folder, name, tmp_path / f"{widths}-{name}.gguf")
            expected = None if said[name] is None else f"{folder} cannot be written in the format {name}: {said[name]}"
            assert found == expected
    if layout in ("bloom", "falcon"):
        assert "its Transformers backend alone, and that does not take" in report["exact_formats"]["vllm"]
        assert "after --widths exact: --format hf" in " ".join(render(report).split())


def test_what_gguf_lacks_is_said_by_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package, a name for a tensor, a row for a token."""
    pytest.importorskip("gguf")
    source = saved("llama", tmp_path / "source")
    recipe = load_recipe(None, {"model": str(source)})

    def both() -> str:
        said = examine(recipe)["formats"]["gguf"]
        assert said is not None
        assert refusal(source, "gguf", tmp_path / "m.gguf") == f"{source} cannot be written in the format gguf: {said}"
        return str(said)

    with monkeypatch.context() as patch:
        patch.setattr(gguf_writing, "find_spec", lambda name: None)
        assert "pip install 'fairprune_framework[embedded]'" in both()
    with monkeypatch.context() as patch:
        names = gguf_writing._names
        patch.setattr(gguf_writing, "_names", lambda model: names(model) | {"model.norm.weight": None})
        assert "model.norm.weight has no name in GGUF files of the architecture 'llama'" in both()
    tokenizer = load_model(str(source))[1]
    tokenizer.add_tokens([f"<{number}>" for number in range(200)])
    tokenizer.save_pretrained(source)
    assert "and its embedding" in both()
