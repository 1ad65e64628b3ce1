"""The table of an ablation: Pareto front, ranking, files and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairprune_framework.functional.hypothesis_tests import holm
from fairprune_framework.utilities.files import atomic, write_json

FORMAT = "fairprune-ablation/1"
Row = dict[str, Any]


def pareto(rows: Sequence[Mapping[str, Any]]) -> list[bool]:
    """The rows that no other dominates: less bias at no more perplexity, or less perplexity at no more bias.

    Rows without a change (an empty plan, or no bias to reduce) and controls are never on the front.

    >>> a, b, c = ({"bias_change": d, "perplexity_change": p, "units": 1} for d, p in ((-0.4, 0.01), (-0.2, 0.02), (-0.1, 0.0)))
    >>> pareto([a, b, c])
    [True, False, True]
    """

    def point(row: Mapping[str, Any]) -> tuple[float, float] | None:
        usable = row["units"] and row["bias_change"] is not None and not row.get("control")
        return (row["bias_change"], row["perplexity_change"]) if usable else None

    points = [point(row) for row in rows]
    real = {point for point in points if point is not None}

    def beaten(mine: tuple[float, float]) -> bool:
        return any(other != mine and other[0] <= mine[0] and other[1] <= mine[1] for other in real)

    return [point is not None and not beaten(point) for point in points]


def completed(rows: Sequence[Row]) -> list[Row]:
    """The rows with columns that depend on all of them: the front, the best control at equal budget, Holm over all cells."""
    front = pareto(rows)
    best: dict[Any, float] = {}
    for row in rows:
        if row["control"] and row["bias_change"] is not None:
            key = (row["operator"], row["factor"], row["budget"])
            best[key] = min(best.get(key, row["bias_change"]), row["bias_change"])
    tested = [row["p_value"] for row in rows if row["p_value"] is not None and not row["control"] and row["units"]]
    adjusted = iter(holm(tested))
    done = []
    for row, on_front in zip(rows, front, strict=True):
        control = best.get((row["operator"], row["factor"], row["budget"]))
        judged = row["p_value"] is not None and not row["control"] and row["units"]
        done.append({**row, "pareto": on_front, "best_control": control, "p_adjusted": next(adjusted) if judged else None})
    return done


def ranked(rows: Sequence[Row]) -> list[Row]:
    """The cells eligible for confirmation: no controls, a nonempty plan, within the guard's limit; the largest reduction first."""
    able = [row for row in rows if not row["control"] and row["units"] and row["guard_held"]]
    return sorted((row for row in able if row["bias_change"] is not None), key=lambda row: (row["bias_change"], row["cell"]))


def save(folder: Path, rows: Sequence[Row], record: Mapping[str, Any]) -> None:
    """Write `results.parquet` and `ablation.json`, each atomically."""
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    flat = [{name: json.dumps(value) if isinstance(value, dict) else value for name, value in row.items()} for row in rows]
    with atomic(folder / "results.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(flat), temporary)
    write_json(folder / "ablation.json", {"format": FORMAT, **record, "cells": list(rows)})


def render(record: Mapping[str, Any], most: int = 12) -> str:
    """The leaderboard as text: at most `most` cells, the range of the controls, and the confirmation."""
    rows = record["cells"]
    best, controls = ranked(rows), [row for row in rows if row["control"]]
    judged = record["judged_on"]
    short = record["judged_by"].rpartition("-")[2]
    lines = [
        f"{len(rows)} cells ({len(controls)} of them controls), judged on {judged['contrasts']} contrasts of select with "
        f"{judged['templates']} templates, which selected no neuron",
        "",
        f"{'cell':<11} {short + ' [95 %]':<24} {'controls':>9} {'perplexity':>11} {'units':>6}   ",
    ]
    for row in best[:most]:
        lines.append(_line(row))
        lines.append(f"{'':<11} {_short(row['what'])}")
    if not best:
        lines.append("no cell is within the guard's limit and reduces the metric")
    if len(best) > most:
        lines.append(f"... {len(best) - most} more in results.parquet")
    over = sum(not row["guard_held"] for row in rows if not row["control"])
    empty = sum(not row["units"] for row in rows)
    if over:
        lines.append(f"{over} cells cost more perplexity than --max-perplexity-increase allows")
    if empty:
        lines.append(f"{empty} cells planned nothing: see the reasons in results.parquet")
    if controls:
        changes = [row["bias_change"] for row in controls if row["bias_change"] is not None]
        if changes:
            lines.append(f"controls, random neurons: {min(changes):+.1%} to {max(changes):+.1%}, {len(changes)} cells")
    lines.append(f"* on the Pareto front of {short} against perplexity")
    confirmed = record.get("confirmed")
    if confirmed is None:
        lines += ["", "held-out contrasts were not looked at: --confirm K does so, once"]
    else:
        lines += ["", f"confirmed once on held-out contrasts, after a look at {confirmed['cells_looked_at']} cells:"]
        for row in confirmed["results"]:
            lines.append(f"{row['cell']:<11} {row['verdict']}: {row['because']}")
    return "\n".join(lines)


def _line(row: Mapping[str, Any]) -> str:
    star = "*" if row["pareto"] else " "
    interval = "" if row["ci_low"] is None else f" [{row['ci_low']:+.1%}, {row['ci_high']:+.1%}]"
    control = "" if row["control_change"] is None else f"{row['control_change']:+.1%}"
    change = f"{row['bias_change']:+.1%}{interval}"
    return f"{row['cell']:<11} {change:<24} {control:>9} {row['perplexity_change']:>+11.2%} {row['units']:>6} {star}"


def _short(text: str, width: int = 66) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
