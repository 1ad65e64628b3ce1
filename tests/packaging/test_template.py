"""Our wheel and a stranger's, installed side by side in an environment of their own: found, listed, checked, used. No network."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from fairprune_framework.testing.tiny import save_tiny, tiny_contrasts

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "plugins" / "template"


def environment(**extra: str) -> dict[str, str]:
    """Without anything that could lead a subprocess back to this checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST", "COV_"))}
    return {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PIP_NO_INDEX": "1", **extra}


def call(*command: Any, cwd: Path, code: int = 0, **extra: str) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment(**extra), capture_output=True, text=True, timeout=900
    )
    assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(source: Path, target: Path) -> Path:
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", target, source, cwd=target)
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the template, as its author would take it."""
    folder = tmp_path_factory.mktemp("author") / "fairprune-example"
    shutil.copytree(TEMPLATE, folder, ignore=shutil.ignore_patterns("dist", "__pycache__", ".*"))
    return folder


@pytest.fixture(scope="module")
def python(wheel: Path, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with both wheels; the dependencies are those of this one, seen through a path file."""
    theirs = build(template, tmp_path_factory.mktemp("theirs"))
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    interpreter = folder / "bin" / "python"
    libraries = Path(call(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    seen = [
        path
        for path in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages(), *sys.path}
        if Path(path).is_dir() and Path(path).name in ("site-packages", "dist-packages")
    ]
    (libraries / "dependencies.pth").write_text("\n".join(sorted(seen)) + "\n")
    call(
        sys.executable,
        "-m",
        "pip",
        "--python",
        interpreter,
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "-I",
        wheel,
        theirs,
        cwd=folder,
    )
    return interpreter


def test_our_wheel_holds_everything_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    packages = {path.name for path in (ROOT / "plugins").glob("fairprune_*") if path.is_dir()}
    assert tops == {"fairprune_framework", *packages}
    assert "fairprune_framework/py.typed" in names
    for base, package in [(ROOT, "fairprune_framework"), *((ROOT / "plugins", name) for name in packages)]:
        sources = {path for path in (base / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        assert {path.relative_to(base).as_posix() for path in sources} <= set(names)
    for suffix in (".yaml", ".jsonl", ".html", "licenses/LICENSE"):
        assert any(name.endswith(suffix) for name in names)
    assert not [name for name in names if name.startswith(("template", "plugins")) or "fairprune_example" in name]


def test_every_plugin_package_is_in_the_table() -> None:
    table = (ROOT / "plugins" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "plugins").glob("fairprune_*"):
        if path.is_dir():
            assert f"| `{path.name}` |" in table


LISTED = """
import json
from fairprune_framework import discovery, __file__
kinds = [*discovery.GROUPS, "recipe"]
rows = [[e.kind, e.name, e.distribution, e.version] for kind in kinds for e in discovery.entries(kind)]
import sys
print(json.dumps({"rows": rows, "file": __file__, "heavy": sorted({"torch", "transformers", "fairprune_example"} & set(sys.modules))}))
"""


def test_both_are_found_without_importing_either(python: Path, tmp_path: Path) -> None:
    found = json.loads(call(python, "-c", LISTED, cwd=tmp_path))
    assert not Path(found["file"]).is_relative_to(ROOT)
    assert found["heavy"] == []
    assert ["bias", "mean-deviation", "fairprune-example", "0.1.0"] in found["rows"]
    assert ["bias", "variance", "fairprune_framework", "0.1.0"] in found["rows"]
    assert len(found["rows"]) == len({tuple(row) for row in found["rows"]})


def test_the_command_line_lists_it(python: Path, tmp_path: Path) -> None:
    lines = call(python.parent / "fairprune", "plugins", "list", cwd=tmp_path, COLUMNS="200").splitlines()
    (line,) = [line for line in lines if "mean-deviation" in line]
    for word in ("bias", "fairprune-example", "0.1.0"):
        assert word in line


def test_its_own_tests_pass(python: Path, template: Path) -> None:
    out = call(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", template, cwd=template)
    assert "1 passed" in out


def test_it_is_used_in_a_run(python: Path, tmp_path: Path) -> None:
    """From the command line, without a line of ours changed."""
    save_tiny(tmp_path / "model", "llama")
    lines = [json.dumps(contrast.to_json()) for contrast in tiny_contrasts()]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    command = (
        "run",
        "model",
        "--prompts",
        "prompts.jsonl",
        "--output",
        "run",
        "--bias",
        "mean-deviation",
        "--bias.power",
        "2",
    )
    small = (
        "--policy",
        "uniform",
        "--budget",
        "2/layer",
        "--calibration-documents",
        "4",
        "--calibration-tokens",
        "16",
        "--force",
    )
    call(python.parent / "fairprune", *command, *small, cwd=tmp_path)
    assert "mean-deviation" in (tmp_path / "run" / "recipe.yaml").read_text(encoding="utf-8")
    told = json.dumps(json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["plugins"])
    assert "fairprune-example" in told
    assert "0.1.0" in told
    assert (tmp_path / "run" / "model" / "config.json").is_file()


EDITS = {
    "bias": ("(high_C1N - low_C1N)", "2 * (high_C1N - low_C1N)"),
    "importance": ("norm_N * written_N", "2 * norm_N * written_N"),
    "policy": ("eligible(scores, budget, self.protect)", "eligible(scores, budget, 0.9)"),
    "architecture": ("Projections(gate=GATE, up=UP, out=OUT)", "Projections(up=UP, out=OUT)"),
}
"""Kind -> an edit of its generated plugin, whose effect on a run is known."""
GENERATED = {"bias": "bias", "importance": "importance", "policy": "plan", "architecture": "importance"}
"""Kind -> the numbers of a run that the edit changes."""
BEGINS_AT = {"bias": "audit", "importance": "audit", "policy": "plan", "architecture": "audit"}
"""Kind -> the first stage that an edit makes stale."""


@pytest.mark.parametrize("kind", ["bias", *(pytest.param(kind, marks=pytest.mark.slow) for kind in EDITS if kind != "bias")])
def test_a_generated_plugin_is_installed_checked_used_edited_and_seen_to_change_the_numbers(
    kind: str, python: Path, tmp_path: Path
) -> None:
    fairprune, name = python.parent / "fairprune", f"my-{kind}"
    call(fairprune, "plugins", "new", name, "--kind", kind, cwd=tmp_path)
    wheel = build(tmp_path / name, tmp_path)
    call(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    assert "0 failed" in call(fairprune, "plugins", "check", kind, name, cwd=tmp_path)

    save_tiny(tmp_path / "model", "llama")
    lines = [json.dumps(contrast.to_json()) for contrast in tiny_contrasts()]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    chosen = {"bias": "mean-abs-difference", "importance": "max-abs-weight", "policy": "uniform", kind: name}
    words = [word for each, plugin in chosen.items() for word in (f"--{each}", plugin)]
    small = ("--calibration-documents", "4", "--calibration-tokens", "16", "--budget", "0.5")

    def stage(name: str, *more: str, code: int = 0) -> None:
        call(fairprune, name, *more, "--output", "run", cwd=tmp_path, code=code)

    def numbers() -> list[float]:
        """The highest score of each site, or the number of neurons of the plan."""
        if GENERATED[kind] == "plan":
            plan = json.loads((tmp_path / "run" / "plan.json").read_text(encoding="utf-8"))
            return [sum(map(len, plan["sites"].values()))]
        scores = load_file(tmp_path / "run" / "scores.safetensors")
        return [float(scores[key].max()) for key in sorted(scores) if key.startswith(f"{GENERATED[kind]}/")]

    stage("audit", "model", "--prompts", "prompts.jsonl", *words, *small)
    stage("score")
    stage("plan")
    before = numbers()
    source = Path(call(python, "-c", f"import {name.replace('-', '_')} as it; print(it.__file__)", cwd=tmp_path).strip())
    text, (old, new) = source.read_text(encoding="utf-8"), EDITS[kind]
    assert text.count(old) == 1
    source.write_text(text.replace(old, new), encoding="utf-8")
    stage("prune", code=2)  # never passed off as the edited plugin's
    stages = ("audit", "score", "plan")
    if kind == "architecture":  # an adapter that overlooks a projection gives no other numbers: it is refused
        stage("audit", "--overwrite", code=2)
        return
    for number, again in enumerate(stages[stages.index(BEGINS_AT[kind]) :]):
        stage(again, *(() if number else ("--overwrite",)))
    after = numbers()
    if kind in ("bias", "importance"):
        assert after == pytest.approx([2 * value for value in before], rel=1e-12)
    else:
        assert (before, after) == ([48], [10])  # a tenth of 96 neurons, rounded up


# Distributions made by hand: a folder with a dist-info, on the path of a subprocess that has no other plugins.

PLUGIN = """
from dataclasses import dataclass
from fairprune_framework.api import BiasScorer

@dataclass(frozen=True, kw_only=True)
class Score(BiasScorer):
    api_version = {version}
    who: str = {name!r}
    def score(self, at): ...
"""


def distribution(folder: Path, name: str, points: str, module: str = "", source: str = "") -> None:
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[fairprune.bias_scorers]\n{points}\n")
    if module:
        (folder / f"{module}.py").write_text(source)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a Python finds that sees two distributions of one name, a broken one, one of another version, and none else."""
    folder, older = tmp_path_factory.mktemp("stage"), tmp_path_factory.mktemp("older")
    distribution(folder, "dist-a", "same = from_a:Score\nonly-a = from_a:Score", "from_a", PLUGIN.format(version=1, name="a"))
    distribution(folder, "dist-b", "same = from_b:Score", "from_b", PLUGIN.format(version=1, name="b"))
    distribution(folder, "dist-broken", "broken = from_broken:Score", "from_broken", "raise RuntimeError('no such luck')\n")
    distribution(folder, "dist-old", "old = from_old:Score", "from_old", PLUGIN.format(version=7, name="old"))
    distribution(folder, "dist-none", "none = json:dumps\nabsent = nowhere:Score")
    distribution(older, "dist_b", "same = elsewhere:Score")  # as an editable install beside an old wheel
    return alone(
        """
result = {"names": [entry.name for entry in discovery.entries("bias")]}
result["imported"] = sorted(name for name in sys.modules if name.startswith("from_"))
result["values of same"] = [entry.value for entry in discovery.entries("bias") if entry.name == "same"]
for name in ("same", "dist-a:same", "dist-b:same", "DIST_B:same", "only-a", "only-b", "broken", "absent", "old", "none"):
    result[name] = raised(discovery.build, "bias", name) or discovery.build("bias", name).who
""",
        folder,
        older,
    )


def alone(code: str, *folders: Path) -> Any:
    """Run code in a Python that sees the distributions of these folders alone; returns its `result`."""
    text = f"""
import importlib.metadata, json, sys
mine = {[str(folder) for folder in folders]!r}
def only():
    return importlib.metadata.MetadataPathFinder.find_distributions(importlib.metadata.DistributionFinder.Context(path=mine))
importlib.metadata.distributions = only
sys.path[:0] = mine
from fairprune_framework import discovery
def raised(call, *args):
    try:
        call(*args)
    except Exception as error:
        return [type(error).__name__, str(error), type(error.__cause__).__name__]
{code}
print(json.dumps(result))
"""
    return json.loads(call(sys.executable, "-c", text, cwd=ROOT))


def test_two_distributions_of_one_name(stage: Any) -> None:
    kind, text, _ = stage["same"]
    assert kind == "AmbiguousName"
    assert "dist-a:same" in text
    assert "dist-b:same" in text
    assert [stage[name] for name in ("dist-a:same", "dist-b:same", "DIST_B:same")] == ["a", "b", "b"]


def test_a_broken_plugin_breaks_no_other(stage: Any) -> None:
    assert stage["names"] == ["absent", "broken", "none", "old", "only-a", "same", "same"]
    assert stage["imported"] == []
    assert stage["only-a"] == "a"
    kind, text, cause = stage["broken"]
    assert (kind, cause) == ("BrokenPlugin", "RuntimeError")
    assert "dist-broken 1.0" in text
    assert "no such luck" in text
    assert stage["absent"][::2] == ["BrokenPlugin", "ModuleNotFoundError"]


def test_another_interface_version_is_refused(stage: Any) -> None:
    assert stage["old"][0] == stage["none"][0] == "BrokenPlugin"
    assert "interface version 7; this is version 1" in stage["old"][1]
    assert "is not a subclass of BiasScorer" in stage["none"][1]


def test_an_unknown_name_has_a_neighbour(stage: Any) -> None:
    kind, text, _ = stage["only-b"]
    assert kind == "UnknownName"
    assert "Did you mean 'only-a'?" in text


def test_the_same_distribution_twice_on_the_path_is_one(stage: Any) -> None:
    """The first on the path wins, as in imports."""
    assert sorted(stage["values of same"]) == ["from_a:Score", "from_b:Score"]


def test_without_entry_points_the_lists_are_empty(tmp_path: Path) -> None:
    lists, error = alone(
        """
result = [[len(discovery.entries(kind)) for kind in (*discovery.GROUPS, "recipe")], raised(discovery.find, "bias", "variance")]
""",
        tmp_path,
    )
    assert lists == [0] * 5
    assert error[0] == "UnknownName"
    assert "Installed: none" in error[1]
