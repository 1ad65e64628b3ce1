"""The page: one self-contained HTML file about a run, an ablation, or a comparison of several.

Nothing is fetched: the file contains plotly.js in compressed form, and a content security policy forbids every request. Texts of
users pass through Jinja's autoescape, and in charts through `chart.plain`.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from fairprune_framework.evaluation.metrics.names import LANGUAGE_METRICS
from fairprune_framework.reporting import prose
from fairprune_framework.reporting.charts import ablation, categories, changes, neurons, questions, tokens
from fairprune_framework.reporting.charts.chart import Chart, number, percent
from fairprune_framework.reporting.comparison import compare
from fairprune_framework.reporting.run_data import Source

CHARTS = {
    "change-by-category": changes.change_by_category,
    "activation-by-layer": changes.activation_by_layer,
    "token-projection": tokens.token_projection,
    "layer-neuron-map": neurons.layer_neuron_map,
    "bias-against-importance": neurons.bias_against_importance,
    "overlap": categories.overlap,
    "transfer": categories.transfer,
    "stability": questions.stability,
    "causal": questions.causal,
    "retention": changes.retention,
    "pareto": ablation.pareto,
}
"""Every chart by its name, in the order of the page; each returns None if the folder lacks its data."""


def charts_of(source: Source) -> list[Chart]:
    """The charts available for a folder."""
    charts = (make(source) for make in CHARTS.values())
    return [chart for chart in charts if chart is not None]


def page(sources: Sequence[Source]) -> str:
    """The HTML of one folder, or of several compared.

    Args:
        sources: at least one; the others are compared with the first.
    """
    charts = charts_of(sources[0]) if len(sources) == 1 else []
    comparison = compare(sources) if len(sources) > 1 else None
    if comparison is not None:
        charts = list(comparison.charts)
    data = packed([chart.to_json() for chart in charts])
    library = _library()
    nonce = hashlib.sha256((data + sources[0].folder.name).encode(errors="backslashreplace")).hexdigest()[:32]
    source = sources[0]
    return str(
        _environment()
        .get_template("comparison.html" if comparison else "report.html")
        .render(
            source=source,
            comparison=comparison,
            verdict=prose.verdict(source),
            charts={chart.name: chart for chart in charts},
            charts_json=data,
            library=library,
            nonce=nonce,
            units=_units(source),
            generations=_generations(source),
            cost=changes.benchmark_table(_cost_rows(source)),
            provenance=_provenance(source),
            command=command_of(source),
            recipe_text=recipe_of(source),
            model=_named(source.model),
            version=_version(),
        )
    )


def packed(value: Any) -> str:
    """JSON for a script element: nothing in it can end the element, and numpy arrays are encoded in plotly's base64 form."""
    text = json.dumps(value, default=_array, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e").replace("\u2028", "\\u2028")


def _array(value: Any) -> Any:
    import numpy as np

    if isinstance(value, np.ndarray):
        kind = {"float32": "f4", "float64": "f8", "int32": "i4"}[str(value.dtype)]
        packed_array = {"dtype": kind, "bdata": base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()}
        return packed_array | ({"shape": ", ".join(map(str, value.shape))} if value.ndim > 1 else {})
    return value.item()


@lru_cache(maxsize=1)
def _library() -> str:
    """plotly.js, gzip and base64: a third of its size, decompressed by the browser."""
    from importlib.resources import files

    source = (files("plotly") / "package_data" / "plotly.min.js").read_bytes()
    return base64.b64encode(gzip.compress(source, compresslevel=6, mtime=0)).decode()


def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("fairprune_framework.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": number}
    return environment


def _version() -> str:
    from fairprune_framework.utilities.versions import __version__

    return __version__


# -- parts of the template other than charts ---------------------------------------------------------------------------------


def _units(source: Source) -> list[dict[str, Any]]:
    """The units of the exhibits, with the attribute marked in each text."""
    units = []
    for unit in (source.exhibits or {}).get("units", ()):
        moving = []
        for contrast in unit["contrasts"]:
            marked = prose.attribute_marked([variant["text"] for variant in contrast["variants"]])
            variants = sorted(zip(contrast["variants"], marked, strict=True), key=lambda pair: -pair[0]["mean"])
            moving.append({**contrast, "variants": [{**variant, "spans": spans} for variant, spans in variants]})
        units.append({**unit, "contrasts": moving})
    return units


def _generations(source: Source) -> list[dict[str, Any]]:
    generations = []
    for entry in (source.evaluation or {}).get("generations", ()):
        before, after = entry["before"], entry.get("after")
        shown: dict[str, Any] = {"before": [prose.Span(text=before, differs=False)], "after": None}
        if after is not None:
            shown = dict(zip(("before", "after"), prose.diff_tokens(before, after, entry["first_difference"]), strict=True))
        generations.append({"prompt": entry["prompt"], **shown, "equal": after == before})
    return generations


def _cost_rows(source: Source) -> list[Mapping[str, Any]]:
    """Perplexity, KL, and benchmarks."""
    language = [row for row in source.rows if row["metric"] in LANGUAGE_METRICS]
    return [*language, *changes.benchmark_rows(source)]


def command_of(source: Source) -> str:
    """The command that reproduces the run, quoted for a shell; empty for a model or prompts in memory."""
    recipe = source.recipe
    if not recipe.get("model") or not recipe.get("prompts"):
        return ""
    folder = source.folder.name if source.folder.is_absolute() else source.folder
    parts = ["fairprune", "run", _named(recipe["model"]), "--prompts", _named(recipe["prompts"]), "--recipe"]
    return shlex.join([*parts, f"{folder}/recipe.yaml", "--output", f"{folder}-again"])


def recipe_of(source: Source) -> str:
    """The recipe without the places of its files on this machine."""
    text = source.recipe_text
    for value in source.recipe.values():
        if isinstance(value, str):
            text = text.replace(value, _named(value))
    return text


def _named(path: Any) -> str:
    """An absolute path by its last part: a page is shown to others."""
    return Path(str(path)).name if Path(str(path)).is_absolute() else str(path)


def _provenance(source: Source) -> list[tuple[str, list[tuple[str, str]]]]:
    """Tables of names and values, each with a title."""
    record = source.record
    plugins = {
        kind: f"{plugin['distribution']}:{plugin['name']} {plugin['version']}"
        for kind, plugin in record.get("plugins", {}).items()
    }
    stages = {name: f"{value:,.1f} s" for name, value in record.get("seconds", {}).items()}
    groups: list[tuple[str, Mapping[str, Any]]] = [
        ("Versions", record.get("versions", {})),
        ("Plugins", plugins),
        ("Code of others was allowed", record.get("unsafe_options", {})),
        ("Hashes", record.get("hashes", {})),
        ("Seeds", record.get("seeds", {})),
        ("Timings", stages),
        ("Counts", record.get("contrasts", {})),
    ]
    return [(title, [(str(name), str(value)) for name, value in pairs.items()]) for title, pairs in groups if pairs]


def write_page(sources: Sequence[Source], path: Path) -> None:
    """Write the page, whole or not at all."""
    from fairprune_framework.utilities.files import write_text

    write_text(path, page(sources).encode(errors="backslashreplace").decode())  # the name of a folder need not be UTF-8
