"""The command line: help, lists, machine-readable output, exit codes; and that nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMANDS = ("run", "audit", "score", "plan", "prune", "evaluate", "report", "prompts", "plugins", "restore", "push", "explore")
MORE = ("ablate", "ask", "inspect", "doctor", "completion")


def helped(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "fairprune_framework", *words, "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_names_every_command() -> None:
    text = helped()
    for command in (*COMMANDS, *MORE):
        assert f"    {command} " in text, command


def test_help_of_a_stage_explains_every_option() -> None:
    from fairprune_framework.recipes.recipe import FIELDS

    text = helped("run")
    for field in FIELDS:
        assert (f"--{field.replace('_', '-')}" if field != "model" else "model") in text, field
    assert "fractions" not in text or "0.002" in text


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["prompts", "--help"], ["plugins", "list"]])
def test_nothing_heavy_is_imported(words: list[str]) -> None:
    heavy = ("torch", "transformers", "lightning", "lm_eval", "datasets", "scipy", "pyarrow", "numpy", "fairprune_variance")
    script = (
        "import sys\n"
        "from fairprune_framework.cli.main import main\n"
        "try:\n"
        f"    main({words!r})\n"
        "except SystemExit:\n"
        "    pass\n"
        f"print('HEAVY', [name for name in {heavy!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stderr


@pytest.mark.parametrize("stage", ["score", "plan", "evaluate"])
def test_only_what_streams_imports_what_streams(stage: str, finished: Path, tmp_path: Path) -> None:
    """Lightning and torchmetrics take seconds to import; a stage that reads an audit's result does without."""
    shutil.copytree(finished, tmp_path / "run")
    script = (
        "import sys\n"
        "from fairprune_framework.cli.main import main\n"
        f"code = main([{stage!r}, '--output', {str(tmp_path / 'run')!r}, '--overwrite'])\n"
        "print('HEAVY', code, [name for name in ('lightning', 'torchmetrics') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "HEAVY 0 []", done.stderr


def test_version(fairprune: Any) -> None:
    from fairprune_framework.utilities.versions import __version__

    done = subprocess.run(
        [sys.executable, "-m", "fairprune_framework", "--version"], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip().endswith(__version__)


def test_options_on_the_command_line_reach_the_recipe(fairprune: Any, llama: Path, prompts: Path, tmp_path: Path) -> None:
    import yaml

    words = [
        "--bias",
        "variance",
        "--bias.relative=true",
        "--policy",
        "uniform",
        "--policy.weight",
        "0.25",
        "--protected-layers",
        "0",
        "--seed",
        "3",
    ]
    words += ["--columns", "context=context", "--generate", "The man", "--generate", "A man", "--budget", "2/layer", "--quiet"]
    answer = fairprune("audit", llama, "--prompts", prompts, "--output", tmp_path / "run", *words)
    assert (answer.code, answer.err) == (0, "")
    found = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert found["bias"] == {"plugin": "variance", "relative": True}
    assert found["policy"]["weight"] == 0.25
    assert found["protected_layers"] == [0]
    assert found["columns"] == {"context": "context"}
    assert found["generate"] == ["The man", "A man"]
    assert found["seed"] == 3
    assert fairprune("score", "--output", tmp_path / "run").code == 0
    assert fairprune("plan", "--output", tmp_path / "run").code == 0
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert list(plan["sites"]) == ["model.layers.1.mlp"]


def test_errors_that_are_not_the_users_show_a_way_to_the_traceback(
    fairprune: Any, llama: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fairprune_framework.errors import FairpruneError

    def fail(*_: Any) -> None:
        raise FairpruneError("it\nbroke") from ZeroDivisionError("x")

    monkeypatch.setattr("fairprune_framework.models.confirmation.confirm", fail)
    words = ("audit", llama, "--prompts", prompts, "--output", tmp_path / "run")
    answer = fairprune(*words)
    assert answer.code == 1
    assert answer.err == "fairprune: error: it broke (cause: ZeroDivisionError; FAIRPRUNE_DEBUG=1 shows the traceback)\n"
    monkeypatch.setenv("FAIRPRUNE_DEBUG", "1")
    with pytest.raises(FairpruneError):
        fairprune(*words)


def test_a_full_disk_is_one_line(fairprune: Any, llama: Path, prompts: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    answer = fairprune("audit", llama, "--prompts", prompts, "--output", tmp_path / "run")
    assert answer.code == 1
    (line,) = answer.errors
    assert line.startswith("fairprune: error: the disk is full: ")
    assert "nothing half-written was left" in line
    assert not list((tmp_path / "run").glob(".*"))


def test_a_run_that_abstains_says_so_and_is_no_failure(fairprune: Any, llama: Path, prompts: Path, tmp_path: Path) -> None:
    words = (
        "--recipe",
        "exchange",  # which takes what the budget allows, whatever it costs
        "--budget",
        "0.5",
        "--max-perplexity-increase",
        "0.01",
        "--calibration-tokens",
        "16",
        "--calibration-documents",
        "8",
    )
    answer = fairprune("run", llama, "--prompts", prompts, "--output", tmp_path / "run", *words)
    assert answer.code == 0, answer.err
    assert answer.out.startswith("VERDICT  abstained: perplexity on judging text")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["abstained"] is True
    assert record["verdict"] == "abstained"
    assert record["parameters_after"] == record["parameters_before"]
    assert not (tmp_path / "run" / "model").exists()
    assert not json.loads((tmp_path / "run" / "plan.json").read_text())["abstained"]
    rows = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert rows["applied_by"] == "masking"
    assert all(row["after"] is not None for row in rows["results"])


def test_the_summary_fits_the_terminal(fairprune: Any, finished: Path) -> None:
    answer = fairprune("run", "--output", finished, "--quiet")
    long = [line for line in answer.out.splitlines() if len(line) > 80 and str(finished) not in line and "/" not in line]
    assert long == []
    assert answer.out.startswith("VERDICT")
