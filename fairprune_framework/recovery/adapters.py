"""LoRA adapters on the linear modules of the decoder's layers, and how they become weights again.

Source: Hu et al. 2021, https://arxiv.org/abs/2106.09685, as PEFT implements it. B begins at zero, so that training begins at the pruned
model; alpha is twice the rank, and there is no dropout.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from fairprune_framework.api.decoders import decoder_modules
from fairprune_framework.errors import UserError


def linear_modules(model: nn.Module) -> list[str]:
    """Paths of the linear modules in the layers of the text decoder."""
    from transformers.pytorch_utils import Conv1D

    return [name for name, module, _ in decoder_modules(model) if isinstance(module, (nn.Linear, Conv1D))]


def add_adapters(model: nn.Module, rank: int) -> Any:
    """Put adapters into a model, in place; every other weight is frozen.

    Returns:
        PEFT's model around it: `merge` takes it.

    Raises:
        UserError: the model has no linear module in its layers.
    """
    from peft import LoraConfig, get_peft_model

    targets = linear_modules(model)
    if not targets:
        raise UserError(f"{type(model).__name__} has no linear modules in its layers: --method full trains it")
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, bias="none", target_modules=targets)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # that Conv1D is transposed, which PEFT corrects itself; of names that transformers renames
        return get_peft_model(model, config)


def merge(adapted: Any) -> nn.Module:
    """The model that was given to `add_adapters`, its weights with what the adapters learnt."""
    merged: nn.Module = adapted.merge_and_unload()
    return merged
