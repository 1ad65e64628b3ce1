"""Speed measured in turns: the ratio of a clock by hand, the interval by counting, and what a run says of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fairprune_framework.models.work import Ledger
from fairprune_framework.surgery.speed import LEAST_PAIRS, MOST_PAIRS, compare_speed, median_with_interval, speed_in_words
from fairprune_framework.testing.tiny import tiny_model

IDS = torch.arange(3, 11).unsqueeze(0)


class Clock:
    """Stands still but for what a model is said to take."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def model(self, name: str, seconds: Callable[[int], float]) -> nn.Module:
        model = tiny_model("llama", layers=1)

        def took(*_: Any) -> None:
            self.now += seconds(self.order.count(name))
            self.order.append(name)

        model.register_forward_hook(took)
        return model


def test_models_are_timed_in_turns_and_compared_pair_by_pair() -> None:
    """A machine that gets slower hits both alike: the ratio is that of each pair, 1.25."""
    clock = Clock()
    slower = [2.0**turn for turn in range(10)]
    before = clock.model("before", lambda turn: 0.0125 * slower[turn] if turn < 10 else 9.0)
    after = clock.model("after", lambda turn: 0.01 * slower[turn] if turn < 10 else 9.0)
    found = compare_speed(before, after, IDS, clock)
    assert found is not None
    assert clock.order == ["before", "after"] * (found.pairs + 1)
    assert LEAST_PAIRS <= found.pairs < MOST_PAIRS  # the time was up
    assert (found.ratio, found.low, found.high) == pytest.approx((1.25, 1.25, 1.25))
    assert found.after / found.before == pytest.approx(1.25)
    assert (found.tokens, found.device, found.dtype) == (8, "cpu", "float32")


def test_a_fast_model_is_timed_no_longer_than_it_takes_and_a_slow_one_not_at_all() -> None:
    clock = Clock()
    fast = compare_speed(clock.model("before", lambda _: 0.01), clock.model("after", lambda _: 0.01), IDS, clock)
    assert fast is not None
    assert fast.pairs == MOST_PAIRS
    slow = Clock()
    assert compare_speed(slow.model("before", lambda _: 2.0), slow.model("after", lambda _: 2.0), IDS, slow) is None
    assert len(slow.order) == 2


def test_what_is_timed_is_no_work_of_a_stage() -> None:
    model, ledger = tiny_model("llama", layers=1), Ledger()
    with ledger.watching(model, "original"):
        assert compare_speed(model, model, IDS) is not None
        assert (ledger.forwards, ledger.tokens, ledger.logits) == (0, 0, 0)
        model(input_ids=IDS)
    assert (ledger.forwards, ledger.tokens, ledger.logits) == (1, 8, 8)


@pytest.mark.parametrize("count", [6, 9, 12])
def test_the_interval_covers_the_median_as_often_as_it_says(count: int) -> None:
    """Over all ways in which values may lie below or above it; the next narrower one would not."""
    _, low, high = median_with_interval([float(value) for value in range(count)])
    cut = int(low)
    assert high == count - 1 - cut

    def covered(cut: int) -> float:
        ways = [sum(sides) for sides in product((0, 1), repeat=count)]
        return sum(cut < below < count - cut for below in ways) / 2**count

    assert covered(cut) >= 0.95 > covered(cut + 1)


def test_a_run_says_how_fast_where_tensors_became_smaller(fairprune: Any, llama: Path, prompts: Path, tmp_path: Path) -> None:
    words = ["run", llama, "--prompts", prompts, "--recipe", "exchange", "--force", "--random-sets", 0, "--quiet"]
    words += ["--calibration-tokens", 16, "--calibration-documents", 8, "--budget", "8n"]
    answer = fairprune(*words, "--widths", "exact", "--output", tmp_path / "cut")
    assert answer.code == 0, answer.err
    speed = json.loads((tmp_path / "cut" / "run.json").read_text())["speed"]
    assert speed["low"] <= speed["ratio"] <= speed["high"]
    assert all(math.isfinite(speed[name]) and speed[name] > 0 for name in ("before", "after", "low"))
    sentence = speed_in_words(speed)
    assert f"speed {sentence}" in " ".join(answer.out.split())
    assert (
        sentence.replace("[", "\\[").replace("]", "\\]").replace(">", "\\>") in (tmp_path / "cut/model/README.md").read_text()
    )
    page = (tmp_path / "cut" / "report.html").read_text()
    assert "tokens per second" in page
    assert f"{speed['after']:,.0f}" in page
    for name, more in (("off", ("--widths", "exact", "--no-speed")), ("zero", ("--operator", "zero"))):
        answer = fairprune(*words, *more, "--output", tmp_path / name)
        assert answer.code == 0, answer.err
        assert "speed" not in json.loads((tmp_path / name / "run.json").read_text())
        assert "tokens/s" not in answer.out
