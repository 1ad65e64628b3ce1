"""Pruning a model: cut, zero, scale or hold in place, save, reload, compare with the masked original, restore the model in memory.

A width group is stored as wide as its least-cut site allows, rounded up to the budget's multiple; planned units beyond that
are stored as zeros. With uniform widths a group is what one config field describes, with exact ones what one tensor holds.
The model in memory is as before when `save_pruned_model` returns, and also when it raises.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fairprune_framework.api.types import Operator, Plan, Site, Slice
from fairprune_framework.api.widths import read_field, write_field
from fairprune_framework.errors import UserError, VerificationFailed
from fairprune_framework.functional.divergence import kl_divergence
from fairprune_framework.models.architecture import Architecture
from fairprune_framework.models.head import Answers, answers_of
from fairprune_framework.models.loading import parameter_count
from fairprune_framework.models.saving import save_like, save_new, shards
from fairprune_framework.models.uneven import FILE as UNEVEN
from fairprune_framework.models.uneven import check_plain, mark
from fairprune_framework.models.weights import fingerprint
from fairprune_framework.surgery.biases import NewBiases, empty_bias, name_of_bias, new_biases, shifted, why_no_bias
from fairprune_framework.surgery.masking import check_plan, masked
from fairprune_framework.surgery.restoration import capture, save
from fairprune_framework.surgery.slices import cut, scale_, set_parameter, unit_parameters, zero_
from fairprune_framework.surgery.speed import Speed, compare_speed
from fairprune_framework.utilities import stopping
from fairprune_framework.utilities.files import move_folder, temporary_folder

MAX_DIFFERENCE = 1e-3
MAX_KL = 1e-6
"""Between removed and masked, in float32 (measured: 8e-5 on logits, since matrix shapes change)."""
WIDE_VALUES = 2**22
"""Logits that are compared at once: 32 MiB in float64."""


Widths = Literal["uniform", "exact"]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the model is, before and after."""

    parameters_before: int
    parameters_after: int
    bytes_before: int
    """Of the files with weights; of the tensors in memory, where there are no files of the original."""
    bytes_after: int


@dataclass(frozen=True, kw_only=True)
class Removal(Sizes):
    """What was done, as `run.json` tells it."""

    operator: str
    units: int
    cut: int
    """Units that are gone from the tensors."""
    padded: int
    """Planned units that are stored as zeros."""
    scaled: int
    """Planned units of which the output weights were scaled."""
    widths: Mapping[str, tuple[int, int]]
    """Width group -> (before, after)."""
    parameters_effective: int
    """Without those of units stored as zeros."""
    max_difference: float | None
    """Largest difference of logits between the removed (or scaled) and the masked model, float32. Weights are scaled in float32
    for this comparison; a 16-bit file rounds them once more. None: shard by shard no logits are computed."""
    kl: float | None
    note: str | None
    files: tuple[str, ...]
    """What could not be kept as it is in the original's files."""

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """Compute in float32 for a while; bfloat16 and float16 weights come back bit by bit."""
    with ExitStack() as stack:
        for parameter in model.parameters():
            if parameter.dtype in (torch.bfloat16, torch.float16):
                dtype = parameter.dtype
                parameter.data = parameter.data.float()
                stack.callback(_to_dtype, parameter, dtype)
        yield


def _to_dtype(parameter: nn.Parameter, dtype: torch.dtype) -> None:
    parameter.data = parameter.data.to(dtype)


