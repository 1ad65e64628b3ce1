"""MLPs without a gate, two Linears: OPT, GPT-NeoX, Falcon, Phi, BLOOM, Nemotron, Starcoder2, BERT and the decoders of BART and Whisper.

The two stand in one module, directly in the decoder layer, or in two modules of it (BERT). Found by name and shape: H -> N and N -> H,
and no second Linear of the first shape beside it, which would be a gate. Source: the MLP classes of transformers 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from fairprune_framework.api import MlpAdapter, Projections, child, features

NAMES = (
    ("up_proj", "down_proj"),
    ("fc1", "fc2"),
    ("c_fc", "c_proj"),
    ("fc_in", "fc_out"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    ("intermediate.dense", "output.dense"),
    ("intermediate", "output"),
    ("dense.dense", "output.dense"),
    ("layer_1", "layer_2"),
    ("linear1", "linear2"),
    ("lin1", "lin2"),
    ("key", "value"),
    ("0", "2"),
)
"""The two projections, as paths below a module."""


@dataclass(frozen=True, kw_only=True)
class TwoLinear(MlpAdapter):
    """One site per MLP of two Linears."""

    looked_for: ClassVar[str] = "two Linears, H -> N and N -> H"

    def projections(self, module: nn.Module) -> Projections | None:
        """See `MlpAdapter.projections`."""
        for up, out in NAMES:
            first, last = child(module, up), child(module, out)
            if not (isinstance(first, nn.Linear) and isinstance(last, nn.Linear)) or features(first) != features(last)[::-1]:
                continue
            beside = [
                other for other in module.children() if isinstance(other, nn.Linear) and features(other) == features(first)
            ]
            if len([other for other in beside if other is not first and other is not last]) == 0:
                return Projections(up=up, out=out, is_block=False)
        return None
