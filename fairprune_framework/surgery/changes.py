"""A plan carried out in the weights and config of a model, in place: units cut, zeroed, scaled or held, and all of it undone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.api.types import Plan, Site, Slice
from fairprune_framework.api.widths import read_field, write_field
from fairprune_framework.surgery.biases import empty_bias, name_of_bias, new_biases, shifted
from fairprune_framework.surgery.slices import cut, scale_, set_parameter, zero_
from fairprune_framework.surgery.widths import new_fields


@contextmanager
def pruned_in_place(
    model: nn.Module, plan: Plan, sites: Mapping[str, Site], widths: Mapping[tuple[str, int], int]
) -> Iterator[None]:
    """The model with the plan carried out in its weights and config; everything is put back afterwards, bit by bit."""
    with carry_out(model, plan, sites, widths):
        yield


def carry_out(model: nn.Module, plan: Plan, sites: Mapping[str, Site], widths: Mapping[tuple[str, int], int]) -> ExitStack:
    """Carry the plan out in the weights and config of a model, in place.

    Returns: what undoes it, bit by bit, when it is closed; let go of, the model stays as it is now.
    """
    config: Any = model.config
    config = config.get_text_config()
    planned_sites = [site for name, site in sites.items() if plan.sites.get(name)] if plan.operator == "mean" else []
    with ExitStack() as stack:
        new = new_biases(model, planned_sites)
        biases = {name_of_bias(site): shifted(model, plan, site) for site in planned_sites}
        for parameter, change in changes(plan, sites, widths).items():
            value = change(model.get_parameter(parameter).detach())
            stack.callback(set_parameter, model, parameter, set_parameter(model, parameter, value))
        for parameter in sorted({*biases, *new.parameters}):
            bias = biases[parameter] if parameter in biases else empty_bias(model, parameter)
            stack.callback(set_parameter, model, parameter, set_parameter(model, parameter, bias))
        for field, width in {**new_fields(sites, widths, config), **new.fields}.items():
            if read_field(config, field) != width:
                stack.callback(_put_back, config, field, read_field(config, field))
                write_field(config, field, width)
        return stack.pop_all()


def _put_back(config: Any, field: str, value: Any) -> None:
    """Give a config field its value back; one that the family's config does not have goes."""
    write_field(config, field, value)
    if value is None and field in vars(config) and not hasattr(type(config), field):
        delattr(config, field)


def changes(
    plan: Plan, sites: Mapping[str, Site], widths: Mapping[tuple[str, int], int]
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Parameter -> what makes its new value of the old one, which is left as it is; of parameters that a plan leaves alone nothing."""
    slices: dict[str, list[tuple[Slice, Tensor]]] = {}
    stays: dict[str, list[tuple[Site, Tensor]]] = {}
    for name, site in sites.items():
        planned = torch.tensor(plan.sites.get(name, ()), dtype=torch.long)
        gone = site.units - widths[(site.width_group, site.units)]
        for slice_ in site.slices:
            if gone:
                slices.setdefault(slice_.parameter, []).append((slice_, planned[:gone]))
            if len(planned) > gone and (slice_.role == "out" or plan.operator != "scale"):
                stays.setdefault(slice_.parameter, []).append((site, planned[gone:]))

    def change(parameter: str, value: Tensor) -> Tensor:
        if parameter in stays:
            value = value.clone()
        for site, units in stays.get(parameter, []):
            only = _narrowed(site, [slice_ for slice_ in site.slices if slice_.parameter == parameter])
            if plan.operator == "scale":
                factor = torch.tensor(plan.factors[site.name]) if plan.factors else plan.factor or 0.0
                scale_({parameter: value}, only, units, factor)
            else:
                zero_({parameter: value}, only, units)
        return _cut(value, slices[parameter]) if parameter in slices else value

    return {parameter: partial(change, parameter) for parameter in sorted({*slices, *stays})}


def changed_parameters(plan: Plan, sites: Mapping[str, Site]) -> list[str]:
    """The parameters that a plan changes; biases that the model lacks are those of `new_biases`."""
    planned = [site for name, site in sites.items() if plan.sites.get(name)]
    biases = {name_of_bias(site) for site in planned} if plan.operator == "mean" else set()
    return sorted({slice_.parameter for site in planned for slice_ in site.slices} | biases)


def _cut(value: Tensor, slices: list[tuple[Slice, Tensor]]) -> Tensor:
    """A parameter without units. The weights of a norm over the units grow by sqrt(N / kept): its mean is over fewer of them."""
    kept = cut(value, slices)
    if slices[0][0].role == "inner_norm":
        kept = (kept.double() * math.sqrt(len(value) / len(kept))).to(kept.dtype)
    return kept


def _narrowed(site: Site, slices: list[Slice]) -> Site:
    return replace(site, slices=tuple(slices))
