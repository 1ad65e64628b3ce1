"""Shard by shard: the files of the ordinary path byte for byte, restored bit for bit, and nothing left where it cannot be done."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fairprune_framework as fp
from fairprune_framework.api.types import Plan
from fairprune_framework.errors import DiskFull, UserError, VerificationFailed
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.checkpoint import Checkpoint, open_checkpoint
from fairprune_framework.models.loading import load_model
from fairprune_framework.models.weights import fingerprint, weights_digest
from fairprune_framework.surgery import by_shard
from fairprune_framework.surgery.by_shard import prune_by_shard
from fairprune_framework.surgery.changes import changes
from fairprune_framework.surgery.record import Removal
from fairprune_framework.surgery.removal import save_pruned_model
from fairprune_framework.testing.families import small_model
from fairprune_framework.testing.tiny import FAMILIES, tiny_model, tiny_tokenizer

IDS = torch.randint(3, 300, (1, 5), generator=torch.Generator().manual_seed(0))


def saved(layout: str, folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """A model in several shards, with a file that belongs to no reader."""
    model: Any = tiny_model(layout, **options) if layout in FAMILIES else small_model(layout)
    model.to(dtype).save_pretrained(folder, max_shard_size="30KB")
    tiny_tokenizer().save_pretrained(folder)
    (folder / "more").mkdir()
    (folder / "more" / "words.txt").write_text("kept")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def plan_for(model: Any, operator: Any = "remove", factor: float | None = None) -> Plan:
    """Another number of units from each site; of experts in one tensor equally many."""
    draw = torch.Generator().manual_seed(1)
    sites = {}
    for place, (name, site) in enumerate(recognise(model).sites.items()):
        count = 8 if site.kind == "expert" else 3 + 2 * (place % 3)
        sites[name] = tuple(sorted(torch.randperm(site.units, generator=draw)[:count].tolist()))
    words: Any = {"operator": operator, "factor": factor, "sites": sites, "requested": {}, "achieved": {}}
    return Plan(model="tiny", fingerprint=fingerprint(model), **words)


def whole(source: Path, plan: Plan, run: Path, dtype: str = "auto", **how: Any) -> Removal:
    model, tokenizer = load_model(str(source), dtype=dtype)
    run.mkdir()
    return save_pruned_model(
        model,
        tokenizer,
        plan,
        recognise(model),
        run / "model",
        probe_ids=IDS,
        reload=lambda saved: load_model(str(saved), dtype=dtype)[0],
        restoration=run / "restoration.safetensors",
        original=source,
        dtype=None if dtype == "auto" else getattr(torch, dtype),
        **how,
    )


def sharded(source: Path, plan: Plan, run: Path, dtype: str = "auto", **how: Any) -> Removal:
    checkpoint = open_checkpoint(str(source), dtype=dtype)
    wanted = None if dtype == "auto" else getattr(torch, dtype)
    run.mkdir(exist_ok=True)
    model = run / "model"
    file = run / "restoration.safetensors"
    return prune_by_shard(checkpoint, plan, recognise(checkpoint.model), model, restoration=file, dtype=wanted, **how)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


CASES = [
    ("llama", "remove", {}, {}),
    ("llama", "remove", {}, {"widths": "exact"}),
    ("llama", "remove", {"tie_word_embeddings": True}, {"round_to": 8, "widths": "exact"}),
    ("qwen2", "zero", {"tie_word_embeddings": True}, {}),
    ("qwen2", "scale", {"dtype": torch.bfloat16}, {}),
    ("gpt2", "remove", {}, {"widths": "exact"}),
    ("phi3", "remove", {}, {"widths": "exact", "round_to": 4}),
    ("bitnet", "remove", {}, {}),
    ("gpt_oss", "remove", {}, {}),
    ("mixtral", "remove", {}, {}),
    ("mixtral", "remove", {}, {"widths": "exact"}),
    ("mixtral", "scale", {"dtype": torch.bfloat16}, {}),
    ("qwen3_moe", "remove", {}, {"widths": "exact"}),
    ("qwen2_moe", "zero", {}, {}),
    ("deepseek_v3", "remove", {}, {}),
]


@pytest.mark.parametrize(("layout", "operator", "options", "how"), CASES, ids=lambda each: str(each))
def test_the_files_are_those_of_the_ordinary_path(
    layout: str, operator: str, options: dict[str, Any], how: dict[str, Any], tmp_path: Path
) -> None:
    source = saved(layout, tmp_path / "source", **options)
    original, _ = load_model(str(source))
    checkpoint = open_checkpoint(str(source))
    assert checkpoint.digests == (fingerprint(original), weights_digest(original))
    plan = plan_for(original, operator, 0.3 if operator == "scale" else None)
    expected = whole(source, plan, tmp_path / "whole", **how).to_json()
    found = sharded(source, plan, tmp_path / "sharded", **how).to_json()
    assert contents(tmp_path / "sharded") == contents(tmp_path / "whole")
    assert found == expected | {"max_difference": None, "kl": None}
    assert checkpoint.model.config.get_text_config().to_dict() == original.config.get_text_config().to_dict()  # type: ignore[operator,union-attr]
    back, _ = fp.restore(tmp_path / "sharded" / "model")
    assert weights_digest(back) == weights_digest(original)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_each_tensor_keeps_its_dtype_unless_another_is_asked_for(dtype: str, tmp_path: Path) -> None:
    """Norms in float32 beside matrices in bfloat16: what is loaded in one dtype is stored in two."""
    from safetensors.torch import load_file, save_file

    source = saved("llama", tmp_path / "source", torch.bfloat16)
    for path in source.glob("*.safetensors"):
        tensors = load_file(path)
        mixed = {name: value.float() if "norm" in name or "layers.0" in name else value for name, value in tensors.items()}
        save_file(mixed, path, metadata={"format": "pt"})
    plan = plan_for(load_model(str(source), dtype=dtype)[0])
    expected = whole(source, plan, tmp_path / "whole", dtype, widths="exact").to_json()
    found = sharded(source, plan, tmp_path / "sharded", dtype, widths="exact").to_json()
    assert contents(tmp_path / "sharded") == contents(tmp_path / "whole")
    assert found["files"] == expected["files"]
    assert bool(found["files"]) == (dtype == "auto")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("llama", tmp_path_factory.mktemp("llama") / "source")


def _mirrored(change: Any) -> Any:
    return lambda value: change(value).flip(0)


def copied(source: Path, folder: Path, **config: Any) -> Path:
    shutil.copytree(source, folder)
    content = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_what_cannot_be_read_tensor_by_tensor_is_refused_in_one_line(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"its weights are quantised"):
        open_checkpoint(str(copied(llama, tmp_path / "quantised", quantization_config={"quant_method": "gptq", "bits": 4})))
    with pytest.raises(UserError, match=r"mlp.down_proj.weight is \(32, 48\), not \(32, 40\)"):
        open_checkpoint(str(copied(llama, tmp_path / "misfit", intermediate_size=40)))
    gone = copied(llama, tmp_path / "gone")
    first = min(gone.glob("*.safetensors"))
    first.unlink()
    with pytest.raises(UserError, match=f"{first.name}, which its index names, is missing"):
        open_checkpoint(str(gone))
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(32)
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match=r"it is a GGUF file"):
        open_checkpoint(str(tmp_path / "model.gguf"))


def test_a_full_disk_a_failed_proof_and_an_interrupt_leave_nothing(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, run = plan_for(load_model(str(llama))[0]), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
        with pytest.raises(
            DiskFull, match=r"the disk is full: the model takes .* MB, and .* has 0.0 MB free. Nothing was written"
        ):
            sharded(llama, plan, run)
    assert list(run.iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr(by_shard, "changes", lambda *each: {name: _mirrored(way) for name, way in changes(*each).items()})
        with pytest.raises(VerificationFailed, match=r"does not give back the original"):
            sharded(llama, plan, run)
    assert list(run.iterdir()) == []
    read, times = Checkpoint.part, iter(range(30))

    def interrupted(self: Checkpoint, name: str) -> Any:
        if next(times, None) is None:
            raise KeyboardInterrupt
        return read(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "part", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sharded(llama, plan, run)
    assert list(run.iterdir()) == []


def test_a_checkpoint_in_one_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    tiny_model("llama").save_pretrained(source)  # type: ignore[operator]
    tiny_tokenizer().save_pretrained(source)
    assert [path.name for path in source.glob("*.safetensors*")] == ["model.safetensors"]
    plan = plan_for(load_model(str(source))[0])
    whole(source, plan, tmp_path / "whole")
    sharded(source, plan, tmp_path / "sharded")
    assert contents(tmp_path / "sharded") == contents(tmp_path / "whole")


def test_a_plan_of_another_model_is_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the plan is for another model"):
        sharded(llama, plan_for(tiny_model("llama", seed=1)), tmp_path / "run")
    assert not any((tmp_path / "run").iterdir())


def test_a_run_is_pruned_shard_by_shard_with_its_guard_off(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fairprune_framework.cli import main

    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(plan_for(load_model(str(llama))[0]).to_json()))
    words = ["prune", str(llama), "--plan", str(plan), "--output", str(tmp_path / "run"), "--shard-by-shard"]
    assert main(words) == 2
    assert "--shard-by-shard computes no forward" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*words, "--force", "--quiet"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "guard did not measure: shard by shard no forward is computed" in said
    assert "files verified" in said
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "guard" not in record
    assert record["removal"]["max_difference"] is None
    assert weights_digest(fp.restore(tmp_path / "run")[0]) == weights_digest(load_model(str(llama))[0])


MEASURED = """
import json, resource, sys
from pathlib import Path
from fairprune_framework.api.types import Plan
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.checkpoint import open_checkpoint
from fairprune_framework.surgery.by_shard import prune_by_shard
from fairprune_framework.surgery.restore import restore_folder

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

