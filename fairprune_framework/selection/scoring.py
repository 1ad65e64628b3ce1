"""From statistics and weights to one bias and one importance score per neuron; the core checks what scorers return."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from fairprune_framework.api.declared import needs_of
from fairprune_framework.api.interfaces import BiasScorer, ImportanceScorer, Needs, Plugin, SiteContext
from fairprune_framework.api.types import Scores, Site
from fairprune_framework.auditing.statistics import CALIBRATION, CONTRASTS, Statistics
from fairprune_framework.errors import ContractViolation, RunFolderError, UserError, shown
from fairprune_framework.models.architecture import Architecture
from fairprune_framework.selection.contexts import Services, context, generator_for, prepares
from fairprune_framework.surgery.slices import weights_of
from fairprune_framework.utilities.aside import plugin_call
from fairprune_framework.utilities.files import read_tensors


def needs_of_scorer(scorer: Plugin, label: str) -> Needs:
    """What a scorer needs; raises `UserError` where it asks for what only policies are given."""
    needs = needs_of(scorer, label)
    if needs.replicates:
        raise UserError(f"{label} asks for bootstrap replicates, which are given to selection policies alone")
    return needs


def score(
    statistics: Statistics,
    model: nn.Module,
    architecture: Architecture,
    bias: BiasScorer,
    importance: ImportanceScorer,
    labels: tuple[str, str],
    seed: int = 0,
    services: Services | None = None,
) -> Scores:
    """Run both scorers on every site; bias per category, then averaged over the categories in which the site was seen.

    Raises:
        ContractViolation: a score of the wrong shape or dtype, not finite, or negative without being signed.
        BrokenPlugin: the scorer raised; its own error is chained.
    """
    bias_needs, importance_needs = needs_of_scorer(bias, labels[0]), needs_of_scorer(importance, labels[1])
    services = services or Services()
    for_bias = cache(partial(services.for_plugin, bias_needs))
    for_importance = services.for_plugin(importance_needs, None)
    by_category: dict[str, dict[str, Tensor]] = {category: {} for category in statistics.categories}
    mean, important, observed = {}, {}, {}

    def bias_at(name: str, group: int | None, weights: Mapping[str, Tensor] | None = None) -> SiteContext:
        site, given = architecture.sites[name], for_bias(None if group is None else statistics.categories[group])
        if weights is None:
            weights = weights_of(model, site) if bias_needs.weights else {}
        return context(statistics, CONTRASTS, group, site, bias_needs, weights, generator_for(seed, labels[0], name), given)

    def importance_at(name: str, weights: Mapping[str, Tensor] | None = None) -> SiteContext:
        site, generator = architecture.sites[name], generator_for(seed, labels[1], name)
        if weights is None:
            weights = weights_of(model, site) if importance_needs.weights else {}
        return context(statistics, CALIBRATION, None, site, importance_needs, weights, generator, for_importance)

    for name, site in architecture.sites.items():
        weights = weights_of(model, site) if bias_needs.weights or importance_needs.weights else {}
        bias_weights = weights if bias_needs.weights else {}
        seen_in = {
            category: at
            for group, category in enumerate(statistics.categories)
            if int((at := bias_at(name, group, bias_weights)).observed.max()) > 0
        }
        if seen_in and prepares(bias):
            of_all = bias_at(name, None, bias_weights)
            with plugin_call(f"{labels[0]}, prepare(), site {name}"):
                prepared = bias.prepare(of_all)
            seen_in = {category: replace(at, prepared=prepared) for category, at in seen_in.items()}
        for category, at in seen_in.items():
            by_category[category][name] = _checked(partial(bias.score, at), at, labels[0], signed=bias.signed)
        at = importance_at(name, weights if importance_needs.weights else {})
        important[name] = _checked(partial(importance.score, at), at, labels[1], signed=True)
    for group, category in enumerate(statistics.categories):
        at_group = partial(bias_at, group=group)
        by_category[category] = _finished(bias, by_category[category], at_group, labels[0], signed=bias.signed)
    important = _finished(importance, important, importance_at, labels[1], signed=True)
    for name, site in architecture.sites.items():
        seen = [_per_unit(found[name], site) for found in by_category.values() if name in found]
        mean[name] = torch.stack(seen).mean(0) if seen else torch.zeros(site.units, dtype=torch.float64)
        observed[name] = torch.full((site.units,), bool(seen))
    return Scores(
        sites=architecture.sites,
        bias=mean,
        importance={name: _per_unit(found, architecture.sites[name]) for name, found in important.items()},
        by_category={
            category: {name: _per_unit(value, architecture.sites[name]) for name, value in found.items()}
            for category, found in by_category.items()
            if found
        },
        observed=observed,
        signed=bias.signed,
    )


def _checked(call: Callable[[], Tensor], at: SiteContext, label: str, *, signed: bool) -> Tensor:
    where = f"{label}, site {at.site.name}" + (f", category {at.category!r}" if at.category else "")
    with plugin_call(where):
        found = call()
    return _valid(found, at.site, where, signed=signed)


def _finished(
    scorer: BiasScorer | ImportanceScorer,
    scores: dict[str, Tensor],
    at: Callable[[str], SiteContext],
    label: str,
    *,
    signed: bool,
) -> dict[str, Tensor]:
    """What `finish` makes of the scores of all sites, checked as those of `score`."""
    if type(scorer).finish in (BiasScorer.finish, ImportanceScorer.finish) or not scores:
        return scores
    with plugin_call(f"{label}, finish()"):
        found = scorer.finish(scores, at)
    if not isinstance(found, Mapping):
        raise ContractViolation(f"{label}: finish() must return a mapping from sites. Got {type(found).__name__} instead.")
    if found.keys() != scores.keys():
        raise ContractViolation(f"{label}: finish() must return the sites that it was given, and no others")
    return {
        name: _valid(value, at(name).site, f"{label}, finish(), site {name}", signed=signed) for name, value in found.items()
    }


def _valid(found: Tensor, site: Site, where: str, *, signed: bool) -> Tensor:
    columns = site.units * site.unit_width
    if not isinstance(found, Tensor) or found.shape != (columns,) or found.dtype != torch.float64:
        got = f"{tuple(found.shape)} {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
        raise ContractViolation(f"{where}: a score must be ({columns},) float64. Got {got} instead.")
    if not torch.isfinite(found).all():
        raise ContractViolation(f"{where}: {int((~torch.isfinite(found)).sum())} scores are not finite")
    if not signed and (found < 0).any():
        raise ContractViolation(
            f"{where}: scores must be >= 0, the lowest is {found.min().item():g}; declare `signed` otherwise"
        )
    return found.cpu()


def _per_unit(score: Tensor, site: Site) -> Tensor:
    return score.reshape(site.units, -1).mean(1)


def save_scores(scores: Scores, path: Path) -> None:
    """Write `scores.safetensors`: `bias/<site>`, `bias@<category>/<site>`, `importance/<site>`, float64."""
    from fairprune_framework.utilities.files import write_tensors

    tensors = {f"bias/{name}": value for name, value in scores.bias.items()}
    tensors |= {f"importance/{name}": value for name, value in scores.importance.items()}
    tensors |= {f"observed/{name}": value.to(torch.uint8) for name, value in scores.observed.items()}
    for category, found in scores.by_category.items():
        tensors |= {f"bias@{category}/{name}": value for name, value in found.items()}
    write_tensors(path, tensors)


def load_scores(path: Path, sites: Mapping[str, Site], signed: bool) -> Scores:
    """Read `scores.safetensors` for the sites of a model.

    Raises:
        RunFolderError: it is absent or damaged, does not fit the sites, or its biases are not what its categories come to.
    """
    tensors = read_tensors(path)
    for key, value in tensors.items():
        head, _, name = key.rpartition("/")
        if (head not in ("bias", "importance", "observed") and not head.startswith("bias@")) or head == "bias@":
            raise RunFolderError(f"{path} is damaged: {shown(key)} is no score")
        wanted = torch.uint8 if key.startswith("observed/") else torch.float64
        if name not in sites or value.shape != (sites[name].units,) or value.dtype != wanted:
            expected = f"({sites[name].units},) {wanted}" if name in sites else "no such site"
            raise RunFolderError(
                f"{path} does not belong to this model: {shown(key)} is {tuple(value.shape)} {value.dtype}, expected {expected}"
            )
    by_category: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        head, _, name = key.rpartition("/")
        if head.startswith("bias@"):
            by_category.setdefault(head.removeprefix("bias@"), {})[name] = value
    try:
        found = Scores(
            sites=sites,
            bias={name: tensors[f"bias/{name}"] for name in sites},
            importance={name: tensors[f"importance/{name}"] for name in sites},
            observed={name: tensors[f"observed/{name}"].bool() for name in sites},
            by_category=cast(Mapping[str, Mapping[str, Tensor]], by_category),
            signed=signed,
        )
    except KeyError as error:
        raise RunFolderError(f"{path} holds no {error}: it belongs to another model") from error
    for name, mean in found.bias.items():
        seen = torch.stack([each[name] for each in by_category.values() if name in each] or [torch.zeros_like(mean)])
        if bool(((mean - seen.mean(0)).abs() > 1e-9 * seen.abs().amax(0)).any()):  # those of signed scores may cancel
            raise RunFolderError(f"{path} is damaged: the bias of {shown(name)} is not the mean of those of its categories")
        if not signed and bool((mean < 0).any()):
            raise RunFolderError(f"{path} is damaged: the bias of {shown(name)} is negative, which that of its scorer never is")
    return found
