"""Tapping experts that one module holds as stacked parameters, without inner modules to hook."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from fairprune_framework.api.interfaces import Handler
from fairprune_framework.api.taps import TapPoint, layer_points, tapped
from fairprune_framework.api.types import Site, Tap

EXPERT_TAPS: frozenset[Tap] = frozenset({"gate", "up", "neuron"})
"""What each expert shows; the taps of its block and its layer come once, with the layer's first site."""

Show = Callable[[int, Tap, Tensor, Tensor], Tensor]
"""(expert, tap, values (M, K), rows (M,)) -> the values, or what the handler puts in their place."""


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
