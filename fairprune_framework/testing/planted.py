"""A tiny Llama in which known neurons respond to the attribute words: a correct scorer must find exactly these.

Construction. Only attribute words have components in the two dimensions of an *attribute plane* of the hidden space: the words of a
category share an embedding except for their position on a circle in that plane. One attention head of each layer copies the plane to
later tokens; the residual stream carries it to later layers. In each layer, `count` planted neurons have an up row that reads the
plane and a gate row that reads a direction common to all tokens, so that they fire at and after an attribute, with a sign given by
the word. Each writes its input to its position in a second plane, the *echo*, so that they add up instead of cancelling; the head
of the model reads the echo and not the attribute plane. As many decoys have the same gate, read another direction and write at
random: they fire as strongly and respond to no attribute. All other weights are random, hardly read or write either plane, and
hardly write the gate's direction (`leak`), so that the outputs differ between variants because of the planted neurons alone.
Finally, neither size nor norm distinguishes a planted neuron: each, and each decoy, fires with the median strength of its layer,
and its up row has the median length, most of it in *silent* directions, in which no token has a component.

With `massive`, as many further neurons of each layer do what a few do in real models: they react to the attribute words with activations
far beyond all others, and write next to nothing. A score of activations alone takes them for the most biased; removing them changes
no output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.contrasts.schema import Contrast, Variant
from fairprune_framework.testing.tiny import tiny_model, tiny_tokenizer

CIRCLES: Mapping[str, tuple[float, tuple[str, ...]]] = {
    "gender": (0.0, ("man", "woman")),
    "race": (math.pi / 2, ("Black", "white")),
    "age": (math.pi / 7, ("young", "old", "elderly")),
}
"""category -> start angle of its circle, and its words, evenly spaced on it. Averaged over the categories, every direction of the
plane has the same variance, so that all planted neurons are equally biased."""

QUIET = 0.3
"""Length of the output columns of planted neurons and decoys, in medians of their layer."""

_TEMPLATES = (
    "The {} walked into the store",
    "A very kind {} lives next door",
    "They said that the {} was late",
    "He asked the {} for help",
    "The police officer seen at the office is {}",
    "The {} teacher is often tired",
)


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A model with known biased neurons."""

    model: nn.Module
    tokenizer: Any
    contrasts: list[Contrast]
    planted: Mapping[str, tuple[int, ...]]
    """site -> the neurons that respond to the attribute words, sorted."""
    decoys: Mapping[str, tuple[int, ...]]
    """site -> equally many neurons of the same activation norm that do not, sorted."""
    massive: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """site -> neurons of massive activations that react to the words and do nothing, sorted."""

    def recall(self, chosen: Mapping[str, Any]) -> float:
        """Share of the planted neurons among chosen units (site -> indices)."""
        hits = sum(len(set(units) & {int(unit) for unit in chosen.get(site, ())}) for site, units in self.planted.items())
        return hits / sum(len(units) for units in self.planted.values())


