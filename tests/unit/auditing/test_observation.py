"""Aligned slots and their variance against numpy on values of each text, for dense sites and for experts that saw some tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairprune_framework.api.interfaces import Pass
from fairprune_framework.api.types import Site
from fairprune_framework.auditing import geometry as geometries
from fairprune_framework.auditing.batches import compose
from fairprune_framework.auditing.lazy import Lazy
from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.auditing.observation import Geometry, narrowed, observe, slots_shared
from fairprune_framework.contrasts.alignment import AlignedContrast, Tokens

SITE = Site(name="s", layer=0, units=3, slices=(), config_fields={}, width_group="w", taps=frozenset({"neuron", "gate"}))


@st.composite
def contrasts(draw: st.DrawFn) -> list[AlignedContrast]:
    found = []
    for number in range(draw(st.integers(1, 5))):
        suffix = draw(st.integers(0, 3))
        variants, first = draw(st.integers(2, 4)), draw(st.integers(0, 2))
        tokens = []
        for v in range(variants):
            span = draw(st.integers(0, 3))
            ids = (
                *range(20, 20 + first),
                *(100 + 10 * v + i for i in range(span)),
                *range(50, 50 + suffix),
                200 + v if not suffix else 60,
            )
            end = len(ids) - (suffix + 1 if suffix else 0)
            tokens.append(Tokens(ids=ids, start=min(first, end), end=end))
        found.append(
            AlignedContrast(
                id=str(number),
                category="a",
                template_id="t",
                control=False,
                split=None,
                variants=tuple(tokens),
                attributes=tuple(range(variants)),
            )
        )
    return found


def composed(given_: list[AlignedContrast], share_up_to: int) -> MicroBatch:
    (batch,) = compose(given_, {"a": 4}, 10**6, share_up_to=share_up_to)
    return batch


def slots_by_hand(one: AlignedContrast, acts: Any, seen: Any) -> tuple[np.ndarray, np.ndarray]:
    """(V, S, K) pooled attribute first, then the suffix, and (S,): which slots all variants have."""
    suffix = one.suffix
    values, exists = [], []
    for v, tokens in enumerate(one.variants):
        span = [t for t in range(tokens.start, tokens.end) if seen(v, t)]
        rows = [np.mean([acts(v, t) for t in span], 0) if span else np.zeros(3)]
        there = [bool(span)]
        for t in range(tokens.end, tokens.end + suffix):
            rows.append(acts(v, t))
            there.append(seen(v, t))
        values.append(rows)
        exists.append(there)
    return np.array(values), np.array(exists).all(0)


@given(contrasts(), st.sampled_from([0, 100]), st.booleans(), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_slots_and_variance(given_: list[AlignedContrast], share_up_to: int, routed: bool, seed: int) -> None:
    batch = composed(given_, share_up_to)
    count = batch.input_ids.numel()
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(count, 3, generator=generator)
    rows = torch.nonzero(torch.rand(count, generator=generator) < 0.6).flatten() if routed else None
    values = whole if rows is None else whole[rows]
    chosen = set(range(count) if rows is None else rows.tolist())
    geometry = Geometry(batch)
    obs = observe(SITE, {"neuron": values}, rows, geometry, Pass(), {})
    flat = geometry.tokens_CVT.numpy()
    at = {identity: c for c, identity in enumerate(batch.ids)}
    for one in given_:
        c = at[one.id]
        slots, shared = slots_by_hand(
            one, lambda v, t, c=c: whole[flat[c, v, t]].numpy(), lambda v, t, c=c: int(flat[c, v, t]) in chosen
        )
        V, S = slots.shape[:2]
        assert obs.aligned_mask[c, :V, :S].numpy().tolist() == [shared.tolist()] * V
        assert not obs.aligned_mask[c, V:].any()
        assert not obs.aligned_mask[c, :, S:].any()
        np.testing.assert_allclose(obs.aligned["neuron"][c, :V, :S].numpy()[:, shared], slots[:, shared], rtol=1e-5, atol=1e-6)
        here = obs.slots["neuron"][c, :V, :S].numpy()
        np.testing.assert_allclose(here[:, shared], slots[:, shared], rtol=1e-5, atol=1e-6)
        assert not here[:, ~shared].any()
        np.testing.assert_allclose(
            obs.aligned_variance["neuron"][c, :S].numpy()[shared], slots.var(0)[shared], rtol=1e-4, atol=1e-5
        )
        weight = obs.slot_weight[c, :S].numpy()
        np.testing.assert_allclose(weight, shared / max(shared.sum(), 1))
        assert obs.reached[c].item() == float(shared.any())
        for v, tokens in enumerate(one.variants):
            for t in range(obs.mask.shape[2]):
                there = t < len(tokens.ids) and int(flat[c, v, t]) in chosen
                assert bool(obs.mask[c, v, t]) is there
                expected = whole[flat[c, v, t]] if there else torch.zeros(3)
                assert obs.acts["neuron"][c, v, t].equal(expected)
    assert obs.aligned["neuron"].dtype == torch.float64
    assert obs.slots["neuron"].dtype == torch.float32


def test_an_expert_without_tokens_is_empty() -> None:
    variants = (Tokens(ids=(1, 2, 3), start=1, end=2), Tokens(ids=(1, 4, 3), start=1, end=2))
    one = AlignedContrast(
        id="x", category="a", template_id="t", control=False, split=None, variants=variants, attributes=(0, 1)
    )
    obs = observe(SITE, {"neuron": torch.zeros(0, 3)}, torch.zeros(0).long(), Geometry(composed([one], 0)), Pass(), {})
    assert not obs.mask.any()
    assert not obs.aligned_mask.any()
    assert obs.acts["neuron"].abs().max() == 0
    assert obs.reached.item() == 0


@given(contrasts(), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_parts_cover_every_contrast_once_and_agree_with_the_whole(given_: list[AlignedContrast], cached: int) -> None:
    batch = composed(given_, 0)
    values = torch.randn(batch.input_ids.numel(), 3, generator=torch.Generator().manual_seed(0))
    whole = observe(SITE, {"neuron": values}, None, Geometry(batch), Pass(), {})
    kept, geometries.CACHED = geometries.CACHED, 60 * cached
    try:
        parts = Geometry(batch).parts(3)
    finally:
        geometries.CACHED = kept
    assert sorted(i for part in parts for i in part.contrasts or ()) == list(range(len(given_)))
    for part in parts:
        obs = observe(SITE, {"neuron": values}, None, part, Pass(), {})
        for row, c in enumerate(part.contrasts or ()):
            assert part.batch.ids[row] == batch.ids[c]
            V, S = obs.aligned_mask.shape[1:]
            assert obs.aligned_mask[row].equal(whole.aligned_mask[c, :V, :S])
            mask = obs.aligned_mask[row, 0]
            assert obs.aligned_variance["neuron"][row][mask].equal(whole.aligned_variance["neuron"][c, :S][mask])


def test_bfloat16_is_widened_before_it_is_squared() -> None:
    variants = tuple(Tokens(ids=(1, v, 3), start=1, end=2) for v in (7, 8))
    one = AlignedContrast(
        id="x", category="a", template_id="t", control=False, split=None, variants=variants, attributes=(0, 1)
    )
    values = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    obs = observe(SITE, {"neuron": values}, None, Geometry(composed([one], 0)), Pass(), {})
    found = obs.aligned_variance["neuron"]
    assert found.dtype == torch.float32
    a, b = values.double().reshape(2, 3, 3)[:, 1:].numpy()
    np.testing.assert_allclose(found[0].numpy(), (a - b) ** 2 / 4, rtol=1e-6)
    assert obs.acts["neuron"].dtype == torch.bfloat16


# -- what is made when asked for ---------------------------------------------------------------------------------------------


def test_values_are_made_once_and_only_when_asked_for() -> None:
    made: list[str] = []

    def make(tap: str) -> torch.Tensor:
        made.append(tap)
        return torch.zeros(1)

    lazy = Lazy(frozenset({"gate", "up"}), make)  # type: ignore[arg-type]
    view = lazy.only(frozenset({"gate", "neuron"}))
    assert made == []
    assert (set(lazy), len(view)) == ({"gate", "up"}, 1)
    assert view["gate"] is lazy["gate"]
    assert made == ["gate"]
    with pytest.raises(KeyError, match="tap 'up' was not declared; declared: gate"):
        _ = view["up"]


def test_a_statistic_sees_the_taps_that_it_declared() -> None:
    variants = (Tokens(ids=(1, 2), start=1, end=2), Tokens(ids=(1, 3), start=1, end=2))
    one = AlignedContrast(
        id="x", category="a", template_id="t", control=False, split=None, variants=variants, attributes=(0, 1)
    )
    obs = observe(SITE, {"neuron": torch.zeros(4, 3), "gate": torch.ones(4, 3)}, None, Geometry(composed([one], 0)), Pass(), {})
    assert narrowed(obs, frozenset({"neuron", "gate", "up"})) is obs
    one_tap = narrowed(obs, frozenset({"gate"}))
    assert set(one_tap.acts) == set(one_tap.aligned) == set(one_tap.aligned_variance) == {"gate"}
    assert one_tap.acts["gate"] is obs.acts["gate"]


def test_weights_of_slots_by_hand() -> None:
    mask = torch.tensor([[[1, 0, 1], [1, 0, 1]], [[0, 0, 0], [0, 0, 0]]]).bool()
    weight, reached = slots_shared(mask)
    assert weight.tolist() == [[0.5, 0.0, 0.5], [0.0, 0.0, 0.0]]
    assert reached.flatten().tolist() == [1.0, 0.0]


@given(given_=contrasts(), share_up_to=st.sampled_from([0, 12]))
@settings(max_examples=40, deadline=None)
def test_where_a_contrast_comes_from(given_: list[AlignedContrast], share_up_to: int) -> None:
    """Site, token ids, lean, template and category, in the whole micro-batch and in its parts."""
    given_ = [
        replace(one, category="ab"[number % 2], template_id=f"t{number // 3}", stereotyping=0 if number % 2 else None)
        for number, one in enumerate(given_)
    ]
    (batch,) = compose(given_, {"a": 4, "b": 4}, 10**6, share_up_to=share_up_to)
    known = {"a": 0, "b": 1}
    for geometry in (Geometry(batch, known=known), *Geometry(batch, known=known).parts(3)):
        values = {"neuron": torch.zeros(batch.input_ids.numel(), 3)}
        shown = observe(SITE, values, None, geometry, Pass(), {})  # type: ignore[arg-type]
        assert shown.site is SITE
        by_id = {one.id: one for one in given_}
        for row, name in enumerate(geometry.batch.ids):
            one = by_id[name]
            for v, tokens in enumerate(one.variants):
                assert shown.tokens[row, v][shown.mask[row, v]].tolist() == list(tokens.ids)
            leans = [0] * len(one.variants) if one.stereotyping is None else [1] + [-1] * (len(one.variants) - 1)
            assert shown.lean[row, : len(leans)].tolist() == leans
            assert shown.category[row] == known[one.category]
            for other_row, other in enumerate(geometry.batch.ids):
                same = (by_id[other].category, by_id[other].template_id) == (one.category, one.template_id)
                assert bool(shown.cluster[row] == shown.cluster[other_row]) == same
