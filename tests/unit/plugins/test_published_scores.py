"""Published scores against numpy, scipy and autograd on parameters, one text at a time, in float64; all from one audit."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from fairprune_framework import discovery
from fairprune_framework.api import BiasScorer, ImportanceScorer
from fairprune_framework.auditing.audit import audit
from fairprune_framework.auditing.demand import Demand, selecting
from fairprune_framework.auditing.statistics import CONTROLS, Statistics
from fairprune_framework.calibration.text import Calibration
from fairprune_framework.contrasts.alignment import align_all, attribute_tokens, vocabularies
from fairprune_framework.errors import UserError
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.models.readout import readout_of
from fairprune_framework.selection.contexts import Services
from fairprune_framework.selection.scoring import score
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_model, tiny_tokenizer

Array = NDArray[np.float64]
MODEL: Any = tiny_model("llama", dtype=torch.float64)
TOKENIZER = tiny_tokenizer()
SITES = ("model.layers.0.mlp", "model.layers.1.mlp")
DOCUMENTS = tuple(tuple(range(5 + i, 17 + 2 * i)) for i in range(6))
EVERY = tiny_contrasts()
CLOSE = 2e-6
"""Relative to the largest of a site: weights are read in float32."""

BIAS: dict[str, dict[str, Any]] = {
    "variance": {},
    "relative-variance": {"relative": True},
    "gate-up-difference": {},
    "attribution": {},
    "integrated-gradients": {},
    "mean-abs-difference": {},
    "token-abs-difference": {},
    "signed-difference": {},
    "output-variance": {},
    "paired-effect": {},
    "eta-squared": {},
    "d-prime": {},
    "sign-rate": {},
    "mutual-information": {},
    "paired-auc": {},
    "steering-projection": {},
    "vocabulary-spread": {},
    "snip-difference": {},
    "linear-probe": {},
    "specificity": {},
    "expertise": {},
}
"""A name here -> its options; `relative-variance` is an option of `variance`."""
IMPORTANCE = (
    "max-abs-weight",
    "peak-to-peak",
    "output-norm",
    "taylor",
    "weight-variance",
    "product-of-norms",
    "l2-norm",
    "activation-norm",
    "wanda",
    "input-variance",
    "peak-to-peak-hybrid",
    "snip",
    "fisher",
    "obs",
)


# -- what the core computes ----------------------------------------------------------------------------------------------


def bias_of(name: str, **options: Any) -> BiasScorer:
    made = discovery.build("bias", name.removeprefix("relative-"), {**BIAS.get(name, {}), **options})
    assert isinstance(made, BiasScorer)
    return made


def importance_of(name: str) -> ImportanceScorer:
    made = discovery.build("importance", name)
    assert isinstance(made, ImportanceScorer)
    return made


@cache
def ours() -> tuple[Statistics, Any, Services]:
    """One audit for all of them."""
    architecture = recognise(MODEL)
    aligned, _ = align_all(EVERY, Encoder(TOKENIZER))
    plugins = [*(bias_of(name) for name in BIAS), *(importance_of(name) for name in IMPORTANCE)]
    found, _ = audit(
        MODEL,
        architecture,
        selecting(aligned),
        {category: len(names) for category, names in vocabularies(EVERY).items()},
        Demand.of(plugins, 2),
        controls=selecting(aligned, CONTROLS),
        calibration=Calibration(documents=DOCUMENTS, source="test"),
        accelerator="cpu",
    )
    tokens = attribute_tokens(selecting(aligned))
    return found, architecture, Services(readout=lambda: readout_of(MODEL), attribute_tokens=lambda: tokens)


def scored(bias: BiasScorer | str = "signed-difference", importance: str = "l2-norm") -> Any:
    found, architecture, services = ours()
    made = bias_of(bias) if isinstance(bias, str) else bias
    return score(found, MODEL, architecture, made, importance_of(importance), ("bias", "importance"), services=services)


# -- what plain hooks see ------------------------------------------------------------------------------------------------


@cache
def acts(ids: tuple[int, ...]) -> dict[str, Array]:
    """`<site>.<tap>` -> (T, K) of one text."""
    found: dict[str, Array] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any = None) -> None:
            value = args[0] if output is None else output[0] if isinstance(output, tuple) else output
            found[name] = value.detach().reshape(len(ids), -1).numpy()

        return hook

    hooks = []
    for site in SITES:
        mlp = MODEL.get_submodule(site)
        hooks += [
            mlp.gate_proj.register_forward_hook(keep(f"{site}.gate")),
            mlp.up_proj.register_forward_hook(keep(f"{site}.up")),
            mlp.down_proj.register_forward_pre_hook(keep(f"{site}.neuron")),
            MODEL.get_submodule(site.removesuffix(".mlp")).register_forward_hook(keep(f"{site}.layer")),
        ]
    with torch.no_grad():
        MODEL(input_ids=torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return found


def texts_of(category: str, control: bool = False) -> list[list[tuple[str, tuple[int, ...]]]]:
    """Of each contrast: (attribute, token ids) of its variants."""
    return [
        [(v.attribute, tuple(TOKENIZER(v.text).input_ids)) for v in c.variants]
        for c in EVERY
        if c.control is control and c.split == "select" and (control or c.category == category)
    ]


def slots(contrast: list[tuple[str, tuple[int, ...]]], tap: str) -> Array:
    """(V, S, K): the mean over the attribute's tokens, then each token after it."""
    texts = [ids for _, ids in contrast]
    shortest = min(map(len, texts))
    before = next(i for i in range(shortest) if len({ids[i] for ids in texts}) > 1)
    after = next(i for i in range(shortest - before + 1) if i == shortest - before or len({ids[-i - 1] for ids in texts}) > 1)
    found = []
    for ids in texts:
        values, end = acts(ids)[tap], len(ids) - after
        found.append(np.concatenate([values[before:end].mean(0, keepdims=True), values[end:]]))
    return np.stack(found)


