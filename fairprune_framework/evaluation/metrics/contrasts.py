"""What an edit of the attribute does to a model, contrast by contrast: next-token divergence, activation difference, and what else the
same forward answers: margins and valences, log-probabilities of the texts, movements of neurons.

`next-token-divergence`: generalised Jensen-Shannon divergence H(mean p) - mean H(p) of the next-token distributions at the last
token of the V variants, in nats. `activation-difference`: for each tap the mean over tokens and features of |a1 - a2|, then the mean
over the taps of a layer and over the layers; for V > 2 the mean over all pairs; over all tokens where the variants have equally many, as
published, otherwise over the aligned slots. Source: the Fairness Pruning article; optipfair 0.4.2 `calculate_bias_metrics`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.api.interfaces import Observation, Pass
from fairprune_framework.api.types import Site, Tap
from fairprune_framework.auditing.micro_batch import MicroBatch
from fairprune_framework.auditing.observation import Geometry, observe
from fairprune_framework.auditing.prefix_sharing import inputs_of
from fairprune_framework.errors import FairpruneError
from fairprune_framework.evaluation.metrics.movement import MovementReader
from fairprune_framework.evaluation.metrics.next_token import NextTokenReader
from fairprune_framework.evaluation.metrics.outputs import TAPS as OUTPUT_TAPS
from fairprune_framework.evaluation.metrics.outputs import OutputReader
from fairprune_framework.evaluation.metrics.sentences import text_log_probs
from fairprune_framework.functional.divergence import generalised_js
from fairprune_framework.functional.shared_tokens import scored_places
from fairprune_framework.models.architecture import Architecture
from fairprune_framework.models.head import answers_of, vocabulary_of

TAPS: frozenset[Tap] = frozenset({"attention", "mlp", "gate", "up", "down", "norm"})
"""The six of the article; a model offers those that its adapter knows."""


@dataclass(frozen=True, kw_only=True)
class ContrastMeasure:
    """One contrast in one model."""

    id: str
    divergence: float
    """Nats."""
    activation_difference: float
    by_layer: tuple[float, ...]
    """Activation difference of each layer."""
    equal_length: bool
    margin: float | None = None
    """Legitimate margin, nats; None: the contrast is not legitimate."""
    valence: tuple[float, ...] = ()
    """Expected valence of the next token after each variant; empty: not measured."""
    log_probabilities: tuple[float, ...] = ()
    """log p of each variant over all tokens but the first, nats; empty: not measured."""
    shared_log_probabilities: tuple[float, ...] = ()
    """log p of each variant over the tokens that all share behind the first difference, nats; empty: not measured."""
    shared_tokens: int = 0
    """How many these are in each variant."""


def pair_difference(observation: Observation, tap: Tap) -> Tensor:
    """Mean over pairs, tokens (or slots) and features of |a1 - a2|: (C,) float64."""
    equal_C = observation.equal_length
    result = torch.zeros(len(equal_C), dtype=torch.float64, device=equal_C.device)
    for chosen, values, mask in (
        (equal_C, observation.acts, observation.mask),
        (~equal_C, observation.aligned, observation.aligned_mask),
    ):
        if chosen.all():
            return _mean_over_pairs(values[tap], mask)
        if chosen.any():
            result[chosen] = _mean_over_pairs(values[tap][chosen], mask[chosen])
    return result


MANY = 8
"""With more variants than that the mean over pairs comes from sorted values, in time V log V instead of V^2."""


def _mean_over_pairs(acts_CVSK: Tensor, mask_CVS: Tensor) -> Tensor:
    """`(C, V, S, K)`, `(C, V, S)` bool, where the variants that a contrast has share their slots -> `(C,)` float64."""
    if acts_CVSK.shape[1] <= MANY:
        return _over_all_pairs(acts_CVSK, mask_CVS)
    each = zip(acts_CVSK, mask_CVS, strict=True)
    return torch.stack([_of_many(acts_VSK[mask_VS.any(1)][:, mask_VS.any(0)]) for acts_VSK, mask_VS in each])


def _of_many(values_VSK: Tensor) -> Tensor:
    """Of one contrast. Sorted, the sum over pairs of |a1 - a2| is that of the gaps, gap k counted k (V - k) times."""
    variants = len(values_VSK)
    if variants <= MANY:
        return _over_all_pairs(values_VSK.unsqueeze(0), values_VSK.new_ones(1, *values_VSK.shape[:2], dtype=torch.bool))[0]
    if values_VSK.dtype in (torch.bfloat16, torch.float16):
        values_VSK = values_VSK.float()
    gaps_GSK = values_VSK.sort(0).values.diff(dim=0)
    below_G = torch.arange(1, variants, device=gaps_GSK.device)
    weight_G = below_G * (variants - below_G)
    per_token_S = torch.einsum("g,gsk->sk", weight_G.to(gaps_GSK.dtype), gaps_GSK).mean(-1).double()
    return per_token_S.mean() * 2 / (variants * (variants - 1))


def _over_all_pairs(acts_CVSK: Tensor, mask_CVS: Tensor) -> Tensor:
    total = torch.zeros(acts_CVSK.shape[0], dtype=torch.float64, device=acts_CVSK.device)
    pairs = torch.zeros_like(total)
    for first, second in combinations(range(acts_CVSK.shape[1]), 2):
        both_CS = mask_CVS[:, first] & mask_CVS[:, second]
        off_CSK = (acts_CVSK[:, first] - acts_CVSK[:, second]).abs_()
        if off_CSK.dtype in (torch.bfloat16, torch.float16):
            off_CSK = off_CSK.float()
        per_token_CS = off_CSK.mean(-1).double()  # 20 times faster than a mean in float64, 1e-6 relative away from it
        tokens_C = both_CS.sum(1)
        total += (per_token_CS * both_CS).sum(1) / tokens_C.clamp_min(1)
        pairs += tokens_C > 0
    return total / pairs.clamp_min(1)


@torch.inference_mode()
def measure_contrasts(
    model: nn.Module,
    architecture: Architecture,
    batches: Sequence[MicroBatch],
    progress: Callable[[int], None] = lambda contrasts: None,
    taps: frozenset[Tap] = TAPS,
    reader: NextTokenReader | None = None,
    *,
    sentences: bool = False,
    movements: MovementReader | None = None,
    outputs: OutputReader | None = None,
) -> list[ContrastMeasure]:
    """Measure every contrast with one forward of its texts, of the model as it is (also masked). In the order of the batches.

    Without taps the divergence alone is measured, and the activation differences are 0.

    Args:
        batches: with a row a text, or with packed rows, where the model allows them.
        reader: margins and valences are measured as well.
        sentences: log-probabilities of the texts are measured as well.
        movements: reads its neurons on the way.
        outputs: keeps the outputs of its contrasts on the way.
    """
    sites = list(architecture.sites.values())
    layers = sorted({site.layer for site in sites})
    device = next(model.parameters()).device
    wanted: frozenset[Tap] = taps if movements is None else taps | {"neuron"}
    wanted = wanted if outputs is None else wanted | OUTPUT_TAPS
    width = vocabulary_of(model)
    state: dict[str, Any] = {}

    def take(site: Site, tap: Tap, values: Tensor, rows: Tensor | None) -> None:
        if movements is not None and tap == "neuron":
            movements.read(site, values, rows, state["geometry"])
        if outputs is not None and rows is None:
            outputs.read(site, tap, values, state["geometry"])
        if site.kind == "heads" and tap == "down":  # what the tap of the attention shows
            return
        if tap not in taps or rows is not None:  # experts: variants are routed differently, no token has its like
            return
        observation = observe(site, {tap: values}, None, state["geometry"], Pass(), {})
        total, count = state["layers"][site.layer]
        state["layers"][site.layer] = (total + pair_difference(observation, tap), count + 1)

    measures: list[ContrastMeasure] = []
    training = model.training
    model.eval()
    try:
        with architecture.adapter.tap(model, sites, wanted, take):
            for cpu_batch in batches:
                batch = cpu_batch.to(device)
                state["geometry"] = Geometry(batch)
                state["layers"] = {layer: (torch.zeros((), dtype=torch.float64, device=device), 0) for layer in layers}
                answers = answers_of(model, **inputs_of(model, batch))
                logits = answers.logits(batch.ends)
                divergence = generalised_js(logits[batch.text], batch.present)
                measured = _collect(batch, divergence, [state["layers"][layer] for layer in layers])
                if reader is not None:
                    measured = _read(reader, batch, logits, measured)
                if sentences:
                    log_probs = text_log_probs(answers, batch, width)
                    measured = _with_sentences(batch, log_probs, measured)
                measures += measured
                progress(len(batch.ids))
    finally:
        model.train(training)
    return measures


def _read(
    reader: NextTokenReader, batch: MicroBatch, logits_BW: Tensor, measured: list[ContrastMeasure]
) -> list[ContrastMeasure]:
    """The measures with what the reader sees in the answers to each contrast."""
    log_probs_BW = logits_BW.float().log_softmax(-1)
    rows = []
    for index, measure in enumerate(measured):
        texts_V = batch.text[index][batch.present[index]]
        seen = reader.read(measure.id, log_probs_BW[texts_V])
        rows.append(replace(measure, margin=seen.margin, valence=seen.valence))
    return rows


def _with_sentences(batch: MicroBatch, log_probs_B: Sequence[Tensor], measured: list[ContrastMeasure]) -> list[ContrastMeasure]:
    """The measures with log p of each variant, of all its tokens and of those that all variants share.

    Args:
        log_probs_B: for each text those of its tokens but the first.

    Raises:
        FairpruneError: one is NaN or infinite.
    """
    sums = [float(values.sum()) for values in log_probs_B]
    if not all(map(math.isfinite, sums)):
        raise FairpruneError("NaN or Inf in the log-probability of a text")
    tokens = batch.input_ids.flatten()
    ids = [tokens[row[row >= 0]].tolist() for row in batch.places]
    found = []
    for measure, row, present in zip(measured, batch.text, batch.present, strict=True):
        texts_V = row[present].tolist()
        places = scored_places([ids[text] for text in texts_V])
        shared = [float(log_probs_B[text][[at - 1 for at in own]].sum()) for text, own in zip(texts_V, places, strict=True)]
        found.append(
            replace(
                measure,
                log_probabilities=tuple(sums[text] for text in texts_V),
                shared_log_probabilities=tuple(shared),
                shared_tokens=len(places[0]),
            )
        )
    return found


def _collect(batch: MicroBatch, divergence: Tensor, layers: Sequence[tuple[Tensor, int]]) -> list[ContrastMeasure]:
    taps = sum(count for _, count in layers)
    by_layer = torch.stack([(total / max(count, 1)).expand(len(batch.ids)) for total, count in layers], 1)
    overall = torch.stack([total.expand(len(batch.ids)) for total, _ in layers], 1).sum(1) / max(taps, 1)
    equal = Geometry(batch).equal_length_C
    broken = ~(torch.isfinite(divergence) & torch.isfinite(overall)).cpu()
    if broken.any():
        raise FairpruneError(f"NaN or Inf in the answers or activations of contrast {batch.ids[int(broken.nonzero()[0])]!r}")
    return [
        ContrastMeasure(
            id=batch.ids[i],
            divergence=float(divergence[i]),
            activation_difference=float(overall[i]),
            by_layer=tuple(by_layer[i].tolist()),
            equal_length=bool(equal[i]),
        )
        for i in range(len(batch.ids))
    ]
