"""Movements against numpy on activations that a hook of PyTorch's own reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fairprune_framework.contrasts.alignment import AlignedContrast, align_all, vocabularies
from fairprune_framework.evaluation.metrics.movement import (
    MovementReader,
    described_movement,
    measure_movements,
    spread_over_variants,
)
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_model, tiny_tokenizer

CONTRASTS = tiny_contrasts()
ALIGNED, _ = align_all(CONTRASTS, Encoder(tiny_tokenizer()))
VALUES = {category: len(names) for category, names in vocabularies(CONTRASTS).items()}
LAYER, UNITS = 1, [3, 17]
SITE = f"model.layers.{LAYER}.mlp"


@torch.no_grad()
def by_hand(model: Any, contrast: AlignedContrast) -> list[np.ndarray]:
    """Of each variant the activations of the units at its slots, `(S, K)`: the attribute's mean, then the tokens after it."""
    seen: list[np.ndarray] = []
    down = model.model.layers[LAYER].mlp.down_proj
    handle = down.register_forward_pre_hook(lambda _module, args: seen.append(args[0][0, :, UNITS].double().numpy()))
    for tokens in contrast.variants:
        model(input_ids=torch.tensor([tokens.ids]))
    handle.remove()
    return [
        np.concatenate([acts[tokens.start : tokens.end].mean(0, keepdims=True), acts[tokens.end :]])
        for acts, tokens in zip(seen, contrast.variants, strict=True)
    ]


def test_movements_are_deviations_over_the_variants() -> None:
    model: Any = tiny_model("llama")
    reader = MovementReader(recognise(model), {SITE: UNITS, "model.layers.0.mlp": []}, ALIGNED)
    assert not reader.complete
    measure_movements(model, recognise(model), reader, VALUES, 64)
    assert reader.complete
    found = reader.movements
    assert found.keys() == {(SITE, unit) for unit in UNITS}
    expected = {contrast.id: np.stack(by_hand(model, contrast)) for contrast in ALIGNED}
    for column, unit in enumerate(UNITS):
        moved = found[SITE, unit]
        assert [one.id for one in moved] == sorted(expected, key=lambda name: -expected[name][..., column].std(0).mean())
        for one in moved:
            acts_VS = expected[one.id][..., column]
            assert one.movement == pytest.approx(acts_VS.std(0).mean(), rel=1e-4)
            np.testing.assert_allclose(one.means, acts_VS.mean(1), rtol=1e-3, atol=1e-7)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_slots_that_a_variant_lacks_are_left_out() -> None:
    acts = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    mask = np.ones((2, 3, 4), dtype=bool)
    mask[0, 2] = mask[1, :, 3] = mask[1, 0, 1] = False  # a variant; a slot of all; one slot of one variant
    expected = [np.mean([acts[c, mask[c, :, s], s].std(0) for s in range(4) if mask[c, :, s].any()], axis=0) for c in range(2)]
    garbage = np.where(mask[..., None], acts, 1e9)  # what is masked may hold anything
    found = spread_over_variants(torch.tensor(garbage), torch.tensor(mask))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_described_with_the_texts() -> None:
    model: Any = tiny_model("llama")
    reader = MovementReader(recognise(model), {SITE: [3]}, ALIGNED[:1])
    measure_movements(model, recognise(model), reader, VALUES)
    (moved,) = reader.movements.values()
    described = described_movement(CONTRASTS[0], moved[0])
    assert described["movement"] == moved[0].movement
    assert [each["text"] for each in described["variants"]] == [variant.text for variant in CONTRASTS[0].variants]
    assert [each["mean"] for each in described["variants"]] == list(moved[0].means)
