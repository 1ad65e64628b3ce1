"""A byte-level BPE tokenizer in the fields of a GGUF file."""

from __future__ import annotations

import json
from typing import Any

from fairprune_framework.errors import UserError

_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {_LLAMA3: "llama-bpe", _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"): "qwen2"}
"""Expression that a text is split by -> its name in llama.cpp."""


def pre_tokenizer(tokenizer: Any) -> tuple[str, str | None]:
    """The name in llama.cpp of how texts are split before merges, and why there is none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return "", "its tokenizer has no tokenizer.json"
    content = json.loads(backend.to_str())
    if content["model"]["type"] != "BPE" or content["model"].get("byte_fallback"):
        return "", "its tokenizer is no byte-level BPE"
    if (content.get("normalizer") or {}).get("type", "NFC") != "NFC":
        return "", f"its tokenizer changes texts first ({content['normalizer']['type']})"
    steps = content.get("pre_tokenizer") or {}
    parts = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    kinds = [part.get("type") for part in parts]
    if any(part.get("type") == "ByteLevel" and part.get("add_prefix_space") for part in parts):
        return "", "its tokenizer puts a space before every text, and llama.cpp does not"
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2", None
    if kinds == ["Digits", "ByteLevel"] and parts[0]["individual_digits"] and parts[1].get("use_regex", True):
        return "smollm", None
    if kinds == ["Split", "ByteLevel"] and (name := SPLITS.get(parts[0]["pattern"].get("Regex"))) is not None:
        return name, None
    return "", f"llama.cpp has no name here for how its tokenizer splits a text ({' and '.join(map(str, kinds))})"


def add_tokenizer(writer: Any, tokenizer: Any, rows: int) -> None:
    """Add tokens, merges and special tokens to a `gguf.GGUFWriter`.

    Args:
        rows: of the embedding; those beyond the tokenizer are unused tokens.

    Raises:
        UserError: the tokenizer is none that can be written.
    """
    import gguf

    pre, why = pre_tokenizer(tokenizer)
    if why is not None:
        raise UserError(why)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = [f"[PAD{index}]" for index in range(rows)]
    types = [gguf.TokenType.UNUSED] * rows
    for token, index in content["model"]["vocab"].items():
        tokens[index], types[index] = token, gguf.TokenType.NORMAL
    for added in content["added_tokens"]:
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], kind
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = content["model"]["merges"]
    writer.add_token_merges([each if isinstance(each, str) else " ".join(each) for each in merges])
    for name in ("bos", "eos", "unk", "pad"):
        if (token := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    begin = tokenizer("a").input_ids[:1]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and begin == [tokenizer.bos_token_id])
    if isinstance(template := getattr(tokenizer, "chat_template", None), str):
        writer.add_chat_template(template)
