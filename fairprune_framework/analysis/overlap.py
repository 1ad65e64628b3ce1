"""The article's questions, asked of a finished run: overlap, transfer, stability and causality of the chosen neurons.

Each answer is one JSON file in the run folder. Contrasts that judge are held out where the set has a split, and said so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fairprune_framework.ablation.cell import changed
from fairprune_framework.api.rankings import draw_matched
from fairprune_framework.api.types import Plan, Scores
from fairprune_framework.errors import UserError
from fairprune_framework.runs.open import open_run
from fairprune_framework.runs.run import Run
from fairprune_framework.selection.decide import plan_of, rescored
from fairprune_framework.surgery.masking import masked
from fairprune_framework.utilities.files import write_json
from fairprune_framework.utilities.progress import Notify, silent

if TYPE_CHECKING:
    from fairprune_framework.auditing.sums import Statistics


def _opened(run: Run | str | Path, notify: Notify, stage: str) -> Run:
    found = run if isinstance(run, Run) else open_run(_existing(run), {}, notify=notify)
    found.needs(stage)
    return found


def _existing(folder: str | Path) -> Path:
    if not Path(folder).is_dir():
        raise UserError(f"there is no run folder {folder}")
    return Path(folder)


def chosen_by_category(run: Run) -> dict[str, Plan]:
    """category -> what the run's policy chooses by that category's bias alone."""
    scores = run.scores
    return {category: plan_of(run, narrowed(scores, category)) for category in sorted(scores.by_category)}


def narrowed(scores: Scores, category: str) -> Scores:
    """Scores with the bias of one category in place of the average; where it never reached a site, its units are not observed."""
    own = scores.by_category[category]
    bias = {name: own.get(name, torch.zeros_like(mean)) for name, mean in scores.bias.items()}
    observed = {name: seen & (name in own) for name, seen in scores.observed.items()}
    return replace(scores, bias=bias, observed=observed)


def _as_set(plan: Plan) -> set[tuple[str, int]]:
    return {(name, unit) for name, units in plan.sites.items() for unit in units}


# -- overlap -----------------------------------------------------------------------------------------------------------


def overlap(run: Run | str | Path, notify: Notify = silent) -> dict[str, Any]:
    """Are the same neurons found for each category? `counts[a][b]`: shared units; p-values: hypergeometric, of at least as many by
    chance among the units that may be planned; `p_adjusted`: Holm over all pairs. Writes `overlap.json`."""
    from scipy.stats import hypergeom

    from fairprune_framework.functional.hypothesis_tests import holm

    opened = _opened(run, notify, "score")
    scores = opened.scores
    sets = {category: _as_set(plan) for category, plan in chosen_by_category(opened).items()}
    names = sorted(sets)
    layers = set(opened.recipe.protected_layers)
    population = sum(int(scores.observed[n].sum()) for n, site in scores.sites.items() if site.layer not in layers)
    counts = [[len(sets[a] & sets[b]) for b in names] for a in names]
    jaccard = [[_ratio(len(sets[a] & sets[b]), len(sets[a] | sets[b])) or 0.0 for b in names] for a in names]
    pairs = [(i, j) for i in range(len(names)) for j in range(i)]
    values = [float(hypergeom.sf(counts[i][j] - 1, population, counts[i][i], counts[j][j])) for i, j in pairs]
    answer = {
        "format": "fairprune-overlap/1",
        "categories": names,
        "units": [len(sets[name]) for name in names],
        "population": population,
        "counts": counts,
        "jaccard": jaccard,
        "p_values": _square(len(names), pairs, values),
        "p_adjusted": _square(len(names), pairs, holm(values)),
    }
    write_json(opened.folder / "overlap.json", answer)
    return answer


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _square(size: int, pairs: Sequence[tuple[int, int]], values: Sequence[float]) -> list[list[float | None]]:
    """A symmetric matrix with nothing on its diagonal."""
    found: list[list[float | None]] = [[None] * size for _ in range(size)]
    for (i, j), value in zip(pairs, values, strict=True):
        found[i][j] = found[j][i] = value
    return found


# -- transfer ----------------------------------------------------------------------------------------------------------


class _Judge:
    """Divergences of the contrasts that judge: held out where there are such, otherwise all."""

    def __init__(self, run: Run) -> None:
        from fairprune_framework.auditing.batches import compose

        self.run = run
        splits = {contrast.split for contrast in run.aligned[0]}
        self.split = "heldout" if "heldout" in splits else "select"
        self.contrasts = [c for c in run.aligned[0] if c.split in (None, self.split)]
        self._batches = list(compose(self.contrasts, run.values, run.micro_batch_tokens))
        self.before = self.measured({}, 0.0)

    def measured(self, units: Mapping[str, Sequence[int]], factor: float) -> dict[str, float]:
        from fairprune_framework.evaluation.metrics.contrasts import measure

        with masked(self.run.model, self.run.architecture, units, factor):
            found = measure(self.run.model, self.run.architecture, self._batches, taps=frozenset())
        return {each.id: each.divergence for each in found}

    def change(self, after: Mapping[str, float], *, control: bool, category: str | None = None) -> Any:
        """Paired change with its interval; None where no contrast is of that kind."""
        chosen = [c for c in self.contrasts if c.control is control and category in (None, c.category)]
        return changed(chosen, self.before, after, self.run.recipe.seed) if chosen else None


def transfer(run: Run | str | Path, notify: Notify = silent) -> dict[str, Any]:
    """Does what is chosen on one category help another? Rows: chosen on; columns: judged on. `change` of the divergence with its
    interval over templates; `p_adjusted`: Holm over the matrix. The last columns are the control categories. Writes `transfer.json`.
    """
    from fairprune_framework.functional.hypothesis_tests import holm

    opened = _opened(run, notify, "score")
    plans = chosen_by_category(opened)
    judge = _Judge(opened)
    names = sorted(plans)
    columns = [(False, name) for name in names]
    columns += [(True, name) for name in sorted({c.category for c in judge.contrasts if c.control})]
    table = []
    for place, name in enumerate(names, 1):
        notify(f"judging what {name} chose: {place} of {len(names)}")
        after = judge.measured(plans[name].sites, plans[name].multiplier)
        table.append([judge.change(after, control=control, category=category) for control, category in columns])

    def of(field: str) -> list[list[float | None]]:
        return [[None if cell is None else getattr(cell, field) for cell in row] for row in table]

    p_values = of("p_value")
    adjusted = iter(holm([value for row in p_values for value in row if value is not None]))
    answer = {
        "format": "fairprune-transfer/1",
        "categories": names,
        "judged": [name for _, name in columns],
        "controls": [control for control, _ in columns],
        "split": judge.split,
        "units": [plans[name].count for name in names],
        "change": of("change"),
        "ci_low": of("ci_low"),
        "ci_high": of("ci_high"),
        "p_values": p_values,
        "p_adjusted": [[None if value is None else next(adjusted) for value in row] for row in p_values],
    }
    write_json(opened.folder / "transfer.json", answer)
    return answer


# -- stability ---------------------------------------------------------------------------------------------------------


def stability(run: Run | str | Path, replicates: int = 100, notify: Notify = silent) -> dict[str, Any]:
    """Would other templates have chosen the same neurons? The share of bootstrap replicates, over templates within each category,
    that choose each planned neuron, and the mean Jaccard index of two replicates. One more audit, which keeps sums by groups of
    templates (at most 32 a category). Importance is not resampled. Writes `stability.json`."""
    opened = _opened(run, notify, "score")
    from fairprune_framework.auditing.sums import resampled

    if replicates < 2:
        raise UserError(f"--replicates must be at least 2. Got {replicates} instead.")
    statistics = _audited_by_cluster(opened, notify)
    scores = opened.scores
    generator = torch.Generator().manual_seed(opened.recipe.seed)
    counts = {name: torch.zeros(site.units, dtype=torch.long) for name, site in scores.sites.items()}
    sets: list[set[tuple[str, int]]] = []
    for drawn in resampled(statistics, replicates, generator):
        plan = plan_of(opened, rescored(opened, scores, drawn))
        sets.append(_as_set(plan))
        for name, units in plan.sites.items():
            counts[name][list(units)] += 1
    planned = _as_set(plan_of(opened, scores))
    frequency = {name: (found.double() / replicates) for name, found in counts.items()}
    shares = sorted((frequency[name][unit].item() for name, unit in planned), reverse=True)
    overlaps = [_ratio(len(a & b), len(a | b)) or 0.0 for a, b in pairwise(sets)]
    ever = sorted(
        ((frequency[name][int(unit)].item(), name, int(unit)) for name in frequency for unit in counts[name].nonzero()),
        key=lambda entry: (-entry[0], entry[1], entry[2]),
    )
    answer = {
        "format": "fairprune-stability/1",
        "replicates": replicates,
        "groups": {
            category: sum(count > 0 for count in counts)
            for category, counts in zip(statistics.categories, statistics.cluster_counts, strict=True)
        },
        "planned": len(planned),
        "mean_frequency": sum(shares) / len(shares) if shares else None,
        "stable_75": sum(share >= 0.75 for share in shares),
        "mean_jaccard": sum(overlaps) / len(overlaps) if overlaps else None,
        "units": [
            {"site": name, "unit": unit, "frequency": share, "planned": (name, unit) in planned}
            for share, name, unit in ever[:500]
        ],
        "units_ever_chosen": len(ever),
    }
    write_json(opened.folder / "stability.json", answer)
    return answer


def _audited_by_cluster(run: Run, notify: Notify) -> Statistics:
    """Audit `select` anew, with the sums of clusters of templates kept apart."""
    from fairprune_framework.auditing.audit import audit
    from fairprune_framework.auditing.demand import Demand, selecting

    contrasts = selecting(run.aligned[0])
    demand = replace(Demand.of([run.bias], len({site.layer for site in run.architecture.sites.values()})), clusters=True)
    notify(f"auditing {len(contrasts)} contrasts by clusters of templates")
    statistics, _ = audit(
        run.model,
        run.architecture,
        contrasts,
        run.values,
        demand,
        calibration=run.calibration if demand.calibration else None,
        micro_batch_tokens=run.micro_batch_tokens,
        accelerator=run.recipe.accelerator,
    )
    run.model.to(run.device)
    return statistics


# -- causality ---------------------------------------------------------------------------------------------------------


def causal(run: Run | str | Path, draws: int = 20, notify: Notify = silent) -> dict[str, Any]:
    """Does masking the plan do more than masking random neurons of the same layers and activation norms? And do the control contrasts
    react as much as the demographic ones? `p_value`: share of the draws (and the plan itself) that lower the divergence at least as
    much. Writes `causal.json`."""
    opened = _opened(run, notify, "plan")
    plan = opened.plan
    if plan.count == 0:
        raise UserError(f"the plan of {opened.folder} is empty: {plan.reason}")
    if draws < 1:
        raise UserError(f"--draws must be at least 1. Got {draws} instead.")
    judge = _Judge(opened)
    norms = activation_norms(opened)
    layers = set(opened.recipe.protected_layers)
    allowed = {
        name: seen & (opened.architecture.sites[name].layer not in layers) for name, seen in opened.scores.observed.items()
    }
    reference = {name: torch.tensor(units) for name, units in plan.sites.items() if units}
    generator = torch.Generator().manual_seed(opened.recipe.seed)
    own = judge.measured(plan.sites, plan.multiplier)
    random: list[dict[str, float | None]] = []
    for place in range(draws):
        units = {name: found.tolist() for name, found in draw_matched(reference, norms, allowed, generator).items()}
        after = judge.measured(units, plan.multiplier)
        both = [judge.change(after, control=control) for control in (False, True)]
        random.append(
            {name: None if c is None else c.change for name, c in zip(("change", "control_change"), both, strict=True)}
        )
        notify(f"random set {place + 1} of {draws}")
    effects = {name: judge.change(own, control=control) for name, control in (("demographic", False), ("control", True))}
    change = effects["demographic"].change
    as_low = sum(each["change"] is not None and change is not None and each["change"] <= change for each in random)
    answer = {
        "format": "fairprune-causal/1",
        "split": judge.split,
        "units": plan.count,
        "operator": plan.operator,
        **{name: None if found is None else _effect(found) for name, found in effects.items()},
        "random": random,
        "p_value": (1 + as_low) / (1 + draws),
        "control_ratio": _control_ratio(effects),
        "norm_ratio": _norm_ratio(reference, norms, draw_matched(reference, norms, allowed, generator)),
    }
    write_json(opened.folder / "causal.json", answer)
    return answer


def _effect(found: Any) -> dict[str, Any]:
    return {name: getattr(found, name) for name in ("before", "after", "change", "ci_low", "ci_high", "p_value", "clusters")}


def _control_ratio(effects: Mapping[str, Any]) -> float | None:
    """The relative change of the controls over that of the demographic contrasts; 1: they react as much."""
    own, control = effects["demographic"], effects["control"]
    return control.change / own.change if control is not None and control.change is not None and own.change else None


def _norm_ratio(reference: Mapping[str, Tensor], norms: Mapping[str, Tensor], drawn: Mapping[str, Tensor]) -> float:
    """Median of (norm of the random neuron / norm of the planned one): how well the draw is matched."""
    pairs = [norms[name][drawn[name]] / norms[name][reference[name][: len(drawn[name])]] for name in reference]
    return torch.cat(pairs).median().item()


@torch.inference_mode()
def activation_norms(run: Run) -> dict[str, Tensor]:
    """site -> (N,) float64: 2-norm of each unit's activation over the scoring half of the calibration text."""
    sites = run.architecture.sites
    squares = {name: torch.zeros(site.units, dtype=torch.float64) for name, site in sites.items()}

    def add(site: Any, tap: Any, values: Tensor, rows: Tensor | None) -> None:
        squares[site.name] += values.double().square().sum(0).reshape(site.units, -1).sum(1).cpu()

    device = next(run.model.parameters()).device
    documents = run.calibration.scoring  # read here: text that the model itself writes must not pass through the tap
    with run.architecture.adapter.tap(run.model, list(sites.values()), frozenset({"neuron"}), add):
        for document in documents:
            run.model.get_decoder()(input_ids=torch.tensor([document], device=device), use_cache=False)  # type: ignore[operator]
    return {name: value.sqrt() for name, value in squares.items()}


