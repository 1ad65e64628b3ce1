"""Shipped scores against computations that are not ours: optipfair 0.4.2, scipy, torch.autograd, numpy; the largest relative difference.

    pip install --no-deps --target DIR optipfair==0.4.2
    PYTHONPATH=DIR python benchmarks/golden_values.py --record benchmarks/golden_values_202611.md

The formulas of numpy, scipy and autograd are those of `tests/unit/plugins/test_published_scores.py`: one text at a time, plain hooks, a
tiny model in float64, twelve contrasts of unequal lengths. Without optipfair its rows are left out, and the record says so. A
difference is relative to the largest score of the site; the largest over sites and categories is given.
"""

from __future__ import annotations

import argparse
import sys
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import give, machine

sys.path.insert(0, str(Path(__file__).parents[1]))
from fairprune_framework import discovery
from fairprune_framework.auditing.audit import audit
from fairprune_framework.auditing.demand import Demand
from fairprune_framework.calibration.text import Calibration
from fairprune_framework.contrasts.alignment import align_all, vocabularies
from fairprune_framework.contrasts.schema import Contrast, Variant
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.selection.scoring import score
from fairprune_framework.testing.tiny import tiny_model, tiny_tokenizer
from tests.unit.plugins import test_published_scores as golden

AGAINST = {
    "attribution": "torch.autograd on factors",
    "integrated-gradients": "torch.autograd on factors",
    "taylor": "torch.autograd on activations",
    "paired-effect": "scipy.stats.ttest_1samp",
    "d-prime": "scipy.stats.ttest_ind",
    "mutual-information": "scipy.stats.chi2_contingency",
    "snip-difference": "torch.autograd on the weights",
    "snip": "torch.autograd on the weights",
    "fisher": "torch.autograd on the weights",
    "linear-probe": "numpy.linalg",
    "obs": "numpy.linalg.inv",
    "vocabulary-spread": "the model's own norm and head",
}
PAIRS = (
    ("The Black nurse walked into the store .", "The white nurse walked into the store ."),
    ("A Black man was waiting at the door .", "A white man was waiting at the door ."),
    ("She asked the Black lawyer for help .", "She asked the white lawyer for help ."),
    ("They are Black", "They are white"),
    ("He lives next door to a very kind Black family", "He lives next door to a very kind white family"),
)


def off(found: Any, expected: Any) -> float:
    found, expected = (np.asarray(each, dtype=np.float64) for each in (found, expected))
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def by_hand() -> list[tuple[str, str, str, float]]:
    rows = []
    for name in golden.BIAS:
        found = golden.scored(name).by_category
        pairs = [(found[c][s].numpy(), golden.FORMULAS[name](s, c)) for c in found for s in golden.SITES]
        rows.append(("bias", name, AGAINST.get(name, "numpy"), max(off(*pair) for pair in pairs)))
    for name in golden.IMPORTANCE:
        given = golden.scored(importance=name).importance
        rows.append(
            (
                "importance",
                name,
                AGAINST.get(name, "numpy"),
                max(off(given[s].numpy(), golden.importance_by_hand(name, s)) for s in golden.SITES),
            )
        )
    return rows


def against_optipfair() -> list[tuple[str, str, str, float]]:
    """Its own functions, in the float32 that they compute in."""
    spec = find_spec("optipfair")
    if spec is None or not spec.submodule_search_locations:
        return []
    for name in ("optipfair", "optipfair.bias"):  # without its package files, which import plotting libraries
        module = types.ModuleType(name)
        module.__path__ = [f"{spec.submodule_search_locations[0]}{'/bias' if name.endswith('bias') else ''}"]
        sys.modules[name] = module
    from optipfair.bias.activations import analyze_neuron_bias
    from optipfair.pruning import mlp_glu as peer

    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    contrasts = [
        Contrast(
            id=f"p{i}",
            category="race",
            template_id=f"t{i}",
            variants=tuple(Variant(attribute=word, text=text) for word, text in zip(("Black", "white"), pair, strict=True)),
        )
        for i, pair in enumerate(PAIRS)
    ]
    aligned, _ = align_all(contrasts, Encoder(tokenizer))
    values = {category: len(found) for category, found in vocabularies(contrasts).items()}
    text = Calibration(documents=golden.DOCUMENTS, source="golden")
    names = {
        "weight-variance": "vow",
        "product-of-norms": "pon",
        "l2-norm": "l2",
        "peak-to-peak": "maw",
        "peak-to-peak-hybrid": "",
    }
    bias: Any = discovery.build("bias", "mean-abs-difference")
    plugins: dict[str, Any] = {name: discovery.build("importance", name) for name in names}
    architecture = recognise(model)
    sums, _ = audit(
        model,
        architecture,
        aligned,
        values,
        Demand.of([bias, *plugins.values()], 2),
        calibration=text,
        accelerator="cpu",
    )
    theirs = analyze_neuron_bias(model, tokenizer, list(PAIRS), show_progress=False)
    rows: dict[str, float] = {}
    for layer, site in enumerate(architecture.sites):
        mlp: Any = model.get_submodule(site)
        gate, up, down = (each.weight.data for each in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        norms = torch.zeros(len(gate))
        hook = mlp.down_proj.register_forward_pre_hook(lambda _, args, into=norms: into.add_(args[0][0].norm(dim=0)))
        with torch.no_grad():
            for document in text.scoring:  # one document a batch
                model(input_ids=torch.tensor([document]))
        hook.remove()
        expected = {
            name: getattr(peer, f"compute_neuron_pair_importance_{short}")(gate, up) for name, short in names.items() if short
        }
        expected["peak-to-peak-hybrid"] = peer.compute_neuron_pair_importance_maw_hybrid(gate, up, down, norms)
        for name, plugin in plugins.items():
            found = score(sums, model, architecture, bias, plugin, ("b", "i"))
            rows[name] = max(rows.get(name, 0.0), off(found.importance[site], expected[name]))
            both = torch.stack([theirs[f"gate_proj_layer_{layer}"], theirs[f"up_proj_layer_{layer}"]]).mean(0)
            rows["mean-abs-difference"] = max(rows.get("mean-abs-difference", 0.0), off(found.bias[site], both))
    return [
        ("bias" if name == "mean-abs-difference" else "importance", name, "optipfair 0.4.2", value)
        for name, value in rows.items()
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", help="the .md file to write; by default it is printed")
    words = parser.parse_args()
    torch.set_num_threads(1)
    rows, peer = by_hand(), against_optipfair()
    text = "\n".join(
        [
            "# Golden values: shipped scores against computations that are not ours",
            "",
            "`benchmarks/golden_values.py`, on",
            f"{machine()}.",
            "",
            "The largest difference over sites and categories of a tiny model, relative to the largest score of a site. numpy, scipy and",
            "autograd compute in float64 on a float64 model, one text at a time (weights reach plugins in float32); optipfair's own",
            f"functions compute in float32.{'' if peer else ' optipfair was not installed: its rows are missing.'}",
            "",
            "| interface | name | against | largest relative difference |",
            "|---|---|---|---|",
            *(f"| {kind} | `{name}` | {against} | {value:.1e} |" for kind, name, against, value in [*rows, *peer]),
            "",
            f"{len(rows) + len(peer)} comparisons, the largest difference {max(row[3] for row in [*rows, *peer]):.1e}.",
            "",
        ]
    )
    give(text, words.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
