"""Plugins that know nothing of each other, and name their statistics alike, are each given their own sums from one audit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fairprune_framework.api import BiasScorer, ImportanceScorer, Needs, Observation, Pass, SiteContext, Statistic
from fairprune_framework.auditing.audit import audit
from fairprune_framework.auditing.demand import Demand
from fairprune_framework.calibration.text import Calibration
from fairprune_framework.contrasts.alignment import align_all, vocabularies
from fairprune_framework.errors import FairpruneError
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.selection.scoring import score
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_model, tiny_tokenizer


def scorer(factor: float) -> BiasScorer:
    """A scorer with a statistic `deviation`, as a distribution of its own would hold one."""

    @dataclass(frozen=True, kw_only=True)
    class Deviation(Statistic):
        name: str = "deviation"

        def summands(self, obs: Observation) -> Mapping[str, Tensor]:
            return {"mean": factor * torch.ones_like(obs.aligned["neuron"][:, 0, :1])}

    Deviation.__module__ = f"package_{factor:g}"

    @dataclass(frozen=True, kw_only=True)
    class Scorer(BiasScorer):
        """A multiple of the number of contrasts."""

        def needs(self) -> Needs:
            return Needs(statistics=(Deviation(),))

        def score(self, at: SiteContext) -> Tensor:
            return at.sums["deviation.mean"][0]

    return Scorer()


@dataclass(frozen=True, kw_only=True)
class Text(Statistic):
    """The same name once more, over text."""

    name: str = "deviation"

    def passes(self, layers: int) -> tuple[Pass, ...]:
        return (Pass(stream="calibration"),)

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        return {"mean": 7 * torch.ones_like(obs.acts["neuron"][:, 0, :1]).double()}


@dataclass(frozen=True, kw_only=True)
class Important(ImportanceScorer):
    """Seven for each document."""

    def needs(self) -> Needs:
        return Needs(statistics=(Text(),))

    def score(self, at: SiteContext) -> Tensor:
        return at.sums["deviation.mean"][0]


@dataclass(frozen=True, kw_only=True)
class Thief(BiasScorer):
    """Reads what it did not ask for."""

    def score(self, at: SiteContext) -> Tensor:
        return at.sums["deviation.mean"][0]


def test_each_plugin_is_given_its_own_sums() -> None:
    model = tiny_model("llama")
    architecture = recognise(model)
    contrasts = [contrast for contrast in tiny_contrasts() if not contrast.control]
    aligned, _ = align_all(contrasts, Encoder(tiny_tokenizer()))
    values = {category: len(names) for category, names in vocabularies(contrasts).items()}
    once, thrice = scorer(1), scorer(3)
    text = Calibration(documents=tuple(tuple(range(5, 12)) for _ in range(4)), source="test")
    statistics, _ = audit(
        model, architecture, aligned, values, Demand.of([once, thrice, Important()], 2), calibration=text, accelerator="cpu"
    )

    def scored(bias: BiasScorer) -> tuple[Tensor, Tensor]:
        found = score(statistics, model, architecture, bias, Important(), ("a", "b"))
        return found.bias["model.layers.0.mlp"], found.importance["model.layers.0.mlp"]

    one, important = scored(once)
    three, _ = scored(thrice)
    assert one.min() > 0
    assert three.equal(3 * one)
    assert important.tolist() == [7.0 * len(text.scoring)] * 48
    with pytest.raises(FairpruneError, match=r"no sums 'deviation.mean' of the stream 'contrasts'; available: none"):
        scored(Thief())
