"""What an adapter names must be sites of the model, before their tensors are looked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fairprune_framework.errors import ContractViolation
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.site_contract import check_sites
from fairprune_framework.testing.tiny import FAMILIES, tiny_model

MODEL = tiny_model("llama")
SITE = next(iter(recognise(MODEL).sites.values()))
PIECE = SITE.slices[0]


def of(**changes: Any) -> Any:
    return replace(SITE, **changes)


def piece(**changes: Any) -> Any:
    return of(slices=(replace(PIECE, **changes), *SITE.slices[1:]))


@pytest.mark.parametrize(
    ("sites", "words"),
    [
        (None, "sites() must return a sequence of sites. Got NoneType"),
        ("model.layers.0.mlp", "sites() must return a sequence of sites. Got str"),
        ([SITE, "other"], "the site 'other' is of type str, not Site"),
        ([of(name=3)], "has a name or a width group that is no text"),
        ([of(kind="mlps")], "is of the kind 'mlps'; there are mlp, expert, heads"),
        ([of(units=0)], "has 0 as units, not a whole number of at least 1"),
        ([of(units=2.0)], "has 2.0 as units"),
        ([of(layer=-1)], "has -1 as layer"),
        ([of(taps=frozenset({"up"}))], "with neuron among them"),
        ([of(taps=["neuron"])], "lists the taps ['neuron']"),
        ([of(config_fields={"intermediate_size": "N"})], "not a mapping to whole numbers"),
        ([of(slices=())], "has () as slices"),
        ([of(slices=[PIECE])], "not a tuple of at least one"),
        ([of(slices=(3,))], "has 3 among its slices"),
        ([piece(parameter="model.nowhere")], "has a slice of 'model.nowhere', which is no parameter of the model"),
        ([piece(axis="rows")], "with numbers that are none"),
        ([piece(start=-1)], "with numbers that are none"),
        ([piece(width=0)], "with numbers that are none"),
        ([piece(role="gates")], "with the role 'gates'; there are gate, up, out"),
        ([piece(axis=2)], "has a slice outside"),
        ([piece(lead=(99,))], "has a slice outside"),
        ([piece(start=1)], f"reaches to {SITE.units + 1} of the {SITE.units} on axis 0"),
        ([piece(role="gate_bias")], "has 2 dimensions of"),
    ],
)
def test_what_is_no_site_is_named(sites: Any, words: str) -> None:
    with pytest.raises(ContractViolation) as caught:
        check_sites(MODEL, sites, "architecture 'mine' of toys 1")
    assert str(caught.value).startswith("architecture 'mine' of toys 1: ")
    assert words in str(caught.value)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_sites_of_every_family_are_sites(family: str) -> None:
    model = tiny_model(family)
    check_sites(model, list(recognise(model).sites.values()), "it")


def test_packed_weights_have_other_shapes() -> None:
    packed = of(surgery="packed", slices=(replace(PIECE, start=7, parameter="model.packed"),))
    check_sites(MODEL, [packed], "it")
