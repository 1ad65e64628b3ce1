"""A tiny random model of nearly every model type of transformers, for checks of adapters over all families.

A configuration is made small by the names of its fields, and of those of its inner configurations; what a family needs beyond that
stands in `FAMILIES`. `tiny.py` keeps the few families that tests use by hand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

import torch
from torch import nn

from fairprune_framework.testing.tiny import tiny_tokenizer, vocabulary_size

Kind = Literal["causal", "wrapper"]
"""Loaded by AutoModelForCausalLM, or by AutoModelForImageTextToText."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MOST_PARAMETERS = 20_000_000

HIDDEN, WIDTH, LAYERS, EXPERT_WIDTH, SHARED_WIDTH = 32, 48, 4, 32, 40

_NAMES: Mapping[int | float, str] = {
    HIDDEN: "hidden_size d_model n_embd emb_dim embedding_size word_embed_proj_dim embed_dim dim input_embedding_size "
    "output_embedding_size backbone_hidden_size hidden_dim moe_intermediate_size expert_ffn_hidden_size",
    WIDTH: "intermediate_size n_inner ffn_dim decoder_ffn_dim encoder_ffn_dim dim_ff dff ffn_hidden_size feed_forward_size d_inner "
    "d_ff dense_intermediate_size intermediate_size_mlp",
    SHARED_WIDTH: "shared_expert_intermediate_size shared_intermediate_size moe_shared_expert_intermediate_size "
    "shared_experts_intermediate_size",
    LAYERS: "num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers max_window_layers num_attention_heads "
    "n_head n_heads num_heads decoder_attention_heads encoder_attention_heads num_encoder_attention_heads "
    "num_decoder_attention_heads attention_heads swa_num_attention_heads rotary_dim num_experts n_routed_experts "
    "num_local_experts moe_num_experts mamba_n_heads mamba_num_heads linear_num_value_heads linear_num_heads mamba_dt_rank "
    "time_step_rank patch_size",
    2: "encoder_layers depth num_encoder_layers encoder_n_layers num_key_value_heads swa_num_key_value_heads num_kv_heads "
    "index_n_heads num_experts_per_tok moe_topk moe_k top_k n_mamba_heads linear_num_key_heads attn_layer_period "
    "eos_token_id sep_token_id",
    8: "head_dim swa_head_dim dim_head kv_channels attention_head_size query_pre_attn_scalar global_head_dim v_head_dim "
    "qk_nope_head_dim qk_rope_head_dim mamba_d_state state_size ssm_state_size linear_key_head_dim linear_value_head_dim "
    "linear_head_dim hidden_size_per_layer_input boi_token_id boi_token_index",
    16: "kv_lora_rank q_lora_rank qk_head_dim index_head_dim index_topk router_hidden_size mamba_head_dim mamba_d_head "
    "mamba_chunk_size chunk_size image_size",
    64: "mamba_d_ssm sliding_window sliding_window_size attention_window_size",
    512: "max_position_embeddings n_positions n_ctx max_seq_len context_length max_target_positions",
    0: "pad_token_id",
    1: "n_group topk_group n_shared_experts first_k_dense_replace attn_layer_offset bos_token_id decoder_start_token_id",
    3: "num_channels",
    5: "image_token_id image_token_index",
    6: "video_token_id video_token_index",
    7: "audio_token_id audio_token_index",
    9: "eoi_token_id eoi_token_index",
    10: "boa_token_id",
    11: "eoa_token_id eoa_token_index",
    12: "vision_start_token_id",
    13: "vision_end_token_id",
    0.2: "initializer_range init_std",
}
SMALL: Mapping[str, int | float] = {name: value for value, names in _NAMES.items() for name in names.split()}
"""Field of a configuration -> its value, where a family has that field."""
FILLED = frozenset(
    _words(
        "num_key_value_heads head_dim pad_token_id bos_token_id eos_token_id q_lora_rank n_routed_experts "
        "n_shared_experts num_experts_per_tok"
    )
)
"""Fields that are set although their default is None; other optional widths follow from what the family computes."""