source, run, back = map(Path, sys.argv[1:])
checkpoint = open_checkpoint(str(source))
found = recognise(checkpoint.model)
opened = peak()
sites = {name: tuple(range(0, 80, 5)) for name in found.sites}
words = {"operator": "remove", "requested": {}, "achieved": {}}
plan = Plan(model="m", fingerprint=checkpoint.digests[0], sites=sites, **words)
prune_by_shard(checkpoint, plan, found, run / "model", restoration=run / "restoration.safetensors")
pruned = peak()
restore_folder(run / "model", back)
print(json.dumps([pruned - opened, peak() - opened]))
"""


def test_packed_experts_are_never_in_memory_together(tmp_path: Path) -> None:
    """In a process of its own, of which the peak is measured: one expert's tensor is 4 MiB, those of a layer 128 and 64 MiB."""
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_local_experts": 16, "num_hidden_layers": 1, "head_dim": 128}
    tiny_model("mixtral", **sizes).save_pretrained(tmp_path / "source")  # type: ignore[operator]
    tiny_tokenizer().save_pretrained(tmp_path / "source")
    words = [tmp_path / "source", tmp_path / "run", tmp_path / "back"]
    said = subprocess.run([sys.executable, "-c", MEASURED, *map(str, words)], capture_output=True, text=True, check=True)
    pruning, restoring = json.loads(said.stdout)
    file = tmp_path / "source" / "model.safetensors"
    assert file.stat().st_size > 192 * 2**20
    assert max(pruning, restoring) < 96 * 2**20
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == file.read_bytes()
