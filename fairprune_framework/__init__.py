"""Find the MLP neurons of a language model that react to a demographic word, take them out, and measure whether it helped.

Start reading at `pipeline.py`. Names are imported when first used, so that `import fairprune_framework` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fairprune_framework.utilities.after_import import after_import
from fairprune_framework.utilities.versions import __version__

_EXPORTS = {
    "ActivationStatisticsCallback": "auditing.callback",
    "ContrastDataModule": "auditing.runner",
    "MicroBatch": "auditing.micro_batch",
    "TrunkModule": "auditing.runner",
    "Budget": "api.types",
    "Plan": "api.types",
    "Scores": "api.types",
    "Contrast": "contrasts.schema",
    "Variant": "contrasts.schema",
    "Recipe": "recipes.recipe",
    "Run": "runs.run",
    "ablate": "ablation.ablate",
    "applied": "surgery.masking",
    "causal": "analysis.causality",
    "inspect": "analysis.neuron",
    "look": "analysis.look",
    "overlap": "analysis.overlap",
    "stability": "analysis.stability",
    "transfer": "analysis.transfer",
    "audit": "pipeline",
    "evaluate": "pipeline",
    "export": "pipeline",
    "figures": "reporting",
    "finetune": "pipeline",
    "load_model": "models.loading",
    "plan": "pipeline",
    "prune": "pipeline",
    "recognise": "models.architecture",
    "report": "pipeline",
    "restore": "pipeline",
    "run": "pipeline",
    "score": "pipeline",
    "score_many": "analysis.scorers",
}

__all__ = [
    "ActivationStatisticsCallback",
    "Budget",
    "Contrast",
    "ContrastDataModule",
    "MicroBatch",
    "Plan",
    "Recipe",
    "Run",
    "Scores",
    "TrunkModule",
    "Variant",
    "__version__",
    "ablate",
    "applied",
    "audit",
    "causal",
    "evaluate",
    "export",
    "figures",
    "finetune",
    "inspect",
    "load_model",
    "look",
    "overlap",
    "plan",
    "prune",
    "recognise",
    "report",
    "restore",
    "run",
    "score",
    "score_many",
    "stability",
    "transfer",
]

if TYPE_CHECKING:
    from fairprune_framework.ablation.ablate import ablate
    from fairprune_framework.analysis.causality import causal
    from fairprune_framework.analysis.look import look
    from fairprune_framework.analysis.neuron import inspect
    from fairprune_framework.analysis.overlap import overlap
    from fairprune_framework.analysis.scorers import score_many
    from fairprune_framework.analysis.stability import stability
    from fairprune_framework.analysis.transfer import transfer
    from fairprune_framework.api.types import Budget, Plan, Scores
    from fairprune_framework.auditing.callback import ActivationStatisticsCallback
    from fairprune_framework.auditing.micro_batch import MicroBatch
    from fairprune_framework.auditing.runner import ContrastDataModule, TrunkModule
    from fairprune_framework.contrasts.schema import Contrast, Variant
    from fairprune_framework.models.architecture import recognise
    from fairprune_framework.models.loading import load_model
    from fairprune_framework.pipeline import audit, evaluate, export, finetune, plan, prune, report, restore, run, score
    from fairprune_framework.recipes.recipe import Recipe
    from fairprune_framework.reporting import figures
    from fairprune_framework.runs.run import Run
    from fairprune_framework.surgery.masking import applied


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "figures":  # a module, not a name in one
        return import_module(f"{__name__}.reporting.figures")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def _know_uneven_models(module: Any) -> None:
    """Classes of transformers build models of uneven width from their config alone, once this package is imported."""
    import_module(f"{__name__}.models.uneven").know(module.PreTrainedModel)


after_import("transformers.modeling_utils", _know_uneven_models)
