"""Scores of little evidence, worked out on paper: one contrast, one text of a value, a value that was never seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from fairprune_framework import discovery
from fairprune_framework.api import BiasScorer
from fairprune_framework.auditing.audit import audit
from fairprune_framework.auditing.demand import Demand
from fairprune_framework.contrasts.alignment import align_all, vocabularies
from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.selection.scoring import score
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_model, tiny_tokenizer

MODEL: Any = tiny_model("llama", dtype=torch.float64)
EXACT = 1e-9


def numbers(*rows: Sequence[float] | float) -> Tensor:
    """(rows, 1 or more) float64."""
    return torch.tensor([row if isinstance(row, Sequence) else [row] for row in rows], dtype=torch.float64)


def scored(kind: str, name: str, sums: dict[str, Tensor], weights: dict[str, Tensor] | None = None) -> list[float]:
    plugin: Any = discovery.build(kind, name)
    found: Tensor = plugin.score(SimpleNamespace(sums=sums, weights=weights or {}))
    assert found.dtype == torch.float64
    return found.tolist()


MEANS = ("variance", "relative-variance", "gate-up-difference", "attribution", "integrated-gradients", "mean-abs-difference",
         "token-abs-difference", "signed-difference", "output-variance", "eta-squared", "mutual-information", "paired-auc",
         "expertise", "steering-projection")  # fmt: skip
"""Bias scores that are means or shares: evidence that is given twice says no more than once."""


@cache
def plugins() -> dict[str, BiasScorer]:
    made = {}
    for name in MEANS:
        options = {"relative": True} if name == "relative-variance" else {}
        made[name] = discovery.build("bias", name.removeprefix("relative-"), options)
    return made  # type: ignore[return-value]


@cache
def scores_of(times: int, dtype: torch.dtype = torch.float64) -> dict[str, dict[str, Tensor]]:
    """name -> site -> scores of one contrast of three variants, one of them longer, given so often."""
    (one,) = [contrast for contrast in tiny_contrasts() if contrast.id == "tiny-0"]
    copies: list[Contrast] = [replace(one, id=f"copy-{number}") for number in range(times)]
    aligned, _ = align_all(copies, Encoder(tiny_tokenizer()))
    values = {category: len(found) for category, found in vocabularies(copies).items()}
    model = deepcopy(MODEL).to(dtype)
    architecture = recognise(model)
    demand = Demand.of(list(plugins().values()), len(architecture.sites))
    statistics, _ = audit(model, architecture, aligned, values, demand, accelerator="cpu")
    importance: Any = discovery.build("importance", "l2-norm")
    return {
        name: dict(score(statistics, model, architecture, plugin, importance, ("b", "i")).bias)
        for name, plugin in plugins().items()
    }


@pytest.mark.parametrize("name", MEANS)
def test_the_same_contrast_again_changes_nothing(name: str) -> None:
    once, thrice = scores_of(1)[name], scores_of(3)[name]
    assert any(float(values.abs().max()) > 0 for values in once.values())
    for site, values in once.items():
        torch.testing.assert_close(thrice[site], values, rtol=1e-6, atol=1e-9 * float(values.abs().max()))


@pytest.mark.parametrize(
    "name", ["variance", "gate-up-difference", "mean-abs-difference", "steering-projection", "attribution"]
)
def test_a_model_in_float32_scores_as_one_in_float64(name: str) -> None:
    narrow = scores_of(1, torch.float32)[name]
    for site, values in scores_of(1)[name].items():
        assert narrow[site].dtype == torch.float64
        torch.testing.assert_close(narrow[site], values, rtol=1e-3, atol=1e-4 * float(values.abs().max()))


MOMENTS = {  # texts of the first value: 1 and 3; of the second: 5; of the third: none
    "group-moments.sum": numbers(4, 5, 0),
    "group-moments.squares": numbers(10, 25, 0),
    "group-moments.count": numbers(2, 1, 0),
}


def test_eta_squared() -> None:
    """Around the mean of 3 the squares are 4 + 0 + 4; those of the two means, 2 and 5, are 2 + 4."""
    assert scored("bias", "eta-squared", MOMENTS) == pytest.approx([6 / 8], rel=EXACT)
    single = {name: values[1:] for name, values in MOMENTS.items()}
    assert scored("bias", "eta-squared", single) == [0.0]  # one text has no variance to explain


def test_d_prime() -> None:
    """Means of 2 and 5; squares within are 2, with 3 - 2 degrees of freedom."""
    assert scored("bias", "d-prime", MOMENTS) == pytest.approx([3 / math.sqrt(2)], rel=EXACT)
    twice = {name: 2 * values for name, values in MOMENTS.items()}
    assert scored("bias", "d-prime", twice) == pytest.approx([3 / math.sqrt(4 / 4)], rel=EXACT)


def test_effects_have_no_unit() -> None:
    """Activations a million times smaller, whose squares are far below any number that only guards a division, change nothing."""
    small = {name: values * {"sum": 1e-6, "squares": 1e-12}.get(name.rpartition(".")[2], 1) for name, values in MOMENTS.items()}
    for name in ("eta-squared", "d-prime"):
        assert scored("bias", name, small) == pytest.approx(scored("bias", name, MOMENTS), rel=1e-6)
    deviations = {
        "value-deviation.sum": numbers(4e-4),
        "value-deviation.count": numbers(2),
        "deviation-squares.sum": numbers(10e-8),
    }
    assert scored("bias", "paired-effect", deviations) == pytest.approx([math.sqrt(2)], rel=1e-6)


def test_eta_squared_and_d_prime_of_two_values_are_those_of_a_t_test() -> None:
    rng = np.random.default_rng(0)
    groups = [rng.normal(0, 1, 5), rng.normal(1, 1, 7)]
    sums = {
        "group-moments.sum": numbers(*(float(each.sum()) for each in groups)),
        "group-moments.squares": numbers(*(float((each**2).sum()) for each in groups)),
        "group-moments.count": numbers(*map(len, groups)),
    }
    test = stats.ttest_ind(*groups)
    assert scored("bias", "eta-squared", sums) == pytest.approx([test.statistic**2 / (test.statistic**2 + 10)])
    assert scored("bias", "d-prime", sums) == pytest.approx([abs(test.statistic) * math.sqrt(1 / 5 + 1 / 7)])


def test_paired_effect_wants_two_contrasts_of_a_value() -> None:
    """Deviations of 1 and 3: a mean of 2, a variance of 2. One deviation alone has no spread."""
    sums = {
        "value-deviation.sum": numbers(4, 9),
        "value-deviation.count": numbers(2, 1),
        "deviation-squares.sum": numbers(10, 81),
    }
    assert scored("bias", "paired-effect", sums) == pytest.approx([math.sqrt(2)], rel=EXACT)
    assert scored("bias", "paired-effect", {name: values[1:] for name, values in sums.items()}) == [0.0]
    many = {"value-deviation.sum": numbers(0), "value-deviation.count": numbers(5), "deviation-squares.sum": numbers(3)}
    assert scored("bias", "paired-effect", many) == [0.0]


def test_what_survives_false_discovery_is_at_most_the_share() -> None:
    """One neuron, and so its own p-value: of deviations of 1 and 3, two-sided, with one degree of freedom."""
    sums = {
        "value-deviation.sum": numbers(4, 9),
        "value-deviation.count": numbers(2, 1),
        "deviation-squares.sum": numbers(10, 81),
    }
    at = SimpleNamespace(sums=sums)
    whole: Any = discovery.build("bias", "paired-effect")
    score = whole.score(at)
    p = float(2 * stats.t.sf(float(score) * math.sqrt(2), 1))
    assert p == pytest.approx(stats.ttest_1samp([1.0, 3.0], 0).pvalue, rel=1e-9)
    for share, kept in ((1.0, True), (p, True), (p * (1 - 1e-9), False)):
        plugin: Any = discovery.build("bias", "paired-effect", {"fdr": share})
        found = plugin.finish({"site": score}, lambda name: at)["site"]
        assert found.tolist() == (score.tolist() if kept else [0.0])


@pytest.mark.parametrize(("fdr", "kept"), [(0.999, True), (0.01, False)])
def test_values_of_one_contrast_are_not_tested_and_do_not_count(fdr: float, kept: bool) -> None:
    """Beside a neuron that none of them saw twice the other has the same p-value, 0.295."""
    plugin: Any = discovery.build("bias", "paired-effect", {"fdr": fdr})
    names = ("value-deviation.sum", "value-deviation.count", "deviation-squares.sum")
    one, two = (dict(zip(names, map(numbers, values), strict=True)) for values in ((9, 1, 81), (4, 2, 10)))
    scores = {"a": numbers(0)[0], "b": numbers(math.sqrt(2))[0]}
    found = plugin.finish(scores, {"a": SimpleNamespace(sums=one), "b": SimpleNamespace(sums=two)}.get)
    assert found["a"].tolist() == [0.0]
    assert found["b"].tolist() == pytest.approx([math.sqrt(2) if kept else 0.0], rel=1e-9)
    alone = plugin.finish({"a": scores["a"]}, {"a": SimpleNamespace(sums=one)}.get)
    assert alone["a"].tolist() == [0.0]


SIGNS = {"sign-counts.high": numbers([3, 0], [0, 0], [0, 0]), "sign-counts.all": numbers(4, 4, 0)}


def test_sign_rate_leaves_out_a_value_that_was_not_seen() -> None:
    expected = math.log(3.5 / 1.5) - math.log(0.5 / 4.5)
    assert scored("bias", "sign-rate", SIGNS) == pytest.approx([expected, 0.0], rel=EXACT, abs=EXACT)


def test_mutual_information_in_nats() -> None:
    """Of eight slots three are above 0, all of the first value; where the sign tells nothing it is 0, and where it tells all log 2."""
    p = {(1, 0): 3 / 8, (0, 0): 1 / 8, (0, 1): 4 / 8}
    sign, value = {1: 3 / 8, 0: 5 / 8}, {0: 1 / 2, 1: 1 / 2}
    expected = sum(share * math.log(share / (sign[s] * value[v])) for (s, v), share in p.items())
    assert scored("bias", "mutual-information", SIGNS) == pytest.approx([expected, 0.0], rel=EXACT, abs=EXACT)
    all_of_it = {"sign-counts.high": numbers(1, 0), "sign-counts.all": numbers(1, 1)}
    assert scored("bias", "mutual-information", all_of_it) == pytest.approx([math.log(2)], rel=EXACT)


def test_one_slot_of_one_value_tells_nothing() -> None:
    assert scored("bias", "mutual-information", {"sign-counts.high": numbers(1), "sign-counts.all": numbers(1)}) == [0.0]
    assert scored("bias", "sign-rate", {"sign-counts.high": numbers(1), "sign-counts.all": numbers(1)}) == [0.0]
    nothing = {"sign-counts.high": numbers(0), "sign-counts.all": numbers(0)}
    assert scored("bias", "mutual-information", nothing) == [0.0]


def test_snip_difference_takes_off_a_share_whatever_the_size_of_the_sums_on_text() -> None:
    """Saliency of (3, 1) over two contrasts, on text in the proportion 1 to 3: of 2 in all, 1/2 and 3/2 are taken off."""
    for size in (1e-9, 0.1, 1.0, 1e9):
        text = SimpleNamespace(sums={"weight-saliency-both.terms": size * numbers([1, 3])})
        at = SimpleNamespace(
            sums={"weight-saliency-both.terms": numbers([3, 1])}, observed=torch.tensor([2, 2]), of={"calibration": text}.get
        )
        for minus, expected in ((1.0, [1.0, 0.0]), (0.0, [1.5, 0.5]), (0.2, [1.4, 0.2])):
            plugin: Any = discovery.build("bias", "snip-difference", {"minus": minus})
            assert plugin.score(at).tolist() == pytest.approx(expected, rel=EXACT)
    silent = SimpleNamespace(sums={"weight-saliency-both.terms": numbers([0, 0])})
    unseen = SimpleNamespace(
        sums={"weight-saliency-both.terms": numbers([0, 0])}, observed=torch.tensor([0, 0]), of=lambda _: silent
    )
    assert discovery.build("bias", "snip-difference").score(unseen).tolist() == [0.0, 0.0]  # type: ignore[union-attr]


@pytest.mark.parametrize(("documents", "expected"), [(0, [2.0]), (1, [2.0]), (4, [0.5])])
def test_fisher_is_half_of_a_mean_over_documents(documents: int, expected: list[float]) -> None:
    at = SimpleNamespace(sums={"weight-saliency-squared.terms": numbers(4)}, count=documents)
    assert discovery.build("importance", "fisher").score(at).tolist() == expected  # type: ignore[union-attr]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_relative_variance_has_no_unit(scale: float) -> None:
    plugin: Any = discovery.build("bias", "variance", {"relative": True})
    sums = {"contrast-variance.mean": 3 * numbers([2, 1]), "contrast-variance.seen": numbers(3)}
    sums["slot-squares.mean"] = 3 * numbers([8, 5])
    sized = {name: values if name.endswith("seen") else values * scale**2 for name, values in sums.items()}
    assert plugin.score(SimpleNamespace(sums=sized)).tolist() == pytest.approx([2 / 8, 1 / 5], rel=1e-5)
    silent = {name: torch.zeros_like(values) for name, values in sums.items()}
    assert plugin.score(SimpleNamespace(sums=silent)).tolist() == [0.0, 0.0]


def test_specificity_of_silent_neurons_and_of_any_size() -> None:
    """Variances of 3 and 1 against controls of 1 and 0; a millionth of their mean is added."""
    plugin: Any = discovery.build("bias", "specificity")
    name = "variance-of-streams"
    for size in (1e-12, 1.0, 1e12):
        controls = SimpleNamespace(count=2, sums={f"{name}.mean": 2 * size * numbers([1, 0, 0]), f"{name}.seen": numbers(2)})
        own = {f"{name}.mean": 4 * size * numbers([3, 1, 0]), f"{name}.seen": numbers(4)}
        found = plugin.score(SimpleNamespace(sums=own, of={"controls": controls}.get)).tolist()
        assert found == pytest.approx([3 / 4, 1.0, 0.0], rel=1e-6, abs=1e-12)
        assert found[1] == pytest.approx(1 / (1 + 1e-6 / 3), rel=1e-12)
    none = SimpleNamespace(count=0, sums={})
    with pytest.raises(ValueError, match="specificity needs control contrasts"):
        plugin.score(SimpleNamespace(sums={}, of=lambda _: none))
    silent = SimpleNamespace(count=1, sums={f"{name}.mean": numbers([0]), f"{name}.seen": numbers(1)})
    assert plugin.score(SimpleNamespace(sums=silent.sums, of=lambda _: silent)).tolist() == [0.0]


def probed(off: np.ndarray, values: np.ndarray, rank: int) -> list[float]:
    """`linear-probe` of deviations (texts, N) of which each is of a value."""
    from fairprune_linear_probe import sketch

    plugin: Any = discovery.build("bias", "linear-probe", {"rank": rank})
    rows = torch.from_numpy(off)
    name = f"sketched-covariance-{rank}"
    sums = {
        f"{name}.scatter": (rows.T @ rows @ sketch(off.shape[1], rank)).T,
        f"{name}.squares": rows.square().sum(0, keepdim=True),
        f"{name}.sum": torch.stack([rows[torch.from_numpy(values == value)].sum(0) for value in np.unique(values)]),
        f"{name}.count": numbers(*(int((values == value).sum()) for value in np.unique(values))),
    }
    return plugin.score(SimpleNamespace(sums=sums)).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("rank", [7, 19, 20, 21])
def test_linear_probe_is_the_ridge_discriminant_also_from_few_columns(rank: int) -> None:
    """Deviations of six dimensions in 20 neurons: a sketch of seven columns holds all of them."""
    rng = np.random.default_rng(2)
    off, values = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 20)), rng.integers(0, 3, 40)
    covariance = off.T @ off / len(off)
    ridge = 0.1 * np.trace(covariance) / 20
    means = np.stack([off[values == value].mean(0) for value in range(3)], 1)
    expected = np.abs(np.linalg.solve(covariance + ridge * np.eye(20), means)).max(1) * np.sqrt(np.diag(covariance))
    assert probed(off, values, rank) == pytest.approx(expected.tolist(), rel=1e-6)
    assert probed(1e-3 * off, values, rank) == pytest.approx(expected.tolist(), rel=1e-6)


def test_a_sketch_is_the_same_for_the_same_numbers_alone() -> None:
    from fairprune_linear_probe import sketch

    assert sketch(4, 4).equal(torch.eye(4, dtype=torch.float64))
    assert sketch(4, 9).equal(torch.eye(4, dtype=torch.float64))
    narrow = sketch(400, 3)
    assert (narrow.shape, narrow.dtype) == ((400, 3), torch.float64)
    assert narrow.equal(sketch(400, 3))
    assert not narrow[:399].equal(sketch(399, 3))
    assert narrow.mean().item() == pytest.approx(0, abs=4 / 1200**0.5)
    assert narrow.std().item() == pytest.approx(1, abs=4 / 2400**0.5)


def test_the_reconstruction_error_of_two_neurons() -> None:
    """H = ((2, 1), (1, 2)) and a twentieth of its mean diagonal: its inverse has 2.1 / (2.1^2 - 1) on the diagonal."""
    plugin: Any = discovery.build("importance", "obs", {"damping": 0.05})
    at = SimpleNamespace(sums={"gram.gram": numbers([2, 1], [1, 2])}, weights={"out": numbers([1, 2], [3, 0])})
    expected = [each / (2.1 / (2.1**2 - 1)) for each in (5, 9)]
    assert plugin.score(at).tolist() == pytest.approx(expected, rel=EXACT)
    small = SimpleNamespace(sums={"gram.gram": 1e-6 * numbers([2, 1], [1, 2])}, weights=at.weights)
    assert plugin.score(small).tolist() == pytest.approx([1e-6 * each for each in expected], rel=1e-4)


def test_paired_auc() -> None:
    sums = {"wins.won": numbers(3, 1, 0), "wins.all": numbers(4, 4, 0)}
    assert scored("bias", "paired-auc", sums) == pytest.approx([0.5], rel=EXACT)
    assert scored("bias", "paired-auc", {"wins.won": numbers(1, 0), "wins.all": numbers(1, 1)}) == [1.0]
    assert scored("bias", "paired-auc", {"wins.won": numbers(0), "wins.all": numbers(0)}) == [0.0]


def test_expertise_of_one_text_of_each_value() -> None:
    """16 places for each of two values: the texts lie at the first and the last, at one place, or there is but one text."""
    counts = torch.zeros(2, 16, 3, dtype=torch.float64)
    counts[0, 0] = 1
    counts[1, 15, 0] = 1
    counts[1, 0, 1] = 1
    assert scored("bias", "expertise", {"text-histogram.counts": counts.flatten(0, 1)}) == [1.0, 0.0, 0.0]


def test_steering_projection_of_one_contrast() -> None:
    """|activation| 2, deviations of the layer's output (3, 4) and (0, 1): along the output weights (1, 1) they are 7 and 1."""
    sums = {
        "steering.size": numbers(2),
        "steering.seen": numbers(1),
        "steering.away": numbers([3, 4], [0, 1]),
        "steering.count": numbers(1, 1),
    }
    assert scored("bias", "steering-projection", sums, {"out": numbers([1, 1])}) == [14.0]
    twice = {name: 2 * values for name, values in sums.items()}
    assert scored("bias", "steering-projection", twice, {"out": numbers([1, 1])}) == [14.0]