def stored_widths(plan: Plan, sites: Mapping[str, Site], round_to: int) -> dict[tuple[str, int], int]:
    """(width group, width) -> stored width: the least-cut site decides, rounded up to a multiple of `round_to` and of what each
    site asks for, and to one that the config takes; `zero` and `scale` keep every width."""
    widths: dict[tuple[str, int], int] = {}
    multiples: dict[tuple[str, int], int] = {}
    takes: dict[tuple[str, int], tuple[int, ...]] = {}
    for name, site in sites.items():
        gone = len(plan.sites.get(name, ())) if plan.removes else 0
        kept = site.units - gone
        group = (site.width_group, site.units)
        widths[group] = max(widths.get(group, 0), kept)
        multiples[group] = math.lcm(multiples.get(group, round_to), site.multiple)
        takes[group] = site.storable
    rounded = {group: min(-(-width // multiples[group]) * multiples[group], group[1]) for group, width in widths.items()}
    return {
        group: next((each for each in takes[group] if each >= width), group[1]) if takes[group] else width
        for group, width in rounded.items()
    }


def stored_sites(sites: Mapping[str, Site], widths: Widths) -> dict[str, Site]:
    """The sites with the width groups in which they are stored: with exact widths those that one tensor of output weights holds, such
    as the experts of a layer, and no config field."""
    if widths == "uniform":
        return dict(sites)
    outs = {name: min((s.parameter for s in site.slices if s.role == "out"), default=name) for name, site in sites.items()}
    plain: dict[str, Any] = {"config_fields": {}, "config_constants": {}, "storable": ()}
    return {name: replace(site, width_group=outs[name], **plain) for name, site in sites.items()}


def obstacle(site: Site, widths: Widths) -> str | None:
    """Why the neurons of a site cannot be cut out of its tensors; None: they can."""
    if site.surgery is not None or site.config_fields or widths == "exact":
        return site.surgery
    return (
        f"no config field holds its width, {site.units * site.unit_width}: --widths exact stores it beside the config, "
        "--operator zero and scale keep it"
    )


@contextmanager
def pruned_in_place(
    model: nn.Module, plan: Plan, sites: Mapping[str, Site], widths: Mapping[tuple[str, int], int]
) -> Iterator[None]:
    """The model with the plan carried out in its weights and config; everything is put back afterwards, bit by bit."""
    with carry_out(model, plan, sites, widths):
        yield


def carry_out(model: nn.Module, plan: Plan, sites: Mapping[str, Site], widths: Mapping[tuple[str, int], int]) -> ExitStack:
    """Carry the plan out in the weights and config of a model, in place.

    Returns: what undoes it, bit by bit, when it is closed; let go of, the model stays as it is now.
    """
    config: Any = model.config
    config = config.get_text_config()
    planned_sites = [site for name, site in sites.items() if plan.sites.get(name)] if plan.operator == "mean" else []
    with ExitStack() as stack:
        new = new_biases(model, planned_sites)
        biases = {name_of_bias(site): shifted(model, plan, site) for site in planned_sites}
        for parameter, change in changes(plan, sites, widths).items():
            value = change(model.get_parameter(parameter).detach())
            stack.callback(set_parameter, model, parameter, set_parameter(model, parameter, value))
        for parameter in sorted({*biases, *new.parameters}):
            bias = biases[parameter] if parameter in biases else empty_bias(model, parameter)
            stack.callback(set_parameter, model, parameter, set_parameter(model, parameter, bias))
        for field, width in {**new_fields(sites, widths, config), **new.fields}.items():
            if read_field(config, field) != width:
                stack.callback(_put_back, config, field, read_field(config, field))
                write_field(config, field, width)
        return stack.pop_all()


def _put_back(config: Any, field: str, value: Any) -> None:
    """Give a config field its value back; one that the family's config does not have goes."""
    write_field(config, field, value)
    if value is None and field in vars(config) and not hasattr(type(config), field):
        delattr(config, field)


def changes(
    plan: Plan, sites: Mapping[str, Site], widths: Mapping[tuple[str, int], int]
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Parameter -> what makes its new value of the old one, which is left as it is; of parameters that a plan leaves alone nothing."""
    slices: dict[str, list[tuple[Slice, Tensor]]] = {}
    stays: dict[str, list[tuple[Site, Tensor]]] = {}
    for name, site in sites.items():
        planned = torch.tensor(plan.sites.get(name, ()), dtype=torch.long)
        gone = site.units - widths[(site.width_group, site.units)]
        for slice_ in site.slices:
            if gone:
                slices.setdefault(slice_.parameter, []).append((slice_, planned[:gone]))
            if len(planned) > gone and (slice_.role == "out" or plan.operator != "scale"):
                stays.setdefault(slice_.parameter, []).append((site, planned[gone:]))

    def change(parameter: str, value: Tensor) -> Tensor:
        if parameter in stays:
            value = value.clone()
        for site, units in stays.get(parameter, []):
            only = _narrowed(site, [slice_ for slice_ in site.slices if slice_.parameter == parameter])
            if plan.operator == "scale":
                factor = torch.tensor(plan.factors[site.name]) if plan.factors else plan.factor or 0.0
                scale_({parameter: value}, only, units, factor)
            else:
                zero_({parameter: value}, only, units)
        return _cut(value, slices[parameter]) if parameter in slices else value

    return {parameter: partial(change, parameter) for parameter in sorted({*slices, *stays})}


def new_fields(sites: Mapping[str, Site], widths: Mapping[tuple[str, int], int], config: Any) -> dict[str, int]:
    """Field of the text config -> its value at these stored widths, where it is another one, and what is written beside it."""
    found: dict[str, int] = {}
    for site in sites.values():
        stored = widths[(site.width_group, site.units)]
        if stored != site.units:
            new = {field: stored * times for field, times in site.config_fields.items()}
            found |= {field: width for field, width in new.items() if width != read_field(config, field)}
            found |= site.config_constants
    return found


def changed_parameters(plan: Plan, sites: Mapping[str, Site]) -> list[str]:
    """The parameters that a plan changes; biases that the model lacks are those of `new_biases`."""
    planned = [site for name, site in sites.items() if plan.sites.get(name)]
    biases = {name_of_bias(site) for site in planned} if plan.operator == "mean" else set()
    return sorted({slice_.parameter for site in planned for slice_ in site.slices} | biases)


def _cut(value: Tensor, slices: list[tuple[Slice, Tensor]]) -> Tensor:
    """A parameter without units. The weights of a norm over the units grow by sqrt(N / kept): its mean is over fewer of them."""
    kept = cut(value, slices)
    if slices[0][0].role == "inner_norm":
        kept = (kept.double() * math.sqrt(len(value) / len(kept))).to(kept.dtype)
    return kept


def _narrowed(site: Site, slices: list[Slice]) -> Site:
    return replace(site, slices=tuple(slices))


@torch.no_grad()
def logits_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Logits (B, T, vocab) float32 of unpadded token ids, on the CPU."""
    device = next(model.parameters()).device
    return model(input_ids=ids.to(device), use_cache=False).logits.float().cpu()  # type: ignore[no-any-return]


def refuse_obstacles(model: nn.Module, sites: Iterable[Site], operator: Operator, widths: Widths = "uniform") -> None:
    """Raise `UserError` where an operator cannot be carried out on one of the sites of a model."""
    sites = list(sites)
    for site in sites:
        if operator == "mean" and (why := why_no_bias(model, site)):
            raise UserError(f"{site.name} cannot be held at its mean: {why}")
        if operator in ("remove", "mean") and (why := obstacle(site, widths)):
            raise UserError(f"{site.name} cannot be cut: {why}")
        if operator == "scale" and any(slice_.role == "inner_norm" for slice_ in site.slices):
            raise UserError(f"{site.name} cannot be scaled: a norm between its neurons and its output weights would undo it")
    new = new_biases(model, sites) if operator == "mean" else NewBiases()
    if new.parameters and not new.fields and widths != "exact":
        raise UserError(
            f"{new.parameters[0]} is absent, and no config field gives {type(model).__name__} one to hold neurons at their means: "
            "--widths exact stores it beside the config"
        )


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
            expected = _answers(model, probe_ids)
        rounded = plan.operator in ("scale", "mean") or (plan.operator == "remove" and _has_inner_norm(sites))
        if rounded:  # 16-bit weights are rounded when they are computed: the arithmetic is proven before that
            with pruned_in_place(model, plan, sites, stored):
                difference, kl = _compare(_answers(model, probe_ids), expected)
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
                cut = _answers(model, probe_ids)
        with in_float32(model):
            if not rounded:
                difference, kl = _compare(cut, expected)
        if not (difference <= MAX_DIFFERENCE and kl <= MAX_KL):
            raise VerificationFailed(
                f"the removed model differs from the masked one: logits by {difference:.2e} (at most {MAX_DIFFERENCE:g}), "
                f"KL {kl:.2e} (at most {MAX_KL:g}). Nothing was kept."
            )
        again = reload(temporary)
        with in_float32(model), in_float32(again):
            both = zip(_logits(_answers(again, probe_ids)), _logits(cut), strict=True)
            same = all(torch.equal(theirs, ours) for theirs, ours in both)
        if not same:
            raise VerificationFailed("the reloaded model does not answer as the removed one. Nothing was kept.")
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


@torch.no_grad()
def _answers(model: nn.Module, ids: Tensor) -> Answers:
    """The forward of unpadded token ids (B, T), for logits at every position."""
    return answers_of(model, input_ids=ids.to(next(model.parameters()).device))


@torch.no_grad()
def _logits(answers: Answers) -> Iterator[Tensor]:
    """The logits at all positions, (M, vocab) float32 on the CPU, few at a time. What is behind the decoder is not pruned, so that they
    are the same before and after `pruned_in_place` ends."""
    rows, columns = answers.hidden_BTH.shape[:2]
    every = torch.arange(rows * columns, device=answers.hidden_BTH.device)
    for _, logits in answers.parts((every // columns, every % columns), answers.width, WIDE_VALUES):
        yield logits.float().cpu()


def _compare(found: Answers, expected: Answers) -> tuple[float, float]:
    """Largest difference of logits, and mean KL(expected || found) in nats."""
    differences: list[float] = []
    divergences: list[Tensor] = []
    for logits, wanted in zip(_logits(found), _logits(expected), strict=True):
        log_p, log_q = (torch.log_softmax(each.double(), -1) for each in (wanted, logits))
        differences.append(float((logits - wanted).abs().max()))
        divergences.append(kl_divergence(log_p, log_q))
    return max(differences), float(torch.cat(divergences).mean())


def report(
    plan: Plan,
    sites: Mapping[str, Site],
    per_unit: Mapping[str, int],
    widths: Mapping[tuple[str, int], int],
    sizes: Sizes,
    difference: float | None,
    kl: float | None,
    files: tuple[str, ...],
) -> Removal:
    """What was done.

    Args:
        per_unit: site -> parameters of one of its units.
    """
    gone = {name: site.units - widths[(site.width_group, site.units)] for name, site in sites.items()}
    cut_units = sum(gone.values())
    padded = {name: len(plan.sites.get(name, ())) - count for name, count in gone.items()}
    scaled = plan.count if plan.operator == "scale" else 0
    done = {"scale": "scaled", "mean": "held"}.get(plan.operator, "zeroed")
    note = f"{done}, not smaller" if cut_units == 0 and plan.count else None
    effective = sizes.parameters_after - sum(per_unit[name] * count for name, count in padded.items() if not scaled)
    return Removal(
        operator=plan.operator,
        units=plan.count,
        cut=cut_units,
        padded=plan.count - cut_units - scaled,
        scaled=scaled,
        widths={f"{group}": (width, stored) for (group, width), stored in widths.items()},
        **asdict(sizes),
        parameters_effective=effective,
        max_difference=difference,
        kl=kl,
        note=note,
        files=files,
    )
