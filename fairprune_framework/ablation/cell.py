"""One cell: its scores, its plan, and what masking the plan does to contrasts and text that chose nothing. No model is copied.

The judge holds the model as it was; cells with equal plans are measured once.
"""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any

from fairprune_framework.ablation.grid import METRICS, Cell, described
from fairprune_framework.api.types import Plan, Scores
from fairprune_framework.auditing.batches import compose
from fairprune_framework.errors import UserError
from fairprune_framework.evaluation.compare import changed
from fairprune_framework.evaluation.metrics.contrasts import measure
from fairprune_framework.evaluation.metrics.names import DIVERGENCE, SEQUENCE_GAP, STEREOTYPE_PREFERENCE
from fairprune_framework.evaluation.metrics.perplexity import perplexity
from fairprune_framework.evaluation.metrics.sentences import measure_sentences
from fairprune_framework.recipes.loading import with_options
from fairprune_framework.runs.run import Run
from fairprune_framework.selection.decide import plan_of, scores_of
from fairprune_framework.surgery.masking import masked


class Judge:
    """Measures plans on the judging part of `select`.

    Args:
        run: the search run: its `select` chose, its `heldout` (the judging part of the real `select`) judges.
        metric: what of the contrasts is judged, one of `METRICS`.

    Raises:
        UserError: the judging part holds no contrast that has the metric.
    """

    def __init__(self, run: Run, metric: str = DIVERGENCE) -> None:
        self.run, self.metric = run, metric
        self.contrasts = [contrast for contrast in run.prompts.aligned if contrast.split == "heldout"]
        if metric == STEREOTYPE_PREFERENCE:
            self.contrasts = [contrast for contrast in self.contrasts if contrast.stereotyping is not None]
        if not any(not contrast.control for contrast in self.contrasts):
            raise UserError(f"the judging part of select holds no contrast that {metric} can be measured on")
        self._batches = list(compose(self.contrasts, run.prompts.values, run.micro_batch_tokens))
        self._known: dict[tuple[Any, ...], dict[str, Any]] = {}

    def _values(self) -> dict[str, float]:
        """id -> the metric of each judging contrast, of the model as it is now."""
        model = self.run.loaded.model
        if self.metric == DIVERGENCE:
            divergences = measure(model, self.run.loaded.architecture, self._batches, taps=frozenset())
            return {measured.id: measured.divergence for measured in divergences}
        sentences = measure_sentences(model, self.contrasts, budget=self.run.micro_batch_tokens)
        if self.metric == SEQUENCE_GAP:
            return {measured.id: measured.gap for measured in sentences}
        places = {one.id: one.stereotyping for one in self.contrasts if one.stereotyping is not None}
        return {found.id: float(found.prefers(places[found.id], 1 - places[found.id])) for found in sentences}

    @cached_property
    def before(self) -> tuple[dict[str, float], float]:
        """The metric of each judging contrast, and perplexity of the judging text, of the model as it is."""
        return self._values(), perplexity(self.run.loaded.model, self.run.calibration.judging)

    def judge(self, plan: Plan) -> dict[str, Any]:
        """The columns of one cell that come from measuring."""
        key = (plan.multiplier, tuple(sorted(plan.sites.items())))
        if key not in self._known:
            self._known[key] = self._measured(plan)
        return self._known[key]

    def _measured(self, plan: Plan) -> dict[str, Any]:
        values, text = self.before
        after, text_after, milliseconds = values, text, 0.0
        if plan.count:
            began = time.perf_counter()
            with masked(self.run.loaded.model, self.run.loaded.architecture, plan.sites, plan.multiplier):
                milliseconds = (time.perf_counter() - began) * 1000
                after = self._values()
                text_after = perplexity(self.run.loaded.model, self.run.calibration.judging)
        contrasts = self.contrasts
        bias = [contrast for contrast in contrasts if not contrast.control]
        controls = [contrast for contrast in contrasts if contrast.control]
        seed, ideal = self.run.recipe.seed, METRICS[self.metric]
        change = changed(bias, values, after, seed, ideal=ideal)
        control = changed(controls, values, after, seed, ideal=ideal) if controls else None
        increase = text_after / text - 1
        by_category = {
            category: changed([c for c in bias if c.category == category], values, after, seed, 0, ideal).change
            for category in sorted({contrast.category for contrast in bias})
        }
        return {
            "guard_held": bool(increase <= self.run.recipe.max_perplexity_increase),
            "bias_before": change.before,
            "bias_after": change.after,
            "bias_change": change.change,
            "ci_low": change.ci_low,
            "ci_high": change.ci_high,
            "p_value": change.p_value,
            "clusters": change.clusters,
            "control_change": None if control is None else control.change,
            "control_ci_low": None if control is None else control.ci_low,
            "control_ci_high": None if control is None else control.ci_high,
            "perplexity_change": increase,
            "by_category": by_category,
            "masking_ms": round(milliseconds, 3),
        }


class Scorekeeper:
    """Scores of the cells, of which neighbours share a pair of scorers: the last ones are kept."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._last: tuple[Any, Scores] | None = None

    def scores(self, cell: Cell) -> Scores:
        """Scores of a cell's scorers on the audit that serves all cells."""
        key = (cell.recipe.bias, cell.recipe.importance, cell.recipe.seed)
        if self._last is None or self._last[0] != key:
            self._last = (key, scores_of(as_run(self.run, cell).selection))
        return self._last[1]


def as_run(run: Run, cell: Cell) -> Run:
    """The search run under a cell's choices: the same folder, model, prompts and audit."""
    recipe = with_options(run.recipe, cell.choices)
    return run.with_recipe(recipe, loaded=run.loaded, prompts=run.prompts, calibration=run.calibration)


def evaluate_cell(run: Run, cell: Cell, keeper: Scorekeeper, judge: Judge) -> dict[str, Any]:
    """Everything that the table says of one cell."""
    began = time.perf_counter()
    plan = plan_of(as_run(run, cell).selection, keeper.scores(cell))
    planned = time.perf_counter()
    columns = judge.judge(plan)
    return {
        "cell": cell.id,
        **_flat(cell),
        "control": cell.control,
        "units": plan.count,
        "reason": plan.reason,
        **columns,
        "factor": plan.factor,
        "seconds": round(time.perf_counter() - began, 3),
        "planning_seconds": round(planned - began, 3),
        "what": described(cell),
    }


def _flat(cell: Cell) -> dict[str, Any]:
    """The axes as columns: plugins with options as text."""
    import json

    return {
        name: value if isinstance(value, (str, int, type(None))) else json.dumps(value, sort_keys=True)
        for name, value in cell.choices.items()
    }
