"""What scorers are given, what is made of their answers, and answers that break the contract."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fairprune_framework.api.interfaces import BiasScorer, ImportanceScorer, Needs, Observation, Pass, SiteContext, Statistic
from fairprune_framework.api.types import Scores
from fairprune_framework.auditing.statistics import OBSERVED, Statistics, key_of
from fairprune_framework.errors import BrokenPlugin, ContractViolation, FairpruneError, RunFolderError, UserError
from fairprune_framework.models.architecture import recognise
from fairprune_framework.selection.contexts import Services, generator_for
from fairprune_framework.selection.scoring import load_scores, save_scores, score
from fairprune_framework.testing.scorer_bench import in_pairs
from fairprune_framework.testing.tiny import tiny_model

MODEL: Any = tiny_model("llama")
ARCHITECTURE = recognise(MODEL)
SITES = tuple(ARCHITECTURE.sites)


@dataclass(frozen=True, kw_only=True)
class Summed(Statistic):
    """Both streams; its sums are made up below."""

    name: str = "x"

    def passes(self, layers: int) -> Sequence[Pass]:
        return (Pass(), Pass(stream="calibration"))

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        raise NotImplementedError


NOTHING = Needs(statistics=(Summed(),))


def statistics(observed: dict[str, tuple[int, int]] | None = None) -> Statistics:
    """Two categories of three and five contrasts; `x.y` holds the number of the site and of the category."""
    seen = observed or dict.fromkeys(SITES, (3, 5))
    sums = {}
    for number, name in enumerate(SITES):
        sums[key_of("contrasts", name, "x.y")] = torch.stack(
            [torch.full((1, 48), float(10 * number + group), dtype=torch.float64) for group in (1, 2)]
        )
        sums[key_of("calibration", name, "x.y")] = torch.full((1, 1, 48), float(number), dtype=torch.float64)
        sums[key_of("contrasts", name, OBSERVED)] = torch.tensor(seen[name], dtype=torch.float64).reshape(2, 1, 1)
    return Statistics(
        sums=sums, categories=("age", "race"), counts={"contrasts": (3, 5), "calibration": (4,)}, statistics=(), composition="c"
    )


@dataclass(frozen=True)
class Bias(BiasScorer):
    """Calls a function."""

    function: Callable[[SiteContext], Any]
    given: Needs = NOTHING

    def needs(self) -> Needs:
        return self.given

    def score(self, at: SiteContext) -> Tensor:
        return self.function(at)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Signed(Bias):
    """May be negative."""

    signed: ClassVar[bool] = True


@dataclass(frozen=True)
class Importance(ImportanceScorer):
    """Calls a function."""

    function: Callable[[SiteContext], Any]
    given: Needs = NOTHING

    def needs(self) -> Needs:
        return self.given

    def score(self, at: SiteContext) -> Tensor:
        return self.function(at)  # type: ignore[no-any-return]


def mean(at: SiteContext) -> Tensor:
    return at.sums["x.y"][0] / at.count


def scored(bias: Any = None, importance: Any = None, found: Statistics | None = None, **more: Any) -> Any:
    words = (bias or Bias(mean), importance or Importance(mean), ("x:b", "x:i"))
    return score(found or statistics(), MODEL, ARCHITECTURE, *words, **more)


def test_bias_is_averaged_over_categories_whatever_their_sizes() -> None:
    found = scored()
    for number, name in enumerate(SITES):
        age, race = (10 * number + 1) / 3, (10 * number + 2) / 5
        torch.testing.assert_close(found.by_category["age"][name], torch.full((48,), age, dtype=torch.float64))
        torch.testing.assert_close(found.bias[name], torch.full((48,), (age + race) / 2, dtype=torch.float64))
        torch.testing.assert_close(found.importance[name], torch.full((48,), number / 4, dtype=torch.float64))
        assert found.observed[name].all()


def test_categories_in_which_a_site_was_not_seen_have_no_part() -> None:
    found = scored(found=statistics({SITES[0]: (0, 5), SITES[1]: (0, 0)}))
    torch.testing.assert_close(found.bias[SITES[0]], torch.full((48,), 2 / 5, dtype=torch.float64))
    assert found.bias[SITES[1]].abs().max() == 0
    assert (found.observed[SITES[0]].all(), found.observed[SITES[1]].any()) == (True, False)
    assert set(found.by_category) == {"race"}


def test_what_a_scorer_sees() -> None:
    seen: list[SiteContext] = []

    def keep(at: SiteContext) -> Tensor:
        seen.append(at)
        return torch.zeros(48, dtype=torch.float64)

    scored(Bias(keep, Needs(weights=True)), Importance(keep))
    assert [(at.site.name, at.category, at.count) for at in seen] == [
        (name, category, count) for name in SITES for category, count in (("age", 3), ("race", 5), (None, 4))
    ]
    gate = MODEL.model.layers[0].mlp.gate_proj.weight
    assert seen[0].weights["gate"].equal(gate)
    assert not seen[2].weights  # it did not ask
    assert all(at.probe is at.readout is None for at in seen)
    assert seen[0].observed.tolist() == [3] * 48


def test_generators_depend_on_seed_plugin_and_site_alone() -> None:
    def draw(seed: int, *names: str) -> list[int]:
        return torch.randint(0, 2**62, (4,), generator=generator_for(seed, *names)).tolist()

    assert draw(0, "a", "b") == draw(0, "a", "b")
    assert len({tuple(draw(*each)) for each in [(0, "a", "b"), (1, "a", "b"), (0, "b", "a"), (0, "ab"), (0, "a")]}) == 5


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda at: torch.zeros(47, dtype=torch.float64), "must be (48,) float64. Got (47,) torch.float64"),
        (lambda at: torch.zeros(48), "Got (48,) torch.float32"),
        (lambda at: [0.0] * 48, "Got list instead"),
        (lambda at: torch.full((48,), float("nan"), dtype=torch.float64), "48 scores are not finite"),
        (lambda at: torch.full((48,), -0.5, dtype=torch.float64), "scores must be >= 0, the lowest is -0.5"),
    ],
)
def test_answers_that_break_the_contract(answer: Any, words: str) -> None:
    with pytest.raises(ContractViolation) as caught:
        scored(Bias(answer))
    assert f"x:b, site {SITES[0]}, category 'age'" in str(caught.value)
    assert words in str(caught.value)


def test_negative_scores_where_they_are_declared_or_of_importance() -> None:
    negative = torch.full((48,), -0.5, dtype=torch.float64)
    found = scored(Signed(lambda at: negative), Importance(lambda at: negative))
    assert found.signed
    assert found.bias[SITES[0]].equal(negative)
    assert found.importance[SITES[0]].equal(negative)


@dataclass(frozen=True)
class Turned(Importance):
    """Ends with the opposite."""

    def finish(self, scores: Any, at: Any) -> Any:
        return {name: -value for name, value in scores.items()}


def test_the_last_step_of_an_importance_may_go_below_zero() -> None:
    found = scored(importance=Turned(lambda at: torch.arange(48, dtype=torch.float64)))
    assert found.importance[SITES[0]].tolist() == [-float(unit) for unit in range(48)]


def test_errors_of_a_scorer_say_where() -> None:
    with pytest.raises(FairpruneError, match=r"x:b, site model\.layers\.0\.mlp, category 'age' raised ValueError: x"):
        scored(Bias(lambda at: (_ for _ in ()).throw(ValueError("x"))))
    with pytest.raises(
        FairpruneError,
        match=r"x:i, site model\.layers\.0\.mlp raised KeyError: .*no sums 'z' of .*; available: x\.y",
    ):
        scored(importance=Importance(lambda at: at.sums["z"]))


def test_a_scorer_neither_ends_the_command_nor_prints_into_its_answer(capsys: pytest.CaptureFixture[str]) -> None:
    def leave(scores: Any) -> Any:
        print("goodbye")
        raise SystemExit(0)

    with pytest.raises(FairpruneError, match="category 'age' raised SystemExit: 0"):
        scored(Bias(leave))
    with pytest.raises(FairpruneError, match=r"b, finish\(\) raised SystemExit: 0"):
        score(statistics(), MODEL, ARCHITECTURE, Shared(ones, last=leave), Importance(ones), ("b", "i"))
    assert capsys.readouterr() == ("", "goodbye\ngoodbye\n")


def test_services_are_made_for_those_who_ask() -> None:
    made: list[str] = []

    def readout() -> Any:
        made.append("readout")
        return torch.neg

    services = Services(
        readout=readout, probe=lambda category: made.append(f"probe {category}"), attribute_tokens=lambda: {"age": ((1,), (2,))}
    )
    scored(services=services)
    assert made == []
    seen: list[SiteContext] = []

    def keep(at: SiteContext) -> Tensor:
        seen.append(at)
        return torch.zeros(48, dtype=torch.float64)

    scored(Bias(keep, Needs(readout=True, probe=True)), services=services)
    assert made == ["readout", "probe age", "readout", "probe race"]
    assert seen[0].readout is torch.neg
    assert (seen[0].attribute_tokens, seen[1].attribute_tokens) == (((1,), (2,)), ())
    for needs in (Needs(readout=True), Needs(probe=True)):
        with pytest.raises(FairpruneError, match="was given none"):
            scored(Bias(keep, needs))
    with pytest.raises(UserError, match="x:b asks for bootstrap replicates"):
        scored(Bias(keep, Needs(replicates=3)))


def test_scores_there_and_back(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    bias = Bias(lambda at: torch.rand(48, generator=generator, dtype=torch.float64))
    found = scored(bias, found=statistics({SITES[0]: (3, 0), SITES[1]: (0, 0)}))
    save_scores(found, tmp_path / "scores.safetensors")
    again = load_scores(tmp_path / "scores.safetensors", ARCHITECTURE.sites, signed=False)
    for name in SITES:
        for field in ("bias", "importance", "observed"):
            assert getattr(again, field)[name].equal(getattr(found, field)[name])
    assert again.by_category.keys() == found.by_category.keys() == {"age"}
    assert again.by_category["age"][SITES[0]].equal(found.by_category["age"][SITES[0]])
    other = recognise(tiny_model("llama", layers=3))
    with pytest.raises(RunFolderError, match=r"holds no 'bias/model\.layers\.2\.mlp': it belongs to another model"):
        load_scores(tmp_path / "scores.safetensors", other.sites, signed=False)
    with pytest.raises(RunFolderError, match="is missing"):
        load_scores(tmp_path / "absent", ARCHITECTURE.sites, signed=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: t.update({f"bias/{SITES[0]}": t[f"bias/{SITES[0]}"][:-1].clone()}),
            r"is \(47,\) torch\.float64, expected \(48,\)",
        ),
        (lambda t: t.update({f"bias/{SITES[0]}": t[f"bias/{SITES[0]}"].float()}), r"is \(48,\) torch\.float32, expected"),
        (lambda t: t.update({f"observed/{SITES[0]}": t[f"bias/{SITES[0]}"].clone()}), r"expected \(48,\) torch\.uint8"),
        (lambda t: t.update({"bias/elsewhere": t[f"bias/{SITES[0]}"].clone()}), r"'bias/elsewhere' .* expected no such site"),
        (lambda t: t.update({f"guess/{SITES[0]}": t[f"bias/{SITES[0]}"].clone()}), r"is no score"),
        (lambda t: t.update({f"bias@/{SITES[0]}": t[f"bias/{SITES[0]}"].clone()}), r"is no score"),
        (lambda t: t[f"bias/{SITES[0]}"].add_(1e-3), r"is not the mean of those of its categories"),
        (lambda t: [value.sub_(50.0) for name, value in t.items() if name.startswith("bias")], r"is negative"),
        (lambda t: [value[..., 0].sub_(50.0) for name, value in t.items() if name.startswith("bias")], r"is negative"),
    ],
)
def test_scores_that_are_none_of_this_model(change: Callable[[dict[str, Tensor]], object], said: str, tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    save_scores(scored(Bias(lambda at: at.sums["x.y"][0])), path)
    load_scores(path, ARCHITECTURE.sites, signed=False)
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(RunFolderError, match=said):
        load_scores(path, ARCHITECTURE.sites, signed=False)


@dataclass(frozen=True)
class Shared(Bias):
    """Divides by the sum over the model, or does what `last` says."""

    last: Callable[..., Any] | None = None

    def finish(self, scores: Any, at: Any) -> Any:
        if self.last:
            return self.last(scores)
        total = sum(score.sum() for score in scores.values())
        assert all(at(name).category in ("age", "race") for name in scores)
        return {name: score / total for name, score in scores.items()}


def test_a_scorer_ends_with_a_step_over_the_whole_model() -> None:
    found = score(
        statistics(), MODEL, ARCHITECTURE, Shared(lambda at: at.sums["x.y"][0]), Importance(ones), ("b", "i")
    ).by_category
    for group, category in enumerate(("age", "race")):
        parts = torch.tensor([10.0 * number + group + 1 for number in range(len(SITES))], dtype=torch.float64)
        for name, part in zip(SITES, parts / (48 * parts.sum()), strict=True):
            assert torch.allclose(found[category][name], part.expand(48))


@dataclass(frozen=True)
class Prepared(Bias):
    """Prepares what `first` makes of a context."""

    first: Callable[[SiteContext], Any] = lambda at: at

    def prepare(self, at: SiteContext) -> Any:
        return self.first(at)


def test_what_categories_have_in_common_is_computed_once_for_each_site() -> None:
    seen: list[SiteContext] = []

    def first(at: SiteContext) -> Tensor:
        seen.append(at)
        return at.sums["x.y"][0] + at.weights["out"].double().abs().sum(1)

    bias = Prepared(lambda at: at.prepared, Needs(statistics=(Summed(),), weights=True), first)
    found = scored(bias, Importance(lambda at: mean(at) if at.prepared is None else at.prepared)).by_category
    assert [(at.site.name, at.category, at.count, at.prepared) for at in seen] == [(name, None, 8, None) for name in SITES]
    for number, name in enumerate(SITES):
        written = MODEL.get_submodule(name).down_proj.weight.double().abs().sum(0)
        for category in ("age", "race"):
            torch.testing.assert_close(found[category][name], 20 * number + 3 + written)


def test_nothing_is_prepared_for_a_site_that_no_category_reached() -> None:
    seen: list[SiteContext] = []
    scored(Prepared(mean, NOTHING, seen.append), found=statistics({SITES[0]: (0, 5), SITES[1]: (0, 0)}))
    assert [at.site.name for at in seen] == [SITES[0]]


def test_a_fault_of_what_is_given_is_not_the_plugins() -> None:
    def readout() -> Any:
        raise FairpruneError("it cannot be read out")

    with pytest.raises(FairpruneError, match=r"^it cannot be read out$"):
        scored(Prepared(mean, Needs(statistics=(Summed(),), readout=True)), services=Services(readout=readout))


def test_services_of_all_categories_while_preparing() -> None:
    seen: list[SiteContext] = []
    tokens = {"age": ((1,), (2, 3)), "race": ((4,),)}
    services = Services(readout=lambda: lambda rows: rows, attribute_tokens=lambda: tokens)
    scored(Prepared(mean, Needs(statistics=(Summed(),), readout=True), seen.append), services=services)
    assert {at.attribute_tokens for at in seen} == {((1,), (2, 3), (4,))}


def test_an_error_while_preparing_says_where() -> None:
    with pytest.raises(BrokenPlugin, match=rf"x:b, prepare\(\), site {SITES[0]}.*ZeroDivisionError"):
        scored(Prepared(mean, NOTHING, lambda at: 1 // 0))


def ones(at: SiteContext) -> Tensor:
    return torch.ones(48, dtype=torch.float64)


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (lambda scores: {}, "must return the sites that it was given"),
        (lambda scores: {name: value.float() for name, value in scores.items()}, "must be .48,. float64"),
        (lambda scores: {name: -value for name, value in scores.items()}, "scores must be >= 0"),
        (lambda scores: {name: value * torch.nan for name, value in scores.items()}, "48 scores are not finite"),
        (
            lambda scores: {name: value.index_fill(0, torch.tensor([3]), torch.inf) for name, value in scores.items()},
            "1 scores are",
        ),
    ],
)
def test_the_last_step_keeps_the_contract_too(last: Any, words: str) -> None:
    with pytest.raises(ContractViolation, match=words):
        score(statistics(), MODEL, ARCHITECTURE, Shared(ones, last=last), Importance(ones), ("b", "i"))


def test_a_unit_of_several_columns_scores_their_mean() -> None:
    """Scorers see columns, the scores are those of units: 48 columns of 24 units."""
    rising = torch.arange(48, dtype=torch.float64)
    pairs = in_pairs(ARCHITECTURE)
    seen: list[SiteContext] = []

    def keep(at: SiteContext) -> Tensor:
        seen.append(at)
        return rising

    found = score(statistics(), MODEL, pairs, Bias(keep), Importance(lambda at: rising**2), ("x:b", "x:i"))
    middle = [2.0 * unit + 0.5 for unit in range(24)]
    for values in (found.bias[SITES[0]], found.by_category["race"][SITES[1]]):
        assert values.tolist() == middle
    assert found.importance[SITES[0]].tolist() == [mean**2 + 0.25 for mean in middle]
    assert found.observed[SITES[0]].shape == (24,)
    assert seen[0].observed.tolist() == [3] * 48
    assert seen[0].observed.dtype == torch.long
    with pytest.raises(ContractViolation, match=r"must be \(48,\) float64. Got \(24,\)"):
        score(statistics(), MODEL, pairs, Bias(lambda at: rising[:24]), Importance(keep), ("x:b", "x:i"))


def test_a_site_that_one_contrast_reached_is_scored() -> None:
    found = scored(found=statistics({SITES[0]: (1, 0), SITES[1]: (0, 1)}))
    assert {category: set(sites) for category, sites in found.by_category.items()} == {"age": {SITES[0]}, "race": {SITES[1]}}
    assert all(bool(seen.all()) for seen in found.observed.values())


def test_each_scorer_draws_by_its_own_label_and_seed_0_where_none_is_given() -> None:
    def draw(at: SiteContext) -> Tensor:
        return torch.rand(48, generator=at.generator, dtype=torch.float64)

    def expected(seed: int, label: str, name: str) -> Tensor:
        return torch.rand(48, generator=generator_for(seed, label, name), dtype=torch.float64)

    for seed, words in ((0, {}), (7, {"seed": 7})):
        found = scored(Bias(draw), Importance(draw), **words)
        for name in SITES:
            assert found.bias[name].equal(expected(seed, "x:b", name))
            assert found.importance[name].equal(expected(seed, "x:i", name))


@dataclass(frozen=True)
class Looking(Shared):
    """Keeps what the last step may look at."""

    def finish(self, scores: Any, at: Any) -> Any:
        LOOKED.append(at(SITES[0]))
        return scores


LOOKED: list[SiteContext] = []


@pytest.mark.parametrize("weights", [True, False])
def test_the_last_step_is_given_what_the_scorer_declared(weights: bool) -> None:
    LOOKED.clear()
    needs = Needs(statistics=(Summed(),), weights=weights)
    score(statistics(), MODEL, ARCHITECTURE, Looking(ones, needs), Importance(ones, Needs(weights=True)), ("b", "i"))
    assert [at.category for at in LOOKED] == ["age", "race"]
    for at in LOOKED:
        assert bool(at.weights) is weights
        drawn = torch.rand(3, generator=at.generator)
        assert drawn.equal(torch.rand(3, generator=generator_for(0, "b", SITES[0])))


def test_scores_of_categories_are_held_to_nine_digits(tmp_path: Path) -> None:
    """Relative to each score, however small it is."""
    path = tmp_path / "scores.safetensors"
    save_scores(scored(Bias(lambda at: 1e-12 * at.sums["x.y"][0])), path)
    for factor, refused in ((1 + 1e-12, False), (1 + 1e-7, True)):
        tensors = load_file(path)
        tensors[f"bias/{SITES[0]}"][7] *= factor
        save_file(tensors, tmp_path / "changed.safetensors")
        if refused:
            with pytest.raises(RunFolderError, match="is not the mean of those of its categories"):
                load_scores(tmp_path / "changed.safetensors", ARCHITECTURE.sites, signed=False)
        else:
            load_scores(tmp_path / "changed.safetensors", ARCHITECTURE.sites, signed=False)


def test_signed_scores_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    save_scores(scored(Signed(lambda at: -at.sums["x.y"][0])), path)
    again = load_scores(path, ARCHITECTURE.sites, signed=True)
    assert again.signed
    assert float(again.bias[SITES[1]].max()) == -11.5
    with pytest.raises(RunFolderError, match="is negative, which that of its scorer never is"):
        load_scores(path, ARCHITECTURE.sites, signed=False)


def test_a_score_of_exactly_zero_is_none_below_it() -> None:
    assert scored(Bias(lambda at: torch.zeros(48, dtype=torch.float64))).bias[SITES[0]].tolist() == [0.0] * 48
    tiny = torch.zeros(48, dtype=torch.float64)
    tiny[3] = -1e-300
    with pytest.raises(ContractViolation, match="the lowest is -1e-300; declare `signed` otherwise"):
        scored(Bias(lambda at: tiny))


def test_signed_scores_that_cancel_over_categories_are_no_damage(tmp_path: Path) -> None:
    """A file lists `a-b` before `a`: the mean is of another order, and differs in rounding."""
    values = {"a": 0.1, "a-b": 0.2, "b": -0.3}
    each = {
        category: {name: torch.full((site.units,), value, dtype=torch.float64) for name, site in ARCHITECTURE.sites.items()}
        for category, value in values.items()
    }
    mean = {name: torch.stack([found[name] for found in each.values()]).mean(0) for name in ARCHITECTURE.sites}
    seen = {name: torch.ones(site.units, dtype=torch.bool) for name, site in ARCHITECTURE.sites.items()}
    whole = Scores(sites=ARCHITECTURE.sites, bias=mean, importance=mean, by_category=each, observed=seen, signed=True)
    for order in (("a", "a-b", "b"), ("b", "a-b", "a")):
        turned = {name: torch.stack([each[category][name] for category in order]).mean(0) for name in mean}
        save_scores(replace(whole, bias=turned), tmp_path / "scores.safetensors")
        load_scores(tmp_path / "scores.safetensors", ARCHITECTURE.sites, signed=True)