_MLA = {"num_key_value_heads": 4}
_DECODER = {"is_decoder": True}
_QWEN4 = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
    "ngram_vocab_size_base": 100,
    "split_ngram_parts": 4,
    "hc_lowrank": 8,
}
_DOTS3 = {
    "num_key_value_heads": 4,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 8,
    "head_dim": 16,
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_MROPE = {"text_config": {"rope_parameters": {**_ROPE, "mrope_section": [1, 1, 2]}}}
_CONV_AND_ATTENTION = ["conv", "full_attention", "conv", "full_attention"]

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(
        _words("axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa longcat_flash minicpm3 youtu"),
        _MLA,
    ),
    **dict.fromkeys(
        _words(
            "bert bert-generation camembert data2vec-text electra ernie rembert roberta roberta-prelayernorm "
            "roc_bert roformer xlm-roberta xlm-roberta-xl megatron-bert"
        ),
        _DECODER,
    ),
    "bamba": {"attn_layer_indices": [1, 3]},
    "big_bird": {"is_decoder": True, "attention_type": "original_full"},
    "blt": {
        "encoder_hash_byte_group_vocab": 64,
        "encoder_config": {"hidden_size_global": HIDDEN, "intermediate_size": WIDTH},
        "decoder_config": {"hidden_size_global": HIDDEN, "intermediate_size": WIDTH},
        "global_config": {"intermediate_size": WIDTH},
        "patcher_config": {"intermediate_size": WIDTH},
    },
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "cpmant": {"num_attention_heads": 4},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": WIDTH, "moe_num_experts": 4, "moe_top_k": 2},
        "rope_parameters": _ROPE,
    },
    "dots3_note": {"text_config": _DOTS3},
    "dots3_note_text": _DOTS3,
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_assistant": {
        "text_config": {
            "model_type": "gemma4_text",
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
            "num_kv_shared_layers": 4,
        }
    },
    "gemma4_unified": {"vision_config": {"mm_embed_dim": HIDDEN, "mm_posemb_size": 16, "output_proj_dims": HIDDEN}},
    "gemma4_unified_assistant": {"text_config": {"model_type": "gemma4_unified_text", "num_kv_shared_layers": 4}},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 64},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"]},
    "lfm2": {"layer_types": _CONV_AND_ATTENTION, "block_auto_adjust_ff_dim": False},
    "lfm2_moe": {"layer_types": _CONV_AND_ATTENTION, "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "nemotron_h": {"n_groups": 1, "layers_block_type": ["mamba", "mlp", "attention", "moe"], "num_hidden_layers": 4},
    "qwen3_moe": {"num_experts": LAYERS},
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "local", "local", "local"],
        "axial_pos_embds": False,
        "local_attn_chunk_length": 12,
    },
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 2},
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "mamba_ngroups": 1,
        "n_mamba_heads": 4,
        "mamba_headdim": 16,
        "num_mem_blocks": 1,
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""Model type -> what its tiny configuration needs beyond `SMALL`."""

EXAMPLES: Mapping[str, str] = {
    "opt": "two Linears, in the layer itself",
    "gpt_neox": "two Linears, beside the attention",
    "bert": "two Linears, in two modules",
    "nemotron_h": "two Linears, experts without a gate, state-space layers",
    "gpt2": "two Conv1D",
    "bitnet": "three Linears and an inner norm",
    "modernbert-decoder": "fused halves under another name",
    "recurrent_gemma": "three Linears in hybrid layers, half as wide as the config says",
    "gemma3n_text": "three Linears, a list of widths",
    "qwen2_moe": "experts and a shared expert",
    "deepseek_v3": "experts, shared experts, dense layers",
    "granitemoeshared": "experts and a fused shared MLP",
    "aria_text": "transposed experts, two shared experts in one",
    "gpt_oss": "transposed and interleaved experts with biases",
    "llama4_text": "transposed experts that see every token, dense layers",
}
"""Model type -> what its MLPs are, for one or two of each layout beside the common ones of `tiny.py`."""

WRAPPERS: Mapping[str, Mapping[str, Any]] = {
    **{
        name: {}
        for name in _words(
            "aria aya_vision blip-2 gemma3 gemma4 idefics3 internvl kimi_k25 lfm2_vl llama4 llava llava_next "
            "llava_onevision mistral3 mllama ovis2 paligemma qwen3_5 qwen3_vl qwen3_vl_moe smolvlm"
        )
    },
    **dict.fromkeys(["glm4v", "qwen2_5_vl", "qwen2_vl"], _MROPE),
    "chameleon": {"vocabulary_map": {"<image>": 5}},
}
"""Model type of a text model with a vision tower -> the same."""


@cache
def model_types(kind: Kind) -> tuple[str, ...]:
    """The model types of a kind: all causal entries of the installed transformers, or the wrappers named above."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind == "causal" else WRAPPERS))


