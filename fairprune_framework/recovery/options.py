"""The options of a recovery training, checked before anything is read."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, Literal, get_args

from fairprune_framework.errors import UserError, did_you_mean, shown

Method = Literal["lora", "full"]
LEARNING_RATES: dict[str, float] = {"lora": 2e-4, "full": 1e-5}
STEPS = 100


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is trained, on what, and for how long."""

    text: str | None = None
    """A .txt or .jsonl file, or `builtin:<language>`; None: the scoring half of the run's calibration text, with `distill` alone."""
    distill: bool = False
    """Minimise KL(original || model) in place of the loss on the next token."""
    method: Method = "lora"
    steps: int | None = None
    """Optimiser steps; None: as many as `tokens` take, or 100."""
    tokens: int | None = None
    """Tokens to train on, a document that is seen twice counted twice."""
    batch_tokens: int = 2048
    """Tokens of a step, at most; a longer document is cut."""
    learning_rate: float | None = None
    """Highest rate of AdamW; None: 2e-4 for LoRA, 1e-5 for a full fine-tune."""
    rank: int | None = None
    """Of LoRA; None: 8."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            close = did_you_mean(str(self.method), get_args(Method))
            raise UserError(f"--method must be lora or full. Got {shown(self.method)} instead.{close}")
        if self.text is None and not self.distill:
            raise UserError("nothing to train on: --text FILE trains on a text, --distill on the answers of the original model")
        if self.steps is not None and self.tokens is not None:
            raise UserError("--steps and --tokens say the same: give one of them")
        for name, least in {"steps": 1, "tokens": 1, "batch_tokens": 2, "rank": 1, "seed": 0}.items():
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not least <= value < 2**63):
                raise UserError(f"--{name.replace('_', '-')} must be at least {least}. Got {shown(value)} instead.")
        rate = self.learning_rate
        if rate is not None and not (math.isfinite(rate) and 0 < rate < 1):
            raise UserError(f"--learning-rate must be above 0 and below 1. Got {shown(rate)} instead.")
        if self.rank is not None and self.method == "full":
            raise UserError("--rank is an option of --method lora")
        if self.method == "lora" and find_spec("peft") is None:
            raise UserError(
                "--method lora needs peft: pip install 'fairprune_framework[finetune]'; --method full needs nothing"
            )

    @property
    def planned_steps(self) -> int:
        """Optimiser steps."""
        if self.tokens is not None:
            return max(1, -(-self.tokens // self.batch_tokens))
        return STEPS if self.steps is None else self.steps

    @property
    def highest_rate(self) -> float:
        """The learning rate after the warm-up."""
        return LEARNING_RATES[self.method] if self.learning_rate is None else float(self.learning_rate)

    @property
    def lora_rank(self) -> int:
        """Rank of the adapters."""
        return 8 if self.rank is None else self.rank

    def to_json(self) -> dict[str, Any]:
        """JSON form, with the values that defaults stand for."""
        found = asdict(self) | {"steps": self.planned_steps, "learning_rate": self.highest_rate}
        return found | {"rank": self.lora_rank if self.method == "lora" else None}
