"""`variance` and `gate-up-difference` against numpy, on activations that plain torch hooks catch in the same run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fairprune_framework import discovery
from fairprune_framework.api import BiasScorer, ImportanceScorer
from fairprune_framework.auditing.audit import audit
from fairprune_framework.auditing.demand import Demand
from fairprune_framework.contrasts.alignment import align_all, vocabularies
from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.selection.scoring import score
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_model, tiny_tokenizer

Array = NDArray[np.float64]
FLOAT32 = 2e-6
"""Relative: what the slots of one contrast are added up in."""
LAYERS = ("model.layers.0.mlp", "model.layers.1.mlp")
Caught = dict[tuple[int, ...], dict[str, Array]]
"""token ids -> name of a module -> its activations (T, N)."""


@contextmanager
def caught(model: Any) -> Iterator[Caught]:
    """Activations of every distinct text of the forwards inside, as they pass, in the composition of the run."""
    found: Caught = {}
    now: list[tuple[tuple[int, ...], int]] = []

    def begin(_: Any, args: Any, kwargs: Any) -> None:
        ids, mask = kwargs["input_ids"], kwargs["attention_mask"]
        lengths = [ids.shape[1]] * len(ids) if mask is None else mask.sum(1).tolist()
        now[:] = [(tuple(row[:n].tolist()), n) for row, n in zip(ids, lengths, strict=True)]

    def keep(name: str, values: torch.Tensor) -> None:
        for row, (ids, length) in enumerate(now):
            found.setdefault(ids, {})[name] = values[row, :length].double().numpy()

    hooks = [model.model.register_forward_pre_hook(begin, with_kwargs=True)]
    for layer in LAYERS:
        mlp = model.get_submodule(layer)
        hooks += [
            mlp.gate_proj.register_forward_hook(lambda m, args, out, name=f"{layer}.gate": keep(name, out.detach())),
            mlp.up_proj.register_forward_hook(lambda m, args, out, name=f"{layer}.up": keep(name, out.detach())),
            mlp.down_proj.register_forward_pre_hook(lambda m, args, name=f"{layer}.neuron": keep(name, args[0].detach())),
        ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def spans(texts: Sequence[tuple[int, ...]]) -> tuple[int, int]:
    """Tokens that all variants share before the attribute, and after it."""
    shortest = min(map(len, texts))
    before = next(i for i in range(shortest) if len({ids[i] for ids in texts}) > 1)
    after = next(i for i in range(shortest - before + 1) if i == shortest - before or len({ids[-i - 1] for ids in texts}) > 1)
    return before, after


def slots(acts: Array, before: int, after: int) -> Array:
    """(S, N): the mean over the attribute's tokens, then each token after it."""
    end = len(acts) - after
    return np.concatenate([acts[before:end].mean(0, keepdims=True), acts[end:]])


def run(
    contrasts: Sequence[Contrast], plugin: str, **options: Any
) -> tuple[dict[str, Array], Caught, dict[str, list[list[tuple[int, ...]]]]]:
    """Scores by layer, what the hooks caught, and category -> contrasts -> token ids of the variants."""
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    architecture = recognise(model)
    bias = discovery.build("bias", plugin, options)
    importance = discovery.build("importance", "max-abs-weight")
    assert isinstance(bias, BiasScorer)
    assert isinstance(importance, ImportanceScorer)
    aligned, _ = align_all(contrasts, Encoder(tokenizer))
    values = {category: len(names) for category, names in vocabularies(contrasts).items()}
    with caught(model) as found:
        statistics, _ = audit(
            model, architecture, aligned, values, Demand.of([bias], 2), micro_batch_tokens=128, accelerator="cpu"
        )
    scores = score(statistics, model, architecture, bias, importance, ("bias", "importance"))
    ids: dict[str, list[list[tuple[int, ...]]]] = {}
    for contrast in contrasts:
        ids.setdefault(contrast.category, []).append([tuple(tokenizer(v.text).input_ids) for v in contrast.variants])
    return {name: value.numpy() for name, value in scores.bias.items()}, found, ids


def macro(by_category: dict[str, list[Array]]) -> Array:
    return np.mean([np.mean(rows, axis=0) for rows in by_category.values()], axis=0)


ALL = [contrast for contrast in tiny_contrasts() if not contrast.control]


def equal(contrast: Contrast) -> bool:
    return len({len(tiny_tokenizer()(variant.text).input_ids) for variant in contrast.variants}) == 1


