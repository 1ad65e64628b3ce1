"""All that a plugin author imports. Everything else is internal and may move.

Names are imported when first used: `fairprune --help` loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fairprune_framework.api.interfaces import (
        API_VERSION,
        ArchitectureAdapter,
        BiasScorer,
        Handler,
        ImportanceScorer,
        Needs,
        Observation,
        Outputs,
        Pass,
        Plugin,
        PolicyContext,
        Probe,
        SelectionPolicy,
        SiteContext,
        Statistic,
        StreamReader,
        StreamSums,
    )
    from fairprune_framework.api.layouts import (
        EXPERT_TAPS,
        GLU_TAPS,
        LinearTrio,
        Show,
        experts_tapped,
        linear_trio,
        surgery_obstacle,
        text_config,
        trio_points,
        trio_site,
    )
    from fairprune_framework.api.rankings import draw_matched, eligible, ranking, select_top, to_choice, top_share
    from fairprune_framework.api.statistics import SquareSum
    from fairprune_framework.api.taps import TapPoint, layer_index, layer_path, layer_points, layer_taps, tapped
    from fairprune_framework.api.types import Budget, Choice, Measurement, Scores, Site, Slice, Stream, Tap
    from fairprune_framework.errors import AmbiguousName, UnsupportedArchitecture, UserError
    from fairprune_framework.functional.divergence import generalised_js
    from fairprune_framework.functional.log_probs import log_probs

_EXPORTS = {
    "API_VERSION": "fairprune_framework.api.interfaces",
    "AmbiguousName": "fairprune_framework.errors",
    "ArchitectureAdapter": "fairprune_framework.api.interfaces",
    "BiasScorer": "fairprune_framework.api.interfaces",
    "Budget": "fairprune_framework.api.types",
    "Choice": "fairprune_framework.api.types",
    "EXPERT_TAPS": "fairprune_framework.api.layouts",
    "GLU_TAPS": "fairprune_framework.api.layouts",
    "Handler": "fairprune_framework.api.interfaces",
    "ImportanceScorer": "fairprune_framework.api.interfaces",
    "LinearTrio": "fairprune_framework.api.layouts",
    "Measurement": "fairprune_framework.api.types",
    "Needs": "fairprune_framework.api.interfaces",
    "Observation": "fairprune_framework.api.interfaces",
    "Outputs": "fairprune_framework.api.interfaces",
    "Pass": "fairprune_framework.api.interfaces",
    "Plugin": "fairprune_framework.api.interfaces",
    "PolicyContext": "fairprune_framework.api.interfaces",
    "Probe": "fairprune_framework.api.interfaces",
    "Scores": "fairprune_framework.api.types",
    "SelectionPolicy": "fairprune_framework.api.interfaces",
    "Show": "fairprune_framework.api.layouts",
    "Site": "fairprune_framework.api.types",
    "SiteContext": "fairprune_framework.api.interfaces",
    "Slice": "fairprune_framework.api.types",
    "SquareSum": "fairprune_framework.api.statistics",
    "Statistic": "fairprune_framework.api.interfaces",
    "Stream": "fairprune_framework.api.types",
    "StreamReader": "fairprune_framework.api.interfaces",
    "StreamSums": "fairprune_framework.api.interfaces",
    "Tap": "fairprune_framework.api.types",
    "TapPoint": "fairprune_framework.api.taps",
    "UnsupportedArchitecture": "fairprune_framework.errors",
    "UserError": "fairprune_framework.errors",
    "draw_matched": "fairprune_framework.api.rankings",
    "eligible": "fairprune_framework.api.rankings",
    "experts_tapped": "fairprune_framework.api.layouts",
    "generalised_js": "fairprune_framework.functional.divergence",
    "layer_index": "fairprune_framework.api.taps",
    "layer_path": "fairprune_framework.api.taps",
    "layer_points": "fairprune_framework.api.taps",
    "layer_taps": "fairprune_framework.api.taps",
    "linear_trio": "fairprune_framework.api.layouts",
    "log_probs": "fairprune_framework.functional.log_probs",
    "ranking": "fairprune_framework.api.rankings",
    "select_top": "fairprune_framework.api.rankings",
    "surgery_obstacle": "fairprune_framework.api.layouts",
    "tapped": "fairprune_framework.api.taps",
    "text_config": "fairprune_framework.api.layouts",
    "to_choice": "fairprune_framework.api.rankings",
    "top_share": "fairprune_framework.api.rankings",
    "trio_points": "fairprune_framework.api.layouts",
    "trio_site": "fairprune_framework.api.layouts",
}

__all__ = [
    "API_VERSION",
    "EXPERT_TAPS",
    "GLU_TAPS",
    "AmbiguousName",
    "ArchitectureAdapter",
    "BiasScorer",
    "Budget",
    "Choice",
    "Handler",
    "ImportanceScorer",
    "LinearTrio",
    "Measurement",
    "Needs",
    "Observation",
    "Outputs",
    "Pass",
    "Plugin",
    "PolicyContext",
    "Probe",
    "Scores",
    "SelectionPolicy",
    "Show",
    "Site",
    "SiteContext",
    "Slice",
    "SquareSum",
    "Statistic",
    "Stream",
    "StreamReader",
    "StreamSums",
    "Tap",
    "TapPoint",
    "UnsupportedArchitecture",
    "UserError",
    "draw_matched",
    "eligible",
    "experts_tapped",
    "generalised_js",
    "layer_index",
    "layer_path",
    "layer_points",
    "layer_taps",
    "linear_trio",
    "log_probs",
    "ranking",
    "select_top",
    "surgery_obstacle",
    "tapped",
    "text_config",
    "to_choice",
    "top_share",
    "trio_points",
    "trio_site",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
