"""What can be done with a model, before anything is audited: `fairprune doctor MODEL`."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from fairprune_framework import discovery
from fairprune_framework.api.decoders import decoder_path, other_modalities
from fairprune_framework.api.types import Operator, Site
from fairprune_framework.errors import FairpruneError, UserError
from fairprune_framework.models.loaded import LoadedModel
from fairprune_framework.models.loading import parameter_count, public_name
from fairprune_framework.models.uneven import check_plain
from fairprune_framework.recipes.recipe import Recipe
from fairprune_framework.selection.plugins import misfit_of_weights, missing_taps
from fairprune_framework.surgery.export import misfits
from fairprune_framework.surgery.obstacles import refuse_obstacles
from fairprune_framework.surgery.widths import Widths

SCORERS: tuple[discovery.Kind, ...] = ("bias", "importance", "policy")


def examine(recipe: Recipe) -> dict[str, Any]:
    """Load the model of a recipe, find its sites, check them causally, and say what each operator and each plugin makes of them.

    Raises:
        UserError: there is no such model, or no adapter supports it; the message says what was found in its place.
    """
    loaded = LoadedModel(recipe)
    model, architecture = loaded.model, loaded.architecture
    sites = list(architecture.sites.values())
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
        "exact_widths": _obstacle(model, sites, "remove", "exact"),
        "formats": dict(misfits(model, loaded.tokenizer)),
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


def _plugins(kind: discovery.Kind, sites: Sequence[Site]) -> dict[str, str | None]:
    """Name -> why it cannot look at these sites, or None."""
    found: dict[str, str | None] = {}
    for entry in discovery.entries(kind):
        try:
            plugin = discovery.build(kind, f"{entry.distribution}:{entry.name}", {})
            reasons = (missing_taps(plugin, site) or misfit_of_weights(plugin, site) for site in sites)
            found[entry.name] = next((why for why in reasons if why), None)
        except FairpruneError as error:
            found[entry.name] = f"it cannot be built without options: {error}"
    return found


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
    rows.append(("export", f"--format {', '.join(name for name, why in report['formats'].items() if why is None)}"))
    rows += [("", f"{name}: {why}") for name, why in report["formats"].items() if why]
    for kind, plugins in report["plugins"].items():
        lacking = {name: why for name, why in plugins.items() if why}
        rows.append((kind, f"{len(plugins) - len(lacking)} of {len(plugins)} plugins can look at these sites"))
        rows += [("", f"{name}: {why}") for name, why in lacking.items()]
    lines: list[str] = []
    for head, text in rows:
        indent = f"{head:<11}"
        lines += textwrap.wrap(text, 80, initial_indent=indent, subsequent_indent=" " * 11, break_long_words=False)
    return "\n".join(lines)
