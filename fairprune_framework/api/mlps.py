"""Adapters of MLPs whose projections are modules: an adapter says where the projections stand, and the rest follows.

    @dataclass(frozen=True, kw_only=True)
    class Glu(MlpAdapter):
        looked_for: ClassVar[str] = "gate, up and down as three Linears"

        def projections(self, module):
            ...

`Projections` is data; sites, slices, widths and taps are read off it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from fairprune_framework.api.decoders import decoder_modules, text_config
from fairprune_framework.api.interfaces import ArchitectureAdapter, Handler
from fairprune_framework.api.taps import TapPoint, layer_index, layer_path, layer_points, layer_taps, tapped
from fairprune_framework.api.types import Role, Site, Slice, Tap
from fairprune_framework.api.widths import EXPERT_FIELDS, FIELDS, SHARED_FIELDS, stored_width
from fairprune_framework.errors import UnsupportedArchitecture


@dataclass(frozen=True, kw_only=True)
class Projections:
    """Where the projections of one MLP stand: paths below its module to Linears, or to modules with transposed weights (Conv1D)."""

    up: str
    """H -> N; where the gate is fused into it H -> 2N."""
    out: str
    """N -> H."""
    gate: str | None = None
    """H -> N, where it is a module of its own."""
    fused: Literal["gate-first", "up-first"] | None = None
    """The halves of `up`, where it is gate and up in one."""
    inner_norm: str | None = None
    """An RMS norm over the neurons, before `out`."""
    is_block: bool = True
    """Calling the module is calling the MLP; False: its input and output are those of the projections."""


TRIOS = (
    ("gate_proj", "up_proj", "down_proj"),
    ("gate_proj", "up_proj", "out_proj"),
    ("w1", "w3", "w2"),
    ("gate", "up", "down"),
    ("wi_0", "wi_1", "wo"),
    ("proj_up_gate", "proj_up", "proj_down"),
    ("w_in.w_0", "w_in.w_1", "w_out"),
)
"""Paths of gate, up and output projections below the module of a gated MLP."""


def linear_trio(module: nn.Module) -> Projections | None:
    """The gate, up and output Linears of a module, H -> N twice and N -> H; None where it is no gated MLP."""
    for names in TRIOS:
        linears = [child(module, name) for name in names]
        if all(isinstance(linear, nn.Linear) for linear in linears):
            gate, up, out = (features(linear) for linear in linears)
            if gate == up == out[::-1]:
                return Projections(gate=names[0], up=names[1], out=names[2])
    return None


class MlpAdapter(ArchitectureAdapter):
    """One site per MLP; subclasses say what its projections are."""

    looked_for: ClassVar[str]
    """What the layout is, for the message where there is none of it."""

    @abstractmethod
    def projections(self, module: nn.Module) -> Projections | None:
        """The projections of the MLP that this module is or holds; None: it is another layout, or no MLP."""

    def sites(self, model: nn.Module) -> Sequence[Site]:
        """See `ArchitectureAdapter.sites`."""
        sites: list[Site] = []
        for name, module, layer in decoder_modules(model):
            found = self.projections(module)
            if found is None:
                continue
            inner = name.removeprefix(layer_path(name)).lstrip(".")
            if any(part == "gate" or "router" in part for part in inner.split(".")):
                continue
            if "expert" in inner and layer_index(inner) is not None:
                raise UnsupportedArchitecture(
                    f"{name} is one of several experts: their tokens are routed, which it does not follow"
                )
            sites.append(_site(model, name, found, layer))
        if not sites:
            raise UnsupportedArchitecture(f"looked for {self.looked_for}, found none")
        return sites

    def tap(
        self, model: nn.Module, sites: Sequence[Site], taps: frozenset[Tap], handler: Handler
    ) -> AbstractContextManager[None]:
        """See `ArchitectureAdapter.tap`."""
        points = layer_points(model, [site for site in sites if "layer" in site.taps])
        for site in sites:
            found = self.projections(model.get_submodule(site.name))
            assert found is not None
            points += _points(site, found)
        return tapped(model, points, taps, handler)


def is_projection(module: Any) -> bool:
    """Whether a module is a Linear, or one with a transposed weight, (in, out), such as Conv1D of transformers."""
    return isinstance(module, nn.Linear) or (
        hasattr(module, "nf") and isinstance(getattr(module, "weight", None), nn.Parameter)
    )


def features(module: Any) -> tuple[int, int]:
    """(in, out) of a projection."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return module.weight.shape[0], module.weight.shape[1]


