"""What stands in the way of an operator: asked before anything is computed, and answered in one line."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from fairprune_framework.api.types import Operator, Site
from fairprune_framework.errors import UserError
from fairprune_framework.surgery.biases import NewBiases, new_biases, why_no_bias
from fairprune_framework.surgery.widths import Widths


def obstacle(site: Site, widths: Widths) -> str | None:
    """Why the neurons of a site cannot be cut out of its tensors; None: they can."""
    if site.surgery is not None or site.config_fields or widths == "exact":
        return site.surgery
    return (
        f"no config field holds its width, {site.units * site.unit_width}: --widths exact stores it beside the config, "
        "--operator zero and scale keep it"
    )


def refuse_obstacles(model: nn.Module, sites: Iterable[Site], operator: Operator, widths: Widths = "uniform") -> None:
    """Raise `UserError` where an operator cannot be carried out on one of the sites of a model."""
    sites = list(sites)
    for site in sites:
        if operator == "mean" and (why := why_no_bias(model, site)):
            raise UserError(f"{site.name} cannot be held at its mean: {why}")
        if operator in ("remove", "mean") and (why := obstacle(site, widths)):
            raise UserError(f"{site.name} cannot be cut: {why}")
        if operator == "scale" and any(slice_.role == "inner_norm" for slice_ in site.slices):
            raise UserError(f"{site.name} cannot be scaled: a norm between its neurons and its output weights would undo it")
    new = new_biases(model, sites) if operator == "mean" else NewBiases()
    if new.parameters and not new.fields and widths != "exact":
        raise UserError(
            f"{new.parameters[0]} is absent, and no config field gives {type(model).__name__} one to hold neurons at their means: "
            "--widths exact stores it beside the config"
        )
