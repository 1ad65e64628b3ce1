"""Does a selection for one category help another?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairprune_framework.analysis.common import chosen_by_category, divergence_evaluator, matrix, opened_run
from fairprune_framework.functional.hypothesis_tests import holm
from fairprune_framework.runs.run import Run
from fairprune_framework.utilities.files import write_json
from fairprune_framework.utilities.progress import Notify, silent


def transfer(run: Run | str | Path, notify: Notify = silent) -> dict[str, Any]:
    """Does a selection for one category help another? Rows: selected for; columns: judged on. `change` of the divergence with its
    interval over templates; `p_adjusted`: Holm's correction over the matrix. The last columns are the control categories. Writes
    `transfer.json`.
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
    }
    write_json(opened.folder / "transfer.json", answer)
    return answer


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
    return "\n".join([head, "", *matrix(answer["categories"], columns, cells), "", "(in brackets): controls"])