def test_input_variance_of_one_token_and_of_two() -> None:
    weights = {"out": numbers([2, 1])}
    one = {"text-sums.tokens": numbers(1), "text-sums.sum": numbers(3), "square-sum.squares": numbers(9)}
    assert scored("importance", "input-variance", one, weights) == [0.0]
    two = {"text-sums.tokens": numbers(2), "text-sums.sum": numbers(4), "square-sum.squares": numbers(10)}
    assert scored("importance", "input-variance", two, weights) == pytest.approx([1 * 5], rel=EXACT)


def test_wanda_and_the_norm_over_documents() -> None:
    assert scored("importance", "wanda", {"square-sum.squares": numbers(9)}, {"out": numbers([-2, 1])}) == [3 * 1.5]
    assert scored("importance", "activation-norm", {"document-norms.mean-squared": numbers(16)}) == [4.0]


def test_peak_to_peak_hybrid_is_relative_to_the_largest_peak_of_each_role() -> None:
    weights = {"gate": numbers([1, -1], [2, 1]), "out": numbers([4, 0], [1, -1])}
    found = scored("importance", "peak-to-peak-hybrid", {"document-norms.norm": numbers([5, 7])}, weights)
    assert found == pytest.approx([5 * (2 / 3 + 4 / 4), 7 * (3 / 3 + 2 / 4)], rel=1e-6)
    silent = {"gate": 1e-8 * numbers([1, 0], [0, 0]), "out": numbers([0, 0], [0, 0])}  # 1e-8 is added, as published
    assert scored("importance", "peak-to-peak-hybrid", {"document-norms.norm": numbers([5, 7])}, silent) == [2.5, 0.0]


