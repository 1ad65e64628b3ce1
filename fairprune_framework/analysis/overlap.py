"""Do the categories select the same neurons?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairprune_framework.analysis.common import as_set, chosen_by_category, matrix, opened_run, ratio, square
from fairprune_framework.functional.hypothesis_tests import holm
from fairprune_framework.runs.run import Run
from fairprune_framework.utilities.files import write_json
from fairprune_framework.utilities.progress import Notify, silent


def overlap(run: Run | str | Path, notify: Notify = silent) -> dict[str, Any]:
    """Do the categories select the same neurons? `counts[a][b]`: shared units; p-values: hypergeometric, for at least as many by
    chance among the eligible units; `p_adjusted`: Holm's correction over all pairs. Writes `overlap.json`."""
    from scipy.stats import hypergeom

    opened = opened_run(run, notify, "score")
    scores = opened.read_scores()
    sets = {category: as_set(plan) for category, plan in chosen_by_category(opened).items()}
    names = sorted(sets)
    layers = set(opened.recipe.protected_layers)
    population = sum(int(scores.observed[n].sum()) for n, site in scores.sites.items() if site.layer not in layers)
    counts = [[len(sets[a] & sets[b]) for b in names] for a in names]
    jaccard = [[ratio(len(sets[a] & sets[b]), len(sets[a] | sets[b])) or 0.0 for b in names] for a in names]
    pairs = [(i, j) for i in range(len(names)) for j in range(i)]
    values = [float(hypergeom.sf(counts[i][j] - 1, population, counts[i][i], counts[j][j])) for i, j in pairs]
    answer = {
        "format": "fairprune-overlap/1",
        "categories": names,
        "units": [len(sets[name]) for name in names],
        "population": population,
        "counts": counts,
        "jaccard": jaccard,
        "p_values": square(len(names), pairs, values),
        "p_adjusted": square(len(names), pairs, holm(values)),
    }
    write_json(opened.folder / "overlap.json", answer)
    return answer


def render(answer: Mapping[str, Any]) -> str:
    """The answer as text."""
    head = f"units shared by categories, of {answer['population']:,}; * more than chance (Holm, 5 %)"
    cells = [
        [f"{n}{'*' if (p := answer['p_adjusted'][i][j]) is not None and p <= 0.05 else ''}" for j, n in enumerate(row)]
        for i, row in enumerate(answer["counts"])
    ]
    return "\n".join([head, "", *matrix(answer["categories"], answer["categories"], cells)])
