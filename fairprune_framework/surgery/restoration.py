"""Undoing a removal: `restoration.safetensors` keeps what was cut or overwritten, and puts it back bit by bit.

The file stands alone: tensors of the weights that went, unit first, and a JSON header that says where they belong and what the
sha256 of every changed parameter was. Neither the original model nor the adapter that knew it is needed again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.api.types import Plan, Site, Slice
from fairprune_framework.api.widths import read_field
from fairprune_framework.errors import ContractViolation, UserError, shortened, shown
from fairprune_framework.models.weights import weights_digest
from fairprune_framework.surgery.biases import FIELDS, name_of_bias, new_biases
from fairprune_framework.surgery.slices import part, positions
from fairprune_framework.utilities.files import parse_json, unreadable, write_tensors
from fairprune_framework.utilities.header_schemas import RestorationHeader
from fairprune_framework.utilities.schemas import check
from fairprune_framework.utilities.tensor_files import TensorFile

FORMAT = "fairprune-restoration/3"
FILE = "restoration.safetensors"
WIDTH_FIELDS = re.compile(
    r"(?:[a-z0-9]+_config\.)?(?:[a-z0-9]+_)*(?:intermediate|ffn|d?ff|mlp|inner|expert|feed_forward)(?:_[a-z0-9]+)*(?:\.[0-9]+)?"
    r"|num_(?:attention|key_value)_heads"
)
"""Fields of a config that a restoration may set: widths, and nothing that names code (`auto_map`) or a class; and `biases.FIELDS`, to
False."""
WHOLE = frozenset({"inner_norm", "out_bias"})
"""Roles of which a removal changes every number: kept as a whole."""


@dataclass(frozen=True, kw_only=True)
class Restoration:
    """What a removal took, and where it belongs."""

    plan: Plan
    """What was carried out; it names the original model, and its fingerprint."""
    exact: bool
    """Whether each layer was stored in its own width."""
    round_to: int
    """What stored widths are multiples of."""
    weights: str
    """Digest of every bit of the original, also of what was not changed."""
    pruned: str
    """Of the model that this undoes."""
    config: Mapping[str, int | bool | None]
    """Config fields as they were."""
    added: tuple[str, ...]
    """Biases that the original lacks."""
    shapes: Mapping[str, tuple[int, ...]]
    """Changed parameter -> its shape as it was."""
    hashes: Mapping[str, str]
    """Changed parameter -> sha256 of its bytes as it was."""
    units: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    """Site -> (units cut, units overwritten in place)."""
    slices: Mapping[str, tuple[tuple[str, Slice], ...]]
    """Changed parameter -> (site, slice)."""
    tensors: Mapping[str, Tensor]
    """`<site>/<role>` -> (units * width, rest) or (units * width,): cut units first, then those overwritten."""


def bytes_hash(parts: Iterable[Tensor]) -> str:
    """sha256 of a tensor's bytes, of which each part follows the one before."""
    state = hashlib.sha256()
    for each in parts:
        state.update(each.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        del each  # before the next is read
    return state.hexdigest()


@torch.no_grad()
def capture(
    model: nn.Module,
    plan: Plan,
    sites: Mapping[str, Site],
    widths: Mapping[tuple[str, int], int],
    pruned: str,
    *,
    exact: bool = False,
    round_to: int = 1,
) -> Restoration:
    """Take note of the original before `plan` is carried out at these stored widths.

    Args:
        model: the original, unchanged.
        widths: (width group, width) -> stored width, as `stored_widths` gives it.
        pruned: fingerprint of the model as pruned.
        exact, round_to: how `widths` came about.
    """
    found = described(model, plan, sites, widths, exact=exact, round_to=round_to)
    values = {parameter: model.get_parameter(parameter).detach() for parameter in found.slices}
    return replace(
        found,
        weights=weights_digest(model),
        pruned=pruned,
        hashes={parameter: bytes_hash([value]) for parameter, value in values.items()},
        tensors={name: piece(values[slice_.parameter], slice_, units).cpu() for name, (slice_, units) in pieces(found).items()},
    )


def described(
    model: nn.Module,
    plan: Plan,
    sites: Mapping[str, Site],
    widths: Mapping[tuple[str, int], int],
    *,
    exact: bool,
    round_to: int,
) -> Restoration:
    """What names and shapes alone say of a restoration, without hashes and weights; arguments as for `capture`."""
    config: Any = model.config
    config = config.get_text_config()
    units: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
    slices: dict[str, list[tuple[str, Slice]]] = {}
    planned_sites = [site for name, site in sites.items() if plan.sites.get(name)] if plan.operator == "mean" else []
    new = new_biases(model, planned_sites)
    fields: dict[str, int | bool | None] = dict.fromkeys(new.fields, False)
    for name, site in sites.items():
        planned = tuple(plan.sites.get(name, ()))
        gone = site.units - widths[(site.width_group, site.units)]
        if not planned:
            continue
        units[name] = (planned[:gone], planned[gone:])
        if gone:
            if odd := sorted(
                set(site.config_fields) - {field for field in site.config_fields if WIDTH_FIELDS.fullmatch(field)}
            ):
                raise ContractViolation(f"site {name}: {odd[0]!r} is no config field of a width: a restoration may not set it")
            fields |= {field: read_field(config, field) for field in site.config_fields}
        for slice_ in site.slices:
            slices.setdefault(slice_.parameter, []).append((name, slice_))
        if plan.operator == "mean" and (bias := name_of_bias(site)) not in new.parameters:
            slices.setdefault(bias, []).append((name, Slice(parameter=bias, role="out_bias", axis=0)))
    return Restoration(
        plan=plan,
        exact=exact,
        round_to=round_to,
        weights="",
        pruned="",
        config=fields,
        added=new.parameters,
        shapes={parameter: tuple(model.get_parameter(parameter).shape) for parameter in slices},
        hashes={},
        units=units,
        slices={parameter: tuple(entries) for parameter, entries in slices.items()},
        tensors={},
    )


def pieces(restoration: Restoration) -> dict[str, tuple[Slice, tuple[int, ...]]]:
    """`<site>/<role>` -> where the tensor of that name is taken from, and the units: those cut, then those overwritten."""
    return {
        f"{site}/{slice_.role}": (slice_, (*restoration.units[site][0], *restoration.units[site][1]))
        for entries in restoration.slices.values()
        for site, slice_ in entries
    }


def piece(parameter: Tensor, slice_: Slice, units: Sequence[int]) -> Tensor:
    """The weights of units in a parameter, unit first, as a restoration keeps them; all of a norm and of an output bias."""
    tensor, axis = part(parameter, slice_)
    index = torch.arange(tensor.shape[axis]) if slice_.role in WHOLE else positions(slice_, torch.tensor(units))
    return tensor.index_select(axis, index.to(tensor.device)).movedim(axis, 0).contiguous()


def save(restoration: Restoration, path: Path) -> None:
    """Write the file atomically."""
    write_tensors(path, restoration.tensors, metadata=header(restoration))


def header(restoration: Restoration) -> dict[str, str]:
    """What a file says beside its tensors."""
    content = {
        "plan": restoration.plan.to_json(),
        "exact": restoration.exact,
        "round_to": restoration.round_to,
        "weights": restoration.weights,
        "pruned": restoration.pruned,
        "config": dict(restoration.config),
        "added": list(restoration.added),
        "units": {site: [list(cut), list(overwritten)] for site, (cut, overwritten) in restoration.units.items()},
        "parameters": {
            name: {
                "shape": list(restoration.shapes[name]),
                "sha256": restoration.hashes[name],
                "pieces": [{"site": site, **asdict(slice_)} for site, slice_ in entries],
            }
            for name, entries in restoration.slices.items()
        },
    }
    return {"format": FORMAT, "fairprune": json.dumps(content)}


def load(path: Path) -> Restoration:
    """Read the file; its tensors are read when they are asked for.

    Raises:
        UserError: it is absent, or no restoration.
    """
    from safetensors import SafetensorError

    if not path.is_file():
        raise UserError(f"there is no {path}: only `fairprune prune` and `fairprune run` write it, beside model/")
    if (reason := unreadable(path)) is not None:
        raise UserError(f"{path} {reason}")
    try:
        tensors = TensorFile(path)
        metadata = tensors.metadata or {}
        if metadata.get("format") != FORMAT:
            raise UserError(f"{path} must be of format {FORMAT!r}. Got {shown(metadata.get('format'))} instead.")
        data = parse_json(metadata.get("fairprune", ""))
    except UserError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {shortened(' '.join(str(error).split()), 300)}") from error
    check(data, RestorationHeader, str(path))
    parameters = data["parameters"]
    found = Restoration(
        plan=_plan_of(path, data["plan"]),
        exact=data["exact"],
        round_to=data["round_to"],
        weights=data["weights"],
        pruned=data["pruned"],
        config=data["config"],
        added=tuple(data.get("added", ())),
        shapes={name: tuple(entry["shape"]) for name, entry in parameters.items()},
        hashes={name: entry["sha256"] for name, entry in parameters.items()},
        units={site: (tuple(cut), tuple(over)) for site, (cut, over) in data["units"].items()},
        slices={name: tuple(_read_slice(piece) for piece in entry["pieces"]) for name, entry in parameters.items()},
        tensors=tensors,
    )
    if (wrong := _misfit(found)) is not None:
        raise UserError(f"{path} is damaged: {wrong}")
    return found


def _read_slice(data: Mapping[str, Any]) -> tuple[str, Slice]:
    values = {name: data[name] for name in ("parameter", "role", "axis", "start", "step", "width")}
    return data["site"], Slice(**values, lead=tuple(data["lead"]))


def _plan_of(path: Path, data: Any) -> Plan:
    try:
        return Plan.from_json(data, "its plan")
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _misfit(found: Restoration) -> str | None:
    """What a file says that no removal writes; None: nothing. What does not fit the model is found when it is undone."""
    if (
        not found.exact
        and any(cut for cut, _ in found.units.values())
        and all(value is False for value in found.config.values())
    ):
        return "it names no config field of the widths that were cut"
    for field, value in found.config.items():
        if not (value is False and field in FIELDS) and (value is False or not WIDTH_FIELDS.fullmatch(field)):
            return f"the config field {shown(field)}: {shown(value)} is no width"
    if any(not name.endswith(".bias") or name in found.shapes for name in found.added):
        return "what it takes away is no bias that a removal adds"
    for name, shape in found.shapes.items():
        for site, slice_ in found.slices[name]:
            units = [unit for units in found.units[site] for unit in units]
            if (
                slice_.role not in WHOLE
                and slice_.start + max(units, default=0) * slice_.step + slice_.width > shape[slice_.axis]
            ):
                return f"a unit of {shown(site)} lies outside of {shown(name)}"
            rest = [size for axis, size in enumerate(shape) if axis != slice_.axis and axis >= len(slice_.lead)]
            rows = shape[slice_.axis] if slice_.role in WHOLE else len(units) * slice_.width
            values = found.tensors.get(f"{site}/{slice_.role}")
            if values is None or tuple(values.shape) != (rows, *rest):
                return (
                    f"the weights of {shown(site)} are {'absent' if values is None else f'of the shape {tuple(values.shape)}'}"
                )
    return None
