"""The null distribution of a plan: random sets of neurons, matched by layer and activation norm, masked like the plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairprune_framework.api.decoders import text_decoder
from fairprune_framework.api.rankings import draw_matched
from fairprune_framework.api.statistics import SquareSum
from fairprune_framework.api.types import Held, Plan, Scaling
from fairprune_framework.auditing.identity import described
from fairprune_framework.auditing.statistics import CALIBRATION, Statistics
from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.evaluation.masked_evaluator import MaskedEvaluator, MaskedMeasurement
from fairprune_framework.models.loaded import LoadedModel
from fairprune_framework.surgery.means import mean_activations

NEIGHBOURS = 8
TRIES = 20
"""Times as many sets as are wanted are drawn at most, to find as many different ones."""


@dataclass(frozen=True, kw_only=True)
class RandomSet:
    """Random units, and what becomes of their activations."""

    units: Mapping[str, Sequence[int]]
    scaling: Scaling


def norms_of(statistics: Statistics | None, loaded: LoadedModel, documents: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """As `activation_norms`: what an audit summed over the same documents, or measured now where it summed none."""
    wanted = SquareSum()
    if statistics is None or f"{CALIBRATION}/{described(wanted)}" not in statistics.statistics:
        return activation_norms(loaded, documents)
    found = {}
    for name, site in loaded.architecture.sites.items():
        squares_1K = statistics.of(CALIBRATION, name, None, (wanted,))[f"{wanted.name}.squares"]
        found[name] = squares_1K.reshape(site.units, -1).sum(1).sqrt()
    return found


@torch.inference_mode()
def activation_norms(loaded: LoadedModel, documents: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """site -> (N,) float64: 2-norm of each unit's activation over all tokens of the documents.

    Args:
        documents: token ids; made before the call, so that text which the model itself writes does not pass the tap.
    """
    model, sites = loaded.model, loaded.architecture.sites
    squares = {name: torch.zeros(site.units, dtype=torch.float64) for name, site in sites.items()}

    def add(site: Any, tap: Any, values: Tensor, rows: Tensor | None) -> None:
        squares[site.name] += values.double().square().sum(0).reshape(site.units, -1).sum(1).cpu()

    device = next(model.parameters()).device
    with loaded.architecture.adapter.tap(model, list(sites.values()), frozenset({"neuron"}), add):
        for document in documents:
            text_decoder(model)(input_ids=torch.tensor([document], device=device), use_cache=False)
    return {name: value.sqrt() for name, value in squares.items()}


def random_means(plan: Plan, loaded: LoadedModel, documents: Sequence[Sequence[int]]) -> dict[str, Tensor] | None:
    """What `matched_sets` holds random neurons at where the plan's operator is `mean`; None under another."""
    return mean_activations(loaded.model, loaded.architecture, documents) if plan.operator == "mean" else None


def random_changes(
    loaded: LoadedModel,
    contrasts: Sequence[AlignedContrast],
    values: Mapping[str, int],
    divergences: Mapping[str, float],
    sets: Iterator[RandomSet],
    max_tokens: int,
    advance: Callable[[int], None] = lambda sets: None,
    share_up_to: int = 0,
) -> tuple[float, ...]:
    """The change of next-token divergence by each set: what any set of such neurons does; none where there is no divergence.

    Args:
        contrasts: held-out and demographic, those that the plan is judged on.
        values: category -> number of values.
        divergences: id -> divergence in the original model, which is not measured again.
        share_up_to: see `MaskedEvaluator`.
    """
    evaluator = MaskedEvaluator(
        loaded.model, loaded.architecture, contrasts, values, max_tokens=max_tokens, share_up_to=share_up_to
    )
    original = MaskedMeasurement(values={contrast.id: divergences[contrast.id] for contrast in contrasts}, perplexity=None)
    before, changes = evaluator.mean(original), []
    if not before:
        return ()
    for drawn in sets:
        changes.append(evaluator.mean(evaluator.measure(drawn.units, drawn.scaling)) / before - 1)
        advance(1)
    return tuple(changes)


def matched_sets(
    plan: Plan,
    norms: Mapping[str, Tensor],
    allowed: Mapping[str, Tensor],
    draws: int,
    seed: int,
    means: Mapping[str, Tensor] | None = None,
) -> Iterator[RandomSet]:
    """Random sets of as many neurons of each site as are planned there, each of nearly the norm of a planned one, and with its factor,
    or held at its own mean.

    None is planned itself, except in a site of which more than half of what may be drawn is planned: there the planned ones change
    places too. No set comes twice: of very few neurons there may be fewer sets than `draws`.

    Args:
        norms: of `activation_norms`.
        allowed: site -> (N,) bool: which units may be drawn.
        draws: number of sets.
        means: of `random_means`.
    """
    reference = {name: torch.tensor(units) for name, units in plan.sites.items() if units}
    crowded = {
        name for name, units in reference.items() if int(allowed[name].sum()) - int(allowed[name][units].sum()) < len(units)
    }
    generator = torch.Generator().manual_seed(seed)
    neighbours = _neighbours(sum(map(len, reference.values())), draws)
    seen: set[tuple[tuple[str, ...], ...]] = set()
    placed = isinstance(plan.scaling, Mapping)  # each place has a factor of its own
    for _ in range(TRIES * draws):
        if len(seen) == draws:
            return
        units: dict[str, list[int]] = {}
        for apart in (True, False):
            here = {name: chosen for name, chosen in reference.items() if (name not in crowded) == apart}
            drawn = draw_matched(here, norms, allowed, generator, neighbours, apart=apart)
            units |= {name: found.tolist() for name, found in drawn.items()}
        members = tuple((name, *map(str, found if placed else sorted(found))) for name, found in sorted(units.items()))
        if members in seen:
            continue
        seen.add(members)
        scaling = plan.scaling
        if means is not None:
            scaling = Held({name: means[name][found].tolist() for name, found in units.items()})
        elif isinstance(scaling, Mapping):
            scaling = {name: scaling[name][: len(found)] for name, found in units.items()}
        yield RandomSet(units=units, scaling=scaling)


def _neighbours(planned: int, draws: int) -> int:
    """How many of the nearest a neuron is drawn from: 8, and for plans of one or two neurons so many that sets seldom repeat.

    >>> [_neighbours(planned, 19) for planned in (1, 2, 3, 100)]
    [190, 14, 8, 8]
    """
    return max(NEIGHBOURS, math.ceil(math.pow(10 * draws, 1 / max(planned, 1))))
