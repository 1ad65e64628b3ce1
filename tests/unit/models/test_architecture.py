"""Which adapter, or which few together, know a model; and what is said where none does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from torch import nn

from fairprune_framework.api.interfaces import ArchitectureAdapter
from fairprune_framework.api.types import Site
from fairprune_framework.discovery import Entry
from fairprune_framework.errors import AmbiguousName, BrokenPlugin, UnsupportedArchitecture
from fairprune_framework.models import architecture as rooms
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.confirmation import confirm
from fairprune_framework.recipes.recipe import PluginSpec
from fairprune_framework.testing.families import small_model
from fairprune_framework.testing.tiny import FAMILIES, tiny_model

ADAPTERS = {"phi3": "fused-glu", "glm": "fused-glu", "mixtral": "experts"}


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
    for words in ("no MLP site in 'Sequential'", "it has no list of layers", "fused-glu, glu", rooms.DOCS):
        assert words in str(caught.value)


@pytest.mark.parametrize("family", ["mamba", "falcon_mamba"])
def test_a_model_without_mlps_is_refused_by_name(family: str) -> None:
    with pytest.raises(UnsupportedArchitecture) as caught:
        recognise(small_model(family))
    assert "mixer (" in str(caught.value)
    assert "a state-space or recurrent block, without an MLP" in str(caught.value)


def test_a_named_adapter_that_does_not_know_the_model() -> None:
    with pytest.raises(UnsupportedArchitecture, match="does not know 'LlamaForCausalLM': looked for 3-D parameters"):
        recognise(tiny_model("llama"), PluginSpec(plugin="experts"))


def test_two_that_accept_it(monkeypatch: pytest.MonkeyPatch) -> None:
    glu = recognise(tiny_model("llama")).adapter
    entries = [Entry(kind="architecture", name="glu", distribution=name, version="1", value="") for name in ("ours", "theirs")]
    monkeypatch.setattr(rooms.discovery, "entries", lambda group: entries)
    monkeypatch.setattr(rooms.discovery, "build_of", lambda entry, options: glu)
    with pytest.raises(AmbiguousName, match=r"LlamaForCausalLM is accepted by ours:glu and theirs:glu: choose with --arch"):
        recognise(tiny_model("llama"))


@dataclass(frozen=True, kw_only=True)
class Raising(ArchitectureAdapter):
    """An adapter that cannot read what it does not know."""

    def sites(self, model: nn.Module) -> Sequence[Site]:
        raise AttributeError("no config.n_experts")

    def tap(self, *_: Any) -> Any:
        raise NotImplementedError


def test_an_adapter_that_raises_breaks_no_other_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Entry(kind="architecture", name="bad", distribution="acme", version="2", value="acme:Bad")
    known, find, build = rooms.discovery.entries, rooms.discovery.find, rooms.discovery.build_of
    monkeypatch.setattr(rooms.discovery, "entries", lambda kind: [entry, *known(kind)])
    monkeypatch.setattr(rooms.discovery, "find", lambda kind, name: entry if name.endswith("bad") else find(kind, name))
    monkeypatch.setattr(
        rooms.discovery, "build_of", lambda entry, options: Raising() if entry.name == "bad" else build(entry, options)
    )
    assert recognise(tiny_model("llama")).name == "fairprune_framework:glu"
    says = "architecture 'bad' of acme 2: sites() of MambaForCausalLM raised AttributeError: no config.n_experts"
    with pytest.raises(UnsupportedArchitecture) as caught:
        recognise(small_model("mamba"))
    assert says in str(caught.value)
    with pytest.raises(BrokenPlugin, match=r"sites\(\) of LlamaForCausalLM raised AttributeError"):
        recognise(tiny_model("llama"), PluginSpec(plugin="bad"))


# -- several adapters together -----------------------------------------------------------------------------------------------


def test_experts_shared_experts_and_dense_layers_come_from_two_adapters() -> None:
    model = small_model("deepseek_v3")
    found = recognise(model)
    assert found.name == "fairprune_framework:experts+fairprune_framework:glu"
    assert [type(part).__name__ for part in found.parts] == ["Experts", "Glu"]
    assert list(found.sites)[:5] == [
        "model.layers.0.mlp",
        *(f"model.layers.1.mlp.experts.{expert}" for expert in range(4)),
    ]
    assert found.sites["model.layers.1.mlp.shared_experts"].width_group == "moe_intermediate_size"
    assert recognise(model, PluginSpec(plugin="glu+experts")).sites == found.sites
    with pytest.raises(UnsupportedArchitecture, match=r"'glu' of .* names sites of DeepseekV3ForCausalLM, but no site covers"):
        recognise(model, PluginSpec(plugin="glu"))


def test_adapters_that_name_the_same_neurons_are_not_put_together() -> None:
    with pytest.raises(UnsupportedArchitecture, match="name the same neurons of BitNetForCausalLM"):
        recognise(small_model("bitnet"), PluginSpec(plugin="glu+inner-norm-glu"))
    assert recognise(small_model("bitnet")).name == "fairprune_framework:inner-norm-glu"
