"""`fairprune export`: plain folders and GGUF files answer as the pruned model; what does not fit says why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import fairprune_framework as fp
from fairprune_framework.api.types import Plan
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.loading import load_model
from fairprune_framework.models.uneven import FIELD, FILE, narrow
from fairprune_framework.models.weights import fingerprint
from fairprune_framework.surgery.equality import logits_of
from fairprune_framework.surgery.removal import save_pruned_model
from fairprune_framework.testing.families import small_model
from fairprune_framework.testing.tiny import FAMILIES, tiny_model, tiny_tokenizer

IDS = torch.randint(3, 300, (1, 9), generator=torch.Generator().manual_seed(0))


def tokenizer() -> Any:
    """One that puts no space before a text."""
    from tokenizers import pre_tokenizers

    found = tiny_tokenizer()
    found.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return found


def pruned(layout: str, folder: Path, widths: Any, *, dtype: torch.dtype = torch.float32, **options: Any) -> tuple[Any, Path]:
    """A model of which layers lost different numbers of neurons, and its folder."""
    model: Any = tiny_model(layout, **options) if layout in FAMILIES else small_model(layout)
    model.to(dtype).save_pretrained(folder / "whole")
    tokenizer().save_pretrained(folder / "whole")
    model = load_model(str(folder / "whole"))[0]
    architecture = recognise(model)
    sites = {
        name: tuple(range(1, 9 if site.kind == "expert" else 4 + 2 * site.layer)) if widths == "exact" else (1, 2, 3)
        for name, site in architecture.sites.items()
    }
    plan = Plan(model="m", fingerprint=fingerprint(model), operator="remove", sites=sites, requested={}, achieved={})
    save_pruned_model(
        model,
        tokenizer(),
        plan,
        architecture,
        folder / "model",
        probe_ids=IDS,
        widths=widths,
        reload=lambda saved: load_model(str(saved))[0],
    )
    return load_model(str(folder / "model"))[0], folder / "model"


@pytest.mark.parametrize("layout", ["llama", "phi3", "mixtral", "bitnet", "gpt2", "bloom"])
def test_hf_is_plain_and_answers_alike(layout: str, tmp_path: Path) -> None:
    model, folder = pruned(layout, tmp_path, "exact")
    fp.export(folder, tmp_path / "plain", format="hf")
    assert not (tmp_path / "plain" / FILE).exists()
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert {FIELD, "auto_map"}.isdisjoint(config)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype="auto").eval()
    torch.testing.assert_close(logits_of(found, IDS), logits_of(model, IDS), rtol=0, atol=1e-4)


def test_vllm_gets_what_is_stored(tmp_path: Path) -> None:
    _, folder = pruned("llama", tmp_path, "exact")
    done = fp.export(folder, tmp_path / "served", format="vllm")
    assert done["serve"].endswith("--model-impl transformers --trust-remote-code")
    assert (tmp_path / "served" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("layout", "widths", "architecture"),
    [
        ("llama", "uniform", "llama"),
        ("llama", "exact", "deci"),
        ("qwen2", "uniform", "qwen2"),
        ("qwen2", "exact", "qwen2"),
        ("qwen3", "exact", "qwen3"),
    ],
)
def test_a_gguf_file_answers_alike(layout: str, widths: str, architecture: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    options = {"head_dim": 128} if layout == "qwen3" else {}  # transformers reads no other of a file
    model, folder = pruned(layout, tmp_path, widths, **options)
    done = fp.export(folder, tmp_path / "m.gguf", format="gguf")
    assert done["architecture"] == architecture
    assert (done["filled"] > 0) == (widths == "exact" and architecture != "deci")
    if architecture == "deci":
        found = _from_deci(tmp_path / "m.gguf", model)
    else:
        pytest.importorskip("accelerate")
        found, theirs = load_model(str(tmp_path / "m.gguf"))
        text = "The old man said that the young nurse"
        assert theirs(text, add_special_tokens=False).input_ids == tokenizer()(text, add_special_tokens=False).input_ids
    torch.testing.assert_close(logits_of(found, IDS), logits_of(model, IDS), rtol=0, atol=1e-3)


def _from_deci(path: Path, like: Any) -> Any:
    """The model of a file, put together from its fields and tensors; transformers reads no file of this architecture with such widths."""
    import gguf
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    reader = gguf.GGUFReader(path)

    def field(name: str) -> Any:
        return reader.fields[name].contents()

    widths = field("deci.feed_forward_length")
    heads, groups = field("deci.attention.head_count"), field("deci.attention.head_count_kv")
    config = LlamaConfig(
        vocab_size=field("deci.vocab_size"),
        hidden_size=field("deci.embedding_length"),
        intermediate_size=max(widths),
        num_hidden_layers=field("deci.block_count"),
        num_attention_heads=heads[0],
        num_key_value_heads=groups[0],
        head_dim=field("deci.rope.dimension_count"),
        rms_norm_eps=field("deci.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("deci.rope.freq_base")},
        max_position_embeddings=field("deci.context_length"),
        tie_word_embeddings=like.config.tie_word_embeddings,
    )
    found = LlamaForCausalLM(config)
    for layer, width in enumerate(widths):
        place, hidden = f"model.layers.{layer}.mlp", config.hidden_size
        narrow(found, {f"{place}.{name}.weight": (width, hidden) for name in ("gate_proj", "up_proj")})
        narrow(found, {f"{place}.down_proj.weight": (hidden, width)})
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    inner = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_output": "self_attn.o_proj"}
    inner |= {f"attn_{name}": f"self_attn.{name}_proj" for name in "qkv"} | {
        f"ffn_{name}": f"mlp.{name}_proj" for name in ("gate", "up", "down")
    }
    back = LlamaTensorProcessor(config={})
    state = {}
    for tensor in reader.tensors:
        parts, value = tensor.name.split("."), tensor.data.copy()
        if parts[-2] in ("attn_q", "attn_k"):
            value = back._reverse_permute_weights(value, heads[0], heads[0] if parts[-2] == "attn_q" else groups[0])
        own = f"model.layers.{parts[1]}.{inner[parts[2]]}" if parts[0] == "blk" else names[parts[0]]
        state[f"{own}.{parts[-1]}"] = torch.from_numpy(value.copy())
    missing, unexpected = found.load_state_dict(state, strict=False)
    assert (set(missing) <= {"lm_head.weight"}, unexpected) == (True, [])
    return found.eval()


def test_bfloat16_is_written_as_it_is(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    model, folder = pruned("llama", tmp_path, "uniform", dtype=torch.bfloat16)
    fp.export(folder, tmp_path / "m.gguf", format="gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    value = model.get_parameter("model.layers.0.mlp.down_proj.weight").detach()
    assert tensors["blk.0.ffn_down.weight"].tensor_type == gguf.GGMLQuantizationType.BF16
    assert tensors["blk.0.ffn_down.weight"].data.tobytes() == value.view(torch.uint8).numpy().tobytes()


def test_from_the_command_line_and_what_is_refused(fairprune: Any, llama: Path, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "m")  # type: ignore[operator]
    tokenizer().save_pretrained(tmp_path / "m")
    answer = fairprune("export", tmp_path / "m", "--format", "gguf", "--output", tmp_path / "m.gguf")
    assert answer.code == 0, answer.err
    assert "architecture llama" in answer.out
    tiny_model("mixtral").save_pretrained(tmp_path / "moe")  # type: ignore[operator]
    tiny_tokenizer().save_pretrained(tmp_path / "moe")
    out = tmp_path / "out"
    for words, expected in (
        ((llama, "--format", "onnx", "--output", out), "--format must be hf, vllm or gguf"),
        ((llama, "--format", "gguf", "--output", out), "--output must end in .gguf"),
        ((llama, "--format", "gguf", "--output", tmp_path / "m.gguf"), "exists: choose another"),
        ((llama, "--format", "hf", "--output", tmp_path / "moe"), "exists: choose another"),
        ((tmp_path / "moe", "--format", "gguf", "--output", tmp_path / "n.gguf"), "MixtralForCausalLM is none of those"),
        ((llama, "--format", "gguf", "--output", tmp_path / "n.gguf"), "puts a space before every text"),
        ((tmp_path / "none", "--format", "hf", "--output", out), "neither a run folder"),
    ):
        answer = fairprune("export", *words)
        assert answer.code == 2, answer
        assert len(answer.errors) == 1
        assert expected in answer.errors[0]
        assert not out.exists()
        assert not (tmp_path / "n.gguf").exists()


def test_vllm_gets_no_folder_that_would_not_load(fairprune: Any, tmp_path: Path, snapshot: Any) -> None:
    """No weight is read for it, so that the headers, the config and the shapes must say so."""
    _, folder = pruned("llama", tmp_path, "exact")
    weights, config = (folder / "model.safetensors").read_bytes(), json.loads((folder / "config.json").read_text())
    first = min(config[FIELD])
    for file, content, expected in (
        ("model.safetensors", weights[:1000], "model.safetensors is damaged"),
        ("model.safetensors", None, "there is no model.safetensors in"),
        ("config.json", b"{", "cannot read"),
        ("config.json", json.dumps(config | {FIELD: {"nothing.weight": [3, 4]}}).encode(), "names 'nothing.weight', which"),
        ("config.json", json.dumps(config | {FIELD: config[FIELD] | {first: [3, 32]}}).encode(), "do not fit its config.json"),
    ):
        broken = Path(shutil.copytree(folder, tmp_path / "broken"))
        (broken / file).unlink()
        if content is not None:
            (broken / file).write_bytes(content)
        before = snapshot(tmp_path)
        answer = fairprune("export", broken, "--format", "vllm", "--output", tmp_path / "out")
        assert (answer.code, len(answer.errors)) == (2, 1), answer
        assert expected in answer.errors[0]
        assert snapshot(tmp_path) == before
        shutil.rmtree(broken)


@pytest.mark.parametrize("words", [("export", "--format", "hf"), ("export", "--format", "vllm"), ("restore",), ("finetune",)])
def test_nothing_is_written_into_what_is_read(
    words: tuple[str, ...], fairprune: Any, finished: Path, tmp_path: Path, snapshot: Any
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    before = snapshot(run)
    more = ("--distill", "--method", "full") if words == ("finetune",) else ()
    answer = fairprune(words[0], run, *words[1:], *more, "--output", run / "model" / "inside")
    assert (answer.code, len(answer.errors)) == (2, 1), answer
    assert "lies in" in answer.errors[0]
    assert snapshot(run) == before
