"""What the verdict says of recipes on one model, side by side, from the folders of finished runs.

    python benchmarks/verdict_record.py default=runs/default gates=runs/gates --looks looks.md > benchmarks/verdict_<model>_<yyyymm>.md

The runs must be of one model and one prompt set; the text of `--looks` says how often held-out contrasts were looked at before.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import machine

from fairprune_framework.errors import UserError
from fairprune_framework.recipes.loading import read_options
from fairprune_framework.utilities.files import file_digest, read_json

DIVERGENCE = "next-token-divergence"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A finished run."""

    folder: Path
    recipe: Mapping[str, Any]
    record: Mapping[str, Any]
    plan: Mapping[str, Any]
    results: list[Mapping[str, Any]]

    @classmethod
    def of(cls, folder: Path) -> Arm:
        """Read it; raises `UserError` for a folder without these files."""
        found = {name: read_json(folder / f"{name}.json") for name in ("run", "plan", "evaluation")}
        recipe = read_options(folder / "recipe.yaml")
        return cls(
            folder=folder, recipe=recipe, record=found["run"], plan=found["plan"], results=found["evaluation"]["results"]
        )

    def change(self, metric: str, split: str, *, control: bool = False, category: str | None = None) -> str:
        """A relative change with its interval, a dash where there is none."""
        wanted = {"metric": metric, "split": split, "control": control, "category": category}
        row = next((row for row in self.results if all(row[key] == value for key, value in wanted.items())), None)
        if row is None or row["change"] is None:
            return "-"
        low, high = row["ci_low"], row["ci_high"]
        known = low is not None and high is not None
        return percent(row["change"]) + (f" [{percent(low)}, {percent(high)}]" if known else "")

    def ratio(self, name: str) -> str:
        """Of the two ratios, with its interval."""
        sides = self.record["specificity"]
        found = None if sides is None else sides.get(name)  # runs of before had no ratio at equal size
        return (
            "-"
            if found is None or found["ci_low"] is None
            else f"{found['ratio']:.2f} [{found['ci_low']:.2f}, {found['ci_high']:.2f}]"
        )

    def bound(self) -> str:
        """One-sided 99 % bound of the ratio of ratios."""
        sides = self.record["specificity"]
        return "-" if sides is None or sides["ratio_of_ratios"] is None else f"{sides['ratio_of_ratios']['bound_high']:.2f}"

    def effective(self) -> str:
        """Kish's effective number of templates on both sides."""
        sides = self.record["specificity"]
        return "-" if sides is None else ", ".join(f"{sides[side]['effective']:.1f}" for side in ("demographic", "controls"))

    def random_sets(self) -> str:
        """The range of what random sets did."""
        changes = self.record["random_sets"]
        return f"{percent(min(changes))}, {percent(max(changes))} of {len(changes)}" if changes else "-"

    def guard(self) -> str:
        """What the guard saw."""
        guard = self.record["guard"]
        return f"{percent(guard['increase'], 2)}, {percent(guard['bound_high'], 2)}"

    def categories(self) -> set[str]:
        """Demographic categories of the held-out divergence."""
        rows = (row for row in self.results if row["metric"] == DIVERGENCE and row["split"] == "heldout" and not row["control"])
        return {row["category"] for row in rows if row["category"]}


def percent(value: float, digits: int = 1) -> str:
    """A share with its sign."""
    return f"{100 * value:+.{digits}f} %"


def heldout(metric: str, control: bool = False) -> Callable[[Arm], str]:
    """A row of the table."""
    return lambda arm: arm.change(metric, "heldout", control=control)


ROWS: Mapping[str, Callable[[Arm], str]] = {
    "word": lambda arm: f"**`{arm.record['verdict']}`**",
    "neurons, operator": lambda arm: f"{arm.plan['achieved']['units']:,}, {arm.plan['operator']}",
    "demographic divergence, held out": heldout(DIVERGENCE),
    "the same, unseen words and names": lambda arm: arm.change(DIVERGENCE, "heldout-words"),
    "controls, held out": heldout(DIVERGENCE, control=True),
    "ratio of ratios": lambda arm: arm.ratio("ratio_of_ratios"),
    "its 99 % bound (below 0.9 is asked)": Arm.bound,
    "geometric ratio": lambda arm: arm.ratio("geometric"),
    "the same, at equal size before": lambda arm: arm.ratio("at_equal_size"),
    "effective templates, demographic and control": Arm.effective,
    "matched random sets: lowest and highest change": Arm.random_sets,
    "legitimate margin, held out (99 % bound above -10 % is asked)": heldout("legitimate-margin"),
    "valence gap, demographic": heldout("valence-gap"),
    "valence gap, controls": heldout("valence-gap", control=True),
    "valence gap against controls": heldout("valence-gap-to-controls"),
    "sequence gap, held out": heldout("sequence-gap"),
    "guard: perplexity, 99 % bound": Arm.guard,
    "demographic divergence, `select`": lambda arm: arm.change(DIVERGENCE, "select"),
    "controls, `select`": lambda arm: arm.change(DIVERGENCE, "select", control=True),
}


def written(arms: Mapping[str, Arm], looks: str, hardware: str) -> str:
    """The record."""
    recipe = next(iter(arms.values())).recipe
    model, prompts = recipe["model"], recipe["prompts"]
    lines = [
        f"# The verdict on {Path(str(model)).name}, `{prompts}`",
        "",
        f"{hardware};",
        "float32, seed 0. Intervals are 95 %, over templates; the rule of the verdict was fixed before",
        "([method](../docs/method/verdict.md)). From the folders of the runs by `benchmarks/verdict_record.py`.",
        "",
        "| | " + " | ".join(f"recipe `{name}`" for name in arms) + " |",
        "|---|" + "---|" * len(arms),
    ]
    table = dict(ROWS)
    for category in sorted(set().union(*(arm.categories() for arm in arms.values()))):
        table[category] = lambda arm, category=category: arm.change(DIVERGENCE, "heldout", category=category)  # type: ignore[misc]
    lines += ["| " + " | ".join([name, *(row(arm) for arm in arms.values())]) + " |" for name, row in table.items()]
    recipes = [f"`{name}` {file_digest(arm.folder / 'recipe.yaml')[:16]}" for name, arm in arms.items()]
    return "\n".join([*lines, "", "sha256 of `recipe.yaml` of each run: " + ", ".join(recipes) + ".", "", looks.strip(), ""])


def main() -> None:
    """Read the folders and print the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--looks", required=True, help="a text file: how often the held-out contrasts were looked at")
    parser.add_argument("--hardware", help="the machine of the runs, where it is not this one")
    words = parser.parse_args()
    try:
        arms = {name: Arm.of(Path(folder)) for name, _, folder in (one.partition("=") for one in words.runs)}
    except UserError as error:
        sys.exit(str(error))
    for key in ("model", "prompts"):
        named = {str(arm.recipe[key]) for arm in arms.values()}
        if len(named) > 1:
            sys.exit(f"the runs are of several {key}: {', '.join(sorted(named))}")
    found = next(iter(arms.values())).record["versions"]
    versions = ", ".join(f"{key} {found[key]}" for key in ("python", "torch", "lightning", "transformers"))
    hardware = f"{words.hardware}; {versions}" if words.hardware else machine()
    print(written(arms, Path(words.looks).read_text(encoding="utf-8"), hardware))


if __name__ == "__main__":
    main()
