"""Contrast metrics against scipy, numpy and plain hooks on an untouched transformers forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy
from torch import Tensor, nn

from fairprune_framework.api.decoders import text_decoder
from fairprune_framework.api.interfaces import Observation, Pass
from fairprune_framework.auditing.batches import compose
from fairprune_framework.auditing.observation import Geometry, observe
from fairprune_framework.auditing.prefix_sharing import prefix_sharing
from fairprune_framework.contrasts.alignment import AlignedContrast, Tokens, align_all, vocabularies
from fairprune_framework.contrasts.schema import Contrast, Variant
from fairprune_framework.errors import FairpruneError
from fairprune_framework.evaluation.metrics import contrasts as metric
from fairprune_framework.evaluation.metrics.contrasts import TAPS, ContrastMeasure, measure_contrasts, pair_difference
from fairprune_framework.evaluation.metrics.movement import MovementReader, measure_movements
from fairprune_framework.evaluation.metrics.next_token import NextTokenReader
from fairprune_framework.evaluation.metrics.outputs import OutputReader
from fairprune_framework.evaluation.metrics.sentences import measure_sentences
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_model, tiny_tokenizer

# -- mean difference over pairs -------------------------------------------------------------------------------------------


def contrast(identity: str, *variants: tuple[int, int, int]) -> AlignedContrast:
    """Variants as (length, start, end); token ids only tell texts apart."""
    return AlignedContrast(
        id=identity,
        category="a",
        template_id="t",
        control=False,
        split=None,
        variants=tuple(
            Tokens(ids=tuple(hash((identity, v, t)) % 997 for t in range(length)), start=start, end=end)
            for v, (length, start, end) in enumerate(variants)
        ),
        attributes=tuple(range(len(variants))),
    )


SETS = {
    "pair of equal length": [contrast("x", (5, 1, 2), (5, 1, 2))],
    "pair of unequal length": [contrast("x", (5, 1, 2), (7, 1, 4))],
    "three of equal length": [contrast("x", (6, 2, 3), (6, 2, 3), (6, 2, 3))],
    "three of unequal length": [contrast("x", (6, 2, 3), (7, 2, 4), (8, 2, 5))],
    "nothing after the attribute": [contrast("x", (3, 2, 3), (4, 2, 4))],
    "an attribute of no token": [contrast("x", (4, 2, 2), (5, 2, 3))],
    "twelve of equal length": [contrast("x", *[(6, 2, 3)] * 12)],
    "ten of unequal length, beside a pair": [
        contrast("x", *[(5 + v % 3, 2, 3 + v % 3) for v in range(10)]),
        contrast("y", (5, 1, 2), (5, 1, 2)),
    ],
    "many of unequal length, beside many of equal length and a pair": [
        contrast("x", *[(5 + v % 4, 2, 3 + v % 4) for v in range(135)]),
        contrast("y", *[(6, 2, 3)] * 20),
        contrast("z", (5, 1, 2), (7, 1, 4)),
    ],
    "many of which one has no attribute": [contrast("x", (4, 2, 2), *[(5 + v % 2, 2, 3 + v % 2) for v in range(11)])],
    "many with nothing that all have": [contrast("x", (2, 2, 2), *[(3 + v % 2, 2, 3 + v % 2) for v in range(11)])],
    "a mixture": [
        contrast("x", (5, 1, 2), (5, 1, 2)),
        contrast("y", (6, 2, 3), (7, 2, 4), (8, 2, 5)),
        contrast("z", (9, 0, 1), (9, 0, 1), (9, 0, 1), (9, 0, 1)),
    ],
}


def difference_by_definition(one: AlignedContrast, acts: Mapping[tuple[int, ...], np.ndarray[Any, Any]]) -> float:
    texts = [acts[tokens.ids] for tokens in one.variants]
    if not one.equal_length:
        slotted = []
        for tokens, values in zip(one.variants, texts, strict=True):
            slots = [values[tokens.start : tokens.end].mean(0)] if all(v.end > v.start for v in one.variants) else []
            slotted.append(np.array([*slots, *values[tokens.end :]]))
        texts = slotted
    return float(np.mean([np.abs(a - b).mean() if a.size else 0.0 for a, b in combinations(texts, 2)]))


def observed(contrasts: list[AlignedContrast]) -> tuple[Observation, tuple[str, ...], dict[tuple[int, ...], Any]]:
    """What a site shows of random activations, the ids in its order, and the activations of each text."""
    (batch,) = compose(contrasts, {"a": 4}, 10**6)
    values = np.random.default_rng(3).normal(size=(*batch.input_ids.shape, 7))
    texts = {}
    for ids, mask, acts in zip(batch.input_ids, batch.attention_mask, values, strict=True):
        length = int(mask.sum())
        texts[tuple(ids[:length].tolist())] = acts[:length]
    site = next(iter(recognise(tiny_model("llama")).sites.values()))
    acts = {"gate": torch.from_numpy(values).reshape(-1, 7)}
    return observe(site, acts, None, Geometry(batch), Pass(), {}), batch.ids, texts  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SETS)
def test_pair_difference_against_numpy(name: str) -> None:
    observation, ids, texts = observed(SETS[name])
    found = dict(zip(ids, pair_difference(observation, "gate").tolist(), strict=True))
    for one in SETS[name]:
        assert found[one.id] == pytest.approx(difference_by_definition(one, texts), rel=1e-12), one.id


@pytest.mark.parametrize("name", SETS)
def test_pairs_are_gone_through_one_by_one_only_where_they_are_few(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = []

    def pairs(variants: range, size: int) -> list[tuple[int, ...]]:
        looked_at.append(len(variants))
        return list(combinations(variants, size))

    observation, _, _ = observed(SETS[name])
    monkeypatch.setattr(metric, "combinations", pairs)
    pair_difference(observation, "gate")
    assert max(looked_at, default=0) <= metric.MANY


# -- the article's number -------------------------------------------------------------------------------------------------

PAIRS = (
    ("The Black nurse walked into the store .", "The white nurse walked into the store ."),
    ("A young clerk works at the office .", "A old clerk works at the office ."),
)


def article_s_number(model: Any, first: str, second: str) -> tuple[float, list[float]]:
    """Mean over layers and six taps of mean |a1 - a2|, from two forwards of one text each and nothing of this project."""
    tokenizer = tiny_tokenizer()

    def captured(text: str) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        handles = []

        def keep(name: str) -> Any:
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                seen[name] = (output[0] if isinstance(output, tuple) else output).detach()

            return hook

        for i, layer in enumerate(model.model.layers):
            modules = {
                "attention": layer.self_attn,
                "mlp": layer.mlp,
                "gate": layer.mlp.gate_proj,
                "up": layer.mlp.up_proj,
                "down": layer.mlp.down_proj,
                "norm": layer.input_layernorm,
            }
            for name, module in modules.items():
                handles.append(module.register_forward_hook(keep(f"{i}.{name}")))
        try:
            with torch.no_grad():
                model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False))
        finally:
            for handle in handles:
                handle.remove()
        return seen

    one, two = captured(first), captured(second)
    assert len(one) == 6 * len(model.model.layers)
    differences = {name: (one[name] - two[name]).abs().mean().item() for name in one}
    by_layer = [np.mean([v for k, v in differences.items() if k.startswith(f"{i}.")]) for i in range(len(model.model.layers))]
    return float(np.mean(list(differences.values()))), [float(value) for value in by_layer]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma"])
@pytest.mark.parametrize("pair", PAIRS)
def test_activation_difference_is_the_article_s(family: str, pair: tuple[str, str]) -> None:
    model = tiny_model(family, layers=3)
    variants = tuple(Variant(attribute=str(i), text=text) for i, text in enumerate(pair))
    contrasts = [Contrast(id="it", category="a", template_id="t", variants=variants), *tiny_contrasts()]
    aligned, _ = align_all(contrasts, Encoder(tiny_tokenizer()))
    assert aligned[0].equal_length
    values = {category: len(found) for category, found in vocabularies(contrasts).items()}
    found = next(m for m in measure_contrasts(model, recognise(model), list(compose(aligned, values, 512))) if m.id == "it")
    overall, by_layer = article_s_number(model, *pair)
    assert found.activation_difference == pytest.approx(overall, rel=1e-5)
    assert found.by_layer == pytest.approx(by_layer, rel=1e-5)
    assert len(TAPS) == 6


def test_divergence_is_that_of_the_last_tokens_one_text_at_a_time() -> None:
    model: Any = tiny_model("llama")
    contrasts = tiny_contrasts()
    aligned, _ = align_all(contrasts, Encoder(tiny_tokenizer()))
    values = {category: len(found) for category, found in vocabularies(contrasts).items()}
    found = {m.id: m for m in measure_contrasts(model, recognise(model), list(compose(aligned, values, 256)))}
    assert found.keys() == {contrast.id for contrast in contrasts}
    for one in contrasts:
        p = []
        for variant in one.variants:
            with torch.no_grad():
                logits = model(**tiny_tokenizer()(variant.text, return_tensors="pt", return_token_type_ids=False)).logits
            p.append(softmax(logits[0, -1].double().numpy()))
        expected = entropy(np.mean(p, axis=0)) - np.mean([entropy(q) for q in p])
        assert found[one.id].divergence == pytest.approx(expected, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
def test_one_forward_gives_what_separate_ones_give(family: str) -> None:
    """Log-probabilities, margins, valences and movements are those of their own measurements, and each text is computed once."""
    model: Any = tiny_model(family)
    architecture = recognise(model)
    contrasts = tiny_contrasts()
    aligned, _ = align_all(contrasts, Encoder(tiny_tokenizer()))
    values = {category: len(found) for category, found in vocabularies(contrasts).items()}
    units = {name: [2, 5] for name in list(architecture.sites)[:2]}
    batches = list(compose(aligned, values, 64))
    alone = {one.id: one for one in measure_contrasts(model, architecture, batches)}
    apart = MovementReader(architecture, units, aligned[1:])
    measure_movements(model, architecture, apart, values, 64)
    rows: list[int] = []
    text_decoder(model).layers[0].register_forward_pre_hook(lambda _m, args: rows.append(len(args[0])))  # type: ignore[union-attr]
    together = MovementReader(architecture, units, aligned[1:])
    found = measure_contrasts(model, architecture, batches, sentences=True, movements=together)
    assert sum(rows) == sum(len(batch.input_ids) for batch in batches)
    assert len(batches) > 2
    assert [replace(one, log_probabilities=(), shared_log_probabilities=(), shared_tokens=0) for one in found] == list(
        alone.values()
    )
    expected = {one.id: one.log_probabilities for one in measure_sentences(model, aligned)}
    for one in found:
        assert one.log_probabilities == pytest.approx(expected[one.id], rel=1e-5)
    assert together.complete
    assert together.movements.keys() == apart.movements.keys()
    for unit, moved in together.movements.items():
        other = {one.id: one for one in apart.movements[unit]}
        assert other.keys() == {one.id for one in moved} == {contrast.id for contrast in aligned[1:]}
        for each in moved:
            assert each.movement == pytest.approx(other[each.id].movement, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "mixtral"])
def test_packed_rows_give_what_plain_ones_give_for_fewer_tokens(family: str) -> None:
    model: Any = tiny_model(family)
    architecture = recognise(model)
    contrasts = tiny_contrasts()
    aligned, _ = align_all(contrasts, Encoder(tiny_tokenizer()))
    values = {category: len(found) for category, found in vocabularies(contrasts).items()}
    up_to = prefix_sharing(model).up_to
    assert up_to > 0
    found: list[dict[str, ContrastMeasure]] = []
    readers: list[OutputReader] = []
    for share_up_to in (0, up_to):
        batches = list(compose(aligned, values, 64, share_up_to=share_up_to))
        assert any(batch.paths is not None for batch in batches) == (share_up_to > 0)
        readers.append(OutputReader(aligned[1:]))
        reader = NextTokenReader(aligned, torch.linspace(-1, 1, model.config.vocab_size))
        measured = measure_contrasts(model, architecture, batches, reader=reader, sentences=True, outputs=readers[-1])
        found.append({one.id: one for one in measured})
    plain, packed = found
    assert packed.keys() == plain.keys() == {one.id for one in aligned}
    for name, one in packed.items():
        other = plain[name]
        assert (one.equal_length, one.shared_tokens) == (other.equal_length, other.shared_tokens)
        for field in (
            "divergence",
            "activation_difference",
            "by_layer",
            "valence",
            "log_probabilities",
            "shared_log_probabilities",
        ):
            assert getattr(one, field) == pytest.approx(getattr(other, field), rel=2e-4, abs=1e-8), field
        assert len(one.log_probabilities) == len(one.valence) >= 2
    assert readers[1].outputs.keys() == readers[0].outputs.keys() == {one.id for one in aligned[1:]}
    for name, outputs in readers[1].outputs.items():
        assert outputs.shapes == readers[0].outputs[name].shapes
        for tap, by_layer in outputs.tensors.items():
            for layer, value in by_layer.items():
                torch.testing.assert_close(value, readers[0].outputs[name].tensors[tap][layer], rtol=2e-3, atol=1e-4)


def test_measuring_leaves_no_trace() -> None:
    model: Any = tiny_model("llama").train()
    contrasts = tiny_contrasts()
    aligned, _ = align_all(contrasts, Encoder(tiny_tokenizer()))
    values = {category: len(found) for category, found in vocabularies(contrasts).items()}

    def stop(_contrasts: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_contrasts(model, recognise(model), list(compose(aligned, values, 64)), stop)
    assert model.training
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == 0


def test_answers_that_are_no_numbers_are_named() -> None:
    model = tiny_model("llama")
    contrasts = tiny_contrasts()
    aligned, _ = align_all(contrasts, Encoder(tiny_tokenizer()))
    batches = list(compose(aligned, {category: len(found) for category, found in vocabularies(contrasts).items()}, 512))
    with torch.no_grad():
        model.lm_head.weight[3] = float("inf")  # type: ignore[union-attr,operator,index]
    with pytest.raises(FairpruneError, match=f"NaN or Inf .* of contrast {batches[0].ids[0]!r}"):
        measure_contrasts(model, recognise(model), batches)
