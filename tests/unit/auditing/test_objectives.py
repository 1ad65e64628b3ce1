"""Objectives and their gradients against the untouched forward of each text alone and autograd by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fairprune_framework.api.interfaces import Pass
from fairprune_framework.api.objectives import NegativeLogLikelihood, RecallLoss
from fairprune_framework.api.outputs import Outputs
from fairprune_framework.auditing import objectives
from fairprune_framework.auditing.batches import compose
from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.auditing.objectives import frozen, gradients, last_token_only, objectives_of
from fairprune_framework.calibration.text import Calibration
from fairprune_framework.contrasts.alignment import align_all, vocabularies
from fairprune_framework.errors import ContractViolation, FairpruneError
from fairprune_framework.models import head
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.models.head import vocabulary_of
from fairprune_framework.testing.families import small_model
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_model, tiny_tokenizer

CONTRASTS = tiny_contrasts()
ALIGNED = {contrast.id: contrast for contrast in align_all(CONTRASTS, Encoder(tiny_tokenizer()))[0]}
VALUES = {category: len(names) for category, names in vocabularies(CONTRASTS).items()}


@dataclass(frozen=True)
class LogitOfToken:
    """Sum over variants of one logit at the last token."""

    token: int = 7

    def __call__(self, out: Outputs) -> Tensor:
        return (out.logits[..., self.token] * out.mask.any(2)).sum(1).double()


@dataclass(frozen=True)
class LogP:
    """Sum of log p over all tokens of all variants."""

    def __call__(self, out: Outputs) -> Tensor:
        return (out.token_log_p() * out.mask[:, :, 1:]).sum((1, 2)).double()


@dataclass(frozen=True)
class Wrong:
    """Returns what it is given."""

    value: Any = None

    def __call__(self, out: Outputs) -> Any:
        return self.value


def batches(objective: Any, logits: Any = "last") -> list[MicroBatch]:
    return list(compose(ALIGNED.values(), VALUES, 128, pass_=Pass(objective=objective, logits=logits)))


def plain(model: Any, ids: tuple[int, ...]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=torch.tensor([ids])).logits[0]
    return found


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_last_token_of_each_variant(family: str) -> None:
    model: Any = tiny_model(family)
    seen = set()
    for batch in batches(LogitOfToken()):
        assert len(set(batch.categories)) == 1
        (found,) = objectives_of(model, batch)
        for identity, value in zip(batch.ids, found.tolist(), strict=True):
            expected = sum(plain(model, tokens.ids)[-1, 7].item() for tokens in ALIGNED[identity].variants)
            assert value == pytest.approx(expected, rel=1e-4, abs=1e-4)
            seen.add(identity)
    assert seen == set(ALIGNED)


def test_all_tokens_of_each_variant() -> None:
    model: Any = tiny_model("llama")
    for batch in batches(LogP(), "all"):
        for identity, value in zip(batch.ids, objectives_of(model, batch)[0].tolist(), strict=True):
            expected = sum(
                -nn.functional.cross_entropy(plain(model, t.ids)[:-1], torch.tensor(t.ids[1:]), reduction="sum").item()
                for t in ALIGNED[identity].variants
            )
            assert value == pytest.approx(expected, rel=1e-4)


class Largest(TorchDispatchMode):
    """Numbers of the largest tensor that any operation gave."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        self.numbers = max([self.numbers, *(each.numel() for each in made)])
        return result


@dataclass(frozen=True)
class LargestLogit:
    """Looks at all logits, which a loss of tokens does not."""

    def __call__(self, out: Outputs) -> Tensor:
        return out.logits.amax(-1).mul(out.mask).sum((1, 2)).double()


LOSSES = [LogP(), NegativeLogLikelihood(), NegativeLogLikelihood(labels="model"), RecallLoss()]


def documents(objective: Any) -> MicroBatch:
    """Calibration text of unequal lengths, in which rare words come back."""
    ids = torch.randint(5, 300, (5, 40), generator=torch.Generator().manual_seed(0))
    ids[:, 20:30] = ids[:, 5:15]
    scoring = [tuple(row[:length].tolist()) for row, length in zip(ids, (40, 40, 31, 9, 17), strict=True)]
    text = Calibration(documents=tuple(each for one in scoring for each in (one, one)), source="random")
    pass_ = Pass(stream="calibration", objective=objective, logits="all")
    (batch,) = compose(text.as_contrasts(), {"": 1}, 4096, pass_=pass_)
    assert batch.tokens == 5 * 40
    return batch