def small_config(model_type: str, kind: Kind = "causal", **options: Any) -> Any:
    """The configuration of a tiny model of a type; `options` override it.

    Raises:
        KeyError: transformers does not know the type.
    """
    from transformers import CONFIG_MAPPING

    known = WRAPPERS if kind == "wrapper" else FAMILIES
    return _shrunk(CONFIG_MAPPING[model_type], {**known.get(model_type, {}), **options}, 0)


def small_model(model_type: str, kind: Kind = "causal", *, seed: int = 0, **options: Any) -> nn.Module:
    """A random float32 model of a type, on the CPU, in eval mode; weights are large enough for each neuron to matter.

    Raises:
        ValueError: its configuration cannot be made small by the names of its fields.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    auto: Any = AutoModelForCausalLM if kind == "causal" else AutoModelForImageTextToText
    config = small_config(model_type, kind, **options)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in auto.from_config(config).parameters())
    if count > MOST_PARAMETERS:
        raise ValueError(f"the configuration of {model_type!r} stays large: {count / 1e6:.0f} million parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = auto.from_config(config, dtype=torch.float32)
    _widen(model, torch.Generator().manual_seed(seed))
    return model.eval()


def _shrunk(config_class: Any, options: dict[str, Any], depth: int) -> Any:
    """An instance of a configuration class with small values for the fields that it has."""
    from transformers import CONFIG_MAPPING, PretrainedConfig

    fields = {field.name: field for field in dataclasses.fields(config_class)}
    renamed = dict(getattr(config_class, "attribute_map", None) or {})
    values: dict[str, Any] = {}
    for name, value in _small().items():
        if name not in fields or renamed.get(name) not in (None, name):
            continue
        default = fields[name].default
        if not (isinstance(default, (list, tuple)) or (default is None and name not in FILLED)):
            values[name] = value
    for name, inner_class in (getattr(config_class, "sub_configs", None) or {}).items():
        if name in options and not isinstance(options[name], dict):
            continue
        inner = dict(options.pop(name, {}))
        actual = _actual(config_class, name, inner_class)
        if model_type := inner.pop("model_type", None):
            actual = CONFIG_MAPPING[model_type]
        if isinstance(actual, type) and issubclass(actual, PretrainedConfig) and actual.__name__ != "AutoConfig" and depth < 4:
            known = FAMILIES.get(getattr(actual, "model_type", ""), {})
            values[name] = _shrunk(actual, {**known, **inner}, depth + 1)
    return config_class(**{**values, **options})


def _actual(config_class: Any, name: str, declared: Any) -> Any:
    """The class of an inner configuration: the declared one, or where any may stand there the one that stands there by default."""
    if hasattr(declared, "__dataclass_fields__") and declared.__name__ != "AutoConfig":
        return declared
    try:
        return type(getattr(config_class(), name))
    except Exception:  # a configuration without defaults
        return declared


@cache
def _small() -> Mapping[str, int | float]:
    words = vocabulary_size(tiny_tokenizer())
    return {**SMALL, "vocab_size": words, "vocab_size_per_layer_input": words}


@torch.no_grad()
def _widen(model: nn.Module, generator: torch.Generator, std: float = 0.2) -> None:
    """Draw matrices wider than transformers does, and biases that are not zero; convolutions and state-space parameters stay."""
    for name, parameter in model.named_parameters():
        kept = "conv" in name.lower() or "A_log" in name or name.endswith("dt_bias")
        if not parameter.is_floating_point():
            continue
        if (parameter.ndim >= 2 and min(parameter.shape[-2:]) > 1 and not kept) or not torch.isfinite(parameter).all():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
        elif name.endswith("bias") and parameter.ndim == 1 and not bool(parameter.any()):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
