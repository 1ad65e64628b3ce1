"""One model over several devices: the parameters of each layer sharded (FSDP2), or its neurons and heads (tensor parallel)."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fairprune_framework.api.taps import layer_path
from fairprune_framework.api.types import Site
from fairprune_framework.auditing.callback import ActivationStatisticsCallback
from fairprune_framework.errors import UserError


@dataclass(frozen=True)
class ShardLayers:
    """FSDP2: every decoder layer is gathered for its forward and freed after it. Embedding and head are replicated."""

    model: nn.Module
    sites: tuple[Site, ...]

    def __call__(self, mesh: Any) -> None:
        from torch.distributed.fsdp import fully_shard

        for path in dict.fromkeys(layer_path(site.name) for site in self.sites):
            fully_shard(self.model.get_submodule(path), mesh=mesh["data_parallel"])


@dataclass(frozen=True)
class SplitNeurons:
    """Tensor parallel by transformers' plan for the architecture: the callback of this rank sees only its own neurons."""

    model: nn.Module
    statistics: ActivationStatisticsCallback

    def __call__(self, mesh: Any) -> None:
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        styles = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
        group = mesh["tensor_parallel"]
        plan = {name: styles[style]() for name, style in tensor_plan(self.model).items()}
        parallelize_module(self.model, group, plan)
        rank, world = group.get_local_rank(), group.size()
        self.statistics.sites = tuple(
            replace(site, local=slice(rank * site.units // world, (rank + 1) * site.units // world))
            for site in self.statistics.sites
        )


def tensor_plan(model: nn.Module) -> dict[str, str]:
    """Module -> `colwise` or `rowwise`, from the plan of transformers; the head is replicated.

    Raises:
        UserError: there is no plan, or it has other styles.
    """
    rules: dict[str, str] = dict(getattr(model, "tp_plan", None) or getattr(model, "_tp_plan", None) or {})
    plan: dict[str, str] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or module is model.get_output_embeddings():  # type: ignore[operator]
            continue
        style = next((style for rule, style in rules.items() if fnmatch.fnmatch(name, rule) or name == rule), None)
        if style is None:
            continue
        if style not in ("colwise", "rowwise"):
            raise UserError(
                f"--strategy tensor_parallel: transformers plans {style!r} for {name}, which is not supported: take fsdp"
            )
        plan[name] = style
    if not plan:
        raise UserError(
            f"--strategy tensor_parallel: transformers has no plan for {type(model).__name__}, or none for Linear modules: take fsdp"
        )
    return plan


def check_tensor_parallel(model: nn.Module, sites: tuple[Site, ...], world: int) -> None:
    """Raise `UserError` where the neurons or heads of a model cannot be divided evenly, or its neurons are not planned."""
    plan = tensor_plan(model)
    for site in sites:
        if site.units % world:
            raise UserError(
                f"--strategy tensor_parallel: the {site.units} neurons of {site.name} cannot be split over {world} ranks"
            )
        for slice_ in site.slices:
            name = slice_.parameter.rpartition(".")[0]
            if slice_.lead or slice_.start or plan.get(name) != ("rowwise" if slice_.role == "out" else "colwise"):
                raise UserError(f"--strategy tensor_parallel: {name} is not contiguous per neuron: take fsdp")
    config: Any = model.config
    config = config.get_text_config()
    for heads in (config.num_attention_heads, getattr(config, "num_key_value_heads", None) or config.num_attention_heads):
        if heads % world:
            raise UserError(f"--strategy tensor_parallel: {heads} heads cannot be split over {world} ranks")
