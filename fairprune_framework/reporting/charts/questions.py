"""Two questions about a plan: would other templates have selected it, and has it more effect than random neurons?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairprune_framework.reporting.charts.chart import (
    AFTER,
    BEFORE,
    CONTROL,
    LEGEND_ABOVE,
    Chart,
    Table,
    axis,
    interval,
    number,
    percent,
    plain,
)
from fairprune_framework.reporting.run_data import Source

SHOWN = 60
"""Maximum number of neurons in the stability chart, the most frequent first."""


def stability(source: Source) -> Chart | None:
    """Selection frequency of each neuron under resampled templates. None without `stability.json`."""
    found = source.more.get("stability")
    if not found or not found["units"]:
        return None
    units = found["units"][:SHOWN]
    names = [plain(f"{unit['site']}:{unit['unit']}", 40) for unit in units]
    traces = []
    for planned, label, color in ((True, "in the plan", BEFORE), (False, "not in the plan", CONTROL)):
        chosen = [place for place, unit in enumerate(units) if unit["planned"] is planned]
        traces.append(
            {
                "type": "bar",
                "name": label,
                "x": [place + 1 for place in chosen],
                "y": [units[place]["frequency"] for place in chosen],
                "customdata": [names[place] for place in chosen],
                "marker": {"color": color, "pattern": {"shape": "" if planned else "/"}},
                "hovertemplate": "%{customdata}: %{y:.0%}<extra></extra>",
            }
        )
    mean = found["mean_frequency"]
    return Chart(
        name="stability",
        title="Would other templates have selected the same neurons?",
        caption=f"Templates of each category were drawn with replacement {found['replicates']} times; a bar is the share of draws "
        f"that selected a neuron. {found['stable_75']} of the {found['planned']} planned neurons are selected in at least 75 % of draws; "
        f"two draws share {number(found['mean_jaccard'], 2)} of their neurons (Jaccard index). A rare selection was made by chance.",
        summary=f"Selection frequency of {len(units)} neurons; planned ones on average in {_share(mean)} of the draws.",
        data=traces,
        layout={
            "xaxis": axis("neuron, the most frequent first", showgrid=False),
            "yaxis": axis("share of the draws", tickformat=".0%", range=[0, 1]),
            "barmode": "overlay",
            "legend": LEGEND_ABOVE,
        },
        table=Table(
            columns=("neuron", "selected in", "in the plan"),
            rows=[
                [f"{unit['site']}:{unit['unit']}", _share(unit["frequency"]), "yes" if unit["planned"] else "no"]
                for unit in units
            ],
            note=f"{len(units)} of {found['units_ever_chosen']} neurons selected at least once.",
        ),
    )


def causal(source: Source) -> Chart | None:
    """Effect of the plan, beside random neurons of equal activation norm, and on controls. None without `causal.json`."""
    found = source.more.get("causal")
    if not found:
        return None
    random = [each["change"] for each in found["random"] if each["change"] is not None]
    rows: list[tuple[str, dict[str, Any]]] = [("the plan, demographic contrasts", found["demographic"])]
    if found.get("control"):
        rows.append(("the plan, controls", found["control"]))
    known = [(label, effect) for label, effect in rows if effect and effect["change"] is not None]
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "random neurons",
            "x": random,
            "y": ["random neurons"] * len(random),
            "marker": {"color": CONTROL, "symbol": "circle-open", "size": 10},
            "hovertemplate": "%{x:.1%}<extra>random neurons</extra>",
        }
    ]
    for (label, effect), color, symbol in zip(known, (BEFORE, AFTER), ("diamond", "square"), strict=False):
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": label,
                "x": [effect["change"]],
                "y": [label],
                "marker": {"color": color, "symbol": symbol, "size": 12},
                "hovertemplate": "%{x:.1%}<extra></extra>",
                **_bounds(effect, color),
            }
        )
    return Chart(
        name="causal",
        title="Is the effect of the plan larger than chance?",
        caption=f"Change of the divergence ({plain(found['split'])} contrasts) when {found['units']} neurons are masked: those of the plan "
        f"with a 95 % interval, and {len(random)} draws of random neurons in the same layers with equal activation norms. "
        f"p = {number(found['p_value'], 2)}: the share of draws, the plan included, with at least the same reduction.",
        summary="; ".join(f"{label}: {percent(effect['change'])}" for label, effect in known)
        + (f"; random neurons: {percent(min(random))} to {percent(max(random))}" if random else ""),
        data=traces,
        layout={
            "xaxis": axis("change of the divergence", tickformat=".0%"),
            "yaxis": axis("", type="category", showgrid=False),
            "showlegend": False,
        },
        table=Table(
            columns=("neurons", "change", "95 % interval"),
            rows=[
                *([label, percent(effect["change"]), interval(effect)] for label, effect in known),
                *(["random", percent(value), "–"] for value in random),
            ],
        ),
        height=260,
    )


def _bounds(effect: Mapping[str, Any], color: str) -> dict[str, Any]:
    """The interval as a bar, if there is one."""
    low, change, high = effect["ci_low"], effect["change"], effect["ci_high"]
    if low is None or high is None:
        return {}
    bar = {"type": "data", "symmetric": False, "array": [high - change], "arrayminus": [change - low], "color": color}
    return {"error_x": bar}


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
