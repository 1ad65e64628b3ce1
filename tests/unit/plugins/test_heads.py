"""Which attention blocks the adapters of heads know, and what they say of them."""

from __future__ import annotations

from typing import Any

import pytest
from fairprune_heads import Attention, Heads, KeyValueGroups, attention

from fairprune_framework.errors import UnsupportedArchitecture
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.confirmation import confirm
from fairprune_framework.models.coverage import coverage_gap
from fairprune_framework.recipes.recipe import PluginSpec
from fairprune_framework.testing.families import small_model
from fairprune_framework.testing.tiny import tiny_model


def test_sizes_of_grouped_queries() -> None:
    model: Any = tiny_model("gemma2")
    assert attention(model.model.layers[0].self_attn) == Attention(out="o_proj", groups=2, per=2, dim=8, value_dim=8)
    assert attention(model.model.layers[0].mlp) is None


def test_a_group_and_a_query_head() -> None:
    model = tiny_model("qwen2")
    group, head = (adapter.sites(model)[1] for adapter in (KeyValueGroups(), Heads()))
    assert (group.name, group.kind, group.layer) == ("model.layers.1.self_attn", "heads", 1)
    assert (group.units, group.unit_width, head.units, head.unit_width) == (2, 16, 4, 8)
    assert {s.role: (s.axis, s.width) for s in group.slices} == {
        "out": (1, 16),
        "query": (0, 16),
        "query_bias": (0, 16),
        "key": (0, 8),
        "key_bias": (0, 8),
        "value": (0, 8),
        "value_bias": (0, 8),
    }
    assert {s.role for s in head.slices} == {"out", "query", "query_bias"}
    assert (group.config_fields, group.config_constants) == (
        {"num_attention_heads": 2, "num_key_value_heads": 1},
        {"head_dim": 8},
    )
    assert group.surgery is None
    assert "share keys and values" in str(head.surgery)


def test_a_head_with_keys_and_values_of_its_own_is_a_group() -> None:
    model = tiny_model("mistral", num_attention_heads=4, num_key_value_heads=4)
    assert Heads().sites(model) == KeyValueGroups().sites(model)


def test_numbers_of_heads_that_the_config_takes() -> None:
    sizes = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 4}
    assert KeyValueGroups().sites(tiny_model("llama", **sizes))[0].storable == (1, 2, 4, 8)
    assert KeyValueGroups().sites(tiny_model("qwen2", **sizes))[0].storable == ()


@pytest.mark.parametrize("family", ["olmo2", "phi3", "mixtral", "gpt_oss", "diffllama", "gpt2"])
def test_heads_that_are_not_apart_are_not_known(family: str) -> None:
    model = tiny_model(family) if family in ("olmo2", "phi3", "mixtral") else small_model(family)
    if family == "mixtral":  # experts beside ordinary attention
        assert confirm(model, recognise(model, PluginSpec(plugin="experts+heads"))) == []
    else:
        with pytest.raises(UnsupportedArchitecture, match="looked for q_proj, k_proj, v_proj and o_proj of heads"):
            KeyValueGroups().sites(model)


def test_modules_that_count_their_heads_are_not_cut() -> None:
    (site, *_) = KeyValueGroups().sites(small_model("opt"))
    assert "counts heads apart from its weights (num_heads)" in str(site.surgery)


def test_a_layer_that_is_left_out_is_a_gap() -> None:
    model = tiny_model("llama")
    assert coverage_gap(model, KeyValueGroups().sites(model)) is None
    assert coverage_gap(model, KeyValueGroups().sites(model)[1:]) == "no site covers model.layers.0.self_attn.q_proj.weight"


def test_heads_are_used_where_they_are_named() -> None:
    model = tiny_model("llama")
    assert recognise(model).name == "fairprune_framework:glu"
    found = recognise(model, PluginSpec(plugin="kv-groups+glu"))
    assert [site.kind for site in found.sites.values()] == ["mlp", "heads", "mlp", "heads"]
    with pytest.raises(UnsupportedArchitecture, match="name the same neurons"):
        recognise(model, PluginSpec(plugin="heads+kv-groups"))