@pytest.mark.parametrize("objective", ["next-token", "sentence"])
def test_a_contrast_that_reaches_no_neuron_of_a_site_adds_nothing_there(objective: str) -> None:
    from fairprune_attribution import ActivationTimesGradient

    mask = torch.tensor([[[True, True], [True, False]], [[False, False], [False, False]]])
    seen = SimpleNamespace(objective=numbers(3, 5)[:, 0], mask=mask, product_sums=lambda: numbers([1, 2, 3], [0, 0, 0]))
    found = ActivationTimesGradient(objective=objective).summands(seen)  # type: ignore[arg-type]
    assert found["product"].tolist() == [[[1, 2, 3], [1, 1, 1]], [[0, 0, 0], [0, 0, 0]]]
    assert found["objective"].tolist() == [[[3]], [[0]]]


def test_a_contrast_counts_where_any_of_its_variants_reaches_the_site() -> None:
    """As an expert may be reached by one text and not by the other."""
    from fairprune_attribution import ActivationTimesGradient

    mask = torch.tensor([[[True, True], [False, False]], [[False, False], [False, True]]])
    seen = SimpleNamespace(objective=numbers(3, 5)[:, 0], mask=mask, product_sums=lambda: numbers([1], [2]))
    found = ActivationTimesGradient().summands(seen)  # type: ignore[arg-type]
    assert found["product"].tolist() == [[[1], [1]], [[2], [1]]]
    assert found["objective"].tolist() == [[[3]], [[5]]]


