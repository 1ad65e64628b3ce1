"""What an objective of a gradient pass is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What an objective of a gradient pass sees; one micro-batch holds contrasts of one category."""

    logits: Tensor
    """(C, V, vocab) at the last token, or (C, V, T, vocab) with `logits="all"`: made when it is first asked for, and as large as it says.
    `over_positions` and `token_log_p` make few at a time."""
    tokens: Tensor
    """(C, V, T) int64."""
    mask: Tensor
    """(C, V, T) bool."""
    attribute: Tensor
    """(C, V) int64, as `Observation.attribute`."""
    lean: Tensor
    """(C, V) int64: 1 for a stereotyping variant, -1 for its counterpart (CrowS-Pairs "more" and "less", WinoBias "pro" and "anti"), 0
    where a contrast names neither."""
    rare: Tensor
    """(C, V, T) bool: tokens of calibration text that at most a quarter of its documents hold; False in contrasts."""
    right: Tensor | None = None
    """(C, V, W) int64: right next tokens of each variant, -1 behind the last; None but for the stream `legitimate`."""

    def over_positions(self, function: Callable[[Tensor, Tensor], Tensor], where: Tensor) -> Tensor:
        """A number from the logits of each position, (C, V, T), in the dtype of what `function` returns, with its gradient; 0 elsewhere.
        Needs `logits="all"`.

        Args:
            function: logits (M, vocab) of some positions, and their flat places in (C, V, T), (M,) int64 -> (M,), each of its own row
                alone. It is differentiated when it is called.
            where: (C, V, T) bool, the positions that are needed.
        """
        import torch

        places = where.flatten().nonzero().squeeze(1)
        values = function(self.logits[where], places)
        found = torch.zeros(where.numel(), dtype=values.dtype, device=values.device)
        return found.index_put((places,), values).view(where.shape)

    def token_log_p(self, where: Tensor | None = None) -> Tensor:
        """log p(token | tokens before it) of all tokens but the first, (C, V, T - 1), at least float32, nats; 0 where there is no token.
        Needs `logits="all"`.

        Args:
            where: (C, V, T - 1) bool, the tokens that are needed, 0 elsewhere; None: all.
        """
        import torch

        from fairprune_framework.functional.log_probs import log_probs

        wanted = torch.zeros_like(self.mask)
        wanted[:, :, :-1] = self.mask[:, :, 1:] if where is None else where
        following = self.tokens.roll(-1, 2).flatten()
        return self.over_positions(lambda logits, places: log_probs(logits, following[places]), wanted)[:, :, :-1]

    def unmodified(self) -> Tensor:
        """(C, V, T) bool: the tokens that all variants of a contrast share, from the first place on at which they differ; what CrowS-Pairs
        scores (Nangia et al. 2020), each token given all before it. Never the first token of a text."""
        import torch

        from fairprune_framework.functional.shared_tokens import scored_places

        found = torch.zeros(self.mask.shape, dtype=torch.bool)
        tokens, mask = self.tokens.cpu(), self.mask.cpu()
        for contrast in range(len(mask)):
            present = [variant for variant in range(mask.shape[1]) if mask[contrast, variant].any()]
            where = [mask[contrast, variant].nonzero().squeeze(1) for variant in present]
            texts = [tokens[contrast, variant, places].tolist() for variant, places in zip(present, where, strict=True)]
            if len(texts) < 2:
                continue
            for variant, places, scored in zip(present, where, scored_places(texts), strict=True):
                found[contrast, variant, places[list(scored)]] = True
        return found.to(self.mask.device)
