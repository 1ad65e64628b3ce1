"""What can be wrong with the input of any stage, found before a folder is made or a file written."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from fairprune_framework.calibration.text import from_file
from fairprune_framework.errors import UserError
from fairprune_framework.models.rotary import batch_limit, refuse_longer
from fairprune_framework.recipes.recipe import budget_of
from fairprune_framework.runs.run import Run


def prepare(run: Run, stages: tuple[str, ...], redo: Collection[str] = ()) -> bool:
    """Check what these stages need in common: first what is quick, then the model. What one stage needs is in its `check`.

    Args:
        redo: stages that are done again although they are done.

    Returns:
        Whether anything is left to do.

    Raises:
        UserError: what is wrong.
    """
    if {run.folder.done(stage) and stage not in redo for stage in stages if stage != "report"} <= {
        True
    }:  # a report is made of files alone
        return False
    run.plugins.check_names()
    if run.recipe.against is not None and ({"plan", "prune"} & {*stages} or run.folder.has("plan")):
        raise UserError(
            "--against compares two models, without a plan: `fairprune evaluate A --against B` in a folder of its own"
        )
    if "score" in stages:
        budget_of(run.recipe)
        _ = run.plugins.all
    if "audit" in stages:
        run.parallelism.check()
    if "read" in stages:
        _ = run.prompts.contrasts
    _ = run.loaded.model, run.loaded.architecture, run.fingerprint
    _refuse_long_texts(run)
    if "audit" in stages:
        run.plugins.check_sites(run.loaded.architecture.sites.values())
    recipe = run.recipe
    if recipe.calibration is not None and not run.has_calibration:
        from_file(recipe.calibration, run.loaded.encoder, recipe.calibration_tokens, recipe.calibration_documents)
    if "audit" not in stages and ("score" in stages or "plan" in stages) and (missing := missing_statistics(run)):
        raise UserError(
            f"the audit in {run.folder} holds no {missing}: run `fairprune audit --overwrite` with these options first"
        )
    return True


def _refuse_long_texts(run: Run) -> None:
    """Raise `UserError` for texts of which the answer would depend on the rest of their batch."""
    config: Any = getattr(run.loaded.model, "config", None)
    config = config.get_text_config() if config is not None else None
    if batch_limit(config) is None:
        return
    texts = (tokens for one in (*run.prompts.aligned, *run.prompts.legitimate) for tokens in one.variants)
    refuse_longer(config, max((len(tokens.ids) for tokens in texts), default=0), "the longest text of the prompts")
    if run.recipe.calibration is not None or run.has_calibration:
        longest = max(map(len, (*run.calibration.scoring, *run.calibration.judging)), default=0)
        refuse_longer(config, longest, "the longest calibration document")


def missing_statistics(run: Run) -> str | None:
    """A statistic that the plugins want and the audit does not hold."""
    return run.plugins.missing(run.read_statistics(), run.record.get("statistic_sources", {}), len(run.loaded.layers))
