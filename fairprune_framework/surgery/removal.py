"""Pruning a model: cut, zero, scale or hold in place, save, reload, compare with the masked original, restore the model in memory.

The model in memory is as before when `save_pruned_model` returns, and also when it raises.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.api.types import Plan, Site
from fairprune_framework.errors import VerificationFailed
from fairprune_framework.models.architecture import Architecture
from fairprune_framework.models.loading import parameter_count
from fairprune_framework.models.saving import save_like, save_new, shards
from fairprune_framework.models.uneven import FILE as UNEVEN
from fairprune_framework.models.uneven import check_plain, mark
from fairprune_framework.models.weights import fingerprint
from fairprune_framework.surgery.biases import NewBiases, new_biases
from fairprune_framework.surgery.changes import changed_parameters, pruned_in_place
from fairprune_framework.surgery.equality import MAX_DIFFERENCE, MAX_KL, compared, every_answer, in_float32, same_answers
from fairprune_framework.surgery.masking import check_plan, masked
from fairprune_framework.surgery.obstacles import refuse_obstacles
from fairprune_framework.surgery.record import Removal, Sizes, report
from fairprune_framework.surgery.restoration import capture, save
from fairprune_framework.surgery.slices import unit_parameters
from fairprune_framework.surgery.speed import Speed, compare_speed
from fairprune_framework.surgery.widths import Widths, new_fields, stored_sites, stored_widths
from fairprune_framework.utilities import freed_memory, stopping
from fairprune_framework.utilities.files import move_folder, temporary_folder


def save_pruned_model(
    model: nn.Module,
    tokenizer: Any,
    plan: Plan,
    architecture: Architecture,
    target: Path,
    *,
    probe_ids: Tensor,
    round_to: int = 1,
    widths: Widths = "uniform",
    reload: Callable[[Path], nn.Module],
    restoration: Path | None = None,
    original: Path | None = None,
    dtype: torch.dtype | None = None,
    measured: Callable[[Speed], None] | None = None,
) -> Removal:
    """Save the model without the plan's units to `target` and prove that it is what it should be.

    Args:
        target: folder that must not exist; it appears only when everything held.
        probe_ids: (B, T) token ids on which logits are compared.
        widths: `uniform`: one config field says a width, for all its layers; `exact`: each layer has its own, and `model/` a
            modelling file.
        reload: loads a folder in the dtype that the model has: `from_pretrained`, or with exact widths `load_model`.
        restoration: file to write what was taken to, so that `fairprune restore` can put it back; None: not wanted.
        original: the folder that the model was loaded from, whose files are kept; None: there is none.
        dtype: of the saved weights, where the user asked for one; None: each keeps the original's.
        measured: is told how fast both models are, where tensors became smaller; None: that is not measured.

    Raises:
        UserError: a plan for another model, or a model that cannot be cut.
        VerificationFailed: the removed model differs from the masked one, or the reloaded from the removed.
    """
    check_plan(plan, model, architecture)
    planned = [architecture.sites[name] for name, units in plan.sites.items() if units]
    refuse_obstacles(model, planned, plan.operator, widths)
    if exact := widths == "exact" and plan.removes:
        check_plain(model)
    sites = stored_sites(architecture.sites, "exact" if exact else "uniform")
    stored = stored_widths(plan, sites, round_to)
    before = parameter_count(model)
    config: Any = model.config
    new = new_biases(model, planned) if plan.operator == "mean" else NewBiases()
    fields = {**new_fields(sites, stored, config.get_text_config()), **new.fields}
    with in_float32(model):
        with masked(model, architecture, plan.sites, plan.scaling):
            expected = every_answer(model, probe_ids)
        rounded = plan.operator in ("scale", "mean") or (plan.operator == "remove" and _has_inner_norm(sites))
        if rounded:  # 16-bit weights are rounded when they are computed: the arithmetic is proven before that
            with pruned_in_place(model, plan, sites, stored):
                difference, kl = compared(every_answer(model, probe_ids), expected)
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(target) as temporary:
        with pruned_in_place(model, plan, sites, stored):
            after = parameter_count(model)
            pruned, parameters = fingerprint(model), sorted({*changed_parameters(plan, sites), *new.parameters})
            if original is None:
                save_new(model, tokenizer, temporary)
                files: tuple[str, ...] = ()
            else:
                files = tuple(
                    save_like(
                        original, temporary, model, parameters=parameters, fields=fields, dtype=dtype, added=new.parameters
                    )
                )
            if exact or (temporary / UNEVEN).is_file():
                mark(temporary, model, parameters)
            with in_float32(model):
                cut = every_answer(model, probe_ids)
        with in_float32(model):
            if not rounded:
                difference, kl = compared(cut, expected)
        if not (difference <= MAX_DIFFERENCE and kl <= MAX_KL):
            raise VerificationFailed(
                f"the removed model differs from the masked one: logits by {difference:.2e} (at most {MAX_DIFFERENCE:g}), "
                f"KL {kl:.2e} (at most {MAX_KL:g}). Nothing was kept."
            )
        freed_memory.give_back()
        again = reload(temporary)
        with in_float32(model), in_float32(again):
            same = same_answers(every_answer(again, probe_ids), cut)
        if not same:
            raise VerificationFailed("the reloaded model does not answer as the removed one. Nothing was kept.")
        freed_memory.give_back()
        if measured is not None and after < before and (speed := compare_speed(model, again, probe_ids[:1])) is not None:
            measured(speed)
        del again
        gc.collect()
        stopping.check()
        if restoration is not None:
            save(capture(model, plan, sites, stored, pruned, exact=exact, round_to=round_to), restoration)
        written = sum(file.stat().st_size for file in shards(temporary))
        move_folder(temporary, target)
    per_unit = {name: unit_parameters(model, site) for name, site in sites.items()}
    read = sum(file.stat().st_size for file in shards(original)) if original is not None else 0
    sizes = Sizes(
        parameters_before=before,
        parameters_after=after,
        bytes_before=read or sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
        bytes_after=written,
    )
    return report(plan, sites, per_unit, stored, sizes, difference, kl, files)


def _has_inner_norm(sites: Mapping[str, Site]) -> bool:
    return any(slice_.role == "inner_norm" for site in sites.values() for slice_ in site.slices)
