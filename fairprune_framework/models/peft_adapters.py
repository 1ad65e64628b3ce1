"""Adapters of PEFT beside or inside a model: refused, with the line that merges them.

Without the package `peft` transformers leaves them out in silence; with it their weights stand in modules of their own, which surgery
would not cut.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from fairprune_framework.errors import UserError, shown
from fairprune_framework.utilities.files import parse_json

FILE = "adapter_config.json"
MERGE = "peft.AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload().save_pretrained(OTHER)"


def refuse_adapter_folder(folder: Path) -> None:
    """Raise `UserError` for a folder that holds an adapter, alone or beside weights."""
    if not (folder / FILE).is_file():
        return
    try:
        config: Any = parse_json((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    said = config if isinstance(config, dict) else {}
    kind, base = (said.get(name) for name in ("peft_type", "base_model_name_or_path"))
    raise UserError(
        f"{folder} holds a PEFT adapter ({shown(kind)} of {shown(base)}), whose weights are not in the model: merge it first, "
        f"{MERGE}, with the tokenizer's files beside it; or remove {FILE} for the model without it"
    )


def refuse_adapter_modules(model: nn.Module) -> None:
    """Raise `UserError` for a model in memory with modules of PEFT."""
    for name, module in model.named_modules():
        if type(module).__module__.partition(".")[0] == "peft":
            raise UserError(
                f"the model holds a PEFT adapter ({type(module).__name__} at {name or 'its top'}): pass model.merge_and_unload()"
            )
