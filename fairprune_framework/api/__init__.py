"""All that a plugin author imports. Everything else is internal and may move.

Names are imported when first used: `fairprune --help` loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fairprune_framework.api.decoders import decoder_modules, text_config
    from fairprune_framework.api.experts import EXPERT_TAPS, Show, experts_tapped
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
    from fairprune_framework.api.mlps import MlpAdapter, Projections, child, features, is_projection, linear_trio
    from fairprune_framework.api.objectives import Labels, NegativeLogLikelihood, NextTokenDivergence
    from fairprune_framework.api.rankings import draw_matched, eligible, ranking, select_top, to_choice, top_share
    from fairprune_framework.api.statistics import SquareSum, deviations, slot_means, value_of_variants
    from fairprune_framework.api.taps import TapPoint, layer_index, layer_path, layer_points, layer_taps, tapped
    from fairprune_framework.api.types import Budget, Choice, Measurement, Role, Scores, Site, Slice, Stream, Tap
    from fairprune_framework.api.widths import EXPERT_FIELDS, StoredWidth, stored_width
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
    "EXPERT_FIELDS": "fairprune_framework.api.widths",
    "EXPERT_TAPS": "fairprune_framework.api.experts",
    "Handler": "fairprune_framework.api.interfaces",
    "ImportanceScorer": "fairprune_framework.api.interfaces",
    "Labels": "fairprune_framework.api.objectives",
    "Measurement": "fairprune_framework.api.types",
    "MlpAdapter": "fairprune_framework.api.mlps",
    "Needs": "fairprune_framework.api.interfaces",
    "NegativeLogLikelihood": "fairprune_framework.api.objectives",
    "NextTokenDivergence": "fairprune_framework.api.objectives",
    "Observation": "fairprune_framework.api.interfaces",
    "Outputs": "fairprune_framework.api.interfaces",
    "Pass": "fairprune_framework.api.interfaces",
    "Plugin": "fairprune_framework.api.interfaces",
    "PolicyContext": "fairprune_framework.api.interfaces",
    "Probe": "fairprune_framework.api.interfaces",
    "Projections": "fairprune_framework.api.mlps",
    "Role": "fairprune_framework.api.types",
    "Scores": "fairprune_framework.api.types",
    "SelectionPolicy": "fairprune_framework.api.interfaces",
    "Show": "fairprune_framework.api.experts",
    "Site": "fairprune_framework.api.types",
    "SiteContext": "fairprune_framework.api.interfaces",
    "Slice": "fairprune_framework.api.types",
    "SquareSum": "fairprune_framework.api.statistics",
    "Statistic": "fairprune_framework.api.interfaces",
    "Stream": "fairprune_framework.api.types",
    "StreamReader": "fairprune_framework.api.interfaces",
    "StreamSums": "fairprune_framework.api.interfaces",
    "StoredWidth": "fairprune_framework.api.widths",
    "Tap": "fairprune_framework.api.types",
    "TapPoint": "fairprune_framework.api.taps",
    "UnsupportedArchitecture": "fairprune_framework.errors",
    "UserError": "fairprune_framework.errors",
    "child": "fairprune_framework.api.mlps",
    "decoder_modules": "fairprune_framework.api.decoders",
    "deviations": "fairprune_framework.api.statistics",
    "draw_matched": "fairprune_framework.api.rankings",
    "eligible": "fairprune_framework.api.rankings",
    "experts_tapped": "fairprune_framework.api.experts",
    "features": "fairprune_framework.api.mlps",
    "generalised_js": "fairprune_framework.functional.divergence",
    "is_projection": "fairprune_framework.api.mlps",
    "layer_index": "fairprune_framework.api.taps",
    "layer_path": "fairprune_framework.api.taps",
    "layer_points": "fairprune_framework.api.taps",
    "layer_taps": "fairprune_framework.api.taps",
    "linear_trio": "fairprune_framework.api.mlps",
    "log_probs": "fairprune_framework.functional.log_probs",
    "ranking": "fairprune_framework.api.rankings",
    "select_top": "fairprune_framework.api.rankings",
    "slot_means": "fairprune_framework.api.statistics",
    "stored_width": "fairprune_framework.api.widths",
    "tapped": "fairprune_framework.api.taps",
    "text_config": "fairprune_framework.api.decoders",
    "to_choice": "fairprune_framework.api.rankings",
    "top_share": "fairprune_framework.api.rankings",
    "value_of_variants": "fairprune_framework.api.statistics",
}

__all__ = [
    "API_VERSION",
    "EXPERT_FIELDS",
    "EXPERT_TAPS",
    "AmbiguousName",
    "ArchitectureAdapter",
    "BiasScorer",
    "Budget",
    "Choice",
    "Handler",
    "ImportanceScorer",
    "Labels",
    "Measurement",
    "MlpAdapter",
    "Needs",
    "NegativeLogLikelihood",
    "NextTokenDivergence",
    "Observation",
    "Outputs",
    "Pass",
    "Plugin",
    "PolicyContext",
    "Probe",
    "Projections",
    "Role",
    "Scores",
    "SelectionPolicy",
    "Show",
    "Site",
    "SiteContext",
    "Slice",
    "SquareSum",
    "Statistic",
    "StoredWidth",
    "Stream",
    "StreamReader",
    "StreamSums",
    "Tap",
    "TapPoint",
    "UnsupportedArchitecture",
    "UserError",
    "child",
    "decoder_modules",
    "deviations",
    "draw_matched",
    "eligible",
    "experts_tapped",
    "features",
    "generalised_js",
    "is_projection",
    "layer_index",
    "layer_path",
    "layer_points",
    "layer_taps",
    "linear_trio",
    "log_probs",
    "ranking",
    "select_top",
    "slot_means",
    "stored_width",
    "tapped",
    "text_config",
    "to_choice",
    "top_share",
    "value_of_variants",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
