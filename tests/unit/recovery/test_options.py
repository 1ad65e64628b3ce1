from __future__ import annotations

from typing import Any

import pytest

from fairprune_framework.errors import UserError
from fairprune_framework.recovery import options
from fairprune_framework.recovery.options import Options


def test_tokens_become_whole_steps() -> None:
    assert Options(distill=True, method="full", tokens=100, batch_tokens=30).planned_steps == 4
    assert Options(distill=True, method="full").planned_steps == 100


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "nothing to train on"),
        ({"distill": True, "method": "lara"}, "Did you mean 'lora'"),
        ({"distill": True, "method": "full", "steps": 1, "tokens": 5}, "say the same"),
        ({"distill": True, "method": "full", "steps": 0}, "--steps must be at least 1. Got 0"),
        ({"distill": True, "method": "full", "batch_tokens": 1}, "--batch-tokens must be at least 2"),
        ({"distill": True, "method": "full", "seed": True}, "--seed must be at least 0. Got True"),
        ({"distill": True, "method": "full", "learning_rate": float("nan")}, "--learning-rate must be above 0"),
        ({"distill": True, "method": "full", "rank": 4}, "--rank is an option of --method lora"),
    ],
)
def test_what_cannot_be_is_said(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        Options(**given)


def test_without_peft_the_line_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'fairprune_framework\[finetune\]'"):
        Options(distill=True)
