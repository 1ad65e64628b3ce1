"""All that a plugin author imports. Everything else is internal and may move."""

from fairprune_framework.divergence import generalised_js
from fairprune_framework.errors import AmbiguousName, UnsupportedArchitecture, UserError
from fairprune_framework.interfaces import (
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
)
from fairprune_framework.taps import TapPoint, layer_index, layer_path, layer_points, layer_taps, tapped
from fairprune_framework.types import Budget, Choice, Measurement, Scores, Site, Slice, Tap

__all__ = [
    "API_VERSION",
    "AmbiguousName",
    "ArchitectureAdapter",
    "BiasScorer",
    "Budget",
    "Choice",
    "Handler",
    "ImportanceScorer",
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
    "Site",
    "SiteContext",
    "Slice",
    "Statistic",
    "Tap",
    "TapPoint",
    "UnsupportedArchitecture",
    "UserError",
    "generalised_js",
    "layer_index",
    "layer_path",
    "layer_points",
    "layer_taps",
    "tapped",
]