# -- words -------------------------------------------------------------------------------------------------------------


def render(answer: Mapping[str, Any]) -> str:
    """An answer as text."""
    kind = answer["format"].partition("/")[0]
    if kind == "fairprune-overlap":
        head = f"units that categories share, of {answer['population']:,}; * more than chance (Holm, 5 %)"
        cells = [
            [f"{n}{'*' if (p := answer['p_adjusted'][i][j]) is not None and p <= 0.05 else ''}" for j, n in enumerate(row)]
            for i, row in enumerate(answer["counts"])
        ]
        return "\n".join([head, "", *_matrix(answer["categories"], answer["categories"], cells)])
    if kind == "fairprune-transfer":
        head = f"change of the divergence; rows: chosen on, columns: judged on ({answer['split']}); * Holm, 5 %"
        cells = [
            [
                ""
                if value is None
                else f"{value:+.0%}{'*' if (p := answer['p_adjusted'][i][j]) is not None and p <= 0.05 else ''}"
                for j, value in enumerate(row)
            ]
            for i, row in enumerate(answer["change"])
        ]
        columns = [f"({n})" if c else n for n, c in zip(answer["judged"], answer["controls"], strict=True)]
        return "\n".join([head, "", *_matrix(answer["categories"], columns, cells), "", "(in brackets): controls"])
    if kind == "fairprune-stability":
        if not answer["planned"]:
            return "the plan is empty: nothing to be stable"
        return (
            f"of {answer['planned']} planned neurons, {answer['stable_75']} are chosen by at least 75 % of {answer['replicates']} "
            f"replicates; on average {answer['mean_frequency']:.0%}; two replicates share {answer['mean_jaccard']:.0%} (Jaccard)"
        )
    lines = [f"masking {answer['units']} planned neurons, judged on {answer['split']}:"]
    for name in ("demographic", "control"):
        if (found := answer[name]) is not None and found["change"] is not None:
            interval = "" if found["ci_low"] is None else f" [{found['ci_low']:+.1%}, {found['ci_high']:+.1%}]"
            lines.append(f"  {name:<12} {found['change']:+.1%}{interval}, {found['clusters']} templates")
    changes = [each["change"] for each in answer["random"] if each["change"] is not None]
    if changes:
        lines.append(f"  random sets  {min(changes):+.1%} to {max(changes):+.1%}, {len(changes)} of equal activation norm")
    lines.append(f"  p = {answer['p_value']:.3f} that a random set lowers the divergence as much")
    if answer["control_ratio"] is not None:
        lines.append(f"  controls react {answer['control_ratio']:.0%} as much as demographic contrasts")
    return "\n".join(lines)


def _matrix(rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    first = max(map(len, rows), default=0)
    widths = [max(len(name), *(len(row[j]) for row in cells)) if cells else len(name) for j, name in enumerate(columns)]
    lines = [" " * first + "  " + "  ".join(name.rjust(width) for name, width in zip(columns, widths, strict=True))]
    for name, row in zip(rows, cells, strict=True):
        lines.append(name.ljust(first) + "  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    return lines
