"""The charts of the report as figure objects, for notebooks: `fp.figures.activation_by_layer("run")`.

Each function takes a run (as returned by `fp.run`) or a folder and returns a `plotly.graph_objects.Figure`. Where the report offers a
control above a chart, the function takes it as a keyword, by the label in the report or by its index:
`token_projection("run", contrast=0, output="MLP output", layer=12)`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from fairprune_framework.errors import RunFolderError, UserError, did_you_mean
from fairprune_framework.reporting.charts.chart import Chart, Control
from fairprune_framework.reporting.page import CHARTS
from fairprune_framework.reporting.run_data import Source, read_source

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


class HasFolder(Protocol):
    """A run."""

    @property
    def folder(self) -> os.PathLike[str]:
        """Where its files lie."""


Of: TypeAlias = HasFolder | Source | str | Path


def change_by_category(run: Of, *, metric: str | int | None = None) -> Figure:
    """Relative change by category with 95 % intervals, beside the controls."""
    return _figure("change-by-category", run, metric=metric)


def activation_by_layer(run: Of, *, category: str | int | None = None) -> Figure:
    """Mean activation difference by layer, before and after."""
    return _figure("activation-by-layer", run, category=category)


def token_projection(
    run: Of, *, contrast: str | int | None = None, output: str | int | None = None, layer: str | int | None = None
) -> Figure:
    """Tokens of a contrast in the plane of the first two principal components. `layer` is the number of a layer."""
    return _figure("token-projection", run, contrast=contrast, output=output, layer=None if layer is None else str(layer))


def layer_neuron_map(run: Of) -> Figure:
    """Bias of every neuron, one row per layer."""
    return _figure("layer-neuron-map", run)


def bias_against_importance(run: Of) -> Figure:
    """All neurons by both scores, with the planned ones marked."""
    return _figure("bias-against-importance", run)


def overlap(run: Of) -> Figure:
    """Neurons shared by categories."""
    return _figure("overlap", run)


def transfer(run: Of) -> Figure:
    """Effect of a selection for one category on another."""
    return _figure("transfer", run)


def stability(run: Of) -> Figure:
    """Selection frequency of each neuron under resampled templates."""
    return _figure("stability", run)


def causal(run: Of) -> Figure:
    """Effect of the plan, beside random neurons of equal activation norm."""
    return _figure("causal", run)


def retention(run: Of) -> Figure:
    """Benchmarks before and after."""
    return _figure("retention", run)


def pareto(run: Of) -> Figure:
    """Divergence against perplexity of every cell of an ablation."""
    return _figure("pareto", run)


def chart(name: str, run: Of) -> Chart:
    """A chart by its name in the report, with its table.

    Raises:
        UserError: no chart has this name.
        RunFolderError: the folder lacks its data.
    """
    if name not in CHARTS:
        raise UserError(f"no chart {name!r}.{did_you_mean(name, CHARTS)} There are {', '.join(CHARTS)}.")
    source = run if isinstance(run, Source) else read_source(run if isinstance(run, (str, Path)) else Path(run.folder))
    made = CHARTS[name](source)
    if made is None:
        raise RunFolderError(
            f"{source.folder} lacks the data of the chart {name!r}: `fairprune report` lists the missing files"
        )
    return made


def _figure(name: str, run: Of, **wanted: str | int | None) -> Figure:
    made = chart(name, run)
    return made.figure(*(_place(control, wanted.get(control.label.lower())) for control in made.controls))


def _place(control: Control, wanted: str | int | None) -> int:
    options: Sequence[str] = control.options
    if wanted is None:
        return control.start
    if isinstance(wanted, int) and 0 <= wanted < len(options):
        return wanted
    if wanted in options:
        return options.index(str(wanted))
    raise UserError(f"{control.label.lower()} must be one of {', '.join(map(repr, options))}. Got {wanted!r} instead.")
