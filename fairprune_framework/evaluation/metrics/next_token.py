"""What the answers after each variant say beside their divergence: legitimate margin and expected valence, from the same forward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.errors import UserError
from fairprune_framework.functional.next_token import expected_valence, legitimate_margin

LEXICON = ("vaderSentiment", "vader_lexicon.txt")
"""Package and file of the lexicon: VADER (Hutto and Gilbert 2014), MIT licence; valences from -4 to +4."""


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """What one contrast says beyond its divergence."""

    margin: float | None = None
    """Legitimate margin, nats; None: the contrast is not legitimate."""
    valence: tuple[float, ...] = ()
    """Expected valence of the next token after each variant; empty where no lexicon is used."""


class NextTokenReader:
    """Reads the next-token distributions of contrasts.

    Args:
        contrasts: those that will be read; the legitimate ones carry the tokens of their right words.
        valence: (W,) valence of each token; None: no valences.
    """

    def __init__(self, contrasts: Sequence[AlignedContrast], valence: Tensor | None = None) -> None:
        self._right = {contrast.id: contrast.right for contrast in contrasts if contrast.right}
        self._valence = valence

    def read(self, id: str, log_probs_VW: Tensor) -> NextToken:
        """Read one contrast.

        Args:
            log_probs_VW: log-probabilities after each of its variants.
        """
        right, valence = self._right.get(id), self._valence
        return NextToken(
            margin=None if right is None else legitimate_margin(log_probs_VW, right),
            valence=() if valence is None else tuple(expected_valence(log_probs_VW, valence.to(log_probs_VW.device)).tolist()),
        )


@cache
def lexicon() -> Mapping[str, float]:
    """word -> valence, read without importing the package that carries it.

    Raises:
        UserError: the package is not installed.
    """
    package, file = LEXICON
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the valence gap needs the lexicon of {package}: pip install {package}")
    path = Path(next(iter(spec.submodule_search_locations))) / file
    lines = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    return {fields[0]: float(fields[1]) for fields in lines if len(fields) > 1}


def token_valences(tokenizer: Any, width: int) -> Tensor:
    """Valence of each token that is a whole word of the lexicon, beginning with a blank: (W,) float64; 0 for all others.

    Args:
        width: of the logits; ids beyond the tokenizer's vocabulary have valence 0.
    """
    known, valences = lexicon(), torch.zeros(width, dtype=torch.float64)
    for token in range(min(width, len(tokenizer))):
        text = tokenizer.decode([token])
        if text.startswith(" ") and (value := known.get(text[1:].lower())) is not None:
            valences[token] = value
    return valences
