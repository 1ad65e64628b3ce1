"""What a micro-batch adds is pending until all of it has been computed; then it enters the sums at once, or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fairprune_framework.api import slot_means, value_counts, value_sums
from fairprune_framework.api.interfaces import Observation, Statistic, ValueSums
from fairprune_framework.api.types import Site
from fairprune_framework.auditing.accumulation import Accumulator
from fairprune_framework.auditing.batches import compose
from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.contrasts.alignment import AlignedContrast, Tokens
from fairprune_framework.errors import FairpruneError

UNITS = 3
SITE = Site(
    name="layers.0.mlp", layer=0, units=UNITS, taps=frozenset({"neuron"}), slices=(), config_fields={}, width_group="all"
)


@dataclass(frozen=True, kw_only=True)
class FirstTokens(Statistic):
    """Sum over variants of the neurons at the first token."""

    name: str = "first-tokens"

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        return {"x": obs.acts["neuron"][:, :, 0].double().sum(1, keepdim=True)}


def contrast(i: int, category: str) -> AlignedContrast:
    variants = tuple(Tokens(ids=(v, i, 5), start=0, end=1) for v in (1, 2))
    return AlignedContrast(
        id=f"c{i}", category=category, template_id=f"t{i}", control=False, split=None, variants=variants, attributes=(0, 1)
    )


def batch_of(categories: Sequence[str]) -> MicroBatch:
    contrasts = [contrast(i, category) for i, category in enumerate(categories)]
    (batch,) = compose(contrasts, dict.fromkeys(categories, 2), 4096)
    return batch


@dataclass(frozen=True, kw_only=True)
class Leaving(FirstTokens):
    """Talks, and raises."""

    raised: BaseException | None = None

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        print("goodbye")
        if self.raised is not None:
            raise self.raised
        return super().summands(obs)


def accumulator(clusters: int = 1, statistic: Statistic | None = None) -> Accumulator:
    return Accumulator(
        model=nn.Identity(),
        statistics=[statistic or FirstTokens()],
        layers=1,
        categories={"contrasts": ["a", "b"]},
        clusters=clusters,
    )


def shown(batch: MicroBatch, seed: int = 0) -> Tensor:
    return torch.rand((batch.input_ids.numel(), UNITS), generator=torch.Generator().manual_seed(seed))


def by_hand(batch: MicroBatch, values_MK: Tensor) -> np.ndarray:
    """(G, K): first tokens of both variants of each contrast, by category."""
    rows = values_MK.double().numpy().reshape(*batch.input_ids.shape, UNITS)
    found = np.zeros((2, UNITS))
    for c, category in enumerate(batch.categories):
        found["ab".index(category)] += rows[batch.text[c].numpy(), 0].sum(0)
    return found


KEY = "contrasts/layers.0.mlp/first-tokens.x"


def test_nothing_is_summed_before_the_batch_is_whole() -> None:
    batch, sums = batch_of("aba"), accumulator()
    sums.start(batch)
    sums.add(SITE, {"neuron": shown(batch)}, {}, None)
    assert not sums.sums.words()
    assert sums.counts["contrasts"] == [0, 0]
    sums.commit(batch)
    np.testing.assert_allclose(sums.sums.totals()[KEY][:, 0].numpy(), by_hand(batch, shown(batch)), rtol=1e-12)
    assert sums.counts["contrasts"] == [2, 1]
    assert sums.geometry is None


def test_a_batch_that_is_given_up_leaves_no_trace() -> None:
    sums = accumulator()
    for batch, whole in ((batch_of("ab"), True), (batch_of("bbb"), False), (batch_of("ba"), True)):
        sums.start(batch)
        sums.add(SITE, {"neuron": shown(batch)}, {}, None)
        if whole:
            sums.commit(batch)
        else:
            sums.discard()
    wanted = sum(by_hand(batch_of(kept), shown(batch_of(kept))) for kept in ("ab", "ba"))
    np.testing.assert_allclose(sums.sums.totals()[KEY][:, 0].numpy(), wanted, rtol=1e-12)
    assert sums.counts["contrasts"] == [2, 2]


def test_a_half_that_failed_is_taken_back() -> None:
    batch, sums = batch_of("abab"), accumulator()
    first, second = batch.halves()
    sums.start(batch)
    sums.look_at(first)
    sums.add(SITE, {"neuron": shown(first)}, {}, None)
    before = sums.pending()
    sums.look_at(second)
    sums.add(SITE, {"neuron": shown(second, 1)}, {}, None)
    sums.go_back(before)
    sums.look_at(second)
    sums.add(SITE, {"neuron": shown(second, 2)}, {}, None)
    sums.commit(batch)
    wanted = by_hand(first, shown(first)) + by_hand(second, shown(second, 2))
    np.testing.assert_allclose(sums.sums.totals()[KEY][:, 0].numpy(), wanted, rtol=1e-12)
    assert sums.counts["contrasts"] == [2, 2]


def test_clusters_add_up_to_their_category() -> None:
    batch, apart, together = batch_of("abba"), accumulator(clusters=8), accumulator()
    for sums in (apart, together):
        sums.start(batch)
        sums.add(SITE, {"neuron": shown(batch)}, {}, None)
        sums.commit(batch)
    clustered, plain = apart.result(""), together.result("")
    np.testing.assert_allclose(clustered.clustered[KEY].sum(1).numpy(), plain.sums[KEY].numpy(), rtol=1e-12)
    assert clustered.counts == plain.counts


def test_the_contrast_behind_a_nan_is_named() -> None:
    batch, sums = batch_of("ab"), accumulator()
    values = shown(batch).view(*batch.input_ids.shape, UNITS)
    values[batch.text[1, 0], 0, 2] = float("nan")
    sums.start(batch)
    with pytest.raises(FairpruneError, match=f"'first-tokens.x' of site layers.0.mlp at contrast '{batch.ids[1]}'"):
        sums.add(SITE, {"neuron": values.flatten(0, 1)}, {}, None)


def test_what_a_statistic_prints_is_no_part_of_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    batch, sums = batch_of("ab"), accumulator(statistic=Leaving())
    sums.start(batch)
    sums.add(SITE, {"neuron": shown(batch)}, {}, None)
    out, err = capsys.readouterr()
    assert (out, set(err.split())) == ("", {"goodbye"})
    sums.commit(batch)
    np.testing.assert_allclose(sums.sums.totals()[KEY][:, 0].numpy(), by_hand(batch, shown(batch)), rtol=1e-12)


@pytest.mark.parametrize(
    ("raised", "seen", "words"),
    [
        (SystemExit(5), FairpruneError, "statistic 'first-tokens' raised SystemExit: 5"),
        (KeyboardInterrupt("now"), KeyboardInterrupt, "now"),
    ],
)
def test_a_statistic_does_not_end_the_command(raised: BaseException, seen: type[BaseException], words: str) -> None:
    batch, sums = batch_of("ab"), accumulator(statistic=Leaving(raised=raised))
    sums.start(batch)
    with pytest.raises(seen, match=words):
        sums.add(SITE, {"neuron": shown(batch)}, {}, None)
    assert sums.whole


def test_a_category_that_was_not_set() -> None:
    with pytest.raises(FairpruneError, match="category 'c', which is not among the categories set: a, b"):
        accumulator().start(batch_of("ac"))


@dataclass(frozen=True, kw_only=True)
class OfValues(Statistic):
    """Sums by attribute value, as the core adds them up and spread out by the statistic itself."""

    name: str = "of-values"

    def summands(self, obs: Observation) -> Mapping[str, Tensor | ValueSums]:
        sums = value_sums(obs, slot_means(obs))
        return {"lazy": sums, "spread": sums.spread(), "count": value_counts(obs)}


@pytest.mark.parametrize("in_parts", [None, False])
@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize("clusters", [1, 4])
@pytest.mark.parametrize("halves", [False, True])
def test_sums_by_attribute_value_are_as_those_of_spread_rows(
    in_parts: bool | None, routed: bool, clusters: int, halves: bool
) -> None:
    """And as those by hand; of contrasts of two and of three variants, some of whose values occur in no contrast of the batch."""
    variants = [((0, 3), "a"), ((3, 1, 0), "b"), ((1, 3), "b"), ((0, 1, 3), "a"), ((3, 0), "a")]
    contrasts = [
        replace(
            contrast(i, category),
            variants=tuple(Tokens(ids=(v + 1, i, 5), start=0, end=1) for v in range(len(attributes))),
            attributes=attributes,
        )
        for i, (attributes, category) in enumerate(variants)
    ]
    sums = Accumulator(
        model=nn.Identity(), statistics=[OfValues()], layers=1, categories={"contrasts": ["a", "b"]}, clusters=clusters
    )
    sums.in_parts = in_parts
    expected = np.zeros((2, 5, UNITS))
    for chosen in (contrasts, contrasts[:2], contrasts[3:]):
        (batch,) = compose(chosen, {"a": 5, "b": 5}, 4096)
        sums.start(batch)
        for part in batch.halves() if halves else [batch]:
            sums.look_at(part)
            values_MK = shown(part)
            rows = torch.arange(part.input_ids.numel()) if routed else None
            sums.add(SITE, {"neuron": values_MK}, {}, rows)
            by_text = values_MK.double().numpy().reshape(*part.input_ids.shape, UNITS)
            for c, category in enumerate(part.categories):
                for v, value in enumerate(part.attribute[c].tolist()):
                    if value >= 0:
                        expected["ab".index(category), value] += by_text[int(part.text[c, v])].mean(0)
        sums.commit(batch)
    found = {key.rpartition(".")[2]: value for key, value in sums.sums.totals().items()}
    lazy, spread = (found[name].reshape(2, clusters, 5, UNITS).sum(1).numpy() for name in ("lazy", "spread"))
    np.testing.assert_allclose(lazy, expected, rtol=1e-12)
    np.testing.assert_allclose(spread, expected, rtol=1e-12)
    assert found["count"].sum() == sum(len(each) for each, _ in variants) + 5 + 5