def slopes(model: Any, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """The objective, and its gradient at the first MLP's output."""
    seen = []

    def leaf(_module: Any, _args: Any, output: Tensor) -> Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    handle = model.model.layers[0].mlp.register_forward_hook(leaf)
    try:
        (value,) = objectives_of(model, batch)
    finally:
        handle.remove()
    (slope,) = gradients(value, seen)
    return value.detach(), slope


@pytest.mark.parametrize("objective", [*LOSSES, LargestLogit()], ids=lambda each: str(each)[:40])
@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere"])
def test_few_positions_at_a_time_give_what_all_logits_at_once_give(
    family: str, objective: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = small_model(family).eval() if family == "cohere" else tiny_model(family)
    batch = documents(objective)
    if family == "cohere":
        batch.input_ids.remainder_(vocabulary_of(model))
    monkeypatch.setattr(head, "VALUES", 7 * vocabulary_of(model))
    value, slope = slopes(model, batch)
    monkeypatch.setattr(objectives, "_is_sharded", lambda model: True)
    expected, expected_slope = slopes(model, batch)
    assert expected_slope.abs().max() > 0
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(slope, expected_slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", LOSSES, ids=lambda each: str(each)[:40])
def test_the_logits_of_all_tokens_are_never_in_memory(objective: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the forward nor in the backward; a loss that looks at all of them is seen to hold them."""
    model: Any = tiny_model("llama")
    width = vocabulary_of(model)
    monkeypatch.setattr(head, "VALUES", 20 * width)
    bound = max(20 * width, *(each.numel() for each in model.parameters()), 200 * 48)
    assert bound < 200 * width
    with Largest() as largest:
        slopes(model, documents(objective))
    assert 10 * width < largest.numbers <= bound
    with Largest() as largest:
        slopes(model, documents(LargestLogit()))
    assert largest.numbers == 200 * width


def test_the_head_sees_the_words_that_recall_asks_for_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = tiny_model("llama")
    seen = []
    model.lm_head.register_forward_hook(lambda _module, _args, logits: seen.append(logits.shape[:-1].numel()))
    slopes(model, documents(RecallLoss()))
    assert 0 < sum(seen[1:]) < 40  # the first is the one position of the forward itself
    assert seen[0] == 1


@pytest.mark.parametrize("value", [None, 3.0, torch.zeros(()), torch.zeros(1, 1)])
def test_an_objective_of_another_shape_is_named(value: Any) -> None:
    (batch, *_) = batches(Wrong(value))
    with pytest.raises(ContractViolation, match=rf"objective Wrong\(value=.* must return \({len(batch.ids)},\)"):
        objectives_of(tiny_model("llama"), batch)


def test_the_head_sees_the_last_token_alone() -> None:
    model: Any = tiny_model("gemma2")  # caps its logits after the head
    ids = torch.randint(5, 300, (3, 8), generator=torch.Generator().manual_seed(0))
    last = torch.tensor([7, 3, 5])
    with torch.no_grad():
        expected = model(input_ids=ids).logits[torch.arange(3), last]
        with last_token_only(model, lambda: last):
            found = model(input_ids=ids).logits
    assert found.shape[1] == 1
    assert torch.allclose(found[:, 0], expected, atol=1e-5)


def test_a_model_without_a_head_is_refused() -> None:
    model: Any = tiny_model("llama")
    with (
        pytest.raises(FairpruneError, match="LlamaModel has no output embeddings"),
        last_token_only(model.model, lambda: torch.zeros(1, dtype=torch.long)),
    ):
        pass


def test_only_what_asked_for_gradients_asks_again() -> None:
    model: Any = tiny_model("llama")
    model.lm_head.weight.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with pytest.raises(RuntimeError, match="stop"), frozen(model):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        raise RuntimeError("stop")
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before


def test_gradients_are_autograds_and_zero_where_nothing_depends() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y, unused = (torch.randn(4, 3, generator=generator, requires_grad=True) for _ in range(3))
    found = gradients((x * y.exp()).sum(1), [x, unused, y])
    torch.testing.assert_close(found[0], y.detach().exp())
    torch.testing.assert_close(found[2], (x * y.exp()).detach())
    assert found[1].abs().max() == 0
    assert found[1].shape == unused.shape