def child(module: nn.Module, path: str) -> nn.Module | None:
    """The module at a path below another; None where there is none."""
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, nn.Module) else None


def _site(model: nn.Module, name: str, found: Projections, layer: int) -> Site:
    config, out = text_config(model), model.get_submodule(f"{name}.{found.out}")
    columns = features(out)[0]
    if "shared" in name.removeprefix(layer_path(name)):
        width = stored_width(config, columns, layer, (*SHARED_FIELDS, *FIELDS), multiples=EXPERT_FIELDS)
    else:
        width = stored_width(config, columns, layer, (*FIELDS, *SHARED_FIELDS))
    taps: set[Tap] = {"mlp_input", "mlp", "up", "neuron", "down", *layer_taps(model, name)}
    if found.gate or found.fused:
        taps.add("gate")
    return Site(
        name=name,
        layer=layer,
        units=width.units,
        unit_width=width.unit_width,
        slices=tuple(_slices(model, name, found, columns, width.unit_width)),
        config_fields={width.field: width.times} if width.field else {},
        width_group=width.field or name,
        taps=frozenset(taps),
        surgery=_obstacle(name, found.out, out),
    )


def _slices(model: nn.Module, name: str, found: Projections, columns: int, width: int) -> list[Slice]:
    """Where the neurons stand in the projections: rows of Linears, columns of transposed ones."""
    slices: list[Slice] = []

    def add(path: str, role: Role, bias: Role | None, start: int = 0) -> None:
        module: Any = model.get_submodule(f"{name}.{path}")
        axis = (role == "out") != isinstance(module, nn.Linear)
        slices.append(
            Slice(parameter=f"{name}.{path}.weight", role=role, axis=0 if axis else 1, start=start, step=width, width=width)
        )
        if bias is not None and module.bias is not None:
            slices.append(Slice(parameter=f"{name}.{path}.bias", role=bias, axis=0, start=start, step=width, width=width))

    if found.gate is not None:
        add(found.gate, "gate", "gate_bias")
    if found.fused is not None:
        add(found.up, "gate", "gate_bias", columns if found.fused == "up-first" else 0)
    add(found.up, "up", "up_bias", columns if found.fused == "gate-first" else 0)
    add(found.out, "out", None)
    if found.inner_norm is not None:
        slices.append(Slice(parameter=f"{name}.{found.inner_norm}.weight", role="inner_norm", axis=0, step=width, width=width))
    return slices


def _obstacle(name: str, path: str, out: Any) -> str | None:
    """Why the neurons of a site cannot be cut, as `Site.surgery` says it."""
    if isinstance(out, nn.Linear) and tuple(out.weight.shape) != (out.out_features, out.in_features):
        return f"{name}.{path} holds packed weights ({type(out).__name__}): load the model in bfloat16"
    return None


def _points(site: Site, found: Projections) -> list[TapPoint]:
    columns = site.units * site.unit_width
    up, out = f"{site.name}.{found.up}", f"{site.name}.{found.out}"

    def half(tap: Tap, start: int) -> TapPoint:
        return TapPoint(site=site, tap=tap, module=up, at="output", start=start, stop=start + columns)

    points = [
        TapPoint(site=site, tap="mlp_input", module=site.name if found.is_block else up, at="input"),
        TapPoint(site=site, tap="mlp", module=site.name if found.is_block else out, at="output"),
        TapPoint(site=site, tap="neuron", module=f"{site.name}.{found.inner_norm or found.out}", at="input"),
        TapPoint(site=site, tap="down", module=out, at="output"),
    ]
    if found.gate is not None:
        points.append(TapPoint(site=site, tap="gate", module=f"{site.name}.{found.gate}", at="output"))
    if found.fused is None:
        return [*points, TapPoint(site=site, tap="up", module=up, at="output")]
    gate_from, up_from = (0, columns) if found.fused == "gate-first" else (columns, 0)
    return [*points, half("gate", gate_from), half("up", up_from)]