SETS = {
    "pairs": [c for c in ALL if len(c.variants) == 2],
    "triples": [c for c in ALL if len(c.variants) == 3],
    "equal-lengths": [c for c in ALL if equal(c)],
    "unequal-lengths": [c for c in ALL if not equal(c)],
    "one-category": [c for c in ALL if c.category == "race"],
    "one-contrast": ALL[:1],
    "all": ALL,
}


def test_the_sets_are_what_they_are_called() -> None:
    assert all(len(found) >= 2 for name, found in SETS.items() if name != "one-contrast")
    assert len(SETS["pairs"]) + len(SETS["triples"]) == len(SETS["equal-lengths"]) + len(SETS["unequal-lengths"]) == len(ALL)


@pytest.mark.parametrize("name", SETS)
def test_variance_is_numpy_var(name: str) -> None:
    scores, found, ids = run(SETS[name], "variance")
    for layer in LAYERS:
        by_category: dict[str, list[Array]] = {}
        for category, contrasts in ids.items():
            for texts in contrasts:
                before, after = spans(texts)
                acts = np.stack([slots(found[text][f"{layer}.neuron"], before, after) for text in texts])
                by_category.setdefault(category, []).append(np.var(acts, axis=0).mean(0))
        np.testing.assert_allclose(scores[layer], macro(by_category), rtol=FLOAT32, atol=0)


def test_variance_of_a_pair_is_a_quarter_of_the_squared_difference() -> None:
    contrast = next(c for c in SETS["pairs"] if equal(c))
    scores, found, ids = run([contrast], "variance")
    first, second = next(iter(ids.values()))[0]
    before, _ = spans([first, second])
    for layer in LAYERS:
        one, two = (found[text][f"{layer}.neuron"] for text in (first, second))
        np.testing.assert_allclose(one[:before], two[:before], rtol=0, atol=1e-6)  # a causal model knows nothing yet
        np.testing.assert_allclose(scores[layer], ((one - two)[before:] ** 2).mean(0) / 4, rtol=FLOAT32)


@pytest.mark.parametrize("name", ["pairs", "triples", "all"])
def test_relative_variance_is_over_the_mean_square_of_the_same_slots(name: str) -> None:
    scores, found, ids = run(SETS[name], "variance", relative=True)
    for layer in LAYERS:
        by_category = []
        for contrasts in ids.values():
            variance, square = [], []
            for texts in contrasts:
                before, after = spans(texts)
                acts = np.stack([slots(found[text][f"{layer}.neuron"], before, after) for text in texts])
                variance.append(np.var(acts, axis=0).mean(0))
                square.append((acts**2).mean((0, 1)))
            by_category.append(np.mean(variance, axis=0) / (np.mean(square, axis=0) + 1e-12))
        np.testing.assert_allclose(scores[layer], np.mean(by_category, axis=0), rtol=FLOAT32)


@pytest.mark.parametrize("name", SETS)
def test_gate_up_difference_is_the_notebooks(name: str) -> None:
    scores, found, ids = run(SETS[name], "gate-up-difference")
    for layer in LAYERS:
        by_category: dict[str, list[Array]] = {}
        for category, contrasts in ids.items():
            for texts in contrasts:
                before, after = spans(texts)
                whole = len({len(text) for text in texts}) == 1
                pairs = []
                for one, two in combinations(texts, 2):
                    both = [
                        [
                            found[text][f"{layer}.{tap}"] if whole else slots(found[text][f"{layer}.{tap}"], before, after)
                            for text in (one, two)
                        ]
                        for tap in ("gate", "up")
                    ]
                    pairs.append(sum(np.abs(a - b).mean(0) for a, b in both))
                by_category.setdefault(category, []).append(np.mean(pairs, axis=0))
        np.testing.assert_allclose(scores[layer], macro(by_category), rtol=FLOAT32)


def test_the_run_sees_what_a_batch_of_one_sees() -> None:
    """Within 1e-3 of the layer's root mean square: the promise across compositions."""
    _, found, _ = run(ALL, "variance")
    model: Any = tiny_model("llama")
    for ids, acts in found.items():
        with caught(model) as alone, torch.no_grad():
            model.model(input_ids=torch.tensor([ids]), attention_mask=None)
        for name, expected in alone[ids].items():
            assert np.abs(acts[name] - expected).max() <= 1e-3 * np.sqrt((expected**2).mean())