def planted_model(
    *, seed: int = 0, layers: int = 3, hidden: int = 64, width: int = 96, count: int = 4, leak: float = 0.01, massive: int = 0
) -> Planted:
    """Create a model with `count` planted neurons and `count` decoys in each layer.

    Args:
        leak: share of the attribute plane and its echo in the random weights, 0 to 1.
        massive: neurons in each layer of massive activations that do nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    model: Any = tiny_model("llama", seed=seed, layers=layers, hidden=hidden, width=width, tie_word_embeddings=False)
    tokenizer = tiny_tokenizer()
    at = _directions(hidden, generator)
    read_HH = _faded(at.plane_2H, leak) @ _faded(at.echo_2H, leak)
    write_HH = _faded(at.silent_SH, 0) @ _faded(at.common_1H, leak) @ read_HH
    planted, decoys, huge = {}, {}, {}
    with torch.no_grad():
        _embed(model.model.embed_tokens.weight, tokenizer, at, generator)
        model.lm_head.weight.copy_(model.lm_head.weight @ _faded(at.plane_2H, leak))
        for number, layer in enumerate(model.model.layers):
            for linear in (
                layer.self_attn.q_proj,
                layer.self_attn.k_proj,
                layer.self_attn.v_proj,
                layer.mlp.gate_proj,
                layer.mlp.up_proj,
            ):
                linear.weight.copy_(linear.weight @ read_HH)
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.weight.copy_(0.25 * write_HH @ linear.weight)
            _copy_plane(layer.self_attn, at.plane_2H)
            chosen = torch.randperm(width, generator=generator)[: 2 * count + massive]
            _plant(layer.mlp, chosen[:count], chosen[count : 2 * count], at, read_HH, generator)
            planted[f"model.layers.{number}.mlp"] = tuple(sorted(chosen[:count].tolist()))
            decoys[f"model.layers.{number}.mlp"] = tuple(sorted(chosen[count : 2 * count].tolist()))
            huge[f"model.layers.{number}.mlp"] = tuple(sorted(chosen[2 * count :].tolist()))
        contrasts = _contrasts()
        _equalise(model, tokenizer, contrasts, planted, decoys, at.silent_SH, generator)
        for name, units in huge.items():
            _swell(model.get_submodule(name), list(units), at)
    return Planted(
        model=model, tokenizer=tokenizer, contrasts=contrasts, planted=planted, decoys=decoys, massive=huge if massive else {}
    )


def _contrasts() -> list[Contrast]:
    return [
        Contrast(
            id=f"{category}-{number}",
            category=category,
            template_id=f"t{number}",
            split="heldout" if number % 2 else "select",
            variants=tuple(Variant(attribute=word, text=template.format(word)) for word in words),
        )
        for category, (_, words) in CIRCLES.items()
        for number, template in enumerate(_TEMPLATES)
    ]


@dataclass(frozen=True, kw_only=True)
class _Directions:
    """Orthonormal rows of the hidden space."""

    plane_2H: Tensor
    """The attribute plane."""
    echo_2H: Tensor
    """The output plane of the planted neurons."""
    common_1H: Tensor
    """The direction common to all tokens."""
    silent_SH: Tensor
    """Directions without any token; S = H / 8."""


def _directions(hidden: int, generator: torch.Generator) -> _Directions:
    basis_HH, _ = torch.linalg.qr(torch.randn(hidden, hidden, generator=generator))
    plane_2H, echo_2H, common_1H, silent_SH, _ = basis_HH.split([2, 2, 1, hidden // 8, hidden - 5 - hidden // 8])
    return _Directions(plane_2H=plane_2H, echo_2H=echo_2H, common_1H=common_1H, silent_SH=silent_SH)


def _faded(rows_DH: Tensor, rest: float) -> Tensor:
    """The projection that scales some orthonormal directions by `rest`, (H, H), symmetric."""
    return torch.eye(rows_DH.shape[1]) - (1 - rest) * rows_DH.T @ rows_DH


def _embed(weight_VH: Tensor, tokenizer: Any, at: _Directions, generator: torch.Generator) -> None:
    """Random embeddings of norm 4 outside the plane, plus the common direction; attribute words of a category on their circle."""
    weight_VH.copy_(torch.randn(weight_VH.shape, generator=generator))
    for rows_DH in (at.silent_SH, at.plane_2H, at.common_1H):
        weight_VH.copy_(weight_VH @ _faded(rows_DH, 0))
    weight_VH *= 4 / weight_VH.norm(dim=1, keepdim=True)
    for begin, words in CIRCLES.values():
        rows = [tokenizer.convert_tokens_to_ids(f"\u0120{word}") for word in words]
        shared_H = weight_VH[rows[0]].clone()
        for index, row in enumerate(rows):
            angle = begin + 2 * math.pi * index / len(rows)
            own_H = 0.01 * weight_VH[row]
            weight_VH[row] = shared_H + own_H + 4 * _turned(at.plane_2H, angle)
    weight_VH += 2 * at.common_1H


def _turned(plane_2H: Tensor, angle: float) -> Tensor:
    """The unit vector at an angle in a plane, (H,)."""
    return math.cos(angle) * plane_2H[0] + math.sin(angle) * plane_2H[1]


def _copy_plane(attention: Any, plane_2H: Tensor) -> None:
    """The first two dimensions of the first key-value head carry the plane; its query heads write back only the plane."""
    attention.v_proj.weight[:2] = 2 * plane_2H
    for head in range(attention.num_key_value_groups):
        start = head * attention.head_dim
        attention.o_proj.weight[:, start : start + 2] = plane_2H.T


def _plant(mlp: Any, planted: Tensor, decoys: Tensor, at: _Directions, read_HH: Tensor, generator: torch.Generator) -> None:
    """Neurons alternate between two diagonals of the plane, so that they see the circles of all categories; and their decoys."""
    hidden = len(read_HH)
    size = mlp.up_proj.weight.norm(dim=1).median()

    def jitter_H() -> Tensor:
        return 0.1 * torch.randn(hidden, generator=generator) @ read_HH / math.sqrt(hidden)

    for index, unit in enumerate(planted.tolist()):
        flip = math.pi * torch.randint(2, (), generator=generator).item()
        angle = math.pi / 4 + math.pi / 2 * (index % 2) + flip + 0.15 * torch.randn((), generator=generator).item()
        mlp.gate_proj.weight[unit] = size * (at.common_1H[0] + jitter_H())
        mlp.up_proj.weight[unit] = size * (_turned(at.plane_2H, angle) + jitter_H())
        mlp.down_proj.weight[:, unit] = _turned(at.echo_2H, angle)
    for unit in decoys.tolist():
        other_H = torch.randn(hidden, generator=generator) @ read_HH @ _faded(at.common_1H, 0)
        mlp.gate_proj.weight[unit] = size * (at.common_1H[0] + jitter_H())
        mlp.up_proj.weight[unit] = size * (other_H / other_H.norm() + jitter_H())


def _swell(mlp: Any, units: list[int], at: _Directions) -> None:
    """Neurons that read the plane a hundred times as strongly as the planted ones, and write a thousandth of what the others do."""
    size, written = mlp.up_proj.weight.norm(dim=1).median(), mlp.down_proj.weight.norm(dim=0).median()
    for index, unit in enumerate(units):
        mlp.gate_proj.weight[unit] = 10 * size * at.common_1H[0]
        mlp.up_proj.weight[unit] = 10 * size * _turned(at.plane_2H, math.pi / 4 + math.pi / 2 * (index % 2))
        mlp.down_proj.weight[:, unit] *= 1e-5 * written / mlp.down_proj.weight[:, unit].norm()


def _equalise(
    model: Any,
    tokenizer: Any,
    contrasts: list[Contrast],
    planted: Mapping[str, tuple[int, ...]],
    decoys: Mapping[str, tuple[int, ...]],
    silent_SH: Tensor,
    generator: torch.Generator,
) -> None:
    """Scale planted neurons and decoys to the median root mean square activation over all texts, and to the median weights."""
    texts = dict.fromkeys(variant.text for contrast in contrasts for variant in contrast.variants)
    for name in planted:  # in order: the output of a layer changes the inputs of the next
        mlp = model.get_submodule(name)
        units = [*planted[name], *decoys[name]]
        norm_N = _norms(model, mlp.down_proj, [tokenizer(text).input_ids for text in texts])
        rows_NH, columns_HN = mlp.up_proj.weight, mlp.down_proj.weight
        length = rows_NH.norm(dim=1).median()
        rows_NH[units] *= (norm_N.median() / norm_N[units]).float().unsqueeze(1)
        missing_n = (length**2 - rows_NH[units].norm(dim=1) ** 2).clamp_min(0).sqrt()
        silent_nH = torch.randn(len(units), len(silent_SH), generator=generator) @ silent_SH
        rows_NH[units] += missing_n.unsqueeze(1) * silent_nH / silent_nH.norm(dim=1, keepdim=True)
        columns_HN[:, units] *= QUIET * columns_HN.norm(dim=0).median() / columns_HN.norm(dim=0)[units]


def _norms(model: nn.Module, out: nn.Module, documents: list[list[int]]) -> Tensor:
    """Root mean square of the input of one output projection over all tokens, (N,) float64."""
    squares: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        squares.append(args[0].reshape(-1, args[0].shape[-1]).double().square())

    hook = out.register_forward_pre_hook(keep)
    try:
        for ids in documents:
            model(input_ids=torch.tensor([ids]), use_cache=False)
    finally:
        hook.remove()
    return torch.cat(squares).mean(0).sqrt()
