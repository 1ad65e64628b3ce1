"""What adapters of different layouts share: gated MLPs of three Linears, experts held as stacked parameters, configs.

Pure reading of a model, and one context manager; adapters import them from `fairprune_framework.api`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from fairprune_framework.api.interfaces import Handler
from fairprune_framework.api.taps import TapPoint, layer_points, layer_taps, tapped
from fairprune_framework.api.types import Site, Slice, Tap

_GATES = ("gate_proj", "w1", "gate", "wi_0")
_UPS = ("up_proj", "w3", "up", "wi_1")
_OUTS = ("down_proj", "w2", "down", "wo", "out_proj")
GLU_TAPS: frozenset[Tap] = frozenset({"mlp_input", "mlp", "gate", "up", "neuron", "down"})
"""What a gated MLP with Linears of its own shows, beside the taps of its layer."""
EXPERT_TAPS: frozenset[Tap] = frozenset({"gate", "up", "neuron"})
"""What each expert shows; the taps of its block and its layer come once, with the layer's first site."""

Show = Callable[[int, Tap, Tensor, Tensor], Tensor]
"""(expert, tap, values (M, K), rows (M,)) -> the values, or what the handler puts in their place."""


def text_config(model: nn.Module) -> Any:
    """The config of the text model, also of a multimodal one; None where a model has none."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def surgery_obstacle(model: nn.Module, site: str, linear: str, units: int, field: str = "intermediate_size") -> str | None:
    """Why the neurons of a site cannot be cut, as `Site.surgery` says it, or None where they can.

    Args:
        site: module path of the MLP.
        linear: name below it of a Linear; one whose weight is not (out, in) holds packed weights.
        units: neurons of the site.
        field: the config field that must hold them.
    """
    module = model.get_submodule(f"{site}.{linear}")
    assert isinstance(module, nn.Linear)
    if tuple(module.weight.shape) != (module.out_features, module.in_features):
        return f"{site}.{linear} holds packed weights ({type(module).__name__}): load the model in bfloat16"
    width = getattr(text_config(model), field, None)
    return None if width == units else f"the config says {field}={width}, but {site} has {units} neurons"


class LinearTrio(NamedTuple):
    """Names of the three Linears of a gated MLP among the children of its module."""

    gate: str
    up: str
    out: str


def linear_trio(module: nn.Module) -> LinearTrio | None:
    """The gate, up and output Linears of a module, H -> N twice and N -> H; None where it is no gated MLP."""
    linears = {name: child for name, child in module.named_children() if isinstance(child, nn.Linear)}
    gates, ups, outs = ([name for name in linears if name in names] for names in (_GATES, _UPS, _OUTS))
    if not (len(gates) == len(ups) == len(outs) == 1):
        return None
    gate, up, out = (linears[names[0]] for names in (gates, ups, outs))
    fits = (gate.in_features, gate.out_features) == (up.in_features, up.out_features) == (out.out_features, out.in_features)
    return LinearTrio(gates[0], ups[0], outs[0]) if fits else None


def trio_site(model: nn.Module, name: str, trio: LinearTrio, layer: int) -> Site:
    """The site of the gated MLP at `name`, all its Linears in `intermediate_size`."""
    module = model.get_submodule(name)
    gate = module.get_submodule(trio.gate)
    assert isinstance(gate, nn.Linear)
    slices = [
        Slice(parameter=f"{name}.{trio.gate}.weight", role="gate", axis=0),
        Slice(parameter=f"{name}.{trio.up}.weight", role="up", axis=0),
        Slice(parameter=f"{name}.{trio.out}.weight", role="out", axis=1),
    ]
    if gate.bias is not None:
        slices.append(Slice(parameter=f"{name}.{trio.gate}.bias", role="gate_bias", axis=0))
    if module.get_submodule(trio.up).bias is not None:
        slices.append(Slice(parameter=f"{name}.{trio.up}.bias", role="up_bias", axis=0))
    return Site(
        name=name,
        layer=layer,
        units=gate.out_features,
        slices=tuple(slices),
        config_fields={"intermediate_size": 1},
        width_group="intermediate_size",
        taps=GLU_TAPS | layer_taps(model, name),
        surgery=surgery_obstacle(model, name, trio.gate, gate.out_features),
    )


def trio_points(site: Site, trio: LinearTrio) -> list[TapPoint]:
    """The taps of a gated MLP of three Linears."""
    return [
        TapPoint(site=site, tap="mlp_input", module=site.name, at="input"),
        TapPoint(site=site, tap="mlp", module=site.name, at="output"),
        TapPoint(site=site, tap="gate", module=f"{site.name}.{trio.gate}", at="output"),
        TapPoint(site=site, tap="up", module=f"{site.name}.{trio.up}", at="output"),
        TapPoint(site=site, tap="neuron", module=f"{site.name}.{trio.out}", at="input"),
        TapPoint(site=site, tap="down", module=f"{site.name}.{trio.out}", at="output"),
    ]


@contextmanager
def experts_tapped(
    model: nn.Module,
    sites: Sequence[Site],
    taps: frozenset[Tap],
    handler: Handler,
    forward: Callable[[nn.Module, Show], Callable[..., Tensor]],
) -> Iterator[None]:
    """`ArchitectureAdapter.tap` for experts that one module holds as stacked parameters, without inner modules to hook.

    While tapped, the forward of such a module is replaced by one that shows what each expert computes. The block around the experts
    gives `mlp_input` and `mlp`, once, with the layer's first site.

    Args:
        sites: experts, named `<module path>.<number of the expert>`.
        forward: (experts' module, show) -> a forward of the same arithmetic that passes the gate, up and neuron values of each
            expert through `show`, and computes with what comes back.

    Raises:
        RuntimeError: a module is tapped already.
    """
    by_module: dict[str, dict[int, Site]] = {}
    blocks: dict[int, tuple[Site, str]] = {}
    for site in sites:
        path, _, expert = site.name.rpartition(".")
        by_module.setdefault(path, {})[int(expert)] = site
        blocks.setdefault(site.layer, (site, path.rpartition(".")[0]))
    points = layer_points(model, sites)
    for site, block in blocks.values():
        points.append(TapPoint(site=site, tap="mlp_input", module=block, at="input"))
        points.append(TapPoint(site=site, tap="mlp", module=block, at="output"))
    with ExitStack() as stack:
        stack.enter_context(tapped(model, points, taps, handler))
        if taps & EXPERT_TAPS:
            for path, experts in by_module.items():
                module = model.get_submodule(path)
                if "forward" in vars(module):
                    raise RuntimeError(f"{path} is tapped already")
                stack.callback(vars(module).pop, "forward", None)
                vars(module)["forward"] = forward(module, _show(experts, taps, handler))
        yield


def _show(sites: dict[int, Site], taps: frozenset[Tap], handler: Handler) -> Show:
    def show(expert: int, tap: Tap, values: Tensor, rows: Tensor) -> Tensor:
        if tap not in taps or expert not in sites:
            return values
        replaced = handler(sites[expert], tap, values, rows)
        return values if replaced is None else replaced

    return show
