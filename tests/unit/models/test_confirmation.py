"""Taps that are not believed, and forward passes that no statistics could follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from fairprune_framework.api.interfaces import Handler
from fairprune_framework.api.types import Site, Tap
from fairprune_framework.errors import ContractViolation, FairpruneError, UnsupportedArchitecture, UserError
from fairprune_framework.models.architecture import Architecture, recognise
from fairprune_framework.models.confirmation import confirm
from fairprune_framework.testing.families import small_model
from fairprune_framework.testing.tiny import tiny_config, tiny_model


@dataclass(frozen=True, kw_only=True)
class Lying:
    """The adapter of a model, but for what `kind` says."""

    inner: Any
    kind: str

    @contextmanager
    def tap(self, model: nn.Module, sites: Sequence[Site], taps: frozenset[Tap], handler: Handler) -> Iterator[None]:
        def other(site: Site, tap: Tap, values: torch.Tensor, rows: Any) -> Any:
            if self.kind == "deaf" and site.layer == 1:
                return None
            if self.kind == "narrow":
                return handler(site, tap, values[:, :-1], rows)
            replaced = handler(site, tap, values, rows)
            return values if self.kind == "dropping" else replaced

        with self.inner.tap(model, sites, taps, other):
            yield


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("deaf", "the neuron tap of model.layers.1.mlp was never called"),
        ("narrow", "has 47 columns, not 48"),
        ("dropping", "changing the neuron tap of model.layers.0.mlp does not change the logits"),
    ],
)
def test_a_tap_that_is_not_what_it_says(kind: str, words: str) -> None:
    model: Any = tiny_model("llama").train()
    found = recognise(model)
    liar = Architecture(adapter=Lying(inner=found.adapter, kind=kind), name="x:liar", sites=found.sites)  # type: ignore[arg-type]
    with pytest.raises(ContractViolation) as caught:
        confirm(model, liar)
    assert words in str(caught.value)
    assert str(caught.value).startswith("x:liar: ")
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_dead_mlp_is_found_out() -> None:
    """Output weights of zero: whatever its neurons do, the logits stay."""
    model: Any = tiny_model("llama")
    nn.init.zeros_(model.model.layers[1].mlp.down_proj.weight)
    with pytest.raises(ContractViolation, match=r"model\.layers\.1\.mlp does not change the logits"):
        confirm(model, recognise(model))


@pytest.mark.parametrize("rows", [1, 3, 32])
def test_experts_without_tokens_are_named(rows: int) -> None:
    model: Any = tiny_model("mixtral")
    with torch.no_grad():  # every token goes to experts 0 and 1 of the first layer
        router = next(p for n, p in model.named_parameters() if "layers.0" in n and "mlp.gate" in n)
        router.zero_()
    unchecked = confirm(model, recognise(model), rows)
    assert len(unchecked) == 2
    assert all(name.startswith("model.layers.0.mlp.experts.") for name in unchecked)


def test_damaged_weights_are_not_blamed_on_the_adapter() -> None:
    model: Any = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    with pytest.raises(FairpruneError, match="are not finite on plain tokens: weights or a number of its config are damaged"):
        confirm(model, recognise(model))


@pytest.mark.parametrize(
    ("field", "value"),
    [("rope_theta", float("nan")), ("rms_norm_eps", float("nan")), ("rms_norm_eps", -1e9)],
)
def test_a_number_of_the_config_by_which_a_model_answers_nothing(field: str, value: float) -> None:
    """All weights are finite; without a mask, attention on a CPU answers numbers to keys and queries that are NaN."""
    config = tiny_config("llama")
    if field == "rope_theta":
        config.rope_parameters[field] = value
    else:
        setattr(config, field, value)
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UserError, match="a number of its config are damaged, or too large for its dtype"):
        confirm(model, recognise(model))


def test_a_model_that_takes_no_mask_is_looked_at_without() -> None:
    model: Any = tiny_model("llama")
    forward = model.forward

    def without(input_ids: torch.Tensor, use_cache: bool = True) -> Any:
        return forward(input_ids=input_ids, use_cache=use_cache)

    model.forward = without
    assert confirm(model, recognise(model)) == []


def test_a_layer_that_runs_twice_is_refused_by_name() -> None:
    model: Any = tiny_model("llama")
    first = model.model.layers[0]
    plain = first.forward
    first.forward = lambda hidden, *args, **options: plain(plain(hidden, *args, **options), *args, **options)
    with pytest.raises(UnsupportedArchitecture, match=r"runs model\.layers\.0\.mlp several times in one forward pass"):
        confirm(model, recognise(model))


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("xlnet", "its layers do not hold tokens in the order (text, token)"),
        ("prophetnet", "which belongs to which token is not known"),
        ("mllama", "does not run model.layers.3 on text alone"),
    ],
)
def test_families_whose_forward_pass_cannot_be_followed(family: str, words: str) -> None:
    model = small_model(family)
    with pytest.raises(UnsupportedArchitecture) as caught:
        confirm(model, recognise(model))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


class Raising(nn.Module):
    def forward(self, *_: Any, **__: Any) -> Any:
        raise IndexError("first line\nsecond line")


def test_whose_fault_an_error_under_the_taps_is() -> None:
    model: Any = tiny_model("llama")
    found = recognise(model)

    class Broken:
        @contextmanager
        def tap(self, model: Any, sites: Any, taps: Any, handler: Any) -> Iterator[None]:
            handle = model.model.norm.register_forward_hook(lambda *_: 1 / 0)
            try:
                yield
            finally:
                handle.remove()

    broken = Architecture(adapter=Broken(), name="x:broken", sites=found.sites)  # type: ignore[arg-type]
    with pytest.raises(ContractViolation, match=r"^x:broken: a forward pass under its taps raised ZeroDivisionError"):
        confirm(model, broken)
    model.model.norm = Raising()
    with pytest.raises(UserError) as caught:
        confirm(model, found)
    assert str(caught.value) == "LlamaForCausalLM does not compute logits of plain token ids: IndexError: first line"
