"""What a saved model keeps of its original: files byte for byte, names, shards and dtypes of tensors, and fields for older readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fairprune_framework.errors import UserError
from fairprune_framework.models.loading import folder_of, load_model
from fairprune_framework.models.saving import (
    check_savable,
    kept_files,
    partners_of,
    save_like,
    save_new,
    shards,
    with_older_fields,
)
from fairprune_framework.testing.tiny import save_tiny, tiny_model, tiny_tokenizer

DOWN = "model.layers.0.mlp.down_proj.weight"


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def as_transformers_4_wrote(folder: Path) -> Path:
    """The same checkpoint with the fields of nearly every one on the hub, a card, a licence, a chat template and its own code."""
    config = content(folder / "config.json")
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"] * 50
    config["torch_dtype"] = config.pop("dtype")
    config |= {"rope_scaling": None, "transformers_version": "4.45.0", "somebody's": ["own", "field"]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    (folder / "README.md").write_text("the original's card", encoding="utf-8")
    (folder / "LICENSE").write_text("a licence", encoding="utf-8")
    (folder / "more").mkdir()
    (folder / "more" / "code.py").write_text("pass", encoding="utf-8")
    return folder


def halved(folder: Path, out: Path, **options: Any) -> list[str]:
    """Save with one output matrix halved."""
    model, _ = load_model(str(folder))
    model.get_parameter(DOWN).data *= 0.5
    return save_like(folder, out, model, parameters=[DOWN], fields={"intermediate_size": 48}, **options)


def test_everything_but_what_changed_is_the_originals(tmp_path: Path) -> None:
    folder = as_transformers_4_wrote(save_tiny(tmp_path / "m"))
    (folder / "pytorch_model.bin").write_bytes(b"another format of the same weights")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_text("of this machine")
    (folder / "leak").symlink_to("/etc/hostname")
    assert halved(folder, tmp_path / "out") == []
    out = tmp_path / "out"
    same = {
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "chat_template.jinja",
        "LICENSE",
        "more/code.py",
    }
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert found == same | {"config.json", "model.safetensors", "ORIGINAL_README.md"}
    for name in same:
        assert (out / name).read_bytes() == (folder / name).read_bytes()
    assert (out / "ORIGINAL_README.md").read_text() == "the original's card"
    assert content(out / "config.json") == content(folder / "config.json")
    before, after = load_file(folder / "model.safetensors"), load_file(out / "model.safetensors")
    assert list(before) == list(after)
    for name, value in before.items():
        assert after[name].equal(value * 0.5 if name == DOWN else value), name


def test_the_way_back_gives_the_originals_card_its_name(tmp_path: Path) -> None:
    folder = as_transformers_4_wrote(save_tiny(tmp_path / "m"))
    halved(folder, tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("the card of the pruned model")
    assert kept_files(tmp_path / "out")["ORIGINAL_README.md"] == "ORIGINAL_README.md"
    halved(tmp_path / "out", tmp_path / "back", back=True)
    assert (tmp_path / "back" / "README.md").read_text() == "the original's card"
    assert not (tmp_path / "back" / "ORIGINAL_README.md").exists()


def mixed(folder: Path, *parts: str) -> Path:
    """A bfloat16 checkpoint of which tensors with these parts in their names are float32."""
    save_tiny(folder, "llama", dtype=torch.bfloat16)
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if any(part in name for part in parts):
            tensors[name] = tensors[name].float() * 1.0001
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", "of": "somebody"})
    return folder


def test_each_tensor_keeps_its_dtype_and_bits(tmp_path: Path) -> None:
    folder = mixed(tmp_path / "m", "norm", "lm_head")
    assert halved(folder, tmp_path / "out") == []
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in after.values()} == {torch.float32, torch.bfloat16}
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        assert name == DOWN or after[name].equal(value)
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert file.metadata()["of"] == "somebody"


def test_a_changed_tensor_that_was_loaded_in_fewer_bits_is_named(tmp_path: Path) -> None:
    notes = halved(mixed(tmp_path / "m", "down_proj"), tmp_path / "out")
    assert len(notes) == 1
    assert "1 of the changed tensors are stored in float32 and were computed in bfloat16" in notes[0]
    assert load_file(tmp_path / "out" / "model.safetensors")[DOWN].dtype == torch.float32


def test_a_dtype_that_was_asked_for_is_that_of_all(tmp_path: Path) -> None:
    folder = as_transformers_4_wrote(save_tiny(tmp_path / "m"))
    halved(folder, tmp_path / "out", dtype=torch.bfloat16)
    assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert content(tmp_path / "out" / "config.json")["torch_dtype"] == "bfloat16"


def test_shards_stay_as_they_were_cut(tmp_path: Path) -> None:
    model: Any = tiny_model("llama")
    model.save_pretrained(tmp_path / "m", max_shard_size="100KB")
    tiny_tokenizer().save_pretrained(tmp_path / "m")
    assert len(shards(tmp_path / "m")) > 1
    halved(tmp_path / "m", tmp_path / "out")
    assert [file.name for file in shards(tmp_path / "out")] == [file.name for file in shards(tmp_path / "m")]
    index = "model.safetensors.index.json"
    assert content(tmp_path / "out" / index)["weight_map"] == content(tmp_path / "m" / index)["weight_map"]
    again, _ = load_model(str(tmp_path / "out"))
    assert again.get_parameter(DOWN).equal(model.get_parameter(DOWN) * 0.5)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m", "gemma3")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    halved(folder, tmp_path / "out")
    again, _ = load_model(str(tmp_path / "out"))
    assert again.lm_head.weight is again.model.embed_tokens.weight  # type: ignore[union-attr]


def test_experts_that_transformers_fuses_keep_the_files_names(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m", "mixtral")
    model, _ = load_model(str(folder))
    fused = "model.layers.0.mlp.experts.down_proj"
    model.get_parameter(fused).data[2] *= 0.5
    assert save_like(folder, tmp_path / "out", model, parameters=[fused], fields={}) == []
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    changed = [name for name in before if not after[name].equal(before[name])]
    assert changed == ["model.layers.0.block_sparse_moe.experts.2.w2.weight"]


def wrapped(folder: Path, prefix: str) -> Path:
    """A checkpoint with a vision tower, of which the text half has a class of its own."""
    save_tiny(folder)
    tensors = {name.replace("model.", prefix, 1): value for name, value in load_file(folder / "model.safetensors").items()} | {
        "model.visual.layers.0.mlp.down_proj.weight": torch.ones(3, 3)
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = content(folder / "config.json")
    whole = {
        "architectures": ["SomebodysForConditionalGeneration"],
        "text_config": config,
        "vision_config": {"intermediate_size": 48},
    }
    (folder / "config.json").write_text(json.dumps(whole))
    return folder


def test_a_vision_tower_stays_where_it_is(tmp_path: Path) -> None:
    folder, model = wrapped(tmp_path / "m", "model.language_model."), tiny_model("llama")
    model.get_parameter(DOWN).data *= 0.5
    check_savable(folder, model, [DOWN])
    notes = save_like(folder, tmp_path / "out", model, parameters=[DOWN], fields={"intermediate_size": 40})
    assert notes == ["the other parts of the SomebodysForConditionalGeneration are kept as they are"]
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert after["model.visual.layers.0.mlp.down_proj.weight"].equal(torch.ones(3, 3))
    assert after["model.language_model.layers.0.mlp.down_proj.weight"].equal(model.get_parameter(DOWN))
    config = content(tmp_path / "out" / "config.json")
    assert (config["text_config"]["intermediate_size"], config["vision_config"]["intermediate_size"]) == (40, 48)
    assert "intermediate_size" not in config


def test_a_part_whose_tensors_cannot_be_told_apart_is_refused(tmp_path: Path) -> None:
    folder, model = wrapped(tmp_path / "m", "somewhere.else."), tiny_model("llama")
    tensors = {name.replace("mlp", "feed"): value for name, value in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for save in (check_savable, lambda *given: save_like(given[0], tmp_path / "out", given[1], parameters=given[2], fields={})):
        with pytest.raises(UserError, match="rest of the model would be lost"):
            save(folder, model, [DOWN])


def test_partners_differ_in_their_beginning_alone() -> None:
    ours = ["model.layers.0.mlp.up", "model.layers.1.mlp.up"]
    assert partners_of(ours, ours) == dict(zip(ours, ours, strict=True))
    theirs = ["language_model.model.layers.0.mlp.up", "language_model.model.layers.1.mlp.up", "vision.layers.0.mlp.up"]
    assert partners_of(ours, theirs) == dict(zip(ours, theirs, strict=False))
    assert partners_of(ours, ["layers.0.mlp.up", "layers.1.mlp.up"]) is not None
    assert partners_of(ours, theirs[1:]) is None


def test_the_hubs_cache_is_links_to_the_same_repository(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    for name, target in (("tokenizer.json", snapshot.parent.parent / "blobs" / "1"), ("other", tmp_path / "outside")):
        target.parent.mkdir(exist_ok=True)
        target.write_text("content")
        (snapshot / name).symlink_to(target)
    assert kept_files(snapshot) == {"tokenizer.json": "tokenizer.json"}


def test_a_model_without_an_original_has_the_fields_of_both_readers(tmp_path: Path) -> None:
    save_new(tiny_model("llama"), tiny_tokenizer(), tmp_path)
    config = content(tmp_path / "config.json")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    assert config["torch_dtype"] == config["dtype"] == "float32"
    assert content(tmp_path / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    text = "The nurse walked."
    assert AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]
    ids = torch.arange(3, 30)[None]
    assert AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits.equal(tiny_model("llama")(ids).logits)


def test_scaled_partial_and_local_rotations_for_older_readers() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6, "partial_rotary_factor": 0.5}
    found = with_older_fields({"rope_parameters": yarn})
    assert (found["rope_theta"], found["partial_rotary_factor"]) == (1e6, 0.5)
    assert found["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0}
    kinds = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    found = with_older_fields({"text_config": {"model_type": "gemma3_text", "rope_parameters": kinds}})["text_config"]
    assert (found["rope_theta"], found["rope_local_base_freq"]) == (1e6, 1e4)
    assert found["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    given = {"rope_theta": 7.0, "rope_parameters": {"rope_theta": 8.0}}
    assert with_older_fields(given)["rope_theta"] == 7.0  # what is there is not touched


def test_where_a_models_files_are(llama: Path, tmp_path: Path) -> None:
    assert folder_of(str(llama)) == llama
    with pytest.raises(UserError, match="there is no model folder"):
        folder_of(str(tmp_path / "nowhere"))
