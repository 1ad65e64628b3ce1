"""Passes that share a forward: as many forwards as micro-batches, and the sums of passes of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fairprune_framework.api.interfaces import Observation, Pass, Statistic
from fairprune_framework.api.objectives import NegativeLogLikelihood, NextTokenDivergence, RecallLoss
from fairprune_framework.api.statistics import RecallSlopes, SquareSum
from fairprune_framework.auditing.audit import audit
from fairprune_framework.auditing.batches import batch_specs
from fairprune_framework.auditing.demand import Demand, streams_of
from fairprune_framework.auditing.merging import Merged, members_of, merged
from fairprune_framework.auditing.statistics import Statistics
from fairprune_framework.calibration.text import Calibration
from fairprune_framework.contrasts.alignment import align_all, vocabularies
from fairprune_framework.discovery import build
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.models.work import Ledger
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_model, tiny_tokenizer

LOSS = Pass(stream="calibration", objective=NegativeLogLikelihood(), logits="all")
RECALL = Pass(stream="calibration", objective=RecallLoss(), logits="all")
TEXT = Pass(stream="calibration")


@dataclass(frozen=True, kw_only=True)
class MeanInput(Statistic):
    """Mean activation of the input of the MLP and of the neurons: a forward alone."""

    name: str = "mean-input"
    taps: frozenset[Any] = frozenset({"neuron", "mlp_input"})

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        assert not obs.grads
        assert obs.objective is None
        return {tap: obs.acts[tap].double().sum((1, 2)).unsqueeze(1) for tap in ("neuron", "mlp_input")}


def test_passes_that_scale_alike_over_one_stream_are_one() -> None:
    divergence, scaled = Pass(objective=NextTokenDivergence()), Pass(objective=NextTokenDivergence(), scale=0.5)
    found = merged([TEXT, divergence, LOSS, scaled, RECALL, LOSS])
    assert [members_of(each) for each in found] == [(LOSS, RECALL, TEXT), (divergence,), (scaled,)]
    assert isinstance(found[0], Merged)
    assert (found[0].stream, found[0].logits, found[0].objective) == ("calibration", "all", LOSS.objective)


DOCUMENTS = [tuple(torch.randint(3, 90, (24,), generator=torch.Generator().manual_seed(i)).tolist()) for i in range(6)]
CALIBRATION = Calibration(documents=tuple(each + each[:8] for one in DOCUMENTS for each in (one, one)), source="test")


def summed(statistics: Sequence[Statistic]) -> tuple[Statistics, Ledger]:
    """The sums of an audit of a tiny model, and what it computed."""
    contrasts = tiny_contrasts()
    aligned, _ = align_all(contrasts, Encoder(tiny_tokenizer()))
    values = {category: len(names) for category, names in vocabularies(contrasts).items()}
    model: Any = tiny_model("llama")
    ledger = Ledger()
    demand = Demand(statistics=tuple(statistics), streams=streams_of(statistics, 2), weights=False)
    with ledger.watching(model, "tiny"):
        found, _ = audit(model, recognise(model), aligned, values, demand, calibration=CALIBRATION, micro_batch_tokens=64)
    return found, ledger


@pytest.mark.parametrize(
    "together",
    [
        [*build("importance", "taylor", {"labels": "model"}).needs().statistics, RecallSlopes(), SquareSum()],
        [*build("bias", "attribution", {"objective": "both"}).needs().statistics, MeanInput()],
    ],
    ids=["of text", "of contrasts"],
)
def test_each_has_the_sums_of_a_pass_of_its_own(together: Sequence[Statistic]) -> None:
    found, work = summed(together)
    _, of_one = summed(together[:1])
    assert work.forwards == of_one.forwards, "a forward of its own for some pass"
    for statistic in together:
        alone, _ = summed([statistic])
        keys = [key for key in alone.sums if f"/{statistic.name}." in key]
        assert keys
        for key in keys:
            assert float(alone.sums[key].abs().max()) > 0
            torch.testing.assert_close(found.sums[key], alone.sums[key], rtol=2e-5, atol=1e-9, msg=key)
    assert found.counts == alone.counts


def test_objectives_of_text_keep_the_bits_of_passes_of_their_own() -> None:
    taylor, recall = build("importance", "taylor", {"labels": "model"}).needs().statistics[0], RecallSlopes()
    found, work = summed([taylor, recall])
    for statistic in (taylor, recall):
        alone, of_one = summed([statistic])
        assert work.backward_tokens == 2 * of_one.backward_tokens
        for key in alone.sums:
            assert torch.equal(found.sums[key], alone.sums[key]), key


def test_the_composition_is_that_of_passes_of_their_own() -> None:
    window, (both,) = CALIBRATION.as_contrasts(), merged([LOSS, RECALL])
    contents = [[spec.content for spec in batch_specs(window, 64, pass_)] for pass_ in (both, LOSS, RECALL)]
    assert contents[0] == [one + two for one, two in zip(*contents[1:], strict=True)]
    assert not set(contents[1]) & set(contents[2])


def test_each_contrast_is_counted_once() -> None:
    found, _ = summed([*build("bias", "attribution", {"objective": "both"}).needs().statistics, MeanInput()])
    assert found.counts["contrasts"] == (4, 6, 2)
