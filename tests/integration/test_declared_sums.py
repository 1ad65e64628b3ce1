"""Whatever a plugin of any kind declares is audited and handed to it; what it did not declare is a KeyError that lists what there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from fairprune_framework.api import (
    BiasScorer,
    Budget,
    Choice,
    ImportanceScorer,
    Needs,
    Observation,
    Pass,
    PolicyContext,
    Scores,
    SelectionPolicy,
    SiteContext,
    Statistic,
)
from fairprune_framework.pipeline import run_stages
from fairprune_framework.runs.open import open_run
from fairprune_framework.selection.decide import plan_of, scores_of
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_legitimate, tiny_model, tiny_tokenizer

STREAMS: tuple[Any, ...] = ("contrasts", "controls", "legitimate", "calibration")
SEEN: dict[str, dict[str, Any]] = {}
"""Kind -> stream -> what a plugin of that kind was given."""


@dataclass(frozen=True, kw_only=True)
class Ones(Statistic):
    """1 for each contrast or document of the streams that it listens to."""

    name: str = "ones"
    over: tuple[Any, ...] = STREAMS

    def passes(self, layers: int) -> Sequence[Pass]:
        return tuple(Pass(stream=stream) for stream in self.over)

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        return {"count": torch.ones((len(obs.mask), 1, obs.acts["neuron"].shape[-1]), dtype=torch.float64)}


def look(kind: str, at: SiteContext, over: tuple[Any, ...]) -> Tensor:
    found: dict[str, Any] = {}
    for stream in STREAMS:
        try:
            given = at.of(stream)
            found[stream] = (float(given.sums["ones.count"].max()), given.count)
        except KeyError as error:
            found[stream] = str(error)
    SEEN[kind] = found
    return torch.arange(1, at.site.units + 1, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Asking:
    """What the three kinds declare alike."""

    over: tuple[Any, ...] = STREAMS

    def needs(self) -> Needs:
        return Needs(statistics=(Ones(over=self.over, name="ones"),))


@dataclass(frozen=True, kw_only=True)
class Bias(Asking, BiasScorer):
    def score(self, at: SiteContext) -> Tensor:
        return look("bias", at, self.over)


@dataclass(frozen=True, kw_only=True)
class Importance(Asking, ImportanceScorer):
    def score(self, at: SiteContext) -> Tensor:
        return look("importance", at, self.over)


@dataclass(frozen=True, kw_only=True)
class Policy(Asking, SelectionPolicy):
    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        look("policy", context.at(next(iter(scores.sites))), self.over)
        return Choice(units={}, reason="looked")


@pytest.fixture(scope="module")
def base() -> Any:
    every = [*tiny_contrasts(), *tiny_legitimate()]
    options = {"budget": "2/layer", "calibration_documents": 4, "calibration_tokens": 16}
    return lambda: open_run(
        None, options, recipe="variance", model=tiny_model("llama"), tokenizer=tiny_tokenizer(), prompts=every
    )


def given(base: Any, **over: tuple[Any, ...]) -> Any:
    """What each kind was given, of what it declared."""
    SEEN.clear()
    run = base()
    made = {"bias": Bias, "importance": Importance, "policy": Policy}
    run.plugins.__dict__.update({kind: cls(over=over.get(kind, ())) for kind, cls in made.items()})  # in place of the recipe's
    run_stages(run, "read", "audit")
    scores = scores_of(run.selection)
    assert plan_of(run.selection, scores).reason == "looked"
    return run.read_statistics()


@pytest.mark.parametrize("kind", ["bias", "importance", "policy"])
def test_every_stream_reaches_every_kind(kind: str, base: Any) -> None:
    statistics = given(base, **{kind: STREAMS})
    for stream in STREAMS:
        count = statistics.count(stream, None)
        assert SEEN[kind][stream] == (count, count)
        assert count > 0


@pytest.mark.parametrize("kind", ["bias", "importance", "policy"])
@pytest.mark.parametrize("stream", STREAMS)
def test_one_stream_alone(kind: str, stream: Any, base: Any) -> None:
    """Beside plugins of the other kinds that declare all: nobody is given what another one declared."""
    others = dict.fromkeys(("bias", "importance", "policy"), STREAMS)
    statistics = given(base, **(others | {kind: (stream,)}))
    for each in STREAMS:
        count = statistics.count(each, None)
        if each == stream:
            assert SEEN[kind][each] == (count, count)
        else:
            assert f"declared: {stream}" in SEEN[kind][each]
