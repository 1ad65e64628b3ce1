"""How many templates and controls it takes to show that a change is specific: normal approximation on the log scale.

The standard error of delta = log(A_d / B_d) - log(A_c / B_c) is

    se^2 = s_d^2 / n_d + s_c^2 / n_c - 2 rho s_d s_c m / (n_d n_c)

for n_d and n_c templates with m shared ones, standard deviations s per template (`spread_per_template`), and the correlation rho
of the two sides within a shared template. The upper one-sided 99 % bound falls below a limit L with the power asked for where the
true ratio of ratios is at most L exp(-(z_0.99 + z_power) se). Source: textbook normal power (Cohen 1988, chapter 1);
benchmarks/ratio_of_ratios_coverage.py compares it with simulated power: it flatters few templates.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from fairprune_framework.functional.paired_bootstrap import BOUND_LEVEL

POWER = 0.8


def error_of_difference(
    demographic: int, controls: int, *, spreads: tuple[float, float], shared: int = 0, correlation: float = 0.0
) -> float:
    """Return the standard error of the log ratio of ratios.

    Args:
        demographic: templates with demographic contrasts.
        controls: templates with control contrasts.
        spreads: standard deviation per template of the log ratio of means: demographic, controls.
        shared: templates that hold both.
        correlation: of the two within a shared template.

    Raises:
        ValueError: a count is below 1, `shared` is above either, or the correlation is not in [-1, 1].

    >>> round(error_of_difference(80, 15, spreads=(1.07, 0.40)), 3)
    0.158
    """
    if min(demographic, controls) < 1 or not 0 <= shared <= min(demographic, controls) or not -1 <= correlation <= 1:
        raise ValueError(
            "error_of_difference needs at least one template on each side, shared ones among them, and a correlation in "
            f"[-1, 1]. Got {demographic=}, {controls=}, {shared=}, {correlation=}."
        )
    d, c = spreads
    return math.sqrt(
        max(d**2 / demographic + c**2 / controls - 2 * correlation * d * c * shared / (demographic * controls), 0.0)
    )


def largest_ratio_shown(error: float, *, limit: float = 1.0, power: float = POWER) -> float:
    """The true ratio at which the upper one-sided 99 % bound falls below `limit` with this power; smaller ones show more often.

    >>> round(largest_ratio_shown(0.0705, limit=0.9), 2)
    0.72
    """
    normal = NormalDist()
    return limit * math.exp(-(normal.inv_cdf(BOUND_LEVEL) + normal.inv_cdf(power)) * error)


def power_to_show(ratio: float, error: float, *, limit: float = 1.0) -> float:
    """How often the upper one-sided 99 % bound falls below `limit` where `ratio` is the truth.

    >>> round(power_to_show(0.7, 0.0793, limit=0.9), 2)
    0.8
    """
    normal = NormalDist()
    return normal.cdf(math.log(limit / ratio) / error - normal.inv_cdf(BOUND_LEVEL))


def templates_to_show(
    ratio: float, *, spreads: tuple[float, float], limit: float = 1.0, correlation: float = 0.0, power: float = POWER
) -> int | None:
    """How many templates on each side, all of them shared where `correlation` is given, show that `ratio` is below `limit`.

    Returns:
        None: the ratio is not below the limit, so that no number would show it.

    >>> templates_to_show(0.7, limit=0.9, spreads=(1.07, 0.40))
    208
    >>> templates_to_show(0.95, limit=0.9, spreads=(1.07, 0.40)) is None
    True
    """
    d, c = spreads
    growth = growth_to_show(ratio, math.sqrt(d**2 + c**2 - 2 * correlation * d * c), limit=limit, power=power)
    return None if growth is None else max(math.ceil(growth - 1e-9), 1)


def growth_to_show(ratio: float, error: float, *, limit: float = 1.0, power: float = POWER) -> float | None:
    """By how much data must grow to show `ratio` below `limit`, if the ratio is the truth and `error` its error on the log scale.

    Returns:
        A factor on the number of templates, below 1 where fewer would do; None where the ratio is not below the limit.

    >>> round(growth_to_show(0.75, 0.1155, limit=0.9), 1)
    4.0
    """
    if ratio >= limit:
        return None
    normal = NormalDist()
    return (error * (normal.inv_cdf(BOUND_LEVEL) + normal.inv_cdf(power)) / math.log(limit / ratio)) ** 2
