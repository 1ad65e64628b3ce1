"""Do other bias scorers find the same neurons? All of them from one audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from fairprune_framework import discovery
from fairprune_framework.analysis.common import matrix, opened_run, rank_correlations, top_units, wrapped
from fairprune_framework.api.declared import needs_of, passes_at
from fairprune_framework.api.interfaces import BiasScorer
from fairprune_framework.api.types import Scores
from fairprune_framework.auditing.audit import audit
from fairprune_framework.auditing.demand import Demand, selecting, streams_of, with_earlier
from fairprune_framework.auditing.statistics import CONTROLS, LEGITIMATE, Statistics
from fairprune_framework.errors import FairpruneError, PluginError, UserError
from fairprune_framework.runs.run import Run
from fairprune_framework.selection.decide import services
from fairprune_framework.selection.plugins import Plugins
from fairprune_framework.selection.scoring import score
from fairprune_framework.utilities.files import write_json
from fairprune_framework.utilities.progress import Notify, silent


def score_many(
    run: Run | str | Path, bias: str | Sequence[str] = "all", top: int = 10, notify: Notify = silent
) -> dict[str, Any]:
    """Score a run's model by several bias scorers with their defaults, from one more audit of the contrasts of `select`. The highest
    neurons of each, and Spearman's rank correlation of every two over all neurons that were seen. Writes `scorers.json`.

    Args:
        run: a run, or its folder, with an audit.
        bias: names, or "all": every one that is installed.
        top: neurons of each that are named.

    Raises:
        UserError: an unknown name, `top` below 1, or no scorer that can score this model.
    """
    opened = opened_run(run, notify, "audit")
    if top < 1:
        raise UserError(f"--top must be at least 1. Got {top} instead.")
    known = discovery.entries("bias")
    every = [discovery.name_within(known, entry.name, entry.distribution) for entry in known]
    named = every if bias == "all" else bias
    names = list(dict.fromkeys([named] if isinstance(named, str) else named))
    skipped: dict[str, str] = {}
    plugins: dict[str, BiasScorer] = {}
    for name in names:
        try:
            plugin = cast(BiasScorer, discovery.build("bias", name))
            reason = _not_for(plugin, opened)
        except (PluginError, UserError) as error:
            if bias != "all":
                raise
            reason = _first_line(error)
        if reason is not None:
            skipped[name] = reason
        else:
            plugins[name] = plugin
    found = _scored(opened, plugins, skipped, notify, spare=bias == "all")
    if not found:
        raise UserError(f"no scorer can score this model: {'; '.join(f'{name}: {why}' for name, why in skipped.items())}")
    answer = {
        "format": "fairprune-scorers/1",
        "scorers": list(found),
        "skipped": skipped,
        "top": {name: top_units(scores, top) for name, scores in found.items()},
        "rank_correlation": rank_correlations(list(found.values())),
    }
    write_json(opened.folder / "scorers.json", answer)
    return answer


def _not_for(plugin: BiasScorer, run: Run) -> str | None:
    """Why a scorer cannot score the model of a run, as far as its needs say."""
    taps = frozenset(tap for site in run.loaded.architecture.sites.values() for tap in site.taps)
    statistics = needs_of(plugin).statistics
    for statistic in statistics:
        if missing := sorted(statistic.taps & {"gate", "up"} - taps):
            return f"the model has no {missing[0]}"
    streams = streams_of(statistics, len(run.loaded.layers))
    if CONTROLS in streams and not _controls(run):
        return "the prompts have no controls that may feed scores"
    if LEGITIMATE in streams and not selecting(run.prompts.legitimate, LEGITIMATE):
        return "the prompts have no legitimate contrasts that may feed scores"
    return None


def _controls(run: Run) -> list[Any]:
    return selecting(run.prompts.aligned, CONTROLS)


def _scored(
    run: Run, plugins: dict[str, BiasScorer], skipped: dict[str, str], notify: Notify, *, spare: bool
) -> dict[str, Scores]:
    """Name -> scores of those that could be; the others join the skipped ones, each with the reason.

    Args:
        spare: audit without the scorers in whose statistics an audit failed, as often as it does; else it fails.
    """
    while True:
        try:
            statistics = _audited(run, plugins, notify)
            break
        except FairpruneError as error:
            guilty = [name for name, plugin in plugins.items() if spare and _asks_for(plugin, error.by, len(run.loaded.layers))]
            if not guilty:
                raise
            for name in guilty:
                skipped[name] = _first_line(error)
                del plugins[name]
    loaded = run.loaded
    loaded.to_device()
    importance, label = discovery.build("importance", f"{discovery.OWN}:random"), Plugins(run.recipe).label("importance")
    found: dict[str, Scores] = {}
    for name, plugin in plugins.items():
        entry = discovery.find("bias", name)
        try:
            found[name] = score(
                statistics,
                loaded.model,
                loaded.architecture,
                plugin,
                cast(Any, importance),
                (f"{entry.distribution}:{entry.name}", label),
                run.recipe.seed,
                services=services(run.selection),
            )
        except FairpruneError as error:
            skipped[name] = _first_line(error)
    return found


def _audited(run: Run, plugins: Mapping[str, BiasScorer], notify: Notify) -> Statistics:
    """One audit for several scorers."""
    contrasts, loaded = selecting(run.prompts.aligned), run.loaded
    demand = Demand.of(list(plugins.values()), len(loaded.layers))
    notify(f"auditing {len(contrasts)} contrasts for {len(plugins)} scorers")
    statistics, _ = audit(
        loaded.model,
        loaded.architecture,
        contrasts,
        run.prompts.values,
        demand,
        controls=_controls(run),
        legitimate=selecting(run.prompts.legitimate, LEGITIMATE),
        calibration=run.calibration if demand.calibration else None,
        micro_batch_tokens=run.micro_batch_tokens,
        accelerator=run.recipe.accelerator,
    )
    return statistics


def _asks_for(plugin: BiasScorer, what: object, layers: int) -> bool:
    """A plugin needs a statistic, or one with an objective."""
    every = with_earlier(needs_of(plugin).statistics)
    return any(
        what == each or what in [pass_.objective for pass_ in passes_at(each, layers) if pass_.objective] for each in every
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def render(answer: Mapping[str, Any]) -> str:
    """The answer as text."""
    names = answer["scorers"]
    cells = [["" if value is None else f"{value:.2f}" for value in row] for row in answer["rank_correlation"]]
    columns = [str(number) for number in range(1, len(names) + 1)]
    rows = [f"{number} {name}" for number, name in zip(columns, names, strict=True)]
    lines = ["rank correlation of bias scores over all neurons", "", *matrix(rows, columns, cells), "", "the highest neurons"]
    for name in names:
        lines += wrapped(f"  {name}: " + ", ".join(f"{each['site']}:{each['unit']}" for each in answer["top"][name][:5]))
    for name, why in answer["skipped"].items():
        lines += wrapped(f"  skipped {name}: {why}")
    return "\n".join(lines)
