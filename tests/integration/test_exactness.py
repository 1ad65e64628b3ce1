"""What may change a number and what may not, in one process: order, padding, batch size, threads; and numpy as the judge."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fairprune_framework.auditing.batches import compose, composition_hash
from fairprune_framework.auditing.callback import ActivationStatisticsCallback
from fairprune_framework.auditing.demand import selecting
from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.auditing.prefix_sharing import prefix_sharing
from fairprune_framework.auditing.runner import stream
from fairprune_framework.auditing.statistics import Statistics
from fairprune_framework.contrasts.alignment import AlignedContrast, align_all, vocabularies
from fairprune_framework.contrasts.schema import Contrast, Variant
from fairprune_framework.discovery import build
from fairprune_framework.models.architecture import Architecture, recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_model, tiny_tokenizer

NAMES = ("Black", "white", "Asian", "Latino", "Arab", "Native American")
FRAMES = (
    "The {} nurse walked into the store .",
    "A {} man was waiting at the door of the office late at night .",
    "They are {}",
    "She asked the {} lawyer for help because the loan was bad .",
    "{} people are usually good friends .",
)


def many() -> list[Contrast]:
    """Contrasts of all lengths, of which many share texts: every pair of names in every frame, and the tiny ones."""
    found = list(tiny_contrasts())
    for t, frame in enumerate(FRAMES):
        for i, first in enumerate(NAMES):
            for second in NAMES[i + 1 :]:
                variants = tuple(Variant(attribute=name, text=frame.format(name)) for name in (first, second))
                found.append(
                    Contrast(
                        id=f"{t}-{first}-{second}", category="pairs", template_id=f"f{t}", split="select", variants=variants
                    )
                )
    return found


class Audit:
    """Contrasts under a model, ready to be streamed in any way."""

    def __init__(self, family: str = "llama", **options: Any) -> None:
        self.model: Any = tiny_model(family, **options)
        self.architecture: Architecture = recognise(self.model)
        contrasts = many()
        aligned, _ = align_all(contrasts, Encoder(tiny_tokenizer()))
        self.contrasts: list[AlignedContrast] = selecting(aligned)
        self.values = {category: len(names) for category, names in vocabularies(contrasts).items()}

    def batches(self, tokens: int = 128, contrasts: Sequence[AlignedContrast] | None = None) -> list[MicroBatch]:
        return list(compose(self.contrasts if contrasts is None else contrasts, self.values, tokens))

    def run(self, batches: Sequence[MicroBatch]) -> Statistics:
        statistics = [*build("bias", "variance").needs().statistics, *build("bias", "gate-up-difference").needs().statistics]
        callback = ActivationStatisticsCallback(
            model=self.model,
            adapter=self.architecture.adapter,
            sites=list(self.architecture.sites.values()),
            statistics=statistics,
            categories={"contrasts": sorted(self.values)},
        )
        stream(self.model, batches, [callback], "cpu")
        return callback.result(composition_hash(batches))


@pytest.fixture(scope="module")
def audit() -> Audit:
    return Audit()


def variances(statistics: Statistics) -> dict[str, Tensor]:
    """site -> (G, N): summed variance."""
    return {key.split("/")[1]: value[:, 0] for key, value in statistics.sums.items() if key.endswith("contrast-variance.mean")}


def overlap(a: Statistics, b: Statistics, share: float = 0.25) -> float:
    """Share of the neurons that a selection by variance has in common."""
    one, two = variances(a), variances(b)
    same = total = 0
    for site in one:
        count = int(share * one[site].shape[1])
        first, second = (set(v[site].sum(0).topk(count).indices.tolist()) for v in (one, two))
        same, total = same + len(first & second), total + count
    return same / total


def assert_close(a: Statistics, b: Statistics, relative: float = 1e-4) -> None:
    one, two = variances(a), variances(b)
    for site in one:
        assert torch.allclose(one[site], two[site], rtol=relative, atol=0), site
    assert overlap(a, b) >= 0.99


# -- bit-equal -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_order_of_micro_batches_changes_no_bit(audit: Audit, seed: int) -> None:
    batches = audit.batches(32)
    assert len(batches) > 12
    shuffled = random.Random(seed).sample(batches, len(batches))
    first, second = audit.run(batches), audit.run(shuffled)
    assert first.sums.keys() == second.sums.keys()
    for key, value in first.sums.items():
        assert torch.equal(value, second.sums[key]), key


def test_the_same_audit_again_is_bit_equal(audit: Audit) -> None:
    first, second = (audit.run(audit.batches()) for _ in range(2))
    assert all(torch.equal(value, second.sums[key]) for key, value in first.sums.items())


# -- close -----------------------------------------------------------------------------------------------------------------


def test_batch_size_changes_noise_alone(audit: Audit) -> None:
    small, large = audit.batches(64), audit.batches(4096)
    assert len(small) > 3 * len(large)
    assert_close(audit.run(small), audit.run(large))


def test_padding_changes_noise_alone(audit: Audit) -> None:
    def wider(batch: MicroBatch) -> MicroBatch:
        wide = copy.copy(batch)
        for name, fill in (("input_ids", 7), ("attention_mask", 0)):  # 7: any token will do, it is masked
            value = getattr(batch, name)
            more = torch.full((value.shape[0], 9), fill, dtype=value.dtype)
            setattr(wide, name, torch.cat([value, more], 1))
        return wide

    batches = audit.batches()
    assert_close(audit.run(batches), audit.run([wider(batch) for batch in batches]))


def test_thread_count_changes_noise_alone(audit: Audit) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = audit.run(audit.batches())
        torch.set_num_threads(2)
        two = audit.run(audit.batches())
    finally:
        torch.set_num_threads(before)
    assert_close(one, two)


def test_order_of_the_prompt_set_changes_noise_alone(audit: Audit) -> None:
    shuffled = random.Random(0).sample(audit.contrasts, len(audit.contrasts))
    assert_close(audit.run(audit.batches()), audit.run(audit.batches(contrasts=shuffled)))


# -- against numpy, on activations that plain hooks took in the same run -------------------------------------------------------


class Recorder:
    """Plain hooks beside the audit's: the input of every down_proj, one array a batch."""

    def __init__(self, model: Any) -> None:
        self.seen: dict[str, list[np.ndarray[Any, Any]]] = {}
        self.handles = []
        for name, module in model.named_modules():
            if name.endswith("mlp.down_proj"):
                self.handles.append(module.register_forward_pre_hook(self._take(name.removesuffix(".down_proj"))))

    def _take(self, site: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.seen.setdefault(site, []).append(args[0].detach().clone().numpy())

        return hook

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


@pytest.fixture(scope="module")
def recorded(audit: Audit) -> tuple[list[MicroBatch], Statistics, dict[str, list[np.ndarray[Any, Any]]]]:
    batches = audit.batches()
    recorder = Recorder(audit.model)
    try:
        statistics = audit.run(batches)
    finally:
        recorder.close()
    return batches, statistics, recorder.seen


def test_streaming_variance_is_numpys(audit: Audit, recorded: Any) -> None:
    """An implementation of its own from the definition in the design: slots, pooled attribute, population variance."""
    batches, statistics, seen = recorded
    contrasts = {contrast.id: contrast for contrast in audit.contrasts}
    groups = {category: i for i, category in enumerate(statistics.categories)}
    for site, arrays in seen.items():
        units = arrays[0].shape[2]
        expected = np.zeros((len(groups), 2, units))
        for batch, acts in zip(batches, arrays, strict=True):
            rows = [
                tuple(ids[: int(mask.sum())].tolist()) for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
            ]
            for identity in batch.ids:
                contrast = contrasts[identity]
                slots: list[np.ndarray[Any, Any]] = []  # (V, N) each
                texts = [acts[rows.index(v.ids)].astype(np.float64) for v in contrast.variants]
                if all(v.end > v.start for v in contrast.variants):
                    slots.append(np.stack([a[v.start : v.end].mean(0) for a, v in zip(texts, contrast.variants, strict=True)]))
                for back in range(contrast.suffix, 0, -1):
                    slots.append(np.stack([a[len(v.ids) - back] for a, v in zip(texts, contrast.variants, strict=True)]))
                group = groups[contrast.category]
                expected[group, 0] += np.mean([np.var(slot, axis=0) for slot in slots], axis=0)
                expected[group, 1] += 1
        found, seen = (statistics.sums[f"contrasts/{site}/contrast-variance.{name}"].numpy() for name in ("mean", "seen"))
        np.testing.assert_allclose(found[:, 0], expected[:, 0], rtol=2e-6, atol=0)  # float32 within a contrast
        np.testing.assert_array_equal(seen[:, 0], expected[:, 1, :1])


def test_activations_in_batches_are_those_of_texts_alone(audit: Audit, recorded: Any) -> None:
    batches, _, seen = recorded
    recorder = Recorder(audit.model)
    try:
        for batch in batches:
            for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
                with torch.no_grad():
                    audit.model(input_ids=ids[: int(mask.sum())].unsqueeze(0), use_cache=False)
    finally:
        recorder.close()
    for site, arrays in seen.items():
        alone = iter(recorder.seen[site])
        rms = np.sqrt(np.mean(np.concatenate([a.reshape(-1) for a in arrays]).astype(np.float64) ** 2))
        for batch, acts in zip(batches, arrays, strict=True):
            for row, mask in zip(acts, batch.attention_mask, strict=True):
                single = next(alone)[0]
                assert np.abs(row[: int(mask.sum())] - single).max() < 1e-3 * rms


# -- composition and sharing of texts -------------------------------------------------------------------------------------


def test_composition_is_a_function_of_contrasts_and_budget(audit: Audit) -> None:
    hashes = {tokens: composition_hash(audit.batches(tokens)) for tokens in (64, 128, 4096)}
    assert len(set(hashes.values())) == 3
    again, _ = align_all(many(), Encoder(tiny_tokenizer()))
    assert composition_hash(audit.batches(128, selecting(again))) == hashes[128]


def test_composition_stands_in_run_json(finished: Path, prompts: Path, llama: Path) -> None:
    from fairprune_framework.contrasts.readers import read
    from fairprune_framework.models.loading import load_tokenizer

    contrasts = read(prompts).contrasts
    aligned, _ = align_all(contrasts, Encoder(load_tokenizer(str(llama))))
    values = {category: len(names) for category, names in vocabularies(contrasts).items()}
    shared = prefix_sharing(tiny_model("llama")).up_to
    expected = composition_hash(compose(selecting(aligned), values, 512, share_up_to=shared))
    assert json.loads((finished / "run.json").read_text())["hashes"]["composition"] == expected


def test_each_text_is_computed_once_in_a_micro_batch(audit: Audit) -> None:
    seen = 0
    for batch in audit.batches(512):
        rows = [tuple(ids[: int(mask.sum())].tolist()) for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
        assert len(rows) == len(set(rows))
        assert set(batch.text[batch.present].tolist()) == set(range(len(rows)))
        seen += len(rows)
    texts = sum(len(contrast.variants) for contrast in audit.contrasts)
    distinct = len({tokens.ids for contrast in audit.contrasts for tokens in contrast.variants})
    assert seen < 0.6 * texts
    assert seen >= distinct


def test_sharing_texts_changes_noise_alone(audit: Audit) -> None:
    """One contrast a micro-batch shares nothing; the sums must be the same."""
    alone = [batch for contrast in audit.contrasts for batch in audit.batches(512, [contrast])]
    assert len(alone) == len(audit.contrasts)
    assert_close(audit.run(audit.batches(512)), audit.run(alone))


def test_a_set_of_one_category_and_one_contrast(audit: Audit) -> None:
    """torchmetrics squeezes what has one element; the count of one category must keep its axes."""
    one = [contrast for contrast in audit.contrasts if contrast.category == "pairs"][:1]
    callback = ActivationStatisticsCallback(
        model=audit.model,
        adapter=audit.architecture.adapter,
        sites=list(audit.architecture.sites.values()),
        statistics=build("bias", "variance").needs().statistics,
        categories={"contrasts": ["pairs"]},
    )
    stream(audit.model, audit.batches(64, one), [callback], "cpu")
    result = callback.result("")
    assert {value.ndim for value in result.sums.values()} == {3}
    assert all(result.observed("contrasts", site, 0) == 1 for site in audit.architecture.sites)
