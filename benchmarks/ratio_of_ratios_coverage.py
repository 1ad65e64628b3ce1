"""Measure how often the 95 % interval of the ratio of ratios holds the truth, how often its 99 % bounds miss, and its power.

Run: `OMP_NUM_THREADS=1 python benchmarks/ratio_of_ratios_coverage.py [--simulations 1000] [--resamples 599] [--seed 1]`
(about 45 minutes on one core; `--simulations 100` takes five). Prints a record in Markdown; 1,000 simulations at 95 % have a
binomial error of 0.7 points, at 99 % one of 0.3.

The world: categories and control sets are fixed; templates are drawn. A template has a lognormal `before` (log standard
deviation `size`) and a lognormal ratio after / before (`effect`), for demographic contrasts and for controls. `overlap` is the
share of templates that hold both, where sizes and ratios of the two sides correlate by `rho`; `inside` puts that many control
sets into every control template, which correlate by 0.5 with each other. `spread` and `tilt` move `before` and the ratio between
categories, `slope` shrinks large demographic divergences more. The truth is a closed form, and every world's ratio of ratios
is 0.7. `measured` has the spreads of the log ratios that were measured on the embedded model.

Columns: `chosen` is the package's function, with its two kinds of misses ("below": the whole interval lies below the truth, the
side that calls a change specific which is not). `bounds` are the misses of the one-sided 99 % bounds, in the same order: "below" is
how often the upper bound is below the truth. `not estimable` is the share without an interval; it is left out of the others.
`power` is how often the upper bound is below 0.9, beside the normal approximation from the standard deviation of the estimates.
`geometric` is the package's sensitivity analysis, against its own truth. The others change one thing each, from an implementation
of their own: `equal tails` has no |t|, `Student` and `percentile` no bootstrap-t, `BCa` corrects percentiles (Efron 1987), `Hall`
bootstraps Hall's transformation of t (Hall 1992), `uncrossed` draws the two sides apart where templates are shared.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from statistics import NormalDist

import common
import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from scipy.stats import t as student

from fairprune_framework.functional.difference_in_differences import PairedValues, difference_in_differences
from fairprune_framework.functional.power import power_to_show

Floats = NDArray[np.float64]
RATIO_OF_RATIOS = 0.7
OTHERS = ("equal tails", "Student", "percentile", "BCa", "Hall", "uncrossed")


@dataclass(frozen=True, kw_only=True)
class World:
    """One scenario: demographic values first, controls second."""

    size: tuple[float, float] = (0.9, 0.9)
    effect: tuple[float, float] = (0.45, 0.40)
    slope: float = 0.0
    rho: float = 0.0
    overlap: float = 0.0
    controls: float = 1.0
    """Control templates for each demographic one."""
    categories: int = 1
    sets: int = 1
    inside: int = 1
    spread: float = 0.0
    tilt: float = 0.0


WORLDS = {
    "mild, two urns": World(size=(0.6, 0.6), effect=(0.3, 0.3)),
    "measured, two urns": World(slope=-0.2),
    "measured, crossed": World(slope=-0.2, rho=0.4, overlap=1.0),
    "measured, half crossed": World(slope=-0.2, rho=0.4, overlap=0.5),
    "measured, four sets in every template": World(slope=-0.2, rho=0.4, overlap=1.0, sets=4, inside=4, spread=0.5),
    "half as many controls": World(slope=-0.2, controls=0.5),
    "heavy tails (log sd 1.5), two urns": World(size=(1.5, 1.5)),
    "heavy tails, crossed": World(size=(1.5, 1.5), rho=0.4, overlap=1.0),
    "one of three control sets holds 85 %": World(sets=3, spread=2.0),
    "five categories and sets that differ": World(categories=5, sets=5, spread=0.7, tilt=0.4),
    "large shrink more": World(slope=-0.3),
    "large shrink less": World(slope=0.2),
    "stress: wild effects (log sd 1)": World(effect=(1.0, 0.4)),
}


@dataclass(frozen=True)
class Sample:
    """All simulations of one world: `(S, templates, categories in one template)`, labels, and the two truths on the log scale."""

    before: tuple[Floats, Floats]
    after: tuple[Floats, Floats]
    labels: tuple[NDArray[np.intp], NDArray[np.intp]]
    shared: int
    truth: float
    geometric: float


def draw(world: World, n: int, simulations: int, rng: np.random.Generator) -> Sample:
    counts = (n, max(8, round(n * world.controls)))
    shared = int(min(counts) * world.overlap)
    template = [rng.standard_normal((2, simulations, count, 1)) for count in counts]
    mixed = world.rho * template[0][:, :, :shared] + np.sqrt(1 - world.rho**2) * template[1][:, :, :shared]
    template[1][:, :, :shared] = mixed
    if world.inside > 1:
        own = rng.standard_normal((2, simulations, counts[1], world.inside))
        template[1] = np.sqrt(0.5) * template[1] + np.sqrt(0.5) * own
    before, after, labels, truths, geometric = [], [], [], [], []
    for side, kinds in enumerate((world.categories, world.sets)):
        places = np.arange(counts[side])[:, None] % kinds
        label = places if side == 0 or world.inside == 1 else np.tile(np.arange(world.inside), (counts[1], 1))
        scores = np.array([NormalDist().inv_cdf((k + 0.5) / kinds) for k in range(kinds)])
        slope, size, effect = (world.slope, 0.0)[side], world.size[side], world.effect[side]
        mean_b, mean_r = world.spread * scores, world.tilt * np.roll(scores, kinds // 2)
        deviation, noise = template[side]
        b = np.exp(mean_b[label] + size * deviation)
        a = b * np.exp(mean_r[label] + slope * size * deviation + effect * noise)
        true_b = np.exp(mean_b + size**2 / 2).mean()
        true_a = np.exp(mean_b + mean_r + ((1 + slope) * size) ** 2 / 2 + effect**2 / 2).mean()
        before.append(b)
        after.append(a)
        labels.append(label)
        truths.append(np.log(true_a / true_b))
        geometric.append(mean_r.mean())
    shift = np.log(RATIO_OF_RATIOS) - (truths[0] - truths[1])
    after[0] = after[0] * np.exp(shift)
    return Sample(
        (before[0], before[1]),
        (after[0], after[1]),
        (labels[0], labels[1]),
        shared,
        np.log(RATIO_OF_RATIOS),
        geometric[0] - geometric[1] + shift,
    )


def values(sample: Sample, side: int, i: int) -> PairedValues:
    """What the package is given."""
    b, a, labels = sample.before[side][i], sample.after[side][i], sample.labels[side]
    places = np.repeat(np.arange(b.shape[0]), b.shape[1])
    names = [f"T{place}" if place < sample.shared else f"{side}-{place}" for place in places]
    return PairedValues(
        before=b.ravel(),
        after=a.ravel(),
        categories=labels.ravel().tolist(),
        clusters=names,
        templates=names if sample.shared else None,
    )


def others(sample: Sample, i: int, rng: np.random.Generator, resamples: int) -> dict[str, tuple[float, float]]:
    """Intervals of the log ratio of ratios that were not chosen; independent of the package."""
    log, error, skew, log_R, error_R, skew_R = draws(sample, i, sample.shared, rng, resamples)
    k = int(0.025 * (resamples + 1))
    t = (log_R - log) / error_R
    t = np.where(np.isfinite(t), t, np.inf)
    ordered = np.sort(t)
    bias, acceleration = norm.ppf(np.clip((log_R < log).mean(), 1e-3, 1 - 1e-3)), skew / 6
    z = bias + norm.ppf([0.025, 0.975])
    corrected = norm.cdf(bias + z / (1 - acceleration * z))
    turned = np.sort(np.nan_to_num(t + skew_R * t**2 / 3 + skew_R**2 * t**3 / 27 + skew_R / 6, nan=np.inf))
    hall = [back(turned[place], skew) for place in (-k, k - 1)]
    reach = student.ppf(0.975, min(sample.before[0].shape[1], sample.before[1].shape[1]) - 1) * error
    ends = {
        "equal tails": (log - ordered[-k] * error, log - ordered[k - 1] * error),
        "Student": (log - reach, log + reach),
        "percentile": np.quantile(log_R, [0.025, 0.975]),
        "BCa": np.quantile(log_R, corrected),
        "Hall": (log - hall[0] * error, log - hall[1] * error),
    }
    if sample.shared:
        log, error, _, log_R, error_R, _ = draws(sample, i, 0, rng, resamples)
        reach = np.sort(np.abs(log_R - log) / error_R)[-2 * k] * error
        ends["uncrossed"] = (log - reach, log + reach)
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def draws(
    sample: Sample, i: int, shared: int, rng: np.random.Generator, resamples: int
) -> tuple[float, float, float, Floats, Floats, Floats]:
    """Log ratio, jackknife error and skewness, in the data and in resamples: one urn if templates are shared, else two."""
    columns = []
    for side in (0, 1):
        labels = sample.labels[side]
        weight = 1 / (len(np.unique(labels)) * np.bincount(labels.ravel())[labels])
        columns += [(weight * part[side][i]).sum(1) for part in (sample.after, sample.before)]
    sizes = (len(columns[0]), len(columns[2]))
    n = sum(sizes) - shared
    a_d, b_d = (np.r_[column, np.zeros(n - sizes[0])] for column in columns[:2])
    a_c, b_c = (np.r_[column[:shared], np.zeros(sizes[0] - shared), column[shared:]] for column in columns[2:])
    urns = [n] if shared else sizes
    counts = np.concatenate([rng.multinomial(m, np.full(m, 1 / m), resamples) for m in urns], axis=1).astype(float)

    def of(k: Floats) -> tuple[Floats, Floats, Floats]:
        value, moved = np.zeros(len(k)), np.zeros(k.shape)
        for sign, top, bottom in ((1, a_d, b_d), (-1, a_c, b_c)):
            A, B = (k @ top)[:, None], (k @ bottom)[:, None]
            value += sign * np.log(A / B)[:, 0]
            moved += sign * (np.log1p(-top / A) - np.log1p(-bottom / B))
        moved = np.where(k > 0, moved, 0.0)
        moved -= (k * moved).sum(1, keepdims=True) / n
        squares = (k * moved**2).sum(1)
        return value, np.sqrt((n - 1) / n * squares), -(k * moved**3).sum(1) / squares**1.5

    with np.errstate(all="ignore"):
        (log,), (error,), (skew,) = of(np.ones((1, n)))
        return (float(log), float(error), float(skew), *of(counts))


def back(g: float, skew: float) -> float:
    """Invert g = t + s t^2 / 3 + s^2 t^3 / 27 + s / 6 (Hall 1992, section 2)."""
    return float(g - skew / 6) if abs(skew) < 1e-6 else float(3 / skew * (np.cbrt(1 + skew * (g - skew / 6)) - 1))


def row(label: str, n: int, options: argparse.Namespace) -> str:
    rng = np.random.default_rng(options.seed)
    sample = draw(WORLDS[label], n, options.simulations, rng)
    chosen, plain, rest = [], [], []
    for i in range(options.simulations):
        found = difference_in_differences(values(sample, 0, i), values(sample, 1, i), resamples=options.resamples, seed=i)
        assert found.crossed == (sample.shared > 0)
        best, geometric = found.ratio_of_ratios, found.geometric
        chosen.append([best.ratio, *(getattr(best, name) for name in ("ci_low", "ci_high", "bound_low", "bound_high"))])
        plain.append([geometric.ci_low, geometric.ci_high])
        if i < options.others:
            ends = others(sample, i, rng, options.resamples)
            rest.append([ends.get(name, (np.nan, np.nan)) for name in OTHERS])
    logs = np.log(np.array(chosen, dtype=float))
    told = np.isfinite(logs[:, 2])
    value, low, high, bound_low, bound_high = logs.T
    below, above = np.mean(high[told] < sample.truth), np.mean(low[told] > sample.truth)
    bounds = np.mean(bound_high[told] < sample.truth), np.mean(bound_low[told] > sample.truth)
    powers = np.mean(bound_high < np.log(0.9)), power_to_show(RATIO_OF_RATIOS, float(value.std()), limit=0.9)
    ends = np.log(np.array(plain, dtype=float))
    known = np.isfinite(ends[:, 0])
    even = np.mean((ends[known, 0] <= sample.geometric) & (sample.geometric <= ends[known, 1]))
    other = np.array(rest)
    cover = np.mean((other[:, :, 0] <= sample.truth) & (sample.truth <= other[:, :, 1]), axis=0)
    cells = [
        f"{100 * (1 - below - above):.1f}",
        f"{100 * below:.1f}, {100 * above:.1f}",
        f"{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}",
        f"{100 * np.mean(~told):.1f}",
        f"{100 * powers[0]:.0f}, {100 * powers[1]:.0f}",
        f"{np.median(np.exp(high[told] - low[told])):.2f}",
        f"{100 * even:.1f}",
        *(f"{100 * one:.1f}" for one in cover[:-1]),
        f"{100 * cover[-1]:.1f}" if sample.shared else "-",
    ]
    return f"| {label} | {n} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--others", type=int, default=1000, help="simulations in which the other intervals are made, too")
    parser.add_argument("--resamples", type=int, default=599)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clusters", type=int, nargs="+", default=[20, 40, 80, 160])
    parser.add_argument("--world", choices=WORLDS, nargs="+", default=list(WORLDS))
    options = parser.parse_args()
    began = time.time()
    names = [
        "chosen",
        "below, above",
        "bounds",
        "not estimable",
        "power: simulated, normal",
        "high / low",
        "geometric",
        *OTHERS,
    ]
    print("| world | clusters | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 2) + "|")
    for label in options.world:
        for n in options.clusters:
            print(row(label, n, options), flush=True)
    settings = f"{options.simulations} simulations ({options.others} of the other intervals), {options.resamples} resamples"
    print(
        f"\n{common.machine()}, numpy {np.__version__}; {settings}, seed {options.seed}; {(time.time() - began) / 60:.0f} minutes"
    )


if __name__ == "__main__":
    main()
