"""Which adapter knows a model, which weights it must cover, and taps that are not believed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fairprune_framework.api.interfaces import Handler
from fairprune_framework.api.types import Site, Tap
from fairprune_framework.errors import AmbiguousName, ContractViolation, FairpruneError, UnsupportedArchitecture
from fairprune_framework.models import architecture as rooms
from fairprune_framework.models.architecture import Architecture, confirm, coverage_gap, recognise
from fairprune_framework.recipes.recipe import PluginSpec
from fairprune_framework.testing.tiny import FAMILIES, tiny_model

ADAPTERS = {"phi3": "fused-glu", "glm": "fused-glu", "mixtral": "moe-glu"}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_known_by_one_adapter(family: str) -> None:
    model: Any = tiny_model(family)
    found = recognise(model)
    assert found.name.partition(":")[2] == ADAPTERS.get(family, "glu")
    assert sum(site.units for site in found.sites.values()) == 2 * 48 * (4 if family == "mixtral" else 1)
    assert {site.layer for site in found.sites.values()} == {0, 1}
    assert recognise(model, PluginSpec(plugin=ADAPTERS.get(family, "glu"))).sites == found.sites
    assert confirm(model, found) == []


def test_a_model_that_nobody_knows() -> None:
    with pytest.raises(UnsupportedArchitecture) as caught:
        recognise(nn.Sequential(nn.Linear(3, 3)))
    for words in ("no MLP site in 'Sequential'", "fused-glu: looked for", "moe-glu: looked for", rooms.DOCS):
        assert words in str(caught.value)


def test_a_named_adapter_that_does_not_know_the_model() -> None:
    with pytest.raises(UnsupportedArchitecture, match="does not know 'LlamaForCausalLM': looked for 3-D parameters"):
        recognise(tiny_model("llama"), PluginSpec(plugin="moe-glu"))


def test_two_that_accept_it(monkeypatch: pytest.MonkeyPatch) -> None:
    glu = recognise(tiny_model("llama")).adapter
    entries = [SimpleNamespace(distribution=name, name="glu") for name in ("ours", "theirs")]
    monkeypatch.setattr(rooms.discovery, "entries", lambda group: entries)
    monkeypatch.setattr(rooms.discovery, "build", lambda group, name: glu)
    with pytest.raises(AmbiguousName, match=r"LlamaForCausalLM is accepted by ours:glu and theirs:glu: choose with --arch"):
        recognise(tiny_model("llama"))


# -- coverage ----------------------------------------------------------------------------------------------------------------


def test_every_matrix_of_an_mlp_must_belong_to_a_site() -> None:
    model: Any = tiny_model("llama")
    sites = list(recognise(model).sites.values())
    assert coverage_gap(model, sites) is None
    without = [replace(site, slices=site.slices[1:]) for site in sites]
    assert coverage_gap(model, without) == f"no site covers {sites[0].slices[0].parameter} (48, 32)"
    assert coverage_gap(model, sites[:1]) == "no site covers model.layers.1.mlp.gate_proj.weight (48, 32)"


@pytest.mark.parametrize(
    ("more", "gap"),
    [
        (nn.Linear(32, 1, bias=False), None),  # a gate on the whole block
        (nn.LayerNorm(32), None),
        (nn.LayerNorm(48), "(48,)"),  # as long as the site is wide: it would have to be cut
        (nn.Linear(32, 7, bias=False), "(7, 32)"),
    ],
)
def test_what_else_may_stand_in_an_mlp(more: nn.Module, gap: str | None) -> None:
    model: Any = tiny_model("llama")
    sites = list(recognise(model).sites.values())
    model.model.layers[0].mlp.more = more
    found = coverage_gap(model, sites)
    assert found is None if gap is None else found == f"no site covers model.layers.0.mlp.more.weight {gap}"


def test_a_router_of_as_many_rows_as_experts_is_no_gap() -> None:
    model: Any = tiny_model("mixtral")
    sites = list(recognise(model).sites.values())
    assert coverage_gap(model, sites) is None
    assert "gate.weight" in str(coverage_gap(model, [site for site in sites if not site.name.endswith(".3")]))


def test_two_sites_of_one_name() -> None:
    model = tiny_model("llama")
    sites = list(recognise(model).sites.values())
    with pytest.raises(ContractViolation, match="the same name"):
        coverage_gap(model, [*sites, sites[0]])


# -- the causal check --------------------------------------------------------------------------------------------------------


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
    with pytest.raises(FairpruneError, match="are not finite on plain tokens: the weights are damaged"):
        confirm(model, recognise(model))
