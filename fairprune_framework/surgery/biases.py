"""The bias of output projections, which takes over what neurons add on average under the operator `mean`.

W_out[:, removed] @ mean[removed] goes into the bias. Where an output projection has none, a config field gives every MLP of the family
one (`mlp_bias`; biases beside it are zeros), or with exact widths the layers that need it get one, as `uneven_shapes` says.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.api.mlps import features, is_projection
from fairprune_framework.api.types import Plan, Site, Slice
from fairprune_framework.models.uneven import FIELD
from fairprune_framework.surgery.slices import part, positions

FIELDS = ("mlp_bias", "use_bias", "enable_bias", "add_bias_linear")
"""Config fields that give MLPs their biases, by the names of the families of transformers."""


@dataclass(frozen=True, kw_only=True)
class NewBiases:
    """Biases that a model lacks, and gets."""

    parameters: tuple[str, ...] = ()
    fields: Mapping[str, bool] = field(default_factory=dict)
    """Of the text config: what makes its class build them; none where only exact widths do."""


def out_of(site: Site) -> Slice | None:
    """The output weights of a site; None where they are several."""
    found = [slice_ for slice_ in site.slices if slice_.role == "out"]
    return found[0] if len(found) == 1 else None


def name_of_bias(site: Site) -> str:
    """The bias beside the output weights of a site, whether or not the model has it."""
    out = out_of(site)
    assert out is not None, "refused by why_no_bias"
    return out.parameter.removesuffix("weight") + "bias"


def why_no_bias(model: nn.Module, site: Site) -> str | None:
    """Why the output projection of a site can have no bias of its own; None: it has, or may get one."""
    if any(slice_.role == "inner_norm" for slice_ in site.slices):
        return "a norm stands between its neurons and its output weights"
    out = out_of(site)
    path, _, attribute = out.parameter.rpartition(".") if out is not None else ("", "", "")
    module = model.get_submodule(path)
    if site.kind == "expert" or out is None or out.lead or attribute != "weight" or not is_projection(module):
        return "its output weights are those of an expert, without a bias that it alone has"
    return None


def new_biases(model: Any, sites: Iterable[Site]) -> NewBiases:
    """What a model must get so that every one of these sites has an output bias.

    Args:
        model: one that the sites belong to, with the config that it was built by.
    """
    own = dict(model.named_parameters())
    lacking = {name for site in sites if (name := name_of_bias(site)) not in own}
    if not lacking:
        return NewBiases()
    for name in FIELDS:
        if getattr(model.config.get_text_config(), name, None) is False and (built := _built_with(model, name)) is not None:
            new = built.keys() - own.keys()
            if lacking <= new and own.keys() <= built.keys() and all(each.endswith(".bias") for each in new):
                return NewBiases(parameters=tuple(sorted(new)), fields={name: True})
    return NewBiases(parameters=tuple(sorted(lacking)))


def _built_with(model: Any, name: str) -> dict[str, nn.Parameter] | None:
    """The parameters, without values, of the model's class with a field of its config set; None where it cannot be built so."""
    config = copy.deepcopy(model.config)
    vars(config).pop(FIELD, None)
    setattr(config.get_text_config(), name, True)
    try:
        with torch.device("meta"):
            return dict(type(model)(config).named_parameters())
    except Exception:  # of a class that is not of transformers, anything
        return None


def shifted(model: nn.Module, plan: Plan, site: Site) -> Tensor:
    """The output bias, (H,), with what the planned units of a site add at their means; in the dtype of the weights.

    Args:
        model: with the output weights of all units.
    """
    out = out_of(site)
    assert out is not None, "refused by why_no_bias"
    weight, axis = part(model.get_parameter(out.parameter).detach(), out)
    index = positions(out, torch.tensor(plan.sites[site.name]))
    taken = weight.index_select(axis, index.to(weight.device)).movedim(axis, 0).double()
    means = torch.tensor(plan.means[site.name], dtype=torch.float64, device=weight.device).reshape(-1)
    old = getattr(model.get_submodule(out.parameter.rpartition(".")[0]), "bias", None)
    total = means @ taken if old is None else means @ taken + old.detach().double()
    return total.to(weight.dtype if old is None else old.dtype)


def empty_bias(model: nn.Module, name: str) -> Tensor:
    """Zeros for a bias that a model lacks, as wide as the weights beside it are now."""
    module: Any = model.get_submodule(name.rpartition(".")[0])
    return torch.zeros(features(module)[1], dtype=module.weight.dtype, device=module.weight.device)
