"""The contract of bias and importance scorers, checked with the real callback and Trainer on tiny models."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fairprune_framework.api.interfaces import BiasScorer, ImportanceScorer, Observation, Pass, SiteContext, Statistic
from fairprune_framework.api.types import Choice, Measurement, Site, Tap
from fairprune_framework.auditing.batches import compose
from fairprune_framework.auditing.callback import ActivationStatisticsCallback
from fairprune_framework.auditing.demand import passes_of
from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.auditing.runner import stream
from fairprune_framework.auditing.sums import CALIBRATION, CONTRASTS, CONTROLS, LEGITIMATE
from fairprune_framework.calibration.text import Calibration
from fairprune_framework.contrasts.alignment import AlignedContrast, align_all, attribute_tokens, vocabularies
from fairprune_framework.models.architecture import Architecture, recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.models.readout import readout_of
from fairprune_framework.selection.contexts import Services, context, generator_for
from fairprune_framework.surgery.slices import part, positions, weights_of
from fairprune_framework.testing.report import Check, CheckSkipped, require
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_legitimate, tiny_model, tiny_tokenizer

Scorer = BiasScorer | ImportanceScorer
SiteScores = dict[tuple[str, str], Tensor]
"""(site, category, or "" for importance) -> the returned scores."""

TOKENS = 192
"""Padded tokens of a micro-batch: several contrasts of unequal length together."""
RELATIVE, OF_LARGEST = 1e-3, 1e-5
"""Tolerated float noise of composition and order: relative to a score, and to the largest score of the site."""

ROUNDING = 2e-5
"""Tolerated difference from a model in float64, relative: above what float32 rounds off, below what half does (5e-4 a value)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Watched(Statistic):
    """Wraps a statistic and records whether it modifies its observation or is not deterministic."""

    inner: Statistic
    faults: list[str] = field(default_factory=list)

    def passes(self, layers: int) -> Sequence[Pass]:
        """As the wrapped statistic."""
        return self.inner.passes(layers)

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """As the wrapped statistic."""
        before = {name: value.clone() for name, value in _shown(obs, self.taps).items()}
        first = {name: value.clone() for name, value in self.inner.summands(obs).items()}
        second = self.inner.summands(obs)
        for name, value in _shown(obs, self.taps).items():
            if not torch.equal(value, before[name]):
                self.faults.append(f"statistic {self.name!r} changes {name} of its observation")
        if any(not torch.equal(first[name], value) for name, value in second.items()):
            self.faults.append(f"statistic {self.name!r} gives different summands for the same observation")
        return second


@dataclass(frozen=True, kw_only=True, eq=False)
class Poisoned(Statistic):
    """Wraps a statistic and gives it large numbers wherever the masks are False, others for each variant: differences do not cancel."""

    inner: Statistic

    def passes(self, layers: int) -> Sequence[Pass]:
        """As the wrapped statistic."""
        return self.inner.passes(layers)

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        """As the wrapped statistic."""
        poison_V11 = 1e4 * torch.arange(1, obs.mask.shape[1] + 1).reshape(-1, 1, 1)

        def poisoned(values: Mapping[Tap, Tensor], mask: Tensor) -> dict[Tap, Tensor]:
            return {tap: value.where(mask.unsqueeze(-1), poison_V11.to(value)) for tap, value in values.items()}

        acts, aligned = poisoned(obs.acts, obs.mask), poisoned(obs.aligned, obs.aligned_mask)
        shared = obs.aligned_mask.any(1).unsqueeze(-1)
        variance = {tap: value.masked_fill(~shared, 1e4) for tap, value in obs.aligned_variance.items()}
        return self.inner.summands(replace(obs, acts=acts, aligned=aligned, aligned_variance=variance))


def _shown(obs: Observation, taps: frozenset[Any]) -> dict[str, Tensor]:
    values = {f"acts[{tap!r}]": obs.acts[tap] for tap in taps if tap in obs.acts}
    values |= {f"aligned[{tap!r}]": obs.aligned[tap] for tap in taps if tap in obs.aligned}
    values |= {f"aligned_variance[{tap!r}]": obs.aligned_variance[tap] for tap in taps if tap in obs.aligned_variance}
    values |= {f"weights[{role!r}]": value for role, value in obs.weights.items()}
    for name in ("mask", "aligned_mask", "slot_weight", "attribute", "equal_length"):
        values[name] = getattr(obs, name)
    return values


