"""A model as one GGUF file, as llama.cpp reads it.

Llama-shaped models are `llama`, or where their MLPs have widths of their own `deci`, the architecture of which llama.cpp reads
`feed_forward_length` by layer; `llama` refuses such a file. Names of tensors come from the package `gguf`. Source of the layout: the
conversion of llama.cpp (`convert_hf_to_gguf.py`), whose order of rotary rows in `attn_q` and `attn_k` of `llama` is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fairprune_framework.errors import VerificationFailed
from fairprune_framework.models.gguf_tokenizer import add_tokenizer, pre_tokenizer
from fairprune_framework.models.uneven import FIELD

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
"""Class of transformers -> architecture of llama.cpp."""


def unfit(model: Any, tokenizer: Any) -> str | None:
    """Why a model cannot be written; None: it can. No value is read: the model may be on `meta`."""
    config, name = model.config, type(model).__name__
    if name not in ARCHITECTURES:
        return f"{name} is none of those that are written: {', '.join(ARCHITECTURES)}"
    kind = (config.rope_parameters or {}).get("rope_type", "default")
    if kind not in ("default", "linear"):
        return f"its rotary embedding is scaled by {kind!r}; 'default' and 'linear' are written"
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if window is not None and window < config.max_position_embeddings:
        return f"its attention sees {window} tokens of {config.max_position_embeddings}, which llama.cpp would not keep to"
    if any(name.split(".")[-2] in ("q_proj", "k_proj") for name in getattr(config, FIELD, None) or {}):
        return "its layers have different numbers of heads"
    if config.hidden_act != "silu":
        return f"its MLP is gated by {config.hidden_act!r}, in llama.cpp by 'silu'"
    dtypes = {str(value.dtype) for value in model.parameters()} - {"torch.float32", "torch.float16", "torch.bfloat16"}
    if dtypes:
        return f"its weights are {sorted(dtypes)[0].removeprefix('torch.')}"
    if not is_llama_shaped(model) and any(".mlp." in each and each.endswith(".bias") for each, _ in model.named_parameters()):
        return f"its MLPs have biases, which llama.cpp does not read of {ARCHITECTURES[name]!r}"
    if (why := pre_tokenizer(tokenizer)[1]) is not None:
        return why
    if (last := max(tokenizer.get_vocab().values(), default=0)) >= config.vocab_size:
        return f"its tokenizer has a token {last}, and its embedding {config.vocab_size} rows"
    if find_spec("gguf") is None:
        return "that needs gguf: pip install 'fairprune_framework[embedded]'"
    nameless = [own for own, theirs in _names(model).items() if theirs is None]
    return f"{nameless[0]} has no name in GGUF files of the architecture {_architecture(model)!r}" if nameless else None


def is_llama_shaped(model: Any) -> bool:
    """Whether layers may have widths of their own."""
    return ARCHITECTURES.get(type(model).__name__) == "llama"


def _architecture(model: Any) -> str:
    """The one of llama.cpp that reads a model as it is."""
    return "deci" if is_llama_shaped(model) and getattr(model.config, FIELD, None) else ARCHITECTURES[type(model).__name__]


def _names(model: Any) -> dict[str, str | None]:
    """Parameter -> its name in the file; None: it has none there."""
    import gguf

    kind = next(each for each, text in gguf.MODEL_ARCH_NAMES.items() if text == _architecture(model))
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    return {own: names.get_name(own, try_suffixes=(".weight", ".bias")) for own, _ in model.named_parameters()}


def write_gguf(model: Any, tokenizer: Any, path: Path, name: str) -> str:
    """Write the file, and read every tensor back.

    Args:
        model: one that `unfit` does not name; uneven only if `is_llama_shaped`.
        name: of the model, in the file.

    Returns:
        The architecture in the file.

    Raises:
        VerificationFailed: what was read back is not what was written.
    """
    import gguf

    config, architecture, names = model.config, _architecture(model), _names(model)
    writer: Any = gguf.GGUFWriter(path, architecture)
    _add_sizes(writer, model, name, by_layer=architecture == "deci")
    add_tokenizer(writer, tokenizer, int(config.vocab_size))
    written: dict[str, NDArray[Any]] = {}
    for own, value in _tensors(model):
        theirs = names[own]
        assert theirs is not None, "refused by unfit"
        written[theirs] = array = _array(value)
        raw = gguf.GGMLQuantizationType.BF16 if array.dtype == np.uint8 else None
        writer.add_tensor(theirs, array, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    if set(found) != set(written) or any(found[key].tobytes() != value.tobytes() for key, value in written.items()):
        raise VerificationFailed("the GGUF file does not hold the weights of the model. Nothing was kept.")
    return architecture


def _add_sizes(writer: Any, model: Any, name: str, *, by_layer: bool) -> None:
    import gguf

    config = model.config
    layers = config.num_hidden_layers
    widths = [int(layer.mlp.down_proj.weight.shape[1]) for layer in model.get_decoder().layers]
    dtype = next(model.parameters()).dtype
    types = {torch.float32: "ALL_F32", torch.float16: "MOSTLY_F16", torch.bfloat16: "MOSTLY_BF16"}
    rope = config.rope_parameters or {}
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def each(value: int) -> Any:
        return [value] * layers if by_layer else value

    writer.add_name(name)
    writer.add_block_count(layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(widths if by_layer else widths[0])
    writer.add_head_count(each(config.num_attention_heads))
    writer.add_head_count_kv(each(config.num_key_value_heads))
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10_000.0)))
    if rope.get("rope_type", "default") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(int(getattr(gguf.LlamaFileType, types[dtype])))


def _tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """(name in transformers, value as llama.cpp holds it) of every parameter, tied ones once."""
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        value = parameter.detach().cpu()
        module = name.split(".")[-2]
        if is_llama_shaped(model) and module in heads:
            value = paired(value, heads[module])
        yield name, value


def paired(value: Tensor, heads: int) -> Tensor:
    """The rows of `q` or `k`, (heads * D, ...), in the order of `llama`: the two halves that are rotated together stand side by side."""
    return value.reshape(heads, 2, -1, *value.shape[1:]).transpose(1, 2).reshape(value.shape)


def _array(value: Tensor) -> NDArray[Any]:
    """A tensor for the writer; vectors are float32, as llama.cpp adds them, and bfloat16 goes as bytes."""
    if value.ndim == 1:
        value = value.float()
    value = value.contiguous()
    return value.view(torch.uint8).numpy() if value.dtype == torch.bfloat16 else value.numpy()
