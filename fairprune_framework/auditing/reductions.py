"""How the rows of contrasts become one: added up as double-doubles, or the highest or lowest of each. The key of a sum tells which.

The highest and lowest are kept in the first word of a pair whose second is 0, so that checkpoints, ranks and files hold all alike.
Where nothing was seen stands the neutral element: 0, -inf or inf.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fairprune_framework.api.interfaces import Reduction
from fairprune_framework.functional.compensated import add_sums, add_value

_OF_MARK: dict[str, Reduction] = {"max": "max", "min": "min"}
_NEUTRAL: dict[Reduction, float] = {"sum": 0.0, "max": -math.inf, "min": math.inf}


def marked(output: str, reduce: Reduction) -> str:
    """The name of an output with what tells its reduction: `edges.high:max`; sums bear no mark."""
    return output if reduce == "sum" else f"{output}:{reduce}"


def unmarked(key: str) -> str:
    """A key, or the name of an output, without its mark."""
    return key if reduction_of(key) == "sum" else key.rpartition(":")[0]


def reduction_of(key: str) -> Reduction:
    """What a key says of its sum."""
    return _OF_MARK.get(key.rpartition(":")[2], "sum")


def neutral(key: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """The pair of words of nothing, (2, *shape) float64."""
    words = torch.zeros((2, *shape), dtype=torch.float64, device=device)
    words[0] = _NEUTRAL[reduction_of(key)]
    return words


def by_group(key: str, member_GC: Tensor, summands_CRK: Tensor, mask_CVT: Tensor) -> Tensor:
    """(G, R, K): rows reduced by group.

    Args:
        mask_CVT: (C, V, T) bool, tokens that reached the site: contrasts without one have no part in the highest or lowest.
    """
    reduce = reduction_of(key)
    if reduce == "sum":
        return (member_GC @ summands_CRK.flatten(1)).view(-1, *summands_CRK.shape[1:])
    shown_CRK = summands_CRK.masked_fill(~mask_CVT.flatten(1).any(1)[:, None, None], _NEUTRAL[reduce])
    found_GRK = summands_CRK.new_full((len(member_GC), *summands_CRK.shape[1:]), _NEUTRAL[reduce])
    group_CRK = member_GC.argmax(0)[:, None, None].expand_as(shown_CRK)
    return found_GRK.scatter_reduce_(0, group_CRK, shown_CRK, "amax" if reduce == "max" else "amin")


def joined(key: str, one: Tensor, other: Tensor) -> Tensor:
    """Two values of one key, before they enter its words."""
    reduce = reduction_of(key)
    return one + other if reduce == "sum" else _extreme(key, torch.stack([one, other]), 0)


def with_value(key: str, words_2: Tensor, value: Tensor) -> Tensor:
    """The words of a key after a further value."""
    if reduction_of(key) == "sum":
        return add_value(words_2, value)
    return torch.stack([joined(key, words_2[0], value), words_2[1]])


def merged(key: str, stacked_n2: Tensor) -> Tensor:
    """n pairs of words of one key, (n, 2, ...) -> (2, ...)."""
    return add_sums(stacked_n2) if reduction_of(key) == "sum" else _extreme(key, stacked_n2, 0)


def over(key: str, value: Tensor, dim: int) -> Tensor:
    """Finished values of one key reduced over an axis."""
    return value.sum(dim) if reduction_of(key) == "sum" else _extreme(key, value, dim)


def weighted_over(key: str, value_GBRK: Tensor, weights_GB: Tensor) -> Tensor:
    """(G, R, K): finished values of B clusters, each as often as its weight says."""
    if reduction_of(key) == "sum":
        return torch.einsum("gb,gbrk->grk", weights_GB, value_GBRK)
    left_out_GB11 = (weights_GB == 0)[:, :, None, None]
    return _extreme(key, value_GBRK.masked_fill(left_out_GB11, _NEUTRAL[reduction_of(key)]), 1)


def without_neutral(key: str, value: Tensor) -> Tensor:
    """Finished values with 0 where nothing was seen."""
    reduce = reduction_of(key)
    return value if reduce == "sum" else value.masked_fill(value == _NEUTRAL[reduce], 0)


def _extreme(key: str, value: Tensor, dim: int) -> Tensor:
    return value.amax(dim) if reduction_of(key) == "max" else value.amin(dim)
