"""The activation difference against optipfair 0.4.2 on the same pairs, in float32.

    pip install --no-deps optipfair==0.4.2      # a benchmark extra, never a dependency
    python benchmarks/peer_equality.py

The article's pair and the first 20 of the 75 published English pairs, all of equal token counts. Wanted: within 1e-5 relative.
"""

from __future__ import annotations

import torch
from common import DATA, machine
from optipfair.bias.activations import get_activation_pairs
from optipfair.bias.metrics import calculate_bias_metrics

from fairprune_framework.auditing.batches import compose
from fairprune_framework.contrasts.alignment import align_all, vocabularies
from fairprune_framework.contrasts.readers import read
from fairprune_framework.contrasts.schema import Contrast, Variant
from fairprune_framework.evaluation.metrics.contrasts import measure_contrasts
from fairprune_framework.evaluation.metrics.generation import ARTICLE_PROMPTS
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.models.loading import load_model


def main() -> None:
    torch.set_num_threads(2)
    model, tokenizer = load_model("smollm2-135m", dtype="float32")
    black, white = (Variant(attribute=word, text=text) for word, text in zip(("Black", "white"), ARTICLE_PROMPTS, strict=True))
    pairs = [Contrast(id="article", category="race", template_id="article", variants=(black, white))]
    pairs += read(DATA / "fairness_pruning_pairs" / "prompt_pairs_en.json").contrasts[:20]
    aligned, _ = align_all(pairs, Encoder(tokenizer))
    assert all(contrast.equal_length for contrast in aligned)
    values = {category: len(found) for category, found in vocabularies(pairs).items()}
    ours = {
        m.id: m.activation_difference for m in measure_contrasts(model, recognise(model), list(compose(aligned, values, 512)))
    }
    worst = 0.0
    for pair in pairs:
        first, second = get_activation_pairs(model, tokenizer, pair.variants[0].text, pair.variants[1].text)
        peer = calculate_bias_metrics(first, second)["overall_metrics"]["mean_difference"]
        off = abs(ours[pair.id] - peer) / peer
        worst = max(worst, off)
        print(f"{pair.id:48} ours {ours[pair.id]:.8f}  peer {peer:.8f}  off {off:.1e}")
    print(machine())
    print(f"{len(pairs)} pairs, largest relative difference {worst:.1e} (wanted: at most 1e-5)")


if __name__ == "__main__":
    main()
