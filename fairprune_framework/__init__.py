"""Find the MLP neurons of a language model that react to a demographic word, take them out, and measure whether it helped.

Start reading at `pipeline.py`. Names are imported when first used, so that `import fairprune_framework` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "ActivationStatisticsCallback": "auditing.callback",
    "ContrastDataModule": "auditing.runner",
    "MicroBatch": "auditing.batches",
    "TrunkModule": "auditing.runner",
    "Budget": "types",
    "Plan": "types",
    "Scores": "types",
    "Contrast": "contrasts.schema",
    "Variant": "contrasts.schema",
    "Recipe": "recipe",
    "Run": "session",
    "applied": "surgery.masking",
    "audit": "pipeline",
    "evaluate": "pipeline",
    "figures": "reporting",
    "load_model": "models",
    "plan": "pipeline",
    "prune": "pipeline",
    "recognise": "architecture",
    "report": "pipeline",
    "run": "pipeline",
    "score": "pipeline",
}

__all__ = ["__version__", *sorted(_EXPORTS)]

if TYPE_CHECKING:
    from fairprune_framework.architecture import recognise
    from fairprune_framework.auditing.batches import MicroBatch
    from fairprune_framework.auditing.callback import ActivationStatisticsCallback
    from fairprune_framework.auditing.runner import ContrastDataModule, TrunkModule
    from fairprune_framework.contrasts.schema import Contrast, Variant
    from fairprune_framework.models import load_model
    from fairprune_framework.pipeline import audit, evaluate, plan, prune, report, run, score
    from fairprune_framework.recipe import Recipe
    from fairprune_framework.reporting import figures
    from fairprune_framework.session import Run
    from fairprune_framework.surgery.masking import applied
    from fairprune_framework.types import Budget, Plan, Scores


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "figures":  # a module, not a name in one
        return import_module(f"{__name__}.reporting.figures")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
