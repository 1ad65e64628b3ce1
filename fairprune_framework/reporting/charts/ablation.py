"""The Pareto front of an ablation: reduction of bias against cost, for each combination."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fairprune_framework.evaluation.metrics.names import DIVERGENCE
from fairprune_framework.reporting.charts.chart import (
    BLUE,
    CONTROL,
    CYCLE,
    LEGEND_ABOVE,
    SYMBOLS,
    Chart,
    Table,
    axis,
    interval,
    percent,
    plain,
)
from fairprune_framework.reporting.run_data import Source


def pareto(source: Source) -> Chart | None:
    """The judging metric against perplexity for every cell, with intervals; the front as a line. None without `ablation.json`."""
    cells = [cell for cell in (source.ablation or {}).get("cells", ()) if _known(cell)]
    if not cells:
        return None
    metric = str((source.ablation or {}).get("judged_by", DIVERGENCE)).replace("-", " ")
    ordinary = [cell for cell in cells if not cell.get("control")]
    kinds = list(dict.fromkeys(str(cell.get("bias")) for cell in ordinary))
    data = [_marks("random controls", [cell for cell in cells if cell.get("control")], CONTROL, "x-thin-open")]
    for index, kind in enumerate(kinds):
        chosen = [cell for cell in ordinary if str(cell.get("bias")) == kind]
        data.append(_marks(plain(kind, 30), chosen, CYCLE[index % len(CYCLE)], SYMBOLS[index % len(SYMBOLS)]))
    front = sorted((cell for cell in ordinary if cell.get("pareto")), key=lambda cell: float(cell["perplexity_change"]))
    data.append(
        {
            "type": "scatter",
            "mode": "lines",
            "name": "Pareto front",
            "x": [cell["perplexity_change"] for cell in front],
            "y": [cell["bias_change"] for cell in front],
            "line": {"color": BLUE, "dash": "dot", "width": 2},
            "hoverinfo": "skip",
        }
    )
    rows = [
        [
            _label(cell),
            str(cell.get("budget", "–")),
            str(cell.get("units", "–")),
            percent(cell["bias_change"]),
            interval(cell),
            percent(cell["perplexity_change"]),
            "yes" if cell.get("pareto") else "",
            {True: "held", False: "failed"}.get(cell.get("guard_held"), "–"),
        ]
        for cell in sorted(cells, key=lambda cell: float(cell["bias_change"]))
    ]
    left_out = len((source.ablation or {}).get("cells", ())) - len(cells)
    return Chart(
        name="pareto",
        title="Effect and cost of each combination",
        caption="Each mark is one combination of scores, policy and budget: down is less bias, right is more perplexity. "
        "Bars are 95 % intervals. The dotted line joins the combinations that no other beats on both. Crosses are equally many random "
        "neurons: a result no better than theirs is not a finding. The best of many overestimates its effect; only a confirmation "
        "on separate contrasts counts.",
        summary=f"{len(cells)} combinations by change of {metric} and of perplexity; the table below lists all.",
        data=data,
        layout={
            "xaxis": axis("change of perplexity", tickformat="+.1%", zeroline=True),
            "yaxis": axis(f"change of {metric}", tickformat="+.0%", zeroline=True),
            "showlegend": True,
            "legend": LEGEND_ABOVE,
            "hovermode": "closest",
        },
        table=Table(
            columns=("combination", "budget", "neurons", metric, "95 % interval", "perplexity", "Pareto", "guard"),
            rows=rows,
            note=f"{left_out} combinations have no result and are omitted." if left_out else "",
        ),
        zoom=True,
        height=520,
    )


def _known(cell: Mapping[str, Any]) -> bool:
    return cell.get("bias_change") is not None and cell.get("perplexity_change") is not None


def _label(cell: Mapping[str, Any]) -> str:
    parts = [str(cell[key]) for key in ("bias", "importance", "policy", "operator") if cell.get(key)]
    return " · ".join(parts) + (f" · seed {cell['seed']}" if cell.get("control") and cell.get("seed") is not None else "")


def _marks(name: str, cells: Sequence[Mapping[str, Any]], color: str, symbol: str) -> dict[str, Any]:
    def reach(cell: Mapping[str, Any], bound: str) -> float:
        return abs(cell[bound] - cell["bias_change"]) if cell.get(bound) is not None else 0.0

    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [cell["perplexity_change"] for cell in cells],
        "y": [cell["bias_change"] for cell in cells],
        "customdata": [plain(f"{_label(cell)}, {cell.get('budget', '')}", 80) for cell in cells],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [reach(cell, "ci_high") for cell in cells],
            "arrayminus": [reach(cell, "ci_low") for cell in cells],
            "color": color,
            "thickness": 1.2,
            "width": 3,
        },
        "marker": {"color": color, "size": 9, "symbol": symbol, "line": {"width": 1.5, "color": color}},
        "hovertemplate": "%{customdata}<br>divergence %{y:+.1%}, perplexity %{x:+.1%}<extra>%{fullData.name}</extra>",
    }
