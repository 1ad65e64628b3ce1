"""The contract of bias and importance scorers, checked with the real callback and Trainer on tiny models."""

from __future__ import annotations

import copy
import gc
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from fairprune_framework.api.types import Site
from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.models.architecture import Architecture
from fairprune_framework.surgery.slices import part, positions
from fairprune_framework.testing.interpreters import answers
from fairprune_framework.testing.report import Check, CheckSkipped, require
from fairprune_framework.testing.scorer_bench import Bench, Poisoned, Scorer, SiteScores, Watched

RELATIVE, OF_LARGEST = 1e-3, 1e-5
"""Tolerated float noise of composition and order: relative to a score, and to the largest score of the site."""

ROUNDING = 2e-5
"""Tolerated difference from a model in float64, relative: above what float32 rounds off, below what half does (5e-4 a value)."""
JITTERS = 6
"""Models in float64 whose weights are as unsure as float32 makes them: rounding to half shows where a value lies beside a step, which few
do in a single model."""


def jittered(model: nn.Module, seed: int) -> nn.Module:
    """A copy in float64, each weight off by about what float32 rounds off."""
    copied = copy.deepcopy(model).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in copied.parameters():
            weight.mul_(1 + 2.0**-23 * torch.randn(weight.shape, generator=generator, dtype=torch.float64))
    return copied


def check_shapes(scores: SiteScores, sites: Mapping[str, Site]) -> None:
    """Every score is (K,) float64."""
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


def check_not_narrow(scores: SiteScores) -> None:
    """Scores are not rounded to half: where the model and most values differ, float32 has digits that float16 and bfloat16 have not.
    Whole numbers count something, and a few values that recur are shares."""
    for (name, category), score in scores.items():
        counted = bool((score == score.round()).all()) or len(set(score.tolist())) < len(score) / 2
        for narrow in (torch.float16, torch.bfloat16):
            rounded = bool((score == score.to(narrow).double()).all())
            require(counted or not rounded, f"{name} {category}: every score is a {str(narrow).partition('.')[2]} number")


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


def _held_bytes() -> int:
    """Bytes of all tensors that something still refers to, views by what they are views of."""
    gc.collect()
    held = {}
    for one in gc.get_objects():
        if type(one) is Tensor and one.device.type == "cpu" and one.layout == torch.strided:
            storage = one.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
    return sum(held.values())


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

    def grouping() -> None:
        at = streaming()
        check_equal(at.whole, at.baseline, "whole micro-batches, as an accelerator sees them,")

    def hoarding() -> None:
        at = bench()
        at.scores()
        before = _held_bytes()
        at.scores()
        grown = _held_bytes() - before
        require(
            grown <= 0,
            f"after a further run, {grown:,} bytes of tensors are still held: a statistic or scorer keeps what it saw",
        )

    def padding() -> None:
        at = streaming()
        batches = [widened(batch) for batch in at.batches()]
        check_equal(at.scores(batches, in_parts=False), at.whole, "more padding")  # groups of alike contrasts are without

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

    def hash_seed() -> None:
        one, other = answers(kind, scorer)
        check_equal(other, one, "another interpreter, which goes through sets of words in another order,")

    def experts() -> None:
        at = bench("mixtral")
        well_formed(at.baseline, at)
        if scorer.needs().statistics:
            check_equal(at.scores(at.batches(tokens=1)), at.baseline, "one contrast in each micro-batch")

    def precision() -> None:
        check_not_narrow(bench().baseline)
        exact = bench().scores(model=copy.deepcopy(bench().model).double())
        unsure = [bench().baseline, *(bench().scores(model=jittered(bench().model, seed)) for seed in range(JITTERS))]
        for key, of in exact.items():
            limit = ROUNDING * (of.abs() + 0.1 * of.abs().max())
            for scores in unsure:
                off = (scores[key] - of).abs()
                worst = int((off - limit).argmax())
                values = f"{scores[key][worst].item():.7g}, and {of[worst].item():.7g}"
                require((off <= limit).all(), f"{key[0]} {key[1]}: unit {worst} scores {values} where the model is in float64")

    def wide_units() -> None:
        at = Bench(kind, scorer, "llama", pairs=True)
        check_shapes(at.baseline, at.architecture.sites)
        check_equal(at.baseline, bench().baseline, "units of two columns each, whose scores are those of the columns,")

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
        "grouping-invariance": grouping,
        "padding-invariance": padding,
        "masks-respected": masks,
        "permutation-equivariance": permutation,
        "zero-difference": zero_difference,
        "no-mutation": no_mutation,
        "hoarding": hoarding,
        "hash-seed": hash_seed,
        "experts": experts,
        "wide-units": wide_units,
        "precision": precision,
        "bfloat16": bfloat16,
    }
    if kind == "importance":  # may be negative, and concerns one text at a time
        del checks["sign"], checks["zero-difference"]
    return checks
