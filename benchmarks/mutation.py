"""Mutants of the formulas: a random sample, one change each, against the tests of their module; how many are killed, and which survive.

    python benchmarks/mutation.py --count 200 --results build/mutation.jsonl

A mutant is one node of the syntax tree replaced: an operator by its opposite, a comparison by its neighbour, a number by itself plus one,
a condition by its negation, a `min` by a `max`. Libraries are imported once; every mutant is tried in a process that is forked from there,
with the changed module put in place of the one on disk. What was tried stands in --results, and is not tried again.
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.util
import json
import os
import random
import resource
import signal
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LIMIT = 300
"""CPU seconds of a process after which a mutant counts as killed: it does not come to an end; by the clock ten times as many."""
OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.USub: ast.UAdd, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
NAMES = {
    "min": "max", "max": "min", "amin": "amax", "amax": "amin", "argmin": "argmax", "argmax": "argmin", "all": "any", "any": "all",
    "sum": "mean", "mean": "sum", "floor": "ceil", "ceil": "floor", "maximum": "minimum", "minimum": "maximum", "exp": "abs",
    "log": "abs", "sqrt": "abs", "abs": "neg", "clamp_min": "clamp_max",
}  # fmt: skip
"""Functions -> what is called instead."""
KINDS = ("bias_scorers", "importance_scorers", "selection_policies")
"""Plugins with formulas."""
LIBRARIES = (
    *("torch", "numpy", "scipy.stats", "scipy.optimize", "scipy.special", "transformers", "pytest", "hypothesis", "pydantic"),
    *("safetensors.torch", "yaml", "statsmodels.api", "lightning", "jsonargparse", "transformers.models.llama.modeling_llama"),
)


def targets() -> dict[Path, list[Path]]:
    """Modules with formulas -> the tests that speak for them."""
    unit = ROOT / "tests" / "unit"
    found: dict[Path, list[Path]] = {}
    for folder in ("functional", "selection"):
        for path in sorted((ROOT / "fairprune_framework" / folder).glob("*.py")):
            mirror = unit / folder / f"test_{path.stem}.py"
            if path.stem not in ("__init__", "triton_kernels"):  # kernels need a GPU
                found[path] = [mirror] if mirror.is_file() else sorted((unit / folder).glob("test_*.py"))
    texts = {test: test.read_text(encoding="utf-8") for test in sorted((unit / "plugins").glob("test_*.py"))}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entries = [pair for kind in KINDS for pair in project["entry-points"][f"fairprune.{kind}"].items()]
    for path in sorted((ROOT / "plugins").glob("fairprune_*/*.py")):
        package = path.parent.name
        names = [f'"{name}"' for name, value in entries if value.partition(":")[0] == package]
        if names:  # no adapter, which is structure and no formula
            speak = [test for test, text in texts.items() if package in text or any(name in text for name in names)]
            found[path] = speak or list(texts)
    return found


def places(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int]]:
    """(node, what is changed, which of several) of every change that a module admits; docstrings and annotations stay."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            if (inner := getattr(node, name, None)) is not None:
                skipped |= {id(each) for each in ast.walk(inner)}
        if isinstance(node, ast.Raise):  # words of a message
            skipped |= {id(each) for each in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, (ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.AugAssign)) and type(node.op) in OPERATORS:
            yield node, "operator", 0
        elif isinstance(node, ast.Compare):
            for which, operator in enumerate(node.ops):
                if type(operator) in OPERATORS:
                    yield node, "comparison", which
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
            yield node, "constant", 0
        elif isinstance(node, (ast.If, ast.IfExp)):
            yield node, "condition", 0
        elif isinstance(node, ast.Call):
            function = node.func
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            if name in NAMES:
                yield node, "function", 0


def mutate(node: Any, what: str, which: int) -> str:
    """Change a node in place; returns the change in words."""
    before = ast.unparse(node if what != "condition" else node.test)
    if what == "operator":
        node.op = OPERATORS[type(node.op)]()
    elif what == "comparison":
        node.ops[which] = OPERATORS[type(node.ops[which])]()
    elif what == "constant":
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1
    elif what == "condition":
        node.test = ast.UnaryOp(op=ast.Not(), operand=node.test)
    elif isinstance(node.func, ast.Attribute):
        node.func.attr = NAMES[node.func.attr]
    else:
        node.func.id = NAMES[node.func.id]
    after = ast.unparse(node if what != "condition" else node.test)
    return f"{before[:70]} -> {after[:70]}"


