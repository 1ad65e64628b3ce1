"""The exhibits against the untouched transformers forward and numpy."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.decomposition import PCA

from fairprune_framework.evaluation import exhibits
from fairprune_framework.models.loading import load_model


@pytest.fixture(scope="module")
def shown(finished: Path) -> dict[str, Any]:
    return dict(json.loads((finished / "exhibits.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def tensors(finished: Path) -> dict[str, torch.Tensor]:
    return load_file(finished / "exhibits.safetensors")


def outputs(model: Any, tokenizer: Any, text: str) -> dict[tuple[str, int], torch.Tensor]:
    """(tap, layer) -> (T, H) by hooks of PyTorch's own on the whole model; and the input of each down_proj."""
    found: dict[tuple[str, int], torch.Tensor] = {}
    handles = []
    for layer, block in enumerate(model.model.layers):

        def keep(_: Any, args: Any, out: Any, *, at: tuple[str, int]) -> None:
            found[at] = (out[0] if isinstance(out, tuple) else out)[0]

        for name, module in (("attention", block.self_attn), ("mlp", block.mlp)):
            handles.append(module.register_forward_hook(lambda m, a, o, at=(name, layer): keep(m, a, o, at=at)))
        handles.append(
            block.mlp.down_proj.register_forward_pre_hook(lambda m, a, at=("neuron", layer): found.__setitem__(at, a[0][0]))
        )
    with torch.no_grad():
        model(torch.tensor([tokenizer(text)["input_ids"]]))
    for handle in handles:
        handle.remove()
    return found


def test_one_projection_per_category_of_median_divergence(shown: dict[str, Any], finished: Path) -> None:
    import pyarrow.parquet as pq

    items = pq.read_table(finished / "evaluation_items.parquet").to_pylist()
    assert {p["category"] for p in shown["projections"]} == {item["category"] for item in items}
    for projection in shown["projections"]:
        group = [i for i in items if i["category"] == projection["category"]]
        group = [i for i in group if i["split"] == "heldout"] or group
        found = {i["id"]: i["next-token-divergence_before"] for i in group}
        assert found[projection["contrast"]] == np.percentile(list(found.values()), 50, method="lower")


def test_what_is_drawn_is_of_the_representations_of_the_models(
    shown: dict[str, Any], tensors: dict[str, torch.Tensor], finished: Path, llama: Path
) -> None:
    """Scikit-learn's plane of what hooks read in both models, without a first token that all share; signs are free."""
    models = {"before": load_model(str(llama)), "after": load_model(str(finished / "model"))}
    for place, projection in enumerate(shown["projections"]):
        texts = [variant["text"] for variant in projection["variants"]]
        starts = {variant["tokens"][0] for variant in projection["variants"]}
        skipped = 1 if len(starts) == 1 and all(variant["start"] > 0 for variant in projection["variants"]) else 0
        wanted = {when: [outputs(*model, text) for text in texts] for when, model in models.items()}
        for tap in ("attention", "mlp"):
            for row, layer in enumerate(projection["layers"][tap]):
                rows = {when: [each[tap, layer].numpy().astype(np.float64) for each in found] for when, found in wanted.items()}
                drawn = {when: np.concatenate([each[skipped:] for each in found]) for when, found in rows.items()}
                plane = PCA(2, svd_solver="full").fit(drawn["before"])
                scale = np.abs(plane.transform(drawn["before"])).max()
                signs: Any = 1
                for when, values in drawn.items():
                    found, expected = tensors[f"{when}/{place}/{tap}"][row].numpy(), plane.transform(values)
                    signs = np.sign((found * expected).sum(0)) if when == "before" else signs
                    np.testing.assert_allclose(found, signs * expected, atol=1e-2 * scale)
                    last = [each[-1] for each in rows[when]]
                    distance = np.mean([np.linalg.norm(a - b) for a, b in combinations(last, 2)])
                    assert tensors[f"distance_{when}/{place}/{tap}"][row].item() == pytest.approx(distance, rel=5e-3)
                share = tensors[f"share/{place}/{tap}"][row].numpy()
                np.testing.assert_allclose(share, plane.explained_variance_ratio_, rtol=1e-2, atol=1e-4)


def test_what_is_drawn_takes_little_room(shown: dict[str, Any], finished: Path) -> None:
    drawn = sum(
        len(variant["tokens"]) * sum(map(len, projection["layers"].values()))
        for projection in shown["projections"]
        for variant in projection["variants"]
    )
    assert (finished / "exhibits.safetensors").stat().st_size < 20_000 + 40 * drawn


def test_what_moves_a_unit(shown: dict[str, Any], finished: Path, llama: Path) -> None:
    from fairprune_framework.contrasts.alignment import align, vocabularies
    from fairprune_framework.contrasts.schema import Contrast
    from fairprune_framework.models.encoder import Encoder

    plan = json.loads((finished / "plan.json").read_text())
    assert {(u["site"], u["unit"]) for u in shown["units"]} == {(s, i) for s, units in plan["sites"].items() for i in units}
    assert [u["bias"] for u in shown["units"]] == sorted((u["bias"] for u in shown["units"]), reverse=True)
    model, tokenizer = load_model(str(llama))
    lines = (finished / "contrasts.jsonl").read_text(encoding="utf-8").splitlines()
    contrasts = [Contrast.from_json(json.loads(line)) for line in lines]
    values = {c: {v: i for i, v in enumerate(names)} for c, names in vocabularies(contrasts).items()}
    unit, moved = shown["units"][0], {}
    for contrast in contrasts:
        aligned = align(Encoder(tokenizer), contrast, values[contrast.category])
        slots = []
        for variant, tokens in zip(contrast.variants, aligned.variants, strict=True):
            acts = outputs(model, tokenizer, variant.text)["neuron", unit["layer"]][:, unit["unit"]].double().numpy()
            slots.append(np.concatenate([[acts[tokens.start : tokens.end].mean()], acts[tokens.end :]]))
        moved[contrast.id] = np.array(slots).std(axis=0).mean()
    best = sorted(moved, key=lambda name: -moved[name])[: exhibits.MOST_MOVING]
    assert [c["id"] for c in unit["contrasts"]] == best
    np.testing.assert_allclose([c["movement"] for c in unit["contrasts"]], [moved[name] for name in best], rtol=1e-4)


def test_a_long_text_is_shown_by_its_first_tokens(
    fairprune: Any, llama: Path, write_prompts: Any, tmp_path: Path, quick: Any
) -> None:
    tail = " the man walked home" * 20 + " ."
    rows = [
        {"id": f"long-{i}", "category": "age", "template_id": f"t{i}", "prompt_1": f"The young {w}{tail}", "prompt_2": f"The old {w}{tail}"}
        for i, w in enumerate(("nurse", "clerk"))
    ]  # fmt: skip
    prompts = write_prompts(tmp_path / "long.jsonl", rows)
    answer = fairprune("run", llama, "--prompts", prompts, "--output", tmp_path / "run", *quick)
    assert answer.code == 0, answer.err
    (projection,) = json.loads((tmp_path / "run" / "exhibits.json").read_text())["projections"]
    for variant in projection["variants"]:
        assert len(variant["tokens"]) == exhibits.MOST_TOKENS < variant["all_tokens"]
    assert load_file(tmp_path / "run" / "exhibits.safetensors")["after/0/mlp"].shape == (2, 2 * (exhibits.MOST_TOKENS - 1), 2)