@pytest.mark.parametrize("objective", ["preference", "shared-preference"])
@pytest.mark.parametrize(("stands", "expected"), [(3.0, [2.0, -1.0]), (-0.5, [-2.0, 1.0]), (0.0, [0.0, 0.0])])
def test_a_preference_is_pushed_towards_neither_from_wherever_it_stands(
    objective: str, stands: float, expected: list[float]
) -> None:
    """Slopes of 4 and -2 over two contrasts; at 50 % exactly nothing is to be pushed."""
    plugin: Any = discovery.build("bias", "attribution", {"objective": objective})
    name = f"activation-times-gradient-{objective}"
    sums = {f"{name}.product": numbers([4, -2], [2, 2]), f"{name}.objective": numbers(stands)}
    assert plugin.score(SimpleNamespace(sums=sums)).tolist() == expected


def test_both_objectives_are_shares_of_their_means_of_any_size() -> None:
    """Means of 3 over an objective of 6, and of 10 over one of 40: halves of 1/2 and 1/4. Where nothing was reached there is 0."""
    plugin: Any = discovery.build("bias", "attribution", {"objective": "both"})
    for size in (1e-9, 1.0, 1e9):
        sums = {}
        for term, mean, objective in (("next-token", 3.0, 6.0), ("sentence", 10.0, 40.0)):
            name = f"activation-times-gradient-{term}"
            sums |= {
                f"{name}.product": numbers([2 * mean * size, 0], [2, 0]),
                f"{name}.objective": numbers(2 * objective * size),
            }
        assert plugin.score(SimpleNamespace(sums=sums)).tolist() == pytest.approx([0.375, 0.0])


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, 8),
        ({"steps": 3}, 3),
        ({"steps": 3, "scope": "layer"}, 3 * 5),
        ({"steps": 3, "objective": "both"}, 2 * 3 + 2),  # and one at the end of the path of each, for its mean
    ],
)
def test_passes_of_integrated_gradients(options: dict[str, Any], passes: int) -> None:
    plugin: Any = discovery.build("bias", "integrated-gradients", options)
    every = [each for statistic in plugin.needs().statistics for each in statistic.passes(5)]
    assert len(every) == passes
    scaled = [each.scale for each in every if each.scale != 1]
    assert sum(scaled) / len(scaled) == pytest.approx(0.5)  # midpoints of the path from 0 to 1


def test_one_step_is_the_least() -> None:
    discovery.build("bias", "integrated-gradients", {"steps": 1})
    with pytest.raises(Exception, match=r"The .steps. must be at least 1\. Got 0 instead"):
        discovery.build("bias", "integrated-gradients", {"steps": 0})


def test_vocabulary_spread_adds_up_the_first_tokens_of_a_value() -> None:
    """Words 0 and 1 are one value, word 2 another, and a third value has no word; probabilities of 0.2, 0.3 and 0.4."""
    plugin: Any = discovery.build("bias", "vocabulary-spread", {"rows": 1})
    logits = torch.tensor([[0.2, 0.3, 0.4, 0.1], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64).log()
    at = SimpleNamespace(readout=lambda rows: rows, weights={"out": logits}, attribute_tokens=((0, 1), (2,), ()), prepared=None)
    assert plugin.score(at).tolist() == pytest.approx([0.5 - 0.4, 0.5 - 0.25], rel=EXACT)
