"""A scorer that keeps the contract, and what goes wrong when one line of it is wrong: a bad scorer for each check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fairprune_framework.api import (
    BiasScorer,
    Choice,
    ImportanceScorer,
    Needs,
    Observation,
    Pass,
    SiteContext,
    Statistic,
    slot_means,
)
from fairprune_framework.testing.contracts import check_plugin

CALLS: list[int] = []


@dataclass(frozen=True, kw_only=True)
class Moments(Statistic):
    """Two rows: mean over slots of the largest absolute difference between variants, and how many contrasts had a slot."""

    name: str = "moments"

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        shared = obs.aligned_mask.any(1, keepdim=True).unsqueeze(-1)
        present = obs.aligned_mask.unsqueeze(-1)
        acts = obs.aligned["neuron"]
        high = acts.masked_fill(~present, -torch.inf).amax(1, keepdim=True)
        low = acts.masked_fill(~present, torch.inf).amin(1, keepdim=True)
        spread = torch.where(shared, high - low, 0.0).squeeze(1)
        slots = shared.squeeze(1).sum(1)
        rows = spread.sum(1) / slots.clamp_min(1)
        return {"rows": torch.stack([rows, (slots > 0).double().expand_as(rows)], 1)}


@dataclass(frozen=True, kw_only=True)
class Good(BiasScorer):
    """Mean spread between variants. Unit: activation."""

    power: float = 1.0

    def statistic(self) -> Statistic:
        return Moments()

    def needs(self) -> Needs:
        return Needs(statistics=(self.statistic(),))

    def score(self, at: SiteContext) -> Tensor:
        total, count = at.sums["moments.rows"]
        return (total / count.clamp_min(1)) ** self.power


@dataclass(frozen=True, kw_only=True)
class MeanSquare(Statistic):
    """Of the neuron tap over calibration text."""

    name: str = "mean-square"

    def passes(self, layers: int) -> tuple[Pass, ...]:
        return (Pass(stream="calibration"),)

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        squares = obs.acts["neuron"].double().square() * obs.mask.unsqueeze(-1)
        return {
            "rows": torch.stack(
                [squares.sum((1, 2)), obs.mask.sum((1, 2)).double().unsqueeze(-1).expand_as(squares[:, 0, 0])], 1
            )
        }


@dataclass(frozen=True, kw_only=True)
class GoodImportance(ImportanceScorer):
    """Root mean square activation. Unit: activation."""

    def needs(self) -> Needs:
        return Needs(statistics=(MeanSquare(),))

    def score(self, at: SiteContext) -> Tensor:
        total, count = at.sums["mean-square.rows"]
        return (total / count.clamp_min(1)).sqrt()


def test_good_scorers_pass_every_check() -> None:
    for kind, plugin in (("bias", Good()), ("bias", Good(power=2.0)), ("importance", GoodImportance())):
        report = check_plugin(kind, plugin).raise_if_failed()  # type: ignore[arg-type]
        assert len(report.passed) == len(report.ran) == len(report.checks)


def scorer(score: Callable[[Good, SiteContext, Tensor], Tensor]) -> Good:
    """A bias scorer with a last line of its own; it gets the good score."""

    @dataclass(frozen=True, kw_only=True)
    class Bad(Good):
        """Bad."""

        def score(self, at: SiteContext) -> Tensor:
            return score(self, at, super().score(at))

    return Bad()


def streaming(summands: Callable[[Observation, Tensor], Tensor]) -> Good:
    """A bias scorer whose statistic has a last line of its own; it gets the good rows (C, 2, N)."""

    @dataclass(frozen=True, kw_only=True)
    class BadMoments(Moments):
        def summands(self, obs: Observation) -> Mapping[str, Tensor]:
            return {"rows": summands(obs, super().summands(obs)["rows"])}

    @dataclass(frozen=True, kw_only=True)
    class Bad(Good):
        """Bad."""

        def statistic(self) -> Statistic:
            return BadMoments()

    return Bad()


def with_hole(score: Tensor) -> Tensor:
    return torch.cat([score[:-1], score.new_full((1,), torch.nan)])


def less_each_time(obs: Observation, rows: Tensor) -> Tensor:
    CALLS.append(1)
    return rows * torch.tensor([1 / len(CALLS), 1.0], dtype=torch.float64).reshape(1, 2, 1)


def remembered(self: Good, at: SiteContext, score: Tensor) -> Tensor:
    object.__setattr__(self, "power", self.power + 1)
    return score


def mean_activation(obs: Observation, rows: Tensor) -> Tensor:
    mean = obs.acts["neuron"].double().abs().mean((1, 2))  # over padding as well
    return torch.stack([mean, rows[:, 1]], 1)


def not_guarded(obs: Observation, rows: Tensor) -> Tensor:
    return rows / obs.aligned_mask.any(2).any(1).double().reshape(-1, 1, 1)  # 0 / 0 for an expert that saw nothing


def one_from_another(obs: Observation, rows: Tensor) -> Tensor:
    """The same wrong number in both would cancel."""
    acts = obs.aligned["neuron"]
    return rows + (acts[:, :1] - acts[:, 1:2]).abs().sum(2)


def through_half(obs: Observation, rows: Tensor) -> Tensor:
    return rows.half().double()


def through_numpy(obs: Observation, rows: Tensor) -> Tensor:
    obs.acts["neuron"].numpy()
    return rows


HOARD: list[Tensor] = []


def kept_for_later(obs: Observation, rows: Tensor) -> Tensor:
    HOARD.append(obs.acts["neuron"])
    return rows


def view_kept_for_later(self: Good, at: SiteContext, score: Tensor) -> Tensor:
    HOARD.append(score[:1])
    return score


def over_absent_variants(obs: Observation, rows: Tensor) -> Tensor:
    """Divides by V, which in one micro-batch of pairs and triples is that of the triples."""
    return rows / obs.mask.shape[1]


def longest_row_decides(obs: Observation, rows: Tensor) -> Tensor:
    return rows / obs.aligned_mask.shape[2]


def finishing(finish: Callable[[Mapping[str, Tensor]], object]) -> Good:
    """A bias scorer with a last step of its own."""

    @dataclass(frozen=True, kw_only=True)
    class Bad(Good):
        """Bad."""

        def finish(self, scores: Mapping[str, Tensor], at: Callable[[str], SiteContext]) -> Mapping[str, Tensor]:
            return finish(scores)  # type: ignore[return-value]

    return Bad()


@dataclass(frozen=True, kw_only=True)
class Preparing(Good):
    """Bad: what it prepares changes the sums that it is given."""

    def prepare(self, at: SiteContext) -> Tensor:
        return at.sums["moments.rows"].mul_(2)


@dataclass(frozen=True, kw_only=True)
class UsingUp(Good):
    """Bad: each category finds something else prepared."""

    def prepare(self, at: SiteContext) -> tuple[str, dict[str, Tensor]]:
        return "sums", {"of all": at.sums["moments.rows"].clone()}

    def score(self, at: SiteContext) -> Tensor:
        return at.prepared[1]["of all"].mul_(2)[0]  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Undeclared(Good):
    """Bad: it reads sums that other scorers declare."""

    def score(self, at: SiteContext) -> Tensor:
        return at.sums["contrast-variance.mean"][0]


@dataclass(frozen=True, kw_only=True)
class OfControls(Good):
    """Bad: its statistic does not listen to controls."""

    def score(self, at: SiteContext) -> Tensor:
        return at.of("controls").sums["moments.rows"][0]


@dataclass(frozen=True, kw_only=True)
class Reading(Good):
    """Bad: it did not ask for weights."""

    def score(self, at: SiteContext) -> Tensor:
        return at.weights["out"].double().norm(dim=1)


@dataclass(frozen=True, kw_only=True)
class ReadingOut(Good):
    """Bad: it did not ask for the readout."""

    def score(self, at: SiteContext) -> Tensor:
        return at.readout(at.sums["moments.rows"])[0]  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class Measuring(Good):
    """Bad: it did not ask for a probe."""

    def score(self, at: SiteContext) -> Tensor:
        measured = at.probe(Choice(units={at.site.name: torch.tensor([0])}))  # type: ignore[misc]
        return torch.full((at.site.units,), measured.cost, dtype=torch.float64)


@pytest.mark.parametrize(
    ("check", "plugin"),
    [
        ("hoarding", streaming(kept_for_later)),
        ("hoarding", scorer(view_kept_for_later)),
        ("grouping-invariance", streaming(over_absent_variants)),
        ("grouping-invariance", streaming(longest_row_decides)),
        ("shape", scorer(lambda self, at, score: None)),  # type: ignore[arg-type, return-value]
        ("shape", scorer(lambda self, at, score: score.tolist())),  # type: ignore[arg-type, return-value]
        ("shape", streaming(lambda obs, rows: rows.float())),
        ("shape", streaming(lambda obs, rows: rows[:, 0])),
        ("shape", streaming(lambda obs, rows: rows.sum(0, keepdim=True))),
        ("shape", streaming(lambda obs, rows: rows.tolist())),  # type: ignore[arg-type, return-value]
        ("shape", finishing(lambda scores: None)),
        ("shape", finishing(lambda scores: dict(list(scores.items())[:1]))),
        ("shape", finishing(lambda scores: {name: score.float() for name, score in scores.items()})),
        ("shape", Undeclared()),
        ("shape", OfControls()),
        ("shape", Reading()),
        ("shape", ReadingOut()),
        ("shape", Measuring()),
        ("shape", scorer(lambda self, at, score: score.float())),
        ("shape", scorer(lambda self, at, score: score.unsqueeze(0))),
        ("shape", scorer(lambda self, at, score: score[:-1])),
        ("finite", scorer(lambda self, at, score: with_hole(score))),
        ("finite", scorer(lambda self, at, score: 1 / (score - score.max()))),
        ("sign", scorer(lambda self, at, score: score - score.mean())),
        ("distinguishes-neurons", scorer(lambda self, at, score: torch.ones_like(score))),
        ("deterministic", scorer(lambda self, at, score: score + torch.rand(len(score)))),
        ("order-invariance", streaming(less_each_time)),
        ("batch-split-invariance", streaming(lambda obs, rows: rows - 0.5 * rows.amin(0, keepdim=True))),
        ("padding-invariance", streaming(mean_activation)),
        ("masks-respected", streaming(lambda obs, rows: rows + obs.aligned["neuron"].abs().amax((1, 2)).unsqueeze(1))),
        ("masks-respected", streaming(lambda obs, rows: rows + obs.acts["neuron"].double().square().sum((1, 2)).unsqueeze(1))),
        ("masks-respected", streaming(one_from_another)),
        ("precision", streaming(through_half)),
        ("precision", scorer(lambda self, at, score: score.bfloat16().double())),
        ("precision", scorer(lambda self, at, score: score.half().double())),
        ("permutation-equivariance", scorer(lambda self, at, score: score * torch.arange(1, len(score) + 1))),
        ("permutation-equivariance", scorer(lambda self, at, score: score.sort().values)),
        ("zero-difference", streaming(mean_activation)),
        ("zero-difference", scorer(lambda self, at, score: score + 1e-3)),
        ("no-mutation", scorer(lambda self, at, score: at.sums["moments.rows"].mul_(2)[0])),
        ("no-mutation", scorer(remembered)),
        ("no-mutation", Preparing()),
        ("no-mutation", UsingUp()),
        ("no-mutation", streaming(lambda obs, rows: rows + 0 * obs.aligned["neuron"].mul_(2).sum())),
        ("no-mutation", streaming(less_each_time)),
        ("no-mutation", streaming(lambda obs, rows: rows + 0 * slot_means(obs).abs_().sum())),
        ("experts", streaming(not_guarded)),
        ("wide-units", scorer(lambda self, at, score: score / at.site.units)),
        ("bfloat16", streaming(through_numpy)),
    ],
)
def test_a_bad_bias_scorer_is_caught(check: str, plugin: Good, fails: Callable[..., None]) -> None:
    CALLS.clear()
    fails("bias", plugin, check)


@dataclass(frozen=True, kw_only=True)
class OnContrasts(GoodImportance):
    """Bad: its statistic never sees calibration text."""

    def needs(self) -> Needs:
        return Needs(statistics=(Moments(name="mean-square"),))


@dataclass(frozen=True, kw_only=True)
class Longest(MeanSquare):
    """Bad: the longest document of the micro-batch decides."""

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        return {"rows": super().summands(obs)["rows"].amax(0, keepdim=True).expand(len(obs.mask), -1, -1)}


@dataclass(frozen=True, kw_only=True)
class OfTheLongest(GoodImportance):
    """Bad."""

    def needs(self) -> Needs:
        return Needs(statistics=(Longest(),))


@dataclass(frozen=True, kw_only=True)
class InHalf(GoodImportance):
    """Bad: rounds to half."""

    def score(self, at: SiteContext) -> Tensor:
        return super().score(at).half().double()


@dataclass(frozen=True, kw_only=True)
class OverPadding(MeanSquare):
    """Bad: the mean over tokens counts padding."""

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        squares = obs.acts["neuron"].double().square()
        return {"rows": torch.stack([squares.mean((1, 2)), torch.ones_like(squares[:, 0, 0])], 1)}


@dataclass(frozen=True, kw_only=True)
class OfPadding(GoodImportance):
    """Bad."""

    def needs(self) -> Needs:
        return Needs(statistics=(OverPadding(),))


@pytest.mark.parametrize(
    ("plugin", "check"),
    [
        (OnContrasts(), "shape"),
        (OfTheLongest(), "batch-split-invariance"),
        (InHalf(), "precision"),
        (OfPadding(), "padding-invariance"),
    ],
)
def test_a_bad_importance_scorer_is_caught(plugin: ImportanceScorer, check: str, fails: Callable[..., None]) -> None:
    fails("importance", plugin, check)


def test_every_check_has_a_bad_plugin(common: set[str]) -> None:
    """The test above, read back: no check may be without a plugin that fails it."""
    (mark,) = test_a_bad_bias_scorer_is_caught.pytestmark  # type: ignore[attr-defined]
    caught = {check for check, _ in mark.args[1]} | common | {"hash-seed"}  # of which test_interpreters.py has them
    assert set(check_plugin("bias", Good(), only=[]).checks) == caught
    assert set(check_plugin("importance", GoodImportance(), only=[]).checks) < set(check_plugin("bias", Good(), only=[]).checks)


def test_a_failure_names_the_plugin_and_says_what_was_wrong() -> None:
    report = check_plugin("bias", scorer(lambda self, at, score: score.float()), only=["shape", "finite"])
    assert report.passed == ("finite",)
    assert "must be (48,) float64. Got (48,) torch.float32" in report.failures["shape"]
    assert "bias Bad: 2 of 26 checks ran, 1 failed" in str(report)
