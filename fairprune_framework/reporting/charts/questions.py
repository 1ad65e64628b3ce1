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
    answer = source.more.get("stability")
    if not answer or not answer["units"]:
        return None
    units = answer["units"][:SHOWN]
    names = [plain(f"{unit['site']}:{unit['unit']}", 40) for unit in units]
    traces = []
    for planned, label, color in ((True, "in the plan", BEFORE), (False, "not in the plan", CONTROL)):
        chosen = [index for index, unit in enumerate(units) if unit["planned"] is planned]
        traces.append(
            {
                "type": "bar",
                "name": label,
                "x": [index + 1 for index in chosen],
                "y": [units[index]["frequency"] for index in chosen],
                "customdata": [names[index] for index in chosen],
                "marker": {"color": color, "pattern": {"shape": "" if planned else "/"}},
                "hovertemplate": "%{customdata}: %{y:.0%}<extra></extra>",
            }
        )
    mean = answer["mean_frequency"]
    return Chart(
        name="stability",
        title="Would other templates have selected the same neurons?",
        caption=f"Templates of each category were drawn with replacement {answer['replicates']} times; a bar is the share of draws "
        f"that selected a neuron. {answer['stable_75']} of the {answer['planned']} planned neurons are selected in at least 75 % of draws; "
        f"two draws share {number(answer['mean_jaccard'], 2)} of their neurons (Jaccard index). A rare selection was made by chance.",
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
            note=f"{len(units)} of {answer['units_ever_chosen']} neurons selected at least once.",
        ),
    )


def causal(source: Source) -> Chart | None:
    """Effect of the plan, beside random neurons of equal activation norm, and on controls. None without `causal.json`."""
    answer = source.more.get("causal")
    if not answer:
        return None
    random = [each["change"] for each in answer["random"] if each["change"] is not None]
    rows: list[tuple[str, dict[str, Any]]] = [("the plan, demographic contrasts", answer["demographic"])]
    if answer.get("control"):
        rows.append(("the plan, controls", answer["control"]))
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
        caption=f"Change of the divergence ({plain(answer['split'])} contrasts) when {answer['units']} neurons are masked: the plan "
        f"with a 95 % interval, and {len(random)} draws of random neurons in the same layers with equal activation norms. "
        f"p = {number(answer['p_value'], 2)}: the share of draws, the plan included, with at least the same reduction.",
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
