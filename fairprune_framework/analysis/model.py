"""What can be done with a model, before anything is audited: `fairprune doctor MODEL`."""

from __future__ import annotations

import copy
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch

from fairprune_framework import discovery
from fairprune_framework.api.decoders import decoder_path, other_modalities
from fairprune_framework.api.types import Operator, Plan, Site
from fairprune_framework.errors import FairpruneError, UserError
from fairprune_framework.models.loaded import LoadedModel
from fairprune_framework.models.loading import parameter_count, public_name
from fairprune_framework.models.uneven import check_plain, forget
from fairprune_framework.recipes.recipe import Recipe
from fairprune_framework.selection.plugins import misfit_of_weights, missing_taps
from fairprune_framework.surgery.changes import carry_out, changed_parameters
from fairprune_framework.surgery.export import Format, misfit
from fairprune_framework.surgery.obstacles import refuse_obstacles
from fairprune_framework.surgery.widths import Widths, stored_sites, stored_widths

SCORERS: tuple[discovery.Kind, ...] = ("bias", "importance", "policy")


def examine(recipe: Recipe) -> dict[str, Any]:
    """Load the model of a recipe, find its sites, check them causally, and say what each operator and each plugin makes of them.

    Raises:
        UserError: there is no such model, or no adapter supports it; the message says what was found in its place.
    """
    loaded = LoadedModel(recipe)
    model, architecture = loaded.model, loaded.architecture
    sites = list(architecture.sites.values())
    exact = _obstacle(model, sites, "remove", "exact")
    return {
        "format": "fairprune-model/1",
        "model": public_name(recipe.model or ""),
        "class": type(model).__name__,
        "decoder": decoder_path(model) or "the model itself",
        "other_modalities": sorted(other_modalities(model)),
        "parameters": parameter_count(model),
        "adapter": architecture.name,
        "sites": len(sites),
        "units": sum(site.units for site in sites),
        "widths": {str(width): count for width, count in sorted(Counter(site.units for site in sites).items())},
        "width_groups": len({site.width_group for site in sites}),
        "confirmed": len(sites) - len(loaded.unconfirmed),
        "unconfirmed": list(loaded.unconfirmed),
        "operators": {operator: _obstacle(model, sites, operator) for operator in get_args(Operator)},
        "exact_widths": exact,
        "formats": _formats(model, loaded.tokenizer),
        "exact_formats": None if exact is not None else _formats(_uneven(model, architecture.sites), loaded.tokenizer),
        "plugins": {kind: _plugins(kind, sites) for kind in SCORERS},
    }


def _obstacle(model: Any, sites: Sequence[Site], operator: Operator, widths: Widths = "uniform") -> str | None:
    """Why an operator cannot be carried out."""
    try:
        refuse_obstacles(model, sites, operator, widths)
        if widths == "exact":
            check_plain(model)
    except UserError as error:
        return str(error)
    return None


def _formats(model: Any, tokenizer: Any) -> dict[str, str | None]:
    """Format -> why `fairprune export` would refuse it, or None."""
    return {format: misfit(format, model, tokenizer) for format in get_args(Format)}


def _uneven(model: Any, sites: Mapping[str, Site]) -> Any:
    """The model, without values, as `--widths exact` leaves it where every site loses as few neurons as it can."""
    with torch.device("meta"):
        narrow = type(model)(copy.deepcopy(model.config)).to(model.dtype)
    units = {name: tuple(range(site.multiple)) for name, site in sites.items() if site.units > site.multiple}
    plan = Plan(model="", fingerprint="", operator="remove", sites=units, requested={}, achieved={})
    own = stored_sites(sites, "exact")
    carry_out(narrow, plan, own, stored_widths(plan, own, 1))
    forget(narrow, changed_parameters(plan, own))
    return narrow


def _plugins(kind: discovery.Kind, sites: Sequence[Site]) -> dict[str, str | None]:
    """Name -> why it cannot look at these sites, or None."""
    found: dict[str, str | None] = {}
    for entry in discovery.entries(kind):
        try:
            plugin = discovery.build_of(entry)
            reasons = (missing_taps(plugin, site) or misfit_of_weights(plugin, site) for site in sites)
            found[entry.name] = next((why for why in reasons if why), None)
        except FairpruneError as error:
            found[entry.name] = f"it cannot be built without options: {error}"
    return found


def _fitting(formats: Mapping[str, str | None]) -> str:
    fitting = [name for name, why in formats.items() if why is None]
    return f"--format {', '.join(fitting)}" if fitting else "in no format"


def _refused(formats: Mapping[str, str | None]) -> list[tuple[str, str]]:
    return [("", f"{name}: {why}") for name, why in formats.items() if why]


def render(report: Mapping[str, Any]) -> str:
    """The report as text, at most 80 columns wide where names allow it."""
    widths = ", ".join(f"{count} x {width}" for width, count in report["widths"].items())
    stored = "each of its own width" if report["width_groups"] == report["sites"] else "stored equally wide in a group"
    towers = f"; {', '.join(report['other_modalities'])} are kept as they are" if report["other_modalities"] else ""
    rows = [
        ("model", f"{report['model']}, {report['class']}, {report['parameters']:,} parameters"),
        ("judged", f"{report['decoder']}{towers}"),
        ("adapter", report["adapter"]),
        (
            "sites",
            f"{report['sites']} with {report['units']:,} neurons in all ({widths}), {report['width_groups']} widths {stored}",
        ),
        ("confirmed", f"{report['confirmed']} of {report['sites']}: a changed neuron changes the logits"),
    ]
    rows += [(operator, why or "possible") for operator, why in report["operators"].items()]
    rows.append(("exact", report["exact_widths"] or "possible: remove --widths exact"))
    plain, uneven = report["formats"], report["exact_formats"]
    rows += [("export", _fitting(plain)), *_refused(plain)]
    if uneven not in (None, plain):
        rows += [("", f"after --widths exact: {_fitting(uneven)}"), *_refused(uneven)]
    for kind, plugins in report["plugins"].items():
        lacking = {name: why for name, why in plugins.items() if why}
        rows.append((kind, f"{len(plugins) - len(lacking)} of {len(plugins)} plugins can look at these sites"))
        rows += [("", f"{name}: {why}") for name, why in lacking.items()]
    lines: list[str] = []
    for head, text in rows:
        indent = f"{head:<11}"
        lines += textwrap.wrap(text, 80, initial_indent=indent, subsequent_indent=" " * 11, break_long_words=False)
    return "\n".join(lines)
