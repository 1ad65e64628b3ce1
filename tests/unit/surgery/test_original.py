"""Restored from file to file: byte for byte what loading the model, putting back and saving it gives, the whole and parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fairprune_framework.api.types import Plan
from fairprune_framework.errors import UserError, VerificationFailed
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.checkpoint import Checkpoint, open_checkpoint
from fairprune_framework.models.loading import load_model
from fairprune_framework.models.weights import fingerprint, weights_digest
from fairprune_framework.surgery import restoration as kept
from fairprune_framework.surgery import restore
from fairprune_framework.surgery.original import Original
from fairprune_framework.surgery.partial import Part
from fairprune_framework.surgery.removal import save_pruned_model
from fairprune_framework.testing.families import small_model
from fairprune_framework.testing.tiny import FAMILIES, tiny_model, tiny_tokenizer

IDS = torch.randint(3, 300, (1, 5), generator=torch.Generator().manual_seed(0))


def pruned(layout: str, operator: str, widths: Any, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A run folder without a record: `source`, in several shards, `model` and its restoration."""
    model: Any = tiny_model(layout) if layout in FAMILIES else small_model(layout)
    model.to(dtype).save_pretrained(folder / "source", max_shard_size="30KB")
    tiny_tokenizer().save_pretrained(folder / "source")
    (folder / "source" / "README.md").write_text("of the original")
    model, tokenizer = load_model(str(folder / "source"))
    found = recognise(model)
    draw = torch.Generator().manual_seed(1)
    sites, categories = {}, {}
    for place, (name, site) in enumerate(found.sites.items()):
        count = 8 if site.kind == "expert" else 4 + 3 * (place % 2)
        sites[name] = tuple(sorted(torch.randperm(site.units, generator=draw)[:count].tolist()))
        categories[name] = tuple(1 + unit % 2 for unit in sites[name])
    words: dict[str, Any] = {"operator": operator, "categories": categories, "category_names": ("a", "b")}
    if operator == "scale":
        words["factor"] = 0.25
    if operator == "mean":
        words["means"] = {name: tuple((0.01 * unit,) for unit in units) for name, units in sites.items()}
    plan = Plan(model="m", fingerprint=fingerprint(model), sites=sites, requested={}, achieved={}, **words)
    save_pruned_model(
        model,
        tokenizer,
        plan,
        found,
        folder / "model",
        probe_ids=IDS,
        widths=widths,
        reload=lambda saved: load_model(str(saved))[0],
        restoration=folder / kept.FILE,
        original=folder / "source",
    )
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def weights(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if name.endswith(".safetensors")}


CASES = [
    ("llama", "remove", "uniform"),
    ("llama", "remove", "exact"),
    ("qwen2", "zero", "uniform"),
    ("gpt2", "scale", "uniform"),
    ("bitnet", "remove", "exact"),
    ("bloom", "remove", "exact"),
    ("phi3", "remove", "exact"),
    ("mixtral", "remove", "uniform"),
    ("mixtral", "remove", "exact"),
    ("qwen2_moe", "remove", "exact"),
    ("gpt_oss", "remove", "uniform"),
    ("llama", "mean", "uniform"),
    ("llama", "mean", "exact"),
    ("gpt2", "mean", "exact"),
]


@pytest.mark.parametrize(("layout", "operator", "widths"), CASES, ids=lambda each: str(each))
def test_both_ways_write_the_same_files(
    layout: str, operator: str, widths: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pruned(layout, operator, widths, tmp_path)
    parts = [None] if operator == "mean" else [None, Part(layers=(1,)), Part(categories=("b",)), Part(layers=(0, 1, 2, 3))]
    for number, part in enumerate(parts[: 3 if layout in FAMILIES else None]):
        whole, files = tmp_path / f"whole {number}", tmp_path / f"files {number}"
        with monkeypatch.context() as patch:
            patch.setattr(restore, "_read_by_shard", lambda *each: None)
            expected = restore.restore_folder(run / "model", whole, part=part)
        with monkeypatch.context() as patch:
            patch.setattr(restore, "_write_loaded", None)  # it is never called
            assert restore.restore_folder(run / "model", files, part=part) == expected
        assert contents(files) == contents(whole)
        assert (files / "README.md").read_text() == "of the original"
    assert weights(tmp_path / "files 0") == weights(tmp_path / "source")


def test_a_part_of_a_part_and_then_the_rest(tmp_path: Path) -> None:
    run = pruned("mixtral", "remove", "exact", tmp_path, torch.bfloat16)
    restore.restore_folder(run / "model", tmp_path / "one", part=Part(categories=("a",)))
    done = restore.restore_folder(tmp_path / "one", tmp_path / "two", part=Part(layers=(1,)))
    assert (done.back > 0, done.out > 0) == (True, True)
    restore.restore_folder(tmp_path / "two", tmp_path / "three")
    assert weights(tmp_path / "three") == weights(tmp_path / "source")


def test_its_tensors_are_those_of_the_original(tmp_path: Path) -> None:
    run = pruned("mixtral", "remove", "uniform", tmp_path)
    found = Original(open_checkpoint(str(run / "model")), kept.load(run / kept.FILE))
    model = load_model(str(run / "source"))[0]
    assert found.digests == (fingerprint(model), weights_digest(model))
    own = model.get_parameter("model.layers.1.mlp.experts.gate_up_proj").detach()
    assert kept.bytes_hash(found.parts("model.layers.1.mlp.experts.gate_up_proj")) == kept.bytes_hash([own])


def test_damage_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    run = pruned("llama", "remove", "uniform", tmp_path)
    path = run / kept.FILE
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    tensors["model.layers.1.mlp/up"][0, 0] += 1e-3
    save_file(tensors, tmp_path / "other.safetensors", metadata=header)
    for part in (None, Part(layers=(0,))):
        with pytest.raises(VerificationFailed, match=r"layers.1.mlp.up_proj.weight would not be what it was"):
            restore.restore_folder(run / "model", tmp_path / "out", tmp_path / "other.safetensors", part=part)
    restore.restore_folder(run / "model", tmp_path / "once")
    with pytest.raises(UserError, match=r"the restoration is for another model"):
        restore.restore_folder(tmp_path / "once", tmp_path / "out", path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model", "once", "other.safetensors", kept.FILE, "source"]


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = pruned("llama", "remove", "uniform", tmp_path)
    before = contents(tmp_path)
    read, count = Checkpoint.part, 0

    def interrupted(self: Checkpoint, name: str) -> Any:
        nonlocal count
        count += 1
        if count > 30:
            raise KeyboardInterrupt
        return read(self, name)

    monkeypatch.setattr(Checkpoint, "part", interrupted)
    for part in (None, Part(layers=(0,))):
        count = 0
        with pytest.raises(KeyboardInterrupt):
            restore.restore_folder(run / "model", tmp_path / "out", part=part)
        assert contents(tmp_path) == before
