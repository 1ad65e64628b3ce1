"""The contract suite over every plugin that is installed; and a bad plugin for each check, so that no check is one that cannot fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairprune_framework import discovery
from fairprune_framework.api import (
    ArchitectureAdapter,
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
from fairprune_framework.models.architecture import recognise
from fairprune_framework.testing.contracts import CheckFailed, check_plugin
from fairprune_framework.testing.tiny import FAMILIES, tiny_model

CHECKS = {"bias": 21, "importance": 19, "policy": 21, "architecture": 23}
"""How many checks there are; fewer would be a promise taken back."""

NO_TEXT = {"order-invariance", "batch-split-invariance", "padding-invariance", "masks-respected"}
SKIPPED = {("importance", "max-abs-weight"): NO_TEXT, ("importance", "peak-to-peak"): NO_TEXT}
"""What plugins that read weights alone cannot be checked for."""

QUICKER = {("bias", "integrated-gradients"): {"steps": 2}}
"""Options under which a plugin is checked here, since its defaults only do the same more often."""

INSTALLED = [entry for kind in discovery.GROUPS for entry in discovery.entries(kind)]


def test_all_built_ins_are_installed() -> None:
    found = {(entry.kind, entry.name) for entry in INSTALLED}
    assert {("bias", "variance"), ("importance", "max-abs-weight"), ("policy", "uniform"), ("architecture", "glu")} <= found


@pytest.mark.parametrize("entry", [e for e in INSTALLED if e.kind != "architecture"], ids=lambda e: f"{e.kind}-{e.name}")
def test_installed_plugins_keep_the_contract(entry: discovery.Entry) -> None:
    plugin = discovery.make(entry, discovery.load(entry), QUICKER.get((entry.kind, entry.name), {}))  # type: ignore[arg-type]
    report = check_plugin(entry.kind, plugin).raise_if_failed()
    assert len(report.checks) == CHECKS[entry.kind]
    assert set(report.skipped) == SKIPPED.get((entry.kind, entry.name), set())
    assert f"{len(report.ran)} of {CHECKS[entry.kind]} checks ran, 0 failed" in str(report)


@pytest.mark.parametrize("family", FAMILIES)
def test_installed_adapters_keep_the_contract(family: str) -> None:
    adapter = recognise(tiny_model(family)).adapter
    report = check_plugin("architecture", adapter, model=lambda: tiny_model(family)).raise_if_failed()
    assert len(report.ran) == len(report.checks) == CHECKS["architecture"]


def test_every_installed_adapter_has_a_tiny_family() -> None:
    known = {recognise(tiny_model(family)).name.partition(":")[2] for family in FAMILIES}
    ours = {entry.name for entry in INSTALLED if entry.kind == "architecture" and entry.distribution == "fairprune_framework"}
    assert ours == known


def test_variance_keeps_the_contract_with_its_option_too() -> None:
    report = check_plugin("bias", discovery.build("bias", "variance", {"relative": True})).raise_if_failed()
    assert len(report.ran) == CHECKS["bias"]


# A scorer that keeps the contract, and what goes wrong when one line of it is wrong.


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
        assert len(report.passed) == len(report.ran) == len(report.checks) == CHECKS[kind]


def fails(kind: Any, plugin: Any, check: str, **options: Any) -> None:
    """The plugin fails the check, and for the check's own reason, not because it cannot be run."""
    report = check_plugin(kind, plugin, only=[check], **options)
    assert list(report.failures) == [check], f"{check} does not see what is wrong with {plugin}"
    with pytest.raises(CheckFailed, match=check):
        report.raise_if_failed()


CALLS: list[int] = []


@dataclass(frozen=True, kw_only=True)
class Undocumented(Good):
    def score(self, at: SiteContext) -> Tensor:
        return super().score(at)


Undocumented.__doc__ = None


@dataclass(frozen=True, kw_only=True)
class OfAnotherVersion(Good):
    """Bad."""

    api_version = 2


class NoDataclass(Good):
    """Bad."""


@dataclass(kw_only=True)
class Changeable(BiasScorer):
    """Bad."""

    power: float = 1.0

    def score(self, at: SiteContext) -> Tensor:
        return torch.zeros(at.site.units, dtype=torch.float64)