def weights(site: str) -> tuple[Array, Array, Array]:
    """Gate, up and output weights, (N, H)."""
    mlp = MODEL.get_submodule(site)
    gate, up, down = (m.weight.detach().numpy() for m in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    return gate, up, down.T


def pairs(values: Array) -> list[tuple[Array, Array]]:
    return [(values[i], values[j]) for i in range(len(values)) for j in range(i + 1, len(values))]


def by_value(category: str, tap: str, centred: bool) -> dict[str, Array]:
    """attribute -> (contrasts, K), means over slots."""
    found: dict[str, list[Array]] = {}
    for contrast in texts_of(category):
        mean = slots(contrast, tap).mean(1)
        for (attribute, _), row in zip(contrast, mean - mean.mean(0) if centred else mean, strict=True):
            found.setdefault(attribute, []).append(row)
    return {attribute: np.stack(rows) for attribute, rows in found.items()}


# -- formulas by hand ----------------------------------------------------------------------------------------------------


def variance(site: str, category: str) -> Array:
    return np.mean([np.var(slots(c, f"{site}.neuron"), axis=0).mean(0) for c in texts_of(category)], axis=0)


def relative_variance(site: str, category: str) -> Array:
    return variance(site, category) / np.mean(
        [(slots(c, f"{site}.neuron") ** 2).mean((0, 1)) for c in texts_of(category)], axis=0
    )


def gate_up_difference(site: str, category: str) -> Array:
    rows = []
    for contrast in texts_of(category):
        equal = len({len(ids) for _, ids in contrast}) == 1
        total: Any = 0
        for tap in (f"{site}.gate", f"{site}.up"):
            values = np.stack([acts(ids)[tap] for _, ids in contrast]) if equal else slots(contrast, tap)
            total = total + np.mean([np.abs(a - b).mean(0) for a, b in pairs(values)], axis=0)
        rows.append(total)
    return np.mean(rows, axis=0)


@cache
def factor_slopes(category: str, factor: float) -> dict[str, Array]:
    """site -> (N,) d divergence / d factor of each neuron, where the neurons of all layers are multiplied by it; mean over contrasts."""
    factors = {site: torch.full((len(weights(site)[0]),), factor, dtype=torch.float64, requires_grad=True) for site in SITES}

    def scaled(site: str) -> Any:
        return lambda _, args: (args[0] * factors[site],)

    hooks = [MODEL.get_submodule(site).down_proj.register_forward_pre_hook(scaled(site)) for site in SITES]
    rows = []
    for contrast in texts_of(category):
        p = torch.stack([MODEL(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1) for _, ids in contrast])
        divergence = torch.special.entr(p.mean(0)).sum() - torch.special.entr(p).sum(1).mean()
        rows.append(torch.autograd.grad(divergence, list(factors.values())))
    for hook in hooks:
        hook.remove()
    return {site: np.mean([row[i].numpy() for row in rows], axis=0) for i, site in enumerate(SITES)}


def attribution(site: str, category: str) -> Array:
    return factor_slopes(category, 1.0)[site]


def integrated_gradients(site: str, category: str, steps: int = 8) -> Array:
    return np.mean([factor_slopes(category, (k + 0.5) / steps)[site] for k in range(steps)], axis=0)


def mean_abs_difference(site: str, category: str) -> Array:
    found = []
    for contrast in texts_of(category):
        means = {tap: np.stack([acts(ids)[f"{site}.{tap}"].mean(0) for _, ids in contrast]) for tap in ("gate", "up")}
        found.append(np.mean([np.abs(a - b) for values in means.values() for a, b in pairs(values)], axis=0))
    return np.mean(found, axis=0)


def token_abs_difference(site: str, category: str) -> Array:
    return np.mean(
        [np.mean([np.abs(a - b).mean(0) for a, b in pairs(slots(c, f"{site}.neuron"))], axis=0) for c in texts_of(category)],
        axis=0,
    )


def signed_difference(site: str, category: str) -> Array:
    return np.max([np.abs(rows.mean(0)) for rows in by_value(category, f"{site}.neuron", True).values()], axis=0)


def output_variance(site: str, category: str) -> Array:
    variance = np.mean([np.var(slots(c, f"{site}.neuron"), axis=0).mean(0) for c in texts_of(category)], axis=0)
    return variance * (weights(site)[2] ** 2).sum(1)


def paired_effect(site: str, category: str) -> Array:
    rows = [r for r in by_value(category, f"{site}.neuron", True).values() if len(r) > 1]
    t = [np.abs(stats.ttest_1samp(r, 0).statistic) / np.sqrt(len(r)) for r in rows]
    return np.max(t, axis=0) if t else np.zeros(len(weights(site)[0]))


def eta_squared(site: str, category: str) -> Array:
    groups = list(by_value(category, f"{site}.neuron", False).values())
    every = np.concatenate(groups)
    between = sum(len(g) * (g.mean(0) - every.mean(0)) ** 2 for g in groups)
    return between / ((every - every.mean(0)) ** 2).sum(0)


def d_prime(site: str, category: str) -> Array:
    groups = by_value(category, f"{site}.neuron", False)
    found = []
    for name, own in groups.items():
        rest = np.concatenate([rows for other, rows in groups.items() if other != name])
        # a two-sample t test with pooled variance, without its factor of sample sizes
        t = stats.ttest_ind(own, rest).statistic
        found.append(np.abs(t) * np.sqrt(1 / len(own) + 1 / len(rest)))
    return np.max(found, axis=0)


def counts(site: str, category: str) -> tuple[Array, Array]:
    """(A, N) slots above 0, and below."""
    found: dict[str, list[Array]] = {}
    for contrast in texts_of(category):
        for (attribute, _), values in zip(contrast, slots(contrast, f"{site}.neuron"), strict=True):
            found.setdefault(attribute, []).append(values > 0)
    high = np.stack([np.concatenate(rows).sum(0) for rows in found.values()]).astype(float)
    low = np.stack([(~np.concatenate(rows)).sum(0) for rows in found.values()]).astype(float)
    return high, low


def sign_rate(site: str, category: str) -> Array:
    high, low = counts(site, category)
    return np.ptp(np.log((high + 0.5) / (low + 0.5)), axis=0)


def mutual_information(site: str, category: str) -> Array:
    high, low = counts(site, category)
    found = []
    for unit in range(high.shape[1]):
        table = np.stack([high[:, unit], low[:, unit]])
        table = table[table.sum(1) > 0]
        g = 0.0 if len(table) < 2 else stats.chi2_contingency(table, correction=False, lambda_="log-likelihood").statistic
        found.append(g / (2 * table.sum()))
    return np.array(found)


def paired_auc(site: str, category: str) -> Array:
    won: dict[str, list[Array]] = {}
    for contrast in texts_of(category):
        values = slots(contrast, f"{site}.neuron")
        for i, (attribute, _) in enumerate(contrast):
            for j in range(len(contrast)):
                if i != j:
                    above = (values[i] > values[j]) + 0.5 * (values[i] == values[j])
                    won.setdefault(attribute, []).append(above.mean(0))
    return np.max([np.abs(2 * np.mean(rows, axis=0) - 1) for rows in won.values()], axis=0)


def text_means(site: str, category: str) -> dict[str, Array]:
    """attribute -> (texts, N), means over slots."""
    return by_value(category, f"{site}.neuron", False)


def expertise(site: str, category: str, bins: int = 16) -> Array:
    """The same places, counted text by text."""
    groups = text_means(site, category)
    every = np.concatenate(list(groups.values()))
    scale = every.std(0)

    def at(values: Array) -> Array:
        return np.arcsinh(8 * (values - every.mean(0)) / np.where(scale > 0, scale, 1))

    low, high = at(every).min(0), at(every).max(0)
    found = []
    for own in groups:
        histograms = np.zeros((2, bins, every.shape[1]))
        for attribute, rows in groups.items():
            for row in rows:
                place = (at(row) - low) / (high - low) * (bins - 1)
                for unit, x in enumerate(place):
                    first = min(int(x), bins - 2)
                    histograms[int(attribute != own), first, unit] += 1 - (x - first)
                    histograms[int(attribute != own), first + 1, unit] += x - first
        mine, others = histograms
        below = np.cumsum(others, 0) - others / 2
        found.append(np.abs(2 * (mine * below).sum(0) / (mine.sum(0) * others.sum(0)) - 1))
    return np.max(found, axis=0)


def steering_projection(site: str, category: str) -> Array:
    size = np.mean([np.abs(slots(c, f"{site}.neuron")).mean((0, 1)) for c in texts_of(category)], axis=0)
    away = np.stack([rows.mean(0) for rows in by_value(category, f"{site}.layer", True).values()])
    return size * np.abs(weights(site)[2] @ away.T).max(1)


def vocabulary_spread(site: str, category: str) -> Array:
    with torch.no_grad():
        logits = MODEL.lm_head(MODEL.model.norm(torch.from_numpy(weights(site)[2].copy())))
    p = logits.softmax(-1).numpy()
    tokens: dict[str, set[int]] = {}
    for contrast in EVERY:
        for variant in contrast.variants if contrast.category == category and contrast.split == "select" else ():
            start = variant.text.lower().index(variant.attribute)
            found = TOKENIZER(variant.text, return_offsets_mapping=True)
            first = next(i for i, (_, end) in zip(found["input_ids"], found["offset_mapping"], strict=True) if end > start)
            tokens.setdefault(variant.attribute, set()).add(first)
    return np.ptp(np.stack([p[:, sorted(found)].sum(1) for found in tokens.values()]), axis=0)


def slopes(loss: torch.Tensor, power: int) -> dict[str, Array]:
    """site -> (N,) sum over a neuron's weights of |w dloss/dw| ** power."""
    found = {}
    for site in SITES:
        mlp = MODEL.get_submodule(site)
        rows = [mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight]
        grads = torch.autograd.grad(loss, rows, retain_graph=True)
        terms = [(w * g).detach().abs() ** power for w, g in zip(rows, grads, strict=True)]
        found[site] = (terms[0].sum(1) + terms[1].sum(1) + terms[2].sum(0)).numpy()
    return found


@cache
def text_slopes(power: int) -> dict[str, Array]:
    MODEL.requires_grad_(True)
    total: dict[str, Array] = {}
    for document in Calibration(documents=DOCUMENTS, source="test").scoring:
        ids = torch.tensor([document])
        loss = torch.nn.functional.cross_entropy(MODEL(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum")
        for site, value in slopes(loss, power).items():
            total[site] = total.get(site, 0) + value
    MODEL.requires_grad_(False)
    return total


@cache
def activation_slopes() -> dict[str, Array]:
    """site -> (N,) sum over documents and tokens of |activation x d loss / d activation|."""
    total = {site: np.zeros(len(weights(site)[0])) for site in SITES}
    shown: dict[str, torch.Tensor] = {}

    def keep(site: str) -> Any:
        def hook(module: Any, args: Any) -> Any:
            shown[site] = args[0] if args[0].requires_grad else args[0].requires_grad_()
            return (shown[site],)

        return hook

    hooks = [MODEL.get_submodule(site).down_proj.register_forward_pre_hook(keep(site)) for site in SITES]
    for document in Calibration(documents=DOCUMENTS, source="test").scoring:
        ids = torch.tensor([document])
        loss = torch.nn.functional.cross_entropy(MODEL(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum")
        grads = torch.autograd.grad(loss, [shown[site] for site in SITES])
        for site, grad in zip(SITES, grads, strict=True):
            total[site] += (shown[site].detach() * grad).abs().sum((0, 1)).numpy()
    for each in hooks:
        each.remove()
    return total


def snip_difference(site: str, category: str) -> Array:
    MODEL.requires_grad_(True)
    rows = []
    for contrast in texts_of(category):
        p = torch.stack([MODEL(input_ids=torch.tensor([ids])).logits[0, -1].softmax(-1) for _, ids in contrast])
        divergence = torch.special.entr(p.mean(0)).sum() - torch.special.entr(p).sum(1).mean()
        rows.append(slopes(divergence, 1)[site])
    MODEL.requires_grad_(False)
    bias, text = np.mean(rows, axis=0), text_slopes(1)[site]
    return np.maximum(bias - bias.sum() / text.sum() * text, 0)


def linear_probe(site: str, category: str) -> Array:
    groups = by_value(category, f"{site}.neuron", True)
    every = np.concatenate(list(groups.values()))
    covariance = every.T @ every / len(every)
    ridge = 0.1 * np.trace(covariance) / len(covariance)
    means = np.stack([rows.mean(0) for rows in groups.values()], axis=1)
    solved = np.linalg.solve(covariance + ridge * np.eye(len(covariance)), means)
    return np.abs(solved).max(1) * np.sqrt(np.diag(covariance))


def specificity(site: str, category: str) -> Array:
    own, other = (
        np.mean([np.var(slots(c, f"{site}.neuron"), axis=0).mean(0) for c in texts_of(category, control)], axis=0)
        for control in (False, True)
    )
    return own / (own + other + 1e-6 * other.mean())


@cache
def text_acts(site: str) -> list[Array]:
    return [acts(tuple(d))[f"{site}.neuron"] for d in Calibration(documents=DOCUMENTS, source="test").scoring]


def importance_by_hand(name: str, site: str) -> Array:
    gate, up, out = weights(site)
    if name == "max-abs-weight":
        return np.abs(gate).max(1) + np.abs(up).max(1)
    if name == "peak-to-peak":
        return sum(w.max(1) + np.abs(w.min(1)) for w in (gate, up))
    if name == "taylor":
        return activation_slopes()[site]
    if name == "weight-variance":
        return np.var(gate, axis=1, ddof=1) + np.var(up, axis=1, ddof=1)
    if name == "product-of-norms":
        return np.abs(gate).sum(1) * np.abs(up).sum(1)
    if name == "l2-norm":
        return np.linalg.norm(gate, axis=1) + np.linalg.norm(up, axis=1)
    if name in ("snip", "fisher"):
        power = 1 if name == "snip" else 2
        return text_slopes(power)[site] * (1 if power == 1 else 0.5 / len(text_acts(site)))
    texts = text_acts(site)
    every = np.concatenate(texts)
    if name == "activation-norm":
        return np.sqrt(sum(np.abs(x).mean(0) ** 2 for x in texts))
    if name == "output-norm":
        return np.linalg.norm(every, axis=0) * np.linalg.norm(out, axis=1)
    if name == "wanda":
        return np.linalg.norm(every, axis=0) * np.abs(out).mean(1)
    if name == "input-variance":
        return np.var(every, axis=0) * (out**2).sum(1)
    if name == "peak-to-peak-hybrid":
        peaks = [w.max(1) + np.abs(w.min(1)) for w in (gate, up, out)]
        return sum(p / (p.max() + 1e-8) for p in peaks) * sum(np.linalg.norm(x, axis=0) for x in texts)
    gram = every.T @ every
    gram += (0.01 * np.trace(gram) / len(gram) + 1e-12) * np.eye(len(gram))
    return (out**2).sum(1) / np.diag(np.linalg.inv(gram))


FORMULAS = {name: globals()[name.replace("-", "_")] for name in BIAS}


def check(found: torch.Tensor, expected: Array) -> None:
    assert expected.max() > expected.min()
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=CLOSE * np.abs(expected).max())


@pytest.mark.parametrize("name", BIAS)
def test_bias_is_the_formula_by_hand(name: str) -> None:
    by_category = scored(name).by_category
    assert len(by_category) >= 2
    for category, found in by_category.items():
        for site in SITES:
            check(found[site], FORMULAS[name](site, category))


@pytest.mark.parametrize("name", IMPORTANCE)
def test_importance_is_the_formula_by_hand(name: str) -> None:
    found = scored(importance=name).importance
    for site in SITES:
        check(found[site], importance_by_hand(name, site))


@pytest.mark.parametrize("fdr", [0.3, 0.9])
def test_false_discoveries_are_controlled_over_the_whole_model(fdr: float) -> None:
    found = scored(bias_of("paired-effect", fdr=fdr)).by_category
    for category, by_site in found.items():
        groups = {site: list(by_value(category, f"{site}.neuron", True).values()) for site in SITES}
        p = {site: [stats.ttest_1samp(rows, 0).pvalue for rows in of_site if len(rows) > 1] for site, of_site in groups.items()}
        joined = np.concatenate([x for rows in p.values() for x in rows])
        limit = joined[stats.false_discovery_control(joined) <= fdr].max(initial=0)
        for site in SITES:
            survives = np.any([x <= limit for x in p[site]], axis=0)
            assert ((by_site[site] > 0).numpy() == survives).all()


@pytest.mark.parametrize("fdr", [0.0, -0.1, 1.01])
def test_a_share_of_false_discoveries_is_above_0_and_at_most_1(fdr: float) -> None:
    with pytest.raises(UserError, match=r"The 'fdr' must be in \(0, 1\]"):
        bias_of("paired-effect", fdr=fdr)


def test_random_importance_is_drawn_by_the_seed() -> None:
    statistics, architecture, _ = ours()
    first, again, other = (
        score(
            statistics, MODEL, architecture, bias_of("signed-difference"), importance_of("random"), ("b", "i"), seed
        ).importance[SITES[0]]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert 0 <= first.min() < 0.2 < 0.8 < first.max() < 1


@pytest.mark.parametrize(("bins", "off"), [(16, 0.16), (8192, 1e-9)])
def test_expertise_comes_near_the_exact_area(bins: int, off: float) -> None:
    """Of Mann and Whitney's test over all texts of a category, as scipy counts it."""
    case = expertise_case(bins)
    for category in case.categories:
        for site in SITES:
            groups = text_means(site, category)
            exact = []
            for own, rows in groups.items():
                rest = np.concatenate([r for other, r in groups.items() if other != own])
                exact.append(np.abs(2 * stats.mannwhitneyu(rows, rest).statistic / (len(rows) * len(rest)) - 1))
            found = expertise_scores(case, bins).by_category[category][site].numpy()
            error = np.abs(found - np.max(exact, axis=0))
            assert error.mean() < off / 2
            assert error.max() < 3 * off


@cache
def expertise_case(bins: int) -> Statistics:
    aligned, _ = align_all(EVERY, Encoder(TOKENIZER))
    values = {category: len(names) for category, names in vocabularies(EVERY).items()}
    demand = Demand.of([bias_of("expertise", bins=bins)], 2)
    return audit(MODEL, recognise(MODEL), selecting(aligned), values, demand, accelerator="cpu")[0]


def expertise_scores(found: Statistics, bins: int) -> Any:
    words = (bias_of("expertise", bins=bins), importance_of("l2-norm"), ("bias", "importance"))
    return score(found, MODEL, recognise(MODEL), *words)


def test_snip_difference_with_nothing_taken_off_is_the_saliency_for_the_divergence() -> None:
    found = ours()[0]
    whole = scored(bias_of("snip-difference", minus=0.0))
    for group, category in enumerate(found.categories):
        for name, value in whole.by_category[category].items():
            terms = found.of("contrasts", name, group)["weight-saliency-both.terms"][0]
            torch.testing.assert_close(value, terms / found.observed("contrasts", name, group), rtol=1e-9, atol=0)
    less = scored(bias_of("snip-difference", minus=0.5)).bias
    assert all(bool((less[name] <= whole.bias[name]).all()) for name in less)
    with pytest.raises(Exception, match="The 'minus' must not be negative"):
        bias_of("snip-difference", minus=-0.5)
