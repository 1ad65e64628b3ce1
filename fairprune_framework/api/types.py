"""The nouns that stages hand to each other: sites and slices, scores, budgets, choices, plans.

Nothing here imports torch at run time, so that the command line can read budgets and plans at once.
Shape letters, here and everywhere: C contrasts, V variants, T tokens, S aligned slots, N units of a site, K columns of a
tap, H hidden, R rows of a statistic, L layers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from fairprune_framework.errors import UserError, shortened, shown

if TYPE_CHECKING:
    from torch import Tensor

Tap = Literal["layer_input", "attention", "mlp_input", "gate", "up", "neuron", "down", "mlp", "layer", "norm"]
"""Where an activation is read. `gate`, `up` (before the nonlinearity) and `neuron` (input of the output projection) have
`site.units * site.unit_width` columns; the others have H. `down` is the output of the output projection."""

Role = Literal[
    "gate",
    "up",
    "out",
    "gate_bias",
    "up_bias",
    "out_bias",
    "inner_norm",
    "query",
    "key",
    "value",
    "query_bias",
    "key_bias",
    "value_bias",
]
VECTORS: frozenset[Role] = frozenset({"gate_bias", "up_bias", "out_bias", "inner_norm", "query_bias", "key_bias", "value_bias"})
"""Roles with one number for each column; the others have H."""
Operator = Literal["remove", "zero", "scale", "mean"]
Stream = Literal["contrasts", "controls", "legitimate", "calibration"]
"""What a pass reads: demographic contrasts of `select`, its controls, its legitimate differences (never held-out ones), calibration
text."""


@dataclass(frozen=True)
class Held:
    """What the activations of units are held at, whatever the text says."""

    means: Mapping[str, Sequence[Sequence[float]]]
    """site -> for each of its units a number for each of its columns."""


Scaling = float | Mapping[str, Sequence[float]] | Held
"""What becomes of the activations of units: multiplied by one number for all, or by one for each (site -> numbers), or held."""
MAX_FACTOR = 10.0
"""Largest factor of the operator `scale`; published ones lie between 0 and 2."""
MAX_MEAN = 3.4e38
"""Largest mean of the operator `mean`: what float32 holds."""


def check_factor(factor: Any, where: str) -> float:
    """The factor of the operator `scale` as a number; raises `UserError` unless it is in [0, 10] and not 1."""
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 <= factor <= MAX_FACTOR or factor == 1:
        raise UserError(f"The 'factor' of {where} must be a number in [0, {MAX_FACTOR:g}], and not 1. Got {factor!r} instead.")
    return float(factor)


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Where the units of a site live in one parameter: unit i is `[start + i*step : start + i*step + width]` on `axis`.

    The core alone views, zeroes, cuts, scales and restores through slices. Example: `up` of a fused projection of shape
    (2N, H) is `Slice(parameter=..., role="up", axis=0, start=N)`; expert 3 of a (E, 2I, H) parameter adds `lead=(3,)` and
    has `axis=1`, since axes are counted in the whole parameter.
    """

    parameter: str
    role: Role
    axis: int
    start: int = 0
    step: int = 1
    width: int = 1
    lead: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Site:
    """One prunable bank of units: the neurons of an MLP, or of one expert, or the heads of an attention block."""

    name: str
    """Module path, `model.layers.0.mlp`, or with the expert, `model.layers.0.mlp.experts.3`."""
    kind: Literal["mlp", "expert", "heads"] = "mlp"
    layer: int
    units: int
    unit_width: int = 1
    slices: tuple[Slice, ...]
    config_fields: Mapping[str, int]
    """Config fields that hold the width, with the factor: `{"intermediate_size": 1}`."""
    config_constants: Mapping[str, int] = field(default_factory=dict)
    """Config fields that are written beside a changed width, since families compute them from it otherwise: `{"head_dim": 64}`."""
    storable: tuple[int, ...] = ()
    """The widths that the config takes, rising; empty: any. Some families want the hidden size to be a multiple of their heads."""
    width_group: str
    """Sites that the file format stores equally wide. A group is stored as wide as its least-cut site; units that were
    planned beyond that are stored as zeros."""
    taps: frozenset[Tap]
    local: slice | None = None
    """Tensor parallel: the units that this rank sees."""
    multiple: int = 1
    """The stored width must be a multiple of this: grouped matrix products of experts want rows of 16 bytes."""
    surgery: str | None = None
    """Why this site cannot be cut ("4-bit weights: load in bf16"); None: it can, if `config_fields` or exact widths store it."""


