"""How large a micro-batch may be, how fast a bare forward is, and the line that says what an audit will do."""

from __future__ import annotations

import resource

import pytest
import torch
from torch import nn

from fairprune_framework.api.interfaces import Pass
from fairprune_framework.auditing.autotune import (
    CPU_TOKENS,
    Planned,
    announcement,
    find_max_tokens,
    limit_of,
    max_tokens_on,
    memory_used,
)
from fairprune_framework.auditing.batches import BatchSpec
from fairprune_framework.contrasts.alignment import AlignedContrast, Tokens
from fairprune_framework.testing.tiny import tiny_model


def forward(rows: int, width: int) -> None:
    if rows * width > 5000:
        raise torch.OutOfMemoryError


@pytest.mark.parametrize(("width", "wanted"), [(100, 2048), (1, 2048), (4096, 4096), (9000, 9000)])
def test_halved_until_a_forward_fits_and_once_more(width: int, wanted: int) -> None:
    """4096 tokens fit, and half of it leaves room; one text is never cut, even where it alone is too large."""
    assert find_max_tokens(forward, width) == wanted


def test_a_cpu_is_not_measured() -> None:
    assert max_tokens_on(nn.Identity(), torch.device("cpu"), 10_000, gradients=True) == CPU_TOKENS


def spec(number: int, length: int = 5) -> BatchSpec:
    variants = tuple(Tokens(ids=(v, *range(3, length + 2)), start=0, end=1) for v in (1, 2))
    contrast = AlignedContrast(
        id=f"c{number}", category="a", template_id="t", control=False, split=None, variants=variants, attributes=(0, 0)
    )
    return BatchSpec(contrasts=(contrast,), rows=2, width=length, pass_=Pass())


@pytest.mark.parametrize("training", [True, False])
def test_the_rate_of_bare_forwards_leaves_the_mode_as_it_was(training: bool) -> None:
    model = tiny_model("llama").train(training)
    rate = limit_of(model, [spec(i) for i in range(12)], torch.device("cpu"))
    assert rate is not None
    assert rate > 0
    assert {module.training for module in model.modules()} == {training}
    assert limit_of(model, [spec(i) for i in range(11)], torch.device("cpu")) is None  # too few to measure


def test_no_rate_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama").train()

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(model.get_decoder(), "forward", full)  # type: ignore[operator]
    assert limit_of(model, [spec(i) for i in range(12)], torch.device("cpu")) is None
    assert model.training


def test_the_first_window_stands_for_all() -> None:
    planned = Planned.of([spec(0, 5), spec(1, 7)], 2.5, backward=True)
    assert planned == Planned(forwards=5.0, tokens=(2 * 5 + 2 * 7) * 2.5, backward=True)


def test_the_line_before_an_audit() -> None:
    plain, gradient = (Planned(forwards=10.4, tokens=6000.0, backward=backward) for backward in (False, True))
    text = announcement(1200, 34567, [plain], 100.0, ranks=1, done=0, left=1.0)
    assert text == (
        "1,200 contrasts, 34,567 tokens, about 10 forwards of 6,000 padded tokens in all; expected 1 min 0 s at 100 tokens/s"
    )
    text = announcement(1200, 34567, [plain, gradient], 100.0, ranks=2, done=600, left=0.5)
    assert text == (
        "1,200 contrasts, 34,567 tokens, about 21 forwards of 12,000 padded tokens in all (2 passes); expected at least 30 s "
        "at 100 tokens/s on each of 2 ranks; 600 done before"
    )
    assert "expected" not in announcement(1200, 34567, [plain], None, ranks=1, done=0, left=1.0)


def test_another_error_is_no_lack_of_memory() -> None:
    def broken(rows: int, width: int) -> None:
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        find_max_tokens(broken, 4)


def test_memory_is_that_of_the_process() -> None:
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert memory_used(torch.device("cpu")) >= kilobytes * 1024
