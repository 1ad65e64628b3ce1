"""Tiny random models of many families, a real tokenizer and a dozen contrasts, created in memory without downloads or files.

The initial weights are larger than the default of transformers, so that neurons matter to the logits at a hidden size of 32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fairprune_framework.contrasts.schema import Contrast, Variant
from fairprune_framework.errors import did_you_mean

FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "mistral": ("MistralConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
    "gemma": ("GemmaConfig", {"head_dim": 8}),
    "gemma2": ("Gemma2Config", {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 8, "query_pre_attn_scalar": 8}),
    "phi3": ("Phi3Config", {}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmo2": ("Olmo2Config", {}),
    "granite": ("GraniteConfig", {}),
    "stablelm": ("StableLmConfig", {}),
    "smollm3": ("SmolLM3Config", {}),
    "cohere": ("CohereConfig", {"logit_scale": 1.0}),
    "glm": ("GlmConfig", {"head_dim": 8}),
}
"""family -> name of its configuration class in transformers, and options beyond the common sizes."""

WORDS = [
    "The",
    "A",
    "An",
    "She",
    "He",
    "They",
    "It",
    "I",
    "We",
    "nurse",
    "doctor",
    "lawyer",
    "clerk",
    "guard",
    "man",
    "woman",
    "person",
    "child",
    "teacher",
    "engineer",
    "walked",
    "walks",
    "into",
    "to",
    "the",
    "store",
    "office",
    "street",
    "said",
    "says",
    "that",
    "was",
    "is",
    "and",
    "a",
    "of",
    "in",
    "at",
    "home",
    "with",
    "his",
    "her",
    "their",
    "asked",
    "for",
    "help",
    "because",
    "night",
    "job",
    "loan",
    "house",
    "new",
    "late",
    "car",
    "money",
    "police",
    "officer",
    "neighbour",
    "who",
    "lives",
    "lived",
    "next",
    "door",
    "works",
    "worked",
    "as",
    "very",
    "good",
    "bad",
    "tired",
    "kind",
    "Black",
    "white",
    "Asian",
    "Native",
    "American",
    "Latino",
    "Arab",
    "young",
    "old",
    "elderly",
    "middle",
    "aged",
    "male",
    "female",
    "tall",
    "short",
    "left",
    "right",
    "handed",
    ".",
    ",",
    "?",
    "!",
    "people",
    "are",
    "usually",
    "often",
    "never",
    "always",
    "friends",
    "family",
    "school",
    "team",
    "leader",
    "born",
    "raised",
    "Muslim",
    "Christian",
    "Jewish",
    "rich",
    "poor",
    "waiting",
    "seen",
    "quietly",
]
"""Words with one token each; any other text is encoded in bytes, so that nothing is unknown."""


def tiny_tokenizer(words: tuple[str, ...] = tuple(WORDS)) -> Any:
    """A fast tokenizer with offsets, a leading `<s>`, `</s>` and `<pad>`; byte-level BPE with merges for `words`.

    Every merge extends a prefix of a word by one character, so a text is split into the longest known prefixes and bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>"]
    vocabulary = {token: index for index, token in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in words:
        beginning = "\u0120"  # a space, as byte-level tokenizers write it
        for letter in word:
            if beginning + letter not in vocabulary:
                vocabulary[beginning + letter] = len(vocabulary)
                merges.append((beginning, letter))
            beginning += letter
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.add_special_tokens(special)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    begin = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])])
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), begin])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def vocabulary_size(tokenizer: Any) -> int:
    """Rows of an embedding for the tokenizer: its length, rounded up to a multiple of 8."""
    return -(-len(tokenizer) // 8) * 8


def tiny_config(family: str, *, layers: int = 2, hidden: int = 32, width: int = 48, **options: Any) -> Any:
    """The transformers configuration of a tiny model; `options` override it."""
    import transformers

    if family not in FAMILIES:
        raise ValueError(f"no tiny family {family!r}.{did_you_mean(family, FAMILIES)} There are: {', '.join(FAMILIES)}.")
    name, extra = FAMILIES[family]
    common = {
        "vocab_size": vocabulary_size(tiny_tokenizer()),
        "hidden_size": hidden,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return getattr(transformers, name)(**{**common, **extra, **options})


def tiny_model(
    family: str,
    *,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 32,
    width: int = 48,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> nn.Module:
    """A random causal language model of a family, on the CPU, in eval mode; the same weights for the same arguments.

    Args:
        family: a key of `FAMILIES`.
        layers: decoder layers.
        hidden: H, a multiple of 4.
        width: N, neurons of an MLP (or of an expert).
        options: further fields of the configuration.
    """
    from transformers import AutoModelForCausalLM

    config = tiny_config(family, layers=layers, hidden=hidden, width=width, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()


def save_tiny(folder: Path | str, family: str = "llama", **options: Any) -> Path:
    """Save a tiny model and its tokenizer to a folder for plain `from_pretrained`; returns the folder.

    transformers reads the tokenizer of a `qwen2` folder with a class of its own, which splits texts differently.
    """
    folder = Path(folder)
    model: Any = tiny_model(family, **options)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


_TEMPLATES: tuple[tuple[str, str, tuple[str, ...], bool], ...] = (
    ("race", "The {} nurse walked into the store .", ("Black", "white", "Native American"), False),
    ("race", "A {} man was waiting at the door .", ("Black", "white"), False),
    ("race", "She asked the {} lawyer for help .", ("Asian", "Latino", "Arab"), False),
    ("race", "They are {}", ("Black", "Native American"), False),
    ("race", "The police officer seen at night was {} and tired .", ("Latino", "white"), False),
    ("race", "He lives next door to a very kind {} family", ("Arab", "Black", "Asian"), False),
    ("age", "The {} doctor said that it was late .", ("young", "elderly"), False),
    ("age", "A {} clerk works at the office .", ("young", "middle aged", "old"), False),
    ("age", "We asked an engineer , who is {} , for a loan .", ("old", "young"), False),
    ("age", "{} people are usually good friends .", ("Young", "Elderly"), False),
    ("stature", "The {} teacher walked home .", ("tall", "short"), True),
    ("stature", "A {} guard was at the store .", ("tall", "short", "left handed"), True),
)


def tiny_contrasts() -> list[Contrast]:
    """A dozen contrasts of two categories and a control: two and three variants, equal and unequal token counts, both splits."""
    contrasts = []
    for number, (category, template, values, control) in enumerate(_TEMPLATES):
        contrasts.append(
            Contrast(
                id=f"tiny-{number}",
                category=category,
                template_id=f"t{number}",
                context="work" if "at the" in template else "home",
                control=control,
                split="heldout" if number % 2 else "select",
                variants=tuple(Variant(attribute=value.lower(), text=template.format(value)) for value in values),
            )
        )
    return contrasts


_LEGITIMATE: tuple[tuple[str, tuple[tuple[str, tuple[str, ...]], ...]], ...] = (
    ("The {} works at the", (("doctor", ("office",)), ("clerk", ("store", "door")))),
    ("We asked the {} for", (("teacher", ("help",)), ("lawyer", ("a",)), ("guard", ("the",)))),
)


def tiny_legitimate() -> list[Contrast]:
    """Two legitimate contrasts of the split `select`, of two and three variants: trades and the words that are right after them."""
    return [
        Contrast(
            id=f"tiny-legitimate-{number}",
            category="trade",
            template_id=f"l{number}",
            legitimate=True,
            split="select",
            variants=tuple(Variant(attribute=value, text=template.format(value), right=right) for value, right in variants),
        )
        for number, (template, variants) in enumerate(_LEGITIMATE)
    ]