def _floor(value: float) -> int:
    """The largest whole number not above a product such as 0.29 * 100, which floating point puts just below 29."""
    return int(value + 1e-9)


_BUDGET = re.compile(r"^(?P<count>\d{1,18})(?:n|(?P<layer>/layer))$")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much may be removed: `0.002`, a fraction of all units; `256n`, a count in all; `16/layer`, a count per layer.

    `round_to` makes stored widths multiples of a hardware number: what is planned beyond that is stored as zeros.
    """

    amount: float
    unit: Literal["fraction", "total", "per-layer"] = "fraction"
    round_to: int = 1
    max_layer_share: float = 1.0
    protected_layers: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.unit == "fraction" and not 0 < self.amount < 1:
            raise UserError(
                f"The 'amount' of Budget, a fraction, must be in (0, 1). Got {self.amount:g} instead. "
                "Counts are written '256n' (in all) or '16/layer'."
            )
        if self.unit != "fraction" and (self.amount < 1 or self.amount != int(self.amount)):
            raise UserError(
                f"The 'amount' of Budget, a count, must be a whole number of at least 1. Got {self.amount:g} instead."
            )
        if self.round_to < 1:
            raise UserError(f"The 'round_to' of Budget must be at least 1. Got {self.round_to} instead.")
        if not 0 < self.max_layer_share <= 1:
            raise UserError(f"The 'max_layer_share' of Budget must be in (0, 1]. Got {self.max_layer_share:g} instead.")

    @classmethod
    def parse(cls, text: str | float, **rest: Any) -> Budget:
        """Read the command line's form.

        >>> Budget.parse("16/layer").unit
        'per-layer'

        Raises:
            UserError: the text is none of the three forms, or out of range.
        """
        if (match := _BUDGET.match(str(text).strip())) is not None:
            return cls(amount=int(match["count"]), unit="per-layer" if match["layer"] else "total", **rest)
        try:
            amount = float(text)
        except ValueError:
            raise UserError(
                f"The budget must be a fraction in (0, 1), a count such as '256n', or '16/layer'. Got {text!r} instead."
            ) from None
        return cls(amount=amount, **rest)

    def __str__(self) -> str:
        """The form that `parse` reads."""
        if self.unit == "fraction":
            return repr(float(self.amount))
        return f"{self.amount:.0f}n" if self.unit == "total" else f"{self.amount:.0f}/layer"

    def units(self, sites: Mapping[str, Site]) -> int:
        """The most units that may go from all sites together; fractions are rounded down."""
        if self.unit == "total":
            return int(self.amount)
        if self.unit == "per-layer":
            return int(self.amount) * len({site.layer for site in sites.values()})
        return _floor(self.amount * sum(site.units for site in sites.values()))

    def room(self, sites: Mapping[str, Site]) -> dict[int, int]:
        """Layer -> the most units that may go from it: its share rounded down, or its count; 0 where the layer is protected."""
        sizes: dict[int, int] = {}
        for site in sites.values():
            sizes[site.layer] = sizes.get(site.layer, 0) + site.units
        room = {layer: _floor(self.max_layer_share * size) for layer, size in sizes.items()}
        if self.unit == "per-layer":
            room = {layer: min(most, int(self.amount)) for layer, most in room.items()}
        return room | dict.fromkeys(self.protected_layers & room.keys(), 0)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the two scorers said. Every tensor is (N,) float64, on the CPU; higher = more biased, more important."""

    sites: Mapping[str, Site]
    bias: Mapping[str, Tensor]
    """Macro average over the categories."""
    importance: Mapping[str, Tensor]
    by_category: Mapping[str, Mapping[str, Tensor]]
    """category -> site -> bias."""
    observed: Mapping[str, Tensor]
    """site -> (N,) bool: seen at least once in the contrasts. Units never observed are never planned."""
    signed: bool = False


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a policy wants to take out; the core trims it to the budget."""

    units: Mapping[str, Tensor]
    """site -> indices (n,) int64, most removable first."""
    order: Mapping[str, Tensor] = field(default_factory=dict)
    """site -> (n,) float, parallel to `units`: how removable, comparable over sites. Where the choice exceeds a budget for
    all sites together, the core drops the lowest first; without it, each site keeps the same share, as nearly as whole units allow."""
    factor: float | None = None
    """For the operator `scale`: what to multiply the units by, in place of the one that the user gave."""
    factors: Mapping[str, Tensor] = field(default_factory=dict)
    """For the operator `scale`: site -> (n,) float, parallel to `units`, a factor in [0, 10] for each; in place of `factor`."""
    categories: Mapping[str, Tensor] = field(default_factory=dict)
    """site -> (n,) int64, parallel to `units`: the categories for which a unit was chosen, bit k for the k-th of the sorted names.
    The plan keeps it, and `restore --category` goes by it; where a policy does not say, the category in which the unit's bias
    ranks highest."""
    reason: str | None = None
    """Why nothing was chosen, or less than asked."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a probe saw on `select` with the units of a choice masked."""

    divergence: float
    """`next-token-divergence`, macro average, nats."""
    cost: float
    """Relative increase of perplexity on the scoring half of the calibration text, as the guard counts it; NaN if not asked for."""
    retention: float
    """Perplexity before over after: 1 / (1 + cost); NaN if the cost was not asked for."""
    by_category: Mapping[str, float] = field(default_factory=dict)
    """category -> the divergence of its contrasts, nats."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The units chosen, per site, with an operator. Stored as `plan.json`."""

    model: str
    fingerprint: str
    operator: Operator
    sites: Mapping[str, tuple[int, ...]]
    requested: Mapping[str, Any]
    achieved: Mapping[str, Any]
    factor: float | None = None
    factors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Of the operator `scale`: site -> a factor for each of its units, in place of the one `factor`."""
    means: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    """Of the operator `mean`: site -> for each of its units the mean activation of each of its columns."""
    categories: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """site -> for each unit the categories that it was chosen for, bit k for the k-th of `category_names`."""
    category_names: tuple[str, ...] = ()
    abstained: bool = False
    reason: str | None = None

    FORMAT = "fairprune-plan/1"

    @property
    def scaling(self) -> Scaling:
        """What becomes of the activations of the planned units: they are multiplied by 0, unless the operator is `scale` or `mean`."""
        if self.operator == "mean":
            return Held(self.means)
        return self.factors or (self.factor if self.operator == "scale" and self.factor is not None else 0.0)

    @property
    def removes(self) -> bool:
        """The planned units leave the tensors, as far as widths allow."""
        return self.operator in ("remove", "mean")

    @property
    def count(self) -> int:
        """Units planned in all."""
        return sum(len(units) for units in self.sites.values())

    def to_json(self) -> dict[str, Any]:
        """The content of `plan.json`."""
        return {
            "format": self.FORMAT,
            "model": {"name": self.model, "fingerprint": self.fingerprint},
            "operator": self.operator,
            "factor": self.factor,
            **({"factors": {site: list(each) for site, each in self.factors.items()}} if self.factors else {}),
            **({"means": {site: [list(unit) for unit in each] for site, each in self.means.items()}} if self.means else {}),
            "sites": {site: list(units) for site, units in self.sites.items()},
            "categories": {site: list(bits) for site, bits in self.categories.items()},
            "category_names": list(self.category_names),
            "requested": dict(self.requested),
            "achieved": dict(self.achieved),
            "abstained": self.abstained,
            "reason": self.reason,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "plan.json") -> Plan:
        """Read `plan.json`.

        Raises:
            UserError: not a plan, another format, or units that are no sorted distinct indices.
        """
        if not isinstance(data, Mapping) or data.get("format") != cls.FORMAT:
            actual = data.get("format") if isinstance(data, Mapping) else type(data).__name__
            raise UserError(f"{where} is no plan: its format must be {cls.FORMAT!r}. Got {shown(actual)} instead.")
        try:
            sites = {str(site): tuple(units) for site, units in data["sites"].items()}
            plan = cls(
                model=str(data["model"]["name"]),
                fingerprint=str(data["model"]["fingerprint"]),
                operator=data["operator"],
                factor=data.get("factor"),
                factors={str(site): tuple(each) for site, each in (data.get("factors") or {}).items()},
                means={str(site): tuple(tuple(unit) for unit in each) for site, each in (data.get("means") or {}).items()},
                sites=sites,
                categories={site: tuple(bits) for site, bits in (data.get("categories") or {}).items()},
                category_names=tuple(data.get("category_names") or ()),
                requested=dict(data.get("requested") or {}),
                achieved=dict(data.get("achieved") or {}),
                abstained=bool(data.get("abstained", False)),
                reason=data.get("reason"),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"{where} is no complete plan: {type(error).__name__}: {shortened(str(error))}.") from error
        if plan.operator not in get_args(Operator):
            raise UserError(
                f"The 'operator' of {where} must be one of {', '.join(get_args(Operator))}. Got {shown(plan.operator)} instead."
            )
        plan._check_means(where)
        if plan.factors:
            plan._check_factors(where)
        elif plan.operator == "scale" and (plan.count or plan.factor is not None):
            check_factor(plan.factor, where)
        elif plan.factor is not None:
            raise UserError(f"The 'factor' of {where} must be null: the operator {plan.operator!r} does not scale.")
        for site, units in sites.items():
            if odd := [unit for unit in units if type(unit) is not int]:
                raise UserError(f"The units of site {site!r} in {where} must be whole numbers. Got {shown(odd[0])} instead.")
            if list(units) != sorted(set(units)) or any(unit < 0 for unit in units):
                raise UserError(f"The units of site {site!r} in {where} must be sorted, distinct and not negative.")
        if any(len(bits) != len(sites.get(site, ())) for site, bits in plan.categories.items()):
            raise UserError(f"The 'categories' of {where} must name one number for each unit of a site.")
        return plan

    def _check_factors(self, where: str) -> None:
        if self.operator != "scale" or self.factor is not None:
            raise UserError(f"The 'factors' of {where} go with the operator 'scale' and without a 'factor'.")
        if {site: len(each) for site, each in self.factors.items()} != {site: len(each) for site, each in self.sites.items()}:
            raise UserError(f"The 'factors' of {where} must name one number for each unit of each site.")
        for site, factors in self.factors.items():
            for factor in factors:
                real = isinstance(factor, (int, float)) and not isinstance(factor, bool)
                if not real or not math.isfinite(factor) or not 0 <= factor <= MAX_FACTOR:
                    raise UserError(
                        f"A factor of {site!r} in {where} must be in [0, {MAX_FACTOR:g}]. Got {shown(factor)} instead."
                    )

    def _check_means(self, where: str) -> None:
        wanted = {site: len(each) for site, each in self.sites.items()} if self.operator == "mean" else {}
        if {site: len(each) for site, each in self.means.items()} != wanted:
            raise UserError(
                f"The 'means' of {where} must be those of each unit of each site under the operator 'mean', else absent."
            )
        for site, each in self.means.items():
            for mean in (mean for unit in each for mean in unit):
                if not isinstance(mean, (int, float)) or isinstance(mean, bool) or not abs(mean) <= MAX_MEAN:
                    raise UserError(f"A mean of {site!r} in {where} must be a finite number. Got {shown(mean)} instead.")
