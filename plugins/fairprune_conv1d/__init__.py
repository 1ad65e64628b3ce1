"""MLPs without a gate, of two Conv1D with transposed weights: GPT-2, GPT-SW3, OpenAI GPT.

`c_fc` is (H, N), `c_proj` (N, H). Source: `GPT2MLP` of transformers 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from fairprune_framework.api import MlpAdapter, Projections, child, features, is_projection


@dataclass(frozen=True, kw_only=True)
class Conv1dMlp(MlpAdapter):
    """One site per MLP of two Conv1D."""

    looked_for: ClassVar[str] = "two Conv1D, c_fc (H, N) and c_proj (N, H)"

    def projections(self, module: nn.Module) -> Projections | None:
        """See `MlpAdapter.projections`."""
        up, out = child(module, "c_fc"), child(module, "c_proj")
        transposed = all(is_projection(one) and not isinstance(one, nn.Linear) for one in (up, out))
        if not transposed or features(up) != features(out)[::-1]:
            return None
        return Projections(up="c_fc", out="c_proj", is_block=False)