@dataclass(frozen=True)
class Positional(BiasScorer):
    """Bad."""

    power: float = 1.0

    def score(self, at: SiteContext) -> Tensor:
        return torch.zeros(at.site.units, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Doubling(Good):
    """Bad."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "power", self.power * 2)


@dataclass(frozen=True, kw_only=True, eq=False)
class Identity(BiasScorer):
    """Bad."""

    def score(self, at: SiteContext) -> Tensor:
        return torch.zeros(at.site.units, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class Unpicklable(Good):
    """Bad."""

    function: Any = field(default_factory=lambda: lambda x: x, init=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class ForeverNew(Good):
    """Bad."""

    def statistic(self) -> Statistic:
        CALLS.append(1)
        return Moments(name=f"moments-{len(CALLS)}")


@pytest.mark.parametrize(
    ("plugin", "check"),
    [
        (Undocumented(), "interface"),
        (GoodImportance(), "interface"),
        (OfAnotherVersion(), "api-version"),
        (NoDataclass(), "frozen-dataclass"),
        (Changeable(), "frozen-dataclass"),
        (Positional(), "frozen-dataclass"),
        (Doubling(), "options-round-trip"),
        (Identity(), "equal-by-value"),
        (Changeable(), "equal-by-value"),
        (Unpicklable(), "picklable"),
        (ForeverNew(), "declared-needs"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_plugin_that_is_badly_made_is_caught(plugin: Any, check: str) -> None:
    fails("bias", plugin, check)


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


def through_numpy(obs: Observation, rows: Tensor) -> Tensor:
    obs.acts["neuron"].numpy()
    return rows


@pytest.mark.parametrize(
    ("check", "plugin"),
    [
        ("shape", scorer(lambda self, at, score: score.float())),
        ("shape", scorer(lambda self, at, score: score.unsqueeze(0))),
        ("shape", scorer(lambda self, at, score: score[:-1])),
        ("finite", scorer(lambda self, at, score: with_hole(score))),
        ("sign", scorer(lambda self, at, score: score - score.mean())),
        ("distinguishes-neurons", scorer(lambda self, at, score: torch.ones_like(score))),
        ("deterministic", scorer(lambda self, at, score: score + torch.rand(len(score)))),
        ("order-invariance", streaming(less_each_time)),
        ("batch-split-invariance", streaming(lambda obs, rows: rows - 0.5 * rows.amin(0, keepdim=True))),
        ("padding-invariance", streaming(mean_activation)),
        ("masks-respected", streaming(lambda obs, rows: rows + obs.aligned["neuron"].abs().amax((1, 2)).unsqueeze(1))),
        ("masks-respected", streaming(lambda obs, rows: rows + obs.acts["neuron"].double().square().sum((1, 2)).unsqueeze(1))),
        ("permutation-equivariance", scorer(lambda self, at, score: score * torch.arange(1, len(score) + 1))),
        ("permutation-equivariance", scorer(lambda self, at, score: score.sort().values)),
        ("zero-difference", streaming(mean_activation)),
        ("zero-difference", scorer(lambda self, at, score: score + 1e-3)),
        ("no-mutation", scorer(lambda self, at, score: at.sums["moments.rows"].mul_(2)[0])),
        ("no-mutation", scorer(remembered)),
        ("no-mutation", streaming(lambda obs, rows: rows + 0 * obs.aligned["neuron"].mul_(2).sum())),
        ("no-mutation", streaming(less_each_time)),
        ("experts", streaming(not_guarded)),
        ("bfloat16", streaming(through_numpy)),
    ],
)
def test_a_bad_bias_scorer_is_caught(check: str, plugin: Good) -> None:
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


@pytest.mark.parametrize(("plugin", "check"), [(OnContrasts(), "shape"), (OfTheLongest(), "batch-split-invariance")])
def test_a_bad_importance_scorer_is_caught(plugin: ImportanceScorer, check: str) -> None:
    fails("importance", plugin, check)


# Policies.


@dataclass(frozen=True, kw_only=True)
class Top(SelectionPolicy):
    """Take the same number of the most biased units of each site."""

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        units, order = {}, {}
        for name, site in scores.sites.items():
            if site.layer in budget.protected_layers:
                continue
            layers = {other.layer for other in scores.sites.values()}
            share = min(budget.units(scores.sites) // len(scores.sites), site.units - 1)
            if budget.unit == "per-layer":
                share = min(int(budget.amount) * len(layers) // len(scores.sites), site.units - 1)
            usable = scores.observed[name] & (scores.bias[name] > 0 if scores.signed else True)
            ranked = torch.sort(self.key(scores, name).masked_fill(~usable, -torch.inf), descending=True, stable=True)
            count = min(share, int(usable.sum()))
            units[name], order[name] = ranked.indices[:count], ranked.values[:count]
        chosen = sum(map(len, units.values()))
        return Choice(units=units, order=order, reason=None if chosen else "the budget comes to less than one unit of a site")

    def key(self, scores: Scores, name: str) -> Tensor:
        return scores.bias[name]


def test_a_good_policy_passes_every_check() -> None:
    report = check_plugin("policy", Top()).raise_if_failed()
    assert len(report.passed) == len(report.checks) == CHECKS["policy"]


def policy(select: Callable[[Scores, Budget, Choice], Choice]) -> Top:
    """A policy with a last line of its own; it gets the good choice."""

    @dataclass(frozen=True, kw_only=True)
    class Bad(Top):
        """Bad."""

        def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
            return select(scores, budget, super().select(scores, budget, context))

    return Bad()


def refusing(when: Callable[[Budget], bool]) -> Top:
    def select(scores: Scores, budget: Budget, choice: Choice) -> Choice:
        if when(budget):
            raise NotImplementedError(str(budget))
        return choice

    return policy(select)


def each_site(take: Callable[[Scores, str], Tensor]) -> Top:
    return policy(lambda scores, budget, choice: Choice(units={name: take(scores, name) for name in scores.sites}))


def above_middle(scores: Scores, name: str) -> Tensor:
    bias = scores.bias[name]
    middle = (bias - bias.min()) / (bias.max() - bias.min())  # 0 / 0 where all are equal
    return (middle > 0.5).nonzero().squeeze(1)


def lowered(scores: Scores, budget: Budget, choice: Choice) -> Choice:
    for bias in scores.bias.values():
        bias -= 0.1
    return choice


@pytest.mark.parametrize(
    ("check", "plugin"),
    [
        ("fraction-budget", refusing(lambda budget: budget.unit == "fraction")),
        ("fraction-budget", policy(lambda scores, budget, choice: Choice(units={}))),
        ("total-budget", refusing(lambda budget: budget.unit == "total")),
        ("per-layer-budget", refusing(lambda budget: budget.unit == "per-layer")),
        ("unlimited-budget", refusing(lambda budget: budget.amount > 500)),
        ("unlimited-budget", each_site(lambda scores, name: scores.bias[name].topk(60).indices)),
        ("valid-units", each_site(lambda scores, name: torch.tensor([1, 0], dtype=torch.int32))),
        ("valid-units", each_site(lambda scores, name: torch.tensor([1, 1]))),
        ("valid-units", each_site(lambda scores, name: torch.tensor([-1]))),
        ("valid-units", each_site(lambda scores, name: torch.tensor([scores.sites[name].units]))),
        ("valid-units", policy(lambda scores, budget, choice: Choice(units={"model.layers.99.mlp": torch.tensor([0])}))),
        ("descending-order", policy(lambda s, b, c: replace(c, order={name: -order for name, order in c.order.items()}))),
        ("deterministic-with-ties", each_site(lambda scores, name: torch.randperm(scores.sites[name].units)[:3])),
        ("constant-scores", each_site(above_middle)),
        (
            "protected-layers",
            policy(lambda s, b, c: Choice(units={n: torch.arange(3) for n in s.sites if s.sites[n].layer == 0})),
        ),
        ("unobserved-units", each_site(lambda scores, name: scores.bias[name].topk(3).indices)),
        ("signed-scores", each_site(lambda scores, name: scores.bias[name].argsort()[:3])),
        ("layer-share", refusing(lambda budget: budget.max_layer_share < 1)),
        ("site-order", policy(lambda scores, budget, choice: Choice(units={next(iter(scores.sites)): torch.arange(3)}))),
        ("no-mutation", policy(lowered)),
    ],
)
def test_a_bad_policy_is_caught(check: str, plugin: Top) -> None:
    fails("policy", plugin, check)


# Adapters: the one for plain Linears, with something wrong.

GLU: Any = discovery.load(discovery.find("architecture", "fairprune_framework:glu"))


def adapter(**methods: Any) -> Any:
    """The adapter for plain Linears with other methods; `self.good` is the adapter as it should be."""
    body = {"__doc__": "Bad.", "good": property(lambda self: GLU()), **methods}
    return dataclass(frozen=True, kw_only=True)(type("Bad", (GLU,), body))()


def sites(change: Callable[[nn.Module, list[Any]], Any]) -> ArchitectureAdapter:
    return adapter(sites=lambda self, model: change(model, list(self.good.sites(model))))


def shown(wrap: Callable[[Any, Any, str, Tensor, Any], Any]) -> ArchitectureAdapter:
    """Its taps go through `wrap(handler, site, tap, values, rows)`."""

    def tap(self: Any, model: nn.Module, at: Any, taps: Any, handler: Any) -> AbstractContextManager[None]:
        return self.good.tap(model, at, taps, lambda *seen: wrap(handler, *seen))  # type: ignore[no-any-return]

    return adapter(tap=tap)


def read_weights(model: nn.Module, found: list[Any]) -> list[Any]:
    assert sum(parameter.sum().item() for parameter in model.parameters()) != 0
    return found


def nudge(model: nn.Module, found: list[Any]) -> list[Any]:
    next(model.parameters()).data += 1
    return found


def rename(model: Any, found: list[Any]) -> list[Any]:
    model.config.nickname = "pruned"
    return found


@contextmanager
def untidy(self: Any, model: nn.Module, at: Any, taps: Any, handler: Any) -> Iterator[None]:
    with self.good.tap(model, at, taps, handler):
        model.register_forward_hook(lambda *_: None)
        yield


@contextmanager
def tidy_when_all_is_well(self: Any, model: nn.Module, at: Any, taps: Any, handler: Any) -> Iterator[None]:
    hooks = [
        model.get_submodule(f"{site.name}.down_proj").register_forward_pre_hook(
            lambda _, args, s=site: handler(s, "neuron", args[0][0], None)
        )
        for site in at
    ]
    yield
    for hook in hooks:
        hook.remove()


def without_roles(found: list[Any], *roles: str) -> list[Any]:
    return [replace(site, slices=tuple(piece for piece in site.slices if piece.role not in roles)) for site in found]


def half(handler: Any, site: Any, tap: str, values: Tensor, rows: Any) -> Any:
    replaced = handler(site, tap, values, rows)
    return None if replaced is None else torch.cat([replaced[:, :24], values[:, 24:]], 1)


def rolled(handler: Any, site: Any, tap: str, values: Tensor, rows: Any) -> Any:
    replaced = handler(site, tap, values.roll(1, -1), rows)
    return None if replaced is None else replaced.roll(-1, -1)


def flipped(handler: Any, site: Any, tap: str, values: Tensor, rows: Any) -> Any:
    replaced = handler(site, tap, values.flip(0), rows)
    return None if replaced is None else replaced.flip(0)


def louder(handler: Any, site: Any, tap: str, values: Tensor, rows: Any) -> Any:
    replaced = handler(site, tap, values, rows)
    return values * 1.01 if replaced is None else replaced


EVERYTHING = frozenset({"gate", "up", "neuron"})

BAD_ADAPTERS = [
    ("sites-distinct", sites(lambda model, found: found + found)),
    ("sites-distinct", sites(lambda model, found: found[::-1])),
    ("sites-distinct", sites(lambda model, found: without_roles(found, "out"))),
    ("sites-distinct", sites(lambda model, found: [replace(site, units=site.units + 1) for site in found])),
    ("sites-complete", sites(lambda model, found: found[:-1])),
    ("sites-complete", sites(lambda model, found: without_roles(found, "up"))),
    ("sites-complete", sites(lambda model, found: [replace(site, units=site.units - 1) for site in found])),
    ("meta-tensors", sites(read_weights)),
    ("foreign-model-refused", adapter(sites=lambda self, model: self.good.sites(model) if hasattr(model, "config") else [])),
    ("model-untouched", sites(nudge)),
    ("model-untouched", sites(rename)),
    ("causal", adapter(tap=lambda self, model, at, taps, handler: nullcontext())),
    (
        "taps-reported",
        shown(lambda handler, site, tap, values, rows: handler(site, tap, values, rows) if tap != "gate" else None),
    ),
    ("taps-reported", shown(lambda handler, site, tap, values, rows: handler(site, tap, values[1:], rows))),
    ("requested-taps-only", adapter(tap=lambda self, model, at, taps, handler: self.good.tap(model, at, EVERYTHING, handler))),
    (
        "requested-taps-only",
        adapter(tap=lambda self, model, at, taps, handler: self.good.tap(model, self.good.sites(model), taps, handler)),
    ),
    ("observation-only", shown(louder)),
    ("rows-match-tokens", shown(flipped)),
    ("cleanup", adapter(tap=untidy)),
    ("cleanup-after-error", adapter(tap=tidy_when_all_is_well)),
    ("neuron-tap-feeds-out", shown(half)),
    ("slices-match-units", shown(rolled)),
    ("zeroed-equals-removed", shown(rolled)),
    ("removed-equals-reloaded", sites(lambda model, found: [replace(site, config_fields={}) for site in found])),
]


@pytest.mark.parametrize(("check", "plugin"), BAD_ADAPTERS)
def test_a_bad_adapter_is_caught(check: str, plugin: ArchitectureAdapter) -> None:
    fails("architecture", plugin, check, model=lambda: tiny_model("llama"))


def test_every_check_has_a_bad_plugin() -> None:
    """The tests above, read back: no check may be without a plugin that fails it."""
    common = {
        "interface",
        "api-version",
        "frozen-dataclass",
        "options-round-trip",
        "equal-by-value",
        "picklable",
        "declared-needs",
    }
    marks = {
        "bias": test_a_bad_bias_scorer_is_caught,
        "policy": test_a_bad_policy_is_caught,
        "architecture": test_a_bad_adapter_is_caught,
    }
    for kind, test in marks.items():
        (mark,) = test.pytestmark  # type: ignore[attr-defined]
        caught = {check for check, _ in mark.args[1]} | common
        plugin = {"bias": Good(), "policy": Top(), "architecture": GLU()}[kind]
        assert set(check_plugin(kind, plugin, only=[]).checks) == caught  # type: ignore[arg-type]
    assert set(check_plugin("importance", GoodImportance(), only=[]).checks) < set(check_plugin("bias", Good(), only=[]).checks)


# The suite itself.


def test_an_exemption_needs_a_known_name_and_a_reason() -> None:
    report = check_plugin("bias", Good(), skip={"experts": "written for dense models"}, only=["experts", "shape"])
    assert report.skipped["experts"] == "written for dense models"
    assert report.ran == report.passed == ("shape",)
    assert "1 of 21 checks ran" in str(report)
    assert "skipped experts: written for dense models" in str(report)
    with pytest.raises(ValueError, match="without a reason"):
        check_plugin("bias", Good(), skip={"experts": " "})
    with pytest.raises(ValueError, match="Did you mean 'experts'"):
        check_plugin("bias", Good(), skip={"expert": "a reason"})
    with pytest.raises(ValueError, match="no check 'speed'"):
        check_plugin("bias", Good(), only=["speed"])


def test_what_cannot_be_checked_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of bias, importance"):
        check_plugin("scorer", Good())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a model is for adapters"):
        check_plugin("bias", Good(), model=lambda: tiny_model("llama"))


def test_a_failure_names_the_plugin_and_says_what_was_wrong() -> None:
    report = check_plugin("bias", scorer(lambda self, at, score: score.float()), only=["shape", "finite"])
    assert report.passed == ("finite",)
    assert "must be (48,) float64. Got (48,) torch.float32" in report.failures["shape"]
    assert "bias Bad: 2 of 21 checks ran, 1 failed" in str(report)