class Replaced(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module another code than that on disk."""

    def __init__(self, name: str, path: Path, code: Any) -> None:
        self.name, self.path, self.code = name, path, code

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        """Of this module alone."""
        if fullname != self.name:
            return None
        package = [str(self.path.parent)] if self.path.name == "__init__.py" else None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self, submodule_search_locations=package)

    def create_module(self, spec: Any) -> None:
        """As usual."""

    def exec_module(self, module: Any) -> None:
        """Run the changed code."""
        exec(self.code, module.__dict__)


def name_of(path: Path) -> str:
    """The module's name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[1 if parts[0] == "plugins" else 0 :]).removesuffix(".__init__")


def survives(path: Path, code: Any, tests: list[Path]) -> bool:
    """Whether all tests pass with the changed module, in a process of their own."""
    pid = os.fork()
    if not pid:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nowhere, stream)
        result = 1
        try:
            resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
            sys.meta_path.insert(0, Replaced(name_of(path), path, code))
            import pytest

            words = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow and not embedded", *map(str, tests)]
            result = int(pytest.main(words))
        finally:
            os._exit(0 if result == 0 else 1)
    until = time.monotonic() + 10 * LIMIT
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        if time.monotonic() > until:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return False
        time.sleep(0.02)


def sample(count: int, seed: int) -> list[tuple[Path, int]]:
    """(module, number of the place) of a random sample over all modules."""
    every = [
        (path, number) for path in targets() for number, _ in enumerate(places(ast.parse(path.read_text(encoding="utf-8"))))
    ]
    return random.Random(seed).sample(every, min(count, len(every)))


def _control(found: list[dict[str, Any]], tests: dict[Path, list[Path]]) -> None:
    """Tests that killed everything must pass where nothing was changed."""
    trusted = {tuple(tests[ROOT / each["module"]]) for each in found if each["survives"]}
    for path in dict.fromkeys(ROOT / each["module"] for each in found):
        if tuple(tests[path]) not in trusted:
            trusted.add(tuple(tests[path]))
            if not survives(path, compile(path.read_text(encoding="utf-8"), str(path), "exec"), tests[path]):
                print(f"NOT VALID: {', '.join(test.stem for test in tests[path])} fail without a change")


def main() -> int:
    """Try mutants until all or the time is used up; print what survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--results", default="build/mutation.jsonl")
    words = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE"):
        os.environ.setdefault(name, "1")
    sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]
    os.chdir(ROOT)
    for name in LIBRARIES:
        importlib.import_module(name)
    results = Path(words.results)
    results.parent.mkdir(parents=True, exist_ok=True)
    lines = results.read_text().splitlines() if results.is_file() else []
    known = {(each["module"], each["place"]): each for each in map(json.loads, lines)}
    tests, began, found = targets(), time.monotonic(), []
    for path, number in sample(words.count, words.seed):
        key = (str(path.relative_to(ROOT)), number)
        if key not in known:
            if time.monotonic() - began > words.minutes * 60:
                continue
            tree = ast.parse(path.read_text(encoding="utf-8"))
            node, what, which = list(places(tree))[number]
            line = getattr(node, "lineno", 0)
            change = mutate(node, what, which)
            code = compile(ast.fix_missing_locations(tree), str(path), "exec")
            outcome = {
                "module": key[0],
                "place": number,
                "line": line,
                "change": change,
                "survives": survives(path, code, tests[path]),
            }
            with results.open("a") as file:
                file.write(json.dumps(outcome) + "\n")
            known[key] = outcome
        found.append(known[key])
    _control(found, tests)
    survivors = [each for each in found if each["survives"]]
    for part, total in sorted(Counter(_part(each["module"]) for each in found).items()):
        left = sum(_part(each["module"]) == part for each in survivors)
        print(f"{part}: {total - left} of {total} killed")
    for each in sorted(survivors, key=lambda each: (each["module"], each["line"])):
        print(f"survives: {each['module']}:{each['line']}: {each['change']}")
    print(f"{len(found) - len(survivors)} of {len(found)} killed; {len(found)} of {words.count} tried")
    return 0


def _part(module: str) -> str:
    return "plugins" if module.startswith("plugins") else module.split("/")[1]


if __name__ == "__main__":
    raise SystemExit(main())
