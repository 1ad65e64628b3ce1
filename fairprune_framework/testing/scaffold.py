"""`fairprune plugins new`: a distribution with one plugin in it that passes its own tests at once, to be changed into another."""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
import shutil
import tempfile
from pathlib import Path
from string import Template

from fairprune_framework import discovery
from fairprune_framework.errors import UserError

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

PYPROJECT = Template("""[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "$name"
version = "0.1.0"
description = "A plugin of fairprune_framework."
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["fairprune_framework>=0.1,<1"]

[project.optional-dependencies]
test = ["pytest>=9"]

# The line that makes the plugin known: name = "package:Class".
[project.entry-points."$group"]
$name = "$package:$cls"

[tool.hatch.build.targets.wheel]
packages = ["$package"]

[tool.pytest.ini_options]
testpaths = ["tests"]
pythonpath = ["."]
""")

README = Template("""# $name

A plugin of fairprune_framework: $kind `$name`.

Change it in `$package/__init__.py`. An edited plugin never passes off earlier numbers as its own: a run folder that holds some asks
for `--overwrite`.

```bash
pip install -e ".[test]"            # the entry point in pyproject.toml makes the plugin known
pytest                              # the contract suite
fairprune plugins show $kind $name
fairprune plugins check $kind $name
fairprune run MODEL --prompts builtin:en --output run --$kind $name
```
""")

TEST = Template('''"""The contract of the plugin; `check_plugin` says what each failed check found."""

from $package import $cls

from fairprune_framework.testing.contracts import check_plugin


def test_contract() -> None:
    check_plugin("$kind", $cls()).raise_if_failed()
''')

BIAS = Template('''"""Bias as the range over the variants of a neuron's mean activation. Source: say where the formula comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fairprune_framework.api import BiasScorer, Needs, Observation, SiteContext, Statistic, slot_means


@dataclass(frozen=True, kw_only=True)
class Range(Statistic):
    """One row a contrast: the range over variants of the mean activation over the shared slots, and 1 where there is one."""

    name: str = "$name"

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        means_CVN, seen_CV1 = slot_means(obs), obs.aligned_mask.any(2).unsqueeze(-1)
        high_C1N = means_CVN.masked_fill(~seen_CV1, -torch.inf).amax(1, keepdim=True)
        low_C1N = means_CVN.masked_fill(~seen_CV1, torch.inf).amin(1, keepdim=True)
        return {"range": (high_C1N - low_C1N).where(seen_CV1.any(1, keepdim=True), 0.0), "seen": obs.reached}


@dataclass(frozen=True, kw_only=True)
class $cls(BiasScorer):
    """Mean over contrasts of the range above. Unit: activation, or its `power`."""

    power: float = 1.0
    """Raise the mean to this power: a field is an option, here `--bias.power 2`."""

    def __post_init__(self) -> None:
        if self.power <= 0:
            raise ValueError(f"The 'power' must be above 0. Got {self.power} instead.")

    def needs(self) -> Needs:
        return Needs(statistics=(Range(),))

    def score(self, at: SiteContext) -> Tensor:
        mean_N: Tensor = at.sums["$name.range"][0] / at.sums["$name.seen"][0].clamp_min(1)
        return mean_N**self.power
''')

IMPORTANCE = Template('''"""Activation norm times output-weight norm. Source: say where the formula comes from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fairprune_framework.api import ImportanceScorer, Needs, SiteContext, SquareSum


@dataclass(frozen=True, kw_only=True)
class $cls(ImportanceScorer):
    """2-norm of the activation over text times a norm of the output weights. Unit: activation of the block's output."""

    order: float = 2.0
    """Of the norm of the weights: a field is an option, here `--importance.order 1`."""

    def needs(self) -> Needs:
        return Needs(statistics=(SquareSum(),), weights=True)

    def score(self, at: SiteContext) -> Tensor:
        norm_N = at.sums["square-sum.squares"][0].sqrt()
        written_N: Tensor = torch.linalg.vector_norm(at.weights["out"].double(), ord=self.order, dim=1)
        return norm_N * written_N
''')

POLICY = Template('''"""The highest bias over all layers, outside a protected share by importance. Source: say where the rule comes from."""

from __future__ import annotations

from dataclasses import dataclass

from fairprune_framework.api import Budget, Choice, PolicyContext, Scores, SelectionPolicy, biased, eligible, select_top


@dataclass(frozen=True, kw_only=True)
class $cls(SelectionPolicy):
    """The most biased neurons that are not among the most important."""

    protect: float = 0.1
    """Share of all neurons, by importance, that stays: a field is an option, here `--policy.protect 0.2`."""

    def __post_init__(self) -> None:
        if not 0 <= self.protect < 1:
            raise ValueError(f"The 'protect' must be in [0, 1). Got {self.protect} instead.")

    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        allowed = biased(scores, eligible(scores, budget, self.protect))
        nothing = f"the budget {budget} and the protected share leave no neuron with a bias above 0"
        return select_top(scores, budget, scores.bias, allowed, nothing)
''')

ARCHITECTURE = Template('''"""Gated MLPs of three Linears, found by name. Source: name the class of the model family.

Change the names to those of your family: where a built-in adapter covers a model too, `glu` for these names, a run has to be told
which one to use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from fairprune_framework.api import MlpAdapter, Projections, child

GATE, UP, OUT = "gate_proj", "up_proj", "down_proj"


@dataclass(frozen=True, kw_only=True)
class $cls(MlpAdapter):
    """One site per MLP that has the three projections."""

    looked_for: ClassVar[str] = f"Linears named {GATE}, {UP} and {OUT}"

    def projections(self, module: nn.Module) -> Projections | None:
        if all(isinstance(child(module, name), nn.Linear) for name in (GATE, UP, OUT)):
            return Projections(gate=GATE, up=UP, out=OUT)
        return None
''')

PLUGINS: dict[str, Template] = {"bias": BIAS, "importance": IMPORTANCE, "policy": POLICY, "architecture": ARCHITECTURE}


def write_distribution(kind: discovery.Kind, name: str, parent: Path) -> Path:
    """Write a distribution of one plugin to `parent / name`; returns the folder.

    Raises:
        UserError: a name that is none, that an installed plugin of this kind has, of which a package cannot be made, or whose folder
            is there.
    """
    if NAME.fullmatch(name) is None:
        raise UserError(f"the name of a plugin is lower-case words with hyphens, such as 'my-score'. Got {name!r} instead.")
    if taken := [entry for entry in discovery.entries(kind) if entry.name == name]:
        raise UserError(f"{taken[0].label} has that name: take another one")
    target = parent / name
    if target.exists():
        raise UserError(f"{target} is there already")
    if not parent.is_dir():
        raise UserError(f"{parent} is no folder")
    package = name.replace("-", "_")
    if keyword.iskeyword(package) or importlib.util.find_spec(package) is not None:
        raise UserError(
            f"{package!r} is a word or a module of Python that is there: a package cannot be called that, take another name"
        )
    words = {
        "name": name,
        "package": package,
        "cls": "".join(word.capitalize() for word in name.split("-")),
        "kind": kind,
        "group": discovery.GROUPS[kind],
    }
    files = {
        "pyproject.toml": PYPROJECT,
        "README.md": README,
        f"{package}/__init__.py": PLUGINS[kind],
        "tests/test_contract.py": TEST,
    }
    draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
    try:
        for path, text in files.items():
            (draft / path).parent.mkdir(exist_ok=True)
            (draft / path).write_text(text.substitute(words), encoding="utf-8")
        draft.chmod(0o755)
        os.rename(draft, target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return target
