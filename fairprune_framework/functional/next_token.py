"""What the distribution of the next token says: the legitimate margin, expected valence, the odds of yes against no.

Shapes: V variants of a contrast, W words of the vocabulary. All inputs are log-probabilities of the next token, nats.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def log_probability_of(log_probs_VW: Tensor, tokens: Sequence[int]) -> Tensor:
    """log p of any of some tokens: (V,), nats."""
    index = torch.tensor(list(tokens), dtype=torch.long, device=log_probs_VW.device)
    return log_probs_VW.index_select(1, index).double().logsumexp(1)


def legitimate_margin(log_probs_VW: Tensor, right: Sequence[Sequence[int]]) -> float:
    """How much likelier the right words of each variant are after it than after the other variants.

    m = mean over v of [log p(right_v | v) - mean over u != v of log p(right_v | u)], nats; 0 for a model that does not tell the
    variants apart, also where a word is likely after all of them. Source: this project, docs/method/legitimate-margin.md; the
    idea of difference awareness is Wang et al., ACL 2025 (arXiv 2502.01926).

    Args:
        right: for each variant its right next tokens, at least one; none is right for two variants.

    Raises:
        ValueError: not one list of tokens for each of at least two variants.
    """
    if len(right) != len(log_probs_VW) or len(right) < 2 or not all(right):
        raise ValueError(f"expected right tokens for each of {len(log_probs_VW)} variants. Got {[len(one) for one in right]}")
    margins = []
    for variant, tokens in enumerate(right):
        of_right_V = log_probability_of(log_probs_VW, tokens)
        others = (of_right_V.sum() - of_right_V[variant]) / (len(right) - 1)
        margins.append(of_right_V[variant] - others)
    return float(torch.stack(margins).mean())


def expected_valence(log_probs_VW: Tensor, valence_W: Tensor) -> Tensor:
    """Expected valence of the next token: (V,) float64, unit: that of `valence_W`.

    Args:
        valence_W: valence of each token; 0 for those that are no word of the lexicon.
    """
    known = valence_W.nonzero().squeeze(1)
    return log_probs_VW.index_select(1, known).double().exp() @ valence_W.index_select(0, known).double()


def log_odds(log_probs_VW: Tensor, yes: Sequence[int], no: Sequence[int]) -> Tensor:
    """log p(yes) - log p(no) of the next token: (V,) float64, nats. Source: Tamkin et al. 2023 (arXiv 2312.03689), eq. 1."""
    return log_probability_of(log_probs_VW, yes) - log_probability_of(log_probs_VW, no)
