"""Does a selection for one category help another, or harm it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairprune_framework.analysis.common import chosen_by_category, divergence_evaluator, matrix, opened_run
from fairprune_framework.functional.hypothesis_tests import holm
from fairprune_framework.functional.paired_bootstrap import PairedChange
from fairprune_framework.runs.run import Run
from fairprune_framework.utilities.files import write_json
from fairprune_framework.utilities.progress import Notify, silent

MARGIN = 0.10
"""Of the `spillover`: a category whose interval stays below it is shown not to be harmed by more."""


def transfer(run: Run | str | Path, notify: Notify = silent) -> dict[str, Any]:
    """Does a selection for one category help another? Rows: selected for; columns: judged on. `change` of the divergence with its
    interval over templates; `p_adjusted`: Holm's correction over the matrix. The last columns are the control categories. `spillover`:
    what the selection for one category does to the others. Writes `transfer.json`.
    """
    opened = opened_run(run, notify, "score")
    plans = chosen_by_category(opened)
    split, evaluator = divergence_evaluator(opened)
    names = sorted(plans)
    columns = [(False, name) for name in names]
    columns += [(True, name) for name in sorted({c.category for c in evaluator.contrasts if c.control})]
    table = []
    for index, name in enumerate(names, 1):
        notify(f"judging the selection for {name}: {index} of {len(names)}")
        after = evaluator.measure(plans[name].sites, plans[name].scaling)
        table.append([evaluator.change(after, control=control, category=category) for control, category in columns])

    def of(field: str) -> list[list[float | None]]:
        return [[None if change is None else getattr(change, field) for change in row] for row in table]

    p_values = of("p_value")
    adjusted = iter(holm([value for row in p_values for value in row if value is not None]))
    answer = {
        "format": "fairprune-transfer/1",
        "categories": names,
        "judged": [name for _, name in columns],
        "controls": [control for control, _ in columns],
        "split": split,
        "units": [plans[name].count for name in names],
        "change": of("change"),
        "ci_low": of("ci_low"),
        "ci_high": of("ci_high"),
        "p_values": p_values,
        "p_adjusted": [[None if value is None else next(adjusted) for value in row] for row in p_values],
        "spillover": spillover([change for i, row in enumerate(table) for j, change in enumerate(row[: len(names)]) if i != j]),
    }
    write_json(opened.folder / "transfer.json", answer)
    return answer


def spillover(changes: Sequence[PairedChange | None]) -> dict[str, Any]:
    """How many categories get worse where another one was selected for.

    Without Holm's correction, which would make harm harder to show: of cells in which nothing happens one in 40 is `worse` by chance.

    Args:
        changes: of the divergence, one a pair of a selecting category and another one.

    Returns:
        `cells`; of these `worse` (the 95 % interval lies above 0), `not_harmed` (it lies below `margin`) and `not_estimable`; and
        `share_worse` of the cells that have an interval, None without any.
    """
    told = [(one.ci_low, one.ci_high) for one in changes if one is not None and one.not_estimable is None]
    worse = sum(low is not None and low > 0 for low, _ in told)
    return {
        "cells": len(changes),
        "worse": worse,
        "share_worse": worse / len(told) if told else None,
        "not_harmed": sum(high is not None and high < MARGIN for _, high in told),
        "not_estimable": len(changes) - len(told),
        "margin": MARGIN,
    }


def render(answer: Mapping[str, Any]) -> str:
    """The answer as text."""
    head = f"change of the divergence; rows: selected for, columns: judged on ({answer['split']}); * Holm, 5 %"
    cells = [
        [
            "" if value is None else f"{value:+.0%}{'*' if (p := answer['p_adjusted'][i][j]) is not None and p <= 0.05 else ''}"
            for j, value in enumerate(row)
        ]
        for i, row in enumerate(answer["change"])
    ]
    columns = [f"({n})" if c else n for n, c in zip(answer["judged"], answer["controls"], strict=True)]
    return "\n".join([head, "", *matrix(answer["categories"], columns, cells), "", "(in brackets): controls", _told(answer)])


def _told(answer: Mapping[str, Any]) -> str:
    found = answer["spillover"]
    counted = found["cells"] - found["not_estimable"]
    text = f"spillover: {found['worse']} of {counted} other categories significantly worse (95 %, uncorrected), "
    text += f"{found['not_harmed']} shown not to be worse by {found['margin']:.0%}"
    return text + (f"; {found['not_estimable']} more not estimable" if found["not_estimable"] else "")