class Bench:
    """A tiny model with contrasts and calibration text, to run a scorer in several ways."""

    def __init__(
        self, kind: Literal["bias", "importance"], scorer: Scorer, family: str, dtype: torch.dtype = torch.float32
    ) -> None:
        self.kind, self.scorer = kind, scorer
        self.model = tiny_model(family, dtype=dtype)
        self.architecture: Architecture = recognise(self.model)
        tokenizer = tiny_tokenizer()
        every, encoder = tiny_contrasts(), Encoder(tokenizer)
        self.contrasts, self.controls = (
            align_all([contrast for contrast in every if contrast.control is control], encoder)[0] for control in (False, True)
        )
        self.legitimate = align_all(tiny_legitimate(), encoder)[0]
        self.values = {category: len(names) for category, names in vocabularies([*every, *tiny_legitimate()]).items()}
        generator = torch.Generator().manual_seed(0)
        lengths = torch.randint(4, 20, (16,), generator=generator).tolist()
        documents = tuple(tuple(torch.randint(3, len(tokenizer), (n,), generator=generator).tolist()) for n in lengths)
        self.documents = Calibration(documents=documents, source="contract").as_contrasts()

    @cached_property
    def baseline(self) -> SiteScores:
        """The scores of the unmodified setting."""
        return self.scores()

    def batches(self, contrasts: Sequence[AlignedContrast] | None = None, tokens: int = TOKENS) -> list[MicroBatch]:
        """All micro-batches of all streams."""
        shown = {
            CONTRASTS: self.contrasts if contrasts is None else contrasts,
            CONTROLS: self.controls,
            LEGITIMATE: self.legitimate,
            CALIBRATION: self.documents,
        }
        batches: list[MicroBatch] = []
        for pass_ in passes_of(self.scorer.needs().statistics, len(self.architecture.sites)):
            values = {"": 1} if pass_.stream == CALIBRATION else self.values
            batches += compose(shown[pass_.stream], values, tokens, pass_=pass_)
        return batches

    def scores(
        self,
        batches: Sequence[MicroBatch] | None = None,
        *,
        model: nn.Module | None = None,
        statistics: Sequence[Statistic] | None = None,
        backwards: bool = False,
        changed: list[str] | None = None,
    ) -> SiteScores:
        """Run the scorer like the core, but without the core's checks.

        Args:
            model: another model of the same shape.
            statistics: a replacement of the declared statistics.
            backwards: visit the sites in reverse order.
            changed: collects descriptions of mutations by the scorer.
        """
        model = self.model if model is None else model
        needs, sites = self.scorer.needs(), list(self.architecture.sites.values())
        callback = ActivationStatisticsCallback(
            model=model,
            adapter=self.architecture.adapter,
            sites=sites,
            statistics=needs.statistics if statistics is None else statistics,
            categories={
                stream: sorted({contrast.category for contrast in every})
                for stream, every in ((CONTRASTS, self.contrasts), (CONTROLS, self.controls), (LEGITIMATE, self.legitimate))
            },
            weights_of=weights_of if needs.weights else None,
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")  # nothing to sum: weights only
            if needs.statistics:
                stream(model, self.batches() if batches is None else batches, [callback], "cpu")
            sums = callback.result("")
        groups = list(enumerate(sums.categories)) if self.kind == "bias" else [(0, "")]
        source = CONTRASTS if self.kind == "bias" else CALIBRATION
        services = self._services(model)

        def at_site(name: str, group: int, category: str) -> SiteContext:
            site = self.architecture.sites[name]
            weights = weights_of(model, site) if needs.weights else {}
            generator = generator_for(0, "contract", name)
            return context(sums, source, group, site, needs, weights, generator, services.for_plugin(needs, category or None))

        scores: SiteScores = {}
        for group, category in groups:
            found: dict[str, Tensor] = {}
            for site in reversed(sites) if backwards else sites:
                at = at_site(site.name, group, category)
                if self.kind == "bias" and needs.statistics and int(at.observed.max()) == 0:
                    continue
                found[site.name] = self._call(at, changed)
            finished = self.scorer.finish(found, partial(at_site, group=group, category=category))
            scores |= {(name, category): score for name, score in finished.items()}
        return scores

    def _services(self, model: nn.Module) -> Services:
        """The readout of the model, and a probe that says which units it was asked for, in place of a measurement."""

        def probe(choice: Choice, *, cost: bool = True) -> Measurement:
            size = sum(
                float(torch.linalg.vector_norm(weights_of(model, self.architecture.sites[name])["out"][units].double()))
                for name, units in choice.units.items()
            )
            return Measurement(divergence=1 / (1 + size), cost=0.001 * size, retention=1 / (1 + 0.001 * size))

        return Services(
            readout=lambda: readout_of(model),
            probe=lambda category: probe,
            attribute_tokens=lambda: attribute_tokens(self.contrasts),
        )

    def _call(self, at: SiteContext, changed: list[str] | None) -> Tensor:
        before = {name: value.clone() for name, value in {**at.sums, **at.weights}.items()}
        score = self.scorer.score(at)
        for name, value in {**at.sums, **at.weights}.items():
            if changed is not None and not torch.equal(value, before[name]):
                changed.append(f"score() modifies {name!r} of its context")
        return score


def check_shapes(scores: SiteScores, sites: Mapping[str, Site]) -> None:
    """Every score is (N,) float64."""
    require(scores, "no site was scored")
    for (name, category), score in scores.items():
        columns = sites[name].units * sites[name].unit_width
        kind = f"{tuple(score.shape)} {score.dtype}" if isinstance(score, Tensor) else type(score).__name__
        fits = isinstance(score, Tensor) and score.shape == (columns,) and score.dtype == torch.float64
        require(fits, f"{name} {category}: a score must be ({columns},) float64. Got {kind} instead.")


def check_finite(scores: SiteScores) -> None:
    """No score is NaN or infinite."""
    for (name, category), score in scores.items():
        require(torch.isfinite(score).all(), f"{name} {category}: {int((~torch.isfinite(score)).sum())} scores are not finite")


def check_sign(scores: SiteScores, signed: bool) -> None:
    """No score is negative, unless the scorer declares `signed`."""
    for (name, category), score in scores.items():
        require(
            signed or not (score < 0).any(), f"{name} {category}: the lowest score is {score.min().item():g}; declare `signed`"
        )


def check_equal(scores: SiteScores, expected: SiteScores, what: str, *, exact: bool = False) -> None:
    """Both runs have equal scores, up to float noise."""
    require(scores.keys() == expected.keys(), f"{what}: different sites or categories were scored")
    for key, score in scores.items():
        limit = RELATIVE * expected[key].abs() + OF_LARGEST * expected[key].abs().max()
        off = (score - expected[key]).abs()
        bad = off > (0 if exact else limit)
        if bad.any():
            unit = int((off - limit).argmax())
            values = f"{expected[key][unit].item():g} became {score[unit].item():g}"
            require(
                False, f"{what} changes {int(bad.sum())} of {len(score)} scores of {key[0]} {key[1]}: unit {unit}, {values}"
            )


def widened(batch: MicroBatch, columns: int = 5) -> MicroBatch:
    """The same texts with more padding, whose ids are words."""
    more = torch.full((batch.input_ids.shape[0], columns), 7)
    return replace(
        batch,
        input_ids=torch.cat([batch.input_ids, more], 1),
        attention_mask=torch.cat([batch.attention_mask, torch.zeros_like(more)], 1),
    )


@torch.no_grad()
def permuted(model: nn.Module, architecture: Architecture) -> tuple[nn.Module, dict[str, Tensor]]:
    """A copy of a model with permuted units, and site -> the old index of each unit."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    orders = {name: torch.randperm(site.units, generator=generator) for name, site in architecture.sites.items()}
    for name, site in architecture.sites.items():
        for slice_ in site.slices:
            tensor, axis = part(other.get_parameter(slice_.parameter), slice_)
            moved = tensor.index_select(axis, positions(slice_, orders[name]))
            tensor.index_copy_(axis, positions(slice_, torch.arange(site.units)), moved)
    return other, orders


def scorer_checks(kind: Literal["bias", "importance"], scorer: Scorer) -> dict[str, Check]:
    """All checks of a scorer; each can run alone."""
    benches: dict[tuple[str, torch.dtype], Bench] = {}

    def bench(family: str = "llama", dtype: torch.dtype = torch.float32) -> Bench:
        if (family, dtype) not in benches:
            benches[family, dtype] = Bench(kind, scorer, family, dtype)
        return benches[family, dtype]

    def streaming() -> Bench:
        if not scorer.needs().statistics:
            raise CheckSkipped("no statistics are declared, so no text is read")
        return bench()

    def well_formed(scores: SiteScores, at: Bench) -> None:
        check_shapes(scores, at.architecture.sites)
        check_finite(scores)
        check_sign(scores, kind == "importance" or bool(getattr(scorer, "signed", False)))

    def shape() -> None:
        check_shapes(bench().baseline, bench().architecture.sites)

    def finite() -> None:
        check_finite(bench().baseline)

    def sign() -> None:
        check_sign(bench().baseline, bool(getattr(scorer, "signed", False)))

    def tells_apart() -> None:
        flat = [key for key, score in bench().baseline.items() if score.max() == score.min()]
        require(
            not flat,
            f"all neurons of {flat and flat[0]} have the same score, on different contrasts and random weights",
        )

    def deterministic() -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            first = bench().scores()
            torch.manual_seed(2)
            check_equal(bench().scores(), first, "a different state of the global generator", exact=True)
            check_equal(bench().scores(backwards=True), first, "a different order of the sites", exact=True)

    def order() -> None:
        at = streaming()
        check_equal(at.scores(at.batches()[::-1]), at.baseline, "a different order of the micro-batches")

    def batch_split() -> None:
        at = streaming()
        check_equal(at.scores(at.batches(tokens=1)), at.baseline, "one contrast in each micro-batch")

    def padding() -> None:
        at = streaming()
        check_equal(at.scores([widened(batch) for batch in at.batches()]), at.baseline, "more padding")

    def masks() -> None:
        at = streaming()
        poisoned = [Poisoned(name=s.name, taps=s.taps, inner=s) for s in scorer.needs().statistics]
        check_equal(at.scores(statistics=poisoned), at.baseline, "the values where the masks are False")

    def permutation() -> None:
        at = bench()
        other, orders = permuted(at.model, at.architecture)
        expected = {}
        for (name, category), score in at.baseline.items():
            by_unit = score.reshape(at.architecture.sites[name].units, -1)
            expected[name, category] = by_unit[orders[name]].reshape(-1)
        check_equal(at.scores(model=other), expected, "a permutation of the neurons")

    def zero_difference() -> None:
        at = streaming()
        same = [replace(c, variants=(c.variants[0],) * len(c.variants)) for c in at.contrasts]
        for key, score in at.scores(at.batches(same)).items():
            limit = 1e-9 * at.baseline[key].abs().max().item()
            worst = score.abs().max().item()
            require(worst <= limit, f"equal variants give {key[0]} {key[1]} a score of {worst:g}; it must be 0")

    def no_mutation() -> None:
        at = bench()
        changed: list[str] = []
        weights = {name: value.clone() for name, value in at.model.state_dict().items()}
        twin = copy.deepcopy(scorer)
        watched = [Watched(name=s.name, taps=s.taps, inner=s, faults=changed) for s in scorer.needs().statistics]
        at.scores(statistics=watched, changed=changed)
        changed += [
            f"{name} of the model was modified"
            for name, v in at.model.state_dict().items()
            if not torch.equal(v, weights[name])
        ]
        if vars(scorer) != vars(twin):
            changed.append("the scorer keeps state between calls")
        require(not changed, "; ".join(dict.fromkeys(changed)))

    def experts() -> None:
        at = bench("mixtral")
        well_formed(at.baseline, at)
        if scorer.needs().statistics:
            check_equal(at.scores(at.batches(tokens=1)), at.baseline, "one contrast in each micro-batch")

    def precision() -> None:
        exact = bench().scores(model=copy.deepcopy(bench().model).double())
        for key, score in bench().baseline.items():
            off = (score - exact[key]).abs()
            limit = ROUNDING * (exact[key].abs() + 0.1 * exact[key].abs().max())
            worst = int((off - limit).argmax())
            values = f"{score[worst].item():.7g}, and {exact[key][worst].item():.7g}"
            require((off <= limit).all(), f"{key[0]} {key[1]}: unit {worst} scores {values} where the model is in float64")

    def bfloat16() -> None:
        at = bench(dtype=torch.bfloat16)
        well_formed(at.baseline, at)

    checks: dict[str, Check] = {
        "shape": shape,
        "finite": finite,
        "sign": sign,
        "distinguishes-neurons": tells_apart,
        "deterministic": deterministic,
        "order-invariance": order,
        "batch-split-invariance": batch_split,
        "padding-invariance": padding,
        "masks-respected": masks,
        "permutation-equivariance": permutation,
        "zero-difference": zero_difference,
        "no-mutation": no_mutation,
        "experts": experts,
        "precision": precision,
        "bfloat16": bfloat16,
    }
    if kind == "importance":  # may be negative, and concerns one text at a time
        del checks["sign"], checks["zero-difference"]
    return checks
