"""A plan applied without changing a weight: inside the context its units are masked at the neuron tap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fairprune_framework.api.types import Held, Plan, Scaling, Site, Tap
from fairprune_framework.errors import UserError
from fairprune_framework.models import work
from fairprune_framework.models.architecture import Architecture, recognise


@contextmanager
def masked(
    model: nn.Module, architecture: Architecture, units: Mapping[str, Sequence[int]], factor: Scaling = 0.0
) -> Iterator[None]:
    """Multiply the activations of units (site -> indices) by `factor`, or by a factor each, or hold them at their means, in every
    forward pass inside the context."""
    columns: dict[str, Tensor] = {}
    factors: dict[str, Tensor] = {}
    for name, chosen in units.items():
        if len(chosen):
            site = architecture.sites[name]
            index = torch.as_tensor(chosen, dtype=torch.long).unsqueeze(-1) * site.unit_width + torch.arange(site.unit_width)
            columns[name] = index.reshape(-1)
            if isinstance(factor, Held):
                factors[name] = torch.tensor(factor.means[name], dtype=torch.float64).reshape(-1)
            elif not isinstance(factor, (int, float)):
                factors[name] = torch.tensor(factor[name], dtype=torch.float64).repeat_interleave(site.unit_width)

    def mask(site: Site, tap: Tap, values: Tensor, rows: Tensor | None) -> Tensor | None:
        if tap != "neuron" or site.name not in columns:
            return None
        chosen = columns[site.name] = columns[site.name].to(values.device)
        if isinstance(factor, Held):
            return values.index_copy(1, chosen, factors[site.name].to(values).expand(len(values), -1))
        if factor == 0.0:
            return values.index_fill(1, chosen, 0)
        scale = torch.ones(values.shape[1], dtype=values.dtype, device=values.device)
        if isinstance(factor, (int, float)):
            return values * scale.index_fill(0, chosen, factor)
        return values * scale.index_copy(0, chosen, factors[site.name].to(scale))

    sites = [architecture.sites[name] for name in columns]
    with work.under(units, factor), architecture.adapter.tap(model, sites, frozenset({"neuron"}), mask):
        yield


@contextmanager
def applied(plan: Plan, model: nn.Module, architecture: Architecture | None = None) -> Iterator[nn.Module]:
    """`with fp.applied(plan, model):` - the outputs are those of the pruned model; no weight is changed.

    Raises:
        UserError: the plan was made for another model.
    """
    architecture = architecture or recognise(model)
    check_plan(plan, model, architecture)
    with masked(model, architecture, plan.sites, plan.scaling):
        yield model


def check_plan(plan: Plan, model: nn.Module, architecture: Architecture) -> None:
    """Raise `UserError` unless the plan was made for this model and all its units exist."""
    from fairprune_framework.models.weights import fingerprint

    check_fits(plan, fingerprint(model), architecture)


def check_fits(plan: Plan, actual: str, architecture: Architecture) -> None:
    """As `check_plan`, for a model of which the fingerprint is known."""
    if plan.fingerprint != actual:
        raise UserError(
            f"the plan is for another model: made for {plan.model} ({plan.fingerprint[:12]}), this one is {actual[:12]}"
        )
    for name, units in plan.sites.items():
        site = architecture.sites.get(name)
        if site is None:
            raise UserError(f"the plan names the site {name!r}, which the model does not have")
        if units and units[-1] >= site.units:
            raise UserError(f"the plan names unit {units[-1]} of {name}, which has {site.units}")
        if len(units) >= site.units:
            raise UserError(f"the plan leaves no unit of {name}: at least one must remain")
        if any(len(mean) != site.unit_width for mean in plan.means.get(name, ())):
            raise UserError(f"the plan must name {site.unit_width} means for each unit of {name}")
