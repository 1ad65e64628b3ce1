"""The run folder: what stands in it, that finished work is not repeated, and that nothing half-done is left behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

STAGES = ("audit", "score", "plan", "prune", "evaluate")
EXACT = (
    "contrasts.jsonl",
    "statistics.safetensors",
    "statistics.json",
    "scores.safetensors",
    "plan.json",
    "calibration.jsonl",
    "model/model.safetensors",
    "model/config.json",
    "evaluation.json",
    "recipe.yaml",
)
"""Files that are the same, byte for byte, whenever the same is asked for."""


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A finished run of one's own."""
    return Path(shutil.copytree(finished, tmp_path / "run", copy_function=shutil.copy2))


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is an error."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("fairprune_framework.models.loading.load_model", refuse)


def record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text()))


def same_files(one: Path, two: Path, *names: str) -> None:
    for name in names or EXACT:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


# -- done before -----------------------------------------------------------------------------------------------------------


def test_the_same_command_again_does_nothing(
    fairprune: Any, snapshot: Any, folder: Path, llama: Path, prompts: Path, quick: Any, no_model: None
) -> None:
    before = snapshot(folder, times=True)
    answer = fairprune("run", llama, "--prompts", prompts, "--output", folder, *quick)
    assert answer.code == 0, answer.err
    assert answer.err.count("done before") == 7
    assert snapshot(folder, times=True) == before
    assert "folder   " in answer.out


def test_the_folder_alone_is_enough_to_go_on(fairprune: Any, snapshot: Any, folder: Path, no_model: None) -> None:
    before = snapshot(folder, times=True)
    for command in ("run", "score", "plan", "prune", "evaluate"):
        answer = fairprune(command, "--output", folder)
        assert answer.code == 0, (command, answer.err)
        assert "done before" in answer.err
    assert snapshot(folder, times=True) == before


def test_another_recipe_is_refused_and_overwrite_replaces(
    fairprune: Any, snapshot: Any, folder: Path, llama: Path, prompts: Path, quick: Any
) -> None:
    before = snapshot(folder, times=True)
    again = ("run", llama, "--prompts", prompts, "--output", folder, *quick, "--policy.weight", "0.9", "--budget", "3/layer")
    answer = fairprune(*again)
    assert answer.code == 2
    assert "other options (policy, budget)" in answer.err
    assert "--overwrite" in answer.err
    assert snapshot(folder, times=True) == before
    old = (folder / "statistics.safetensors").stat().st_mtime_ns
    answer = fairprune(*again, "--overwrite")
    assert answer.code == 0, answer.err
    assert (folder / "statistics.safetensors").stat().st_mtime_ns == old
    assert json.loads((folder / "plan.json").read_text())["requested"]["budget"] == "3/layer"
    assert "weight: 0.9" in (folder / "recipe.yaml").read_text()


def test_overwrite_with_another_model(fairprune: Any, folder: Path, prompts: Path, quick: Any, tmp_path: Path) -> None:
    from fairprune_framework.testing.tiny import save_tiny

    other = save_tiny(tmp_path / "other", "llama", seed=5)
    before = record(folder)["hashes"]
    answer = fairprune("run", other, "--prompts", prompts, "--output", folder, *quick, "--overwrite")
    assert answer.code == 0, answer.err
    after = record(folder)["hashes"]
    assert after["model"] != before["model"]
    assert after["prompts"] == before["prompts"]


def test_a_changed_prompts_file_is_noticed(fairprune: Any, snapshot: Any, tmp_path: Path, llama: Path, prompts: Path) -> None:
    mine, folder = tmp_path / "mine.jsonl", tmp_path / "run"
    lines = prompts.read_text().splitlines(keepends=True)
    mine.write_text("".join(lines))
    words = ("audit", llama, "--prompts", mine, "--output", folder)
    assert fairprune(*words).code == 0
    mine.write_text("".join(lines[:-1]))
    before = snapshot(folder, times=True)
    answer = fairprune(*words)
    assert answer.code == 2
    assert "already holds the stage 'read' with other inputs" in answer.err
    assert snapshot(folder, times=True) == before
    mine.write_text("".join(lines))
    assert fairprune(*words).code == 0


def test_a_file_that_went_missing_is_noticed(fairprune: Any, folder: Path) -> None:
    (folder / "scores.safetensors").unlink()
    answer = fairprune("run", "--output", folder)
    assert answer.code == 2
    assert "scores.safetensors is missing: give --overwrite" in answer.err
    assert fairprune("run", "--output", folder, "--overwrite").code == 0
    assert (folder / "scores.safetensors").is_file()


# -- stage by stage --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory, fairprune: Any, llama: Path, prompts: Path, quick: Any) -> Path:
    folder = tmp_path_factory.mktemp("staged") / "run"
    for command in STAGES:
        first = (llama, "--prompts", prompts, *quick) if command == "audit" else ()
        answer = fairprune(command, *first, "--output", folder)
        assert answer.code == 0, answer.err
    return folder


def test_stages_one_by_one_give_the_files_of_a_run(staged: Path, finished: Path) -> None:
    same_files(staged, finished)
    for name in ("verdict", "abstained", "guard", "removal", "hashes", "seeds", "parameters_after"):
        assert record(staged)[name] == record(finished)[name], name


def test_one_audit_serves_many_plans(fairprune: Any, folder: Path, finished: Path) -> None:
    times = {name: (folder / name).stat().st_mtime_ns for name in ("statistics.safetensors", "scores.safetensors")}
    assert fairprune("plan", "--output", folder, "--budget", "5/layer").code == 2
    answer = fairprune("plan", "--output", folder, "--budget", "5/layer", "--overwrite")
    assert answer.code == 0, answer.err
    assert {name: (folder / name).stat().st_mtime_ns for name in times} == times
    plan = json.loads((folder / "plan.json").read_text())
    assert [len(units) for units in plan["sites"].values()] == [5, 5]
    assert not (folder / "model").exists()
    assert not (folder / "evaluation.json").exists()
    now = record(folder)
    assert not {"verdict", "guard", "removal", "abstained"} & now.keys()
    assert set(now["seconds"]) == {"read", "audit", "score", "plan"}
    answer = fairprune("evaluate", "--output", folder)
    assert answer.code == 2
    assert "run `fairprune prune` first" in answer.err


def test_scores_that_the_audit_cannot_serve(fairprune: Any, snapshot: Any, folder: Path) -> None:
    before = snapshot(folder, times=True)
    answer = fairprune("score", "--output", folder, "--bias", "gate-up-difference", "--overwrite")
    assert answer.code == 2
    assert "run `fairprune audit --overwrite`" in answer.err
    assert snapshot(folder, times=True) == before


def test_a_named_recipe_is_laid_over_that_of_the_folder(fairprune: Any, folder: Path) -> None:
    answer = fairprune("plan", "--output", folder, "--recipe", "variance", "--overwrite")
    assert answer.code == 2  # its bias is another one: the scores are outdated
    assert "outdated" in answer.err
    answer = fairprune("score", "--output", folder, "--recipe", "variance", "--overwrite")
    assert answer.code == 0, answer.err
    assert "bias: variance\n" in (folder / "recipe.yaml").read_text()


def test_the_recipe_written_gives_the_same_again(fairprune: Any, finished: Path, tmp_path: Path) -> None:
    recipe = shutil.copy(finished / "recipe.yaml", tmp_path / "again.yaml")
    answer = fairprune("run", "--recipe", recipe, "--output", tmp_path / "run")
    assert answer.code == 0, answer.err
    same_files(tmp_path / "run", finished)


def test_a_plan_file_on_its_model_then_judged(
    fairprune: Any, finished: Path, llama: Path, prompts: Path, tmp_path: Path
) -> None:
    folder, quick = tmp_path / "run", ("--calibration-tokens", "16", "--calibration-documents", "8", "--force")
    words = ("prune", llama, "--plan", finished / "plan.json", "--output", folder, *quick)
    answer = fairprune(*words)
    assert answer.code == 0, answer.err
    same_files(folder, finished, "plan.json", "model/model.safetensors", "model/config.json", "calibration.jsonl")
    assert fairprune(*words).err.count("done before") == 1
    answer = fairprune("evaluate", "--output", folder)
    assert answer.code == 2
    assert "no prompt set is named" in answer.err
    answer = fairprune("evaluate", "--output", folder, "--prompts", prompts)
    assert answer.code == 0, answer.err
    same_files(folder, finished, "evaluation.json")


def test_evaluating_a_model_alone_fills_before_alone(fairprune: Any, llama: Path, prompts: Path, tmp_path: Path) -> None:
    options = ("--calibration-tokens", "16", "--calibration-documents", "8")
    answer = fairprune("evaluate", llama, "--prompts", prompts, "--output", tmp_path / "run", *options)
    assert answer.code == 0, answer.err
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert {row["metric"] for row in found["results"]} == {
        "next-token-divergence",
        "next-token-divergence-to-controls",
        "valence-gap",
        "valence-gap-to-controls",
        "activation-difference",
        "sequence-gap",
        "shared-token-perplexity",
        "valence-of-group",
        "perplexity-of-group",
        "perplexity",
    }
    for row in found["results"]:
        assert row["before"] > 0 or row["metric"] == "valence-of-group"  # it has a sign
        assert [row[name] for name in ("after", "difference", "change", "ci_low", "ci_high", "p_value")] == [None] * 6
    assert "verdict" not in record(tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


# -- killed, interrupted ---------------------------------------------------------------------------------------------------


ROW = {
    "metric",
    "split",
    "control",
    "category",
    "layer",
    "before",
    "after",
    "difference",
    "change",
    "ideal",
    "unit",
    "ci_low",
    "ci_high",
    "p_value",
    "n",
}


def half_written(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


@pytest.mark.parametrize(
    ("place", "stage"),
    [
        ("fairprune_framework.stages.audit.perform", "audit"),
        ("fairprune_framework.selection.decide.make_plan", "plan"),
        ("fairprune_framework.surgery.removal.compared", "prune"),
        ("fairprune_framework.evaluation.results.Evaluation.save", "evaluate"),
    ],
)
def test_a_run_that_died_goes_on_at_its_stage(
    fairprune: Any,
    finished: Path,
    llama: Path,
    prompts: Path,
    quick: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    stage: str,
) -> None:
    folder = tmp_path / "run"
    words = ("run", llama, "--prompts", prompts, "--output", folder, *quick)

    def die(*_: Any, **__: Any) -> None:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(place, die)
        with pytest.raises(RuntimeError, match="power cut"):
            fairprune(*words)
    done = list(record(folder)["stages"])
    assert done == ["read", *STAGES][: 1 + STAGES.index(stage)]
    assert half_written(folder) == []
    assert (folder / "model").exists() == (stage == "evaluate")
    answer = fairprune(*words)
    assert answer.code == 0, answer.err
    assert answer.err.count("done before") == len(done)
    same_files(folder, finished)


def test_ctrl_c_while_auditing(
    fairprune: Any, llama: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning turns it into `exit(1)`; the command line must say 130."""

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fairprune_framework.auditing.callback.ActivationStatisticsCallback._handle", interrupt)
    answer = fairprune("audit", llama, "--prompts", prompts, "--output", tmp_path / "run")
    assert answer.code == 130
    assert answer.errors[-1] == "fairprune: interrupted"
    assert list(record(tmp_path / "run")["stages"]) == ["read"]
    assert half_written(tmp_path / "run") == []


def test_ctrl_c_while_a_file_is_written(
    fairprune: Any, llama: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(_tensors: Any, path: Path, *_: Any, **__: Any) -> None:
        Path(path).write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", half)
    answer = fairprune("audit", llama, "--prompts", prompts, "--output", tmp_path / "run", "--recipe", "variance")
    assert answer.code == 130
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"run.json", "recipe.yaml", "contrasts.jsonl"}


def test_ctrl_c_while_pruning_leaves_no_model(fairprune: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fairprune_framework.surgery.removal.compared", interrupt)
    answer = fairprune("prune", "--output", folder, "--round-to", "2", "--overwrite")
    assert answer.code == 2  # the plan belongs to another rounding
    answer = fairprune("plan", "--output", folder, "--round-to", "2", "--overwrite")
    assert answer.code == 0, answer.err
    answer = fairprune("prune", "--output", folder)
    assert answer.code == 130, answer.err
    assert not (folder / "model").exists()
    assert half_written(folder) == []


# -- what stands in it -----------------------------------------------------------------------------------------------------


def test_files_of_a_run(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    wanted = {name.partition("/")[0] for name in EXACT} | {
        "run.json",
        "evaluation_items.parquet",
        "exhibits.safetensors",
        "exhibits.json",
        "judging_text.json",
        "report.html",
        "restoration.safetensors",
    }
    assert names == wanted


def test_run_json(finished: Path, llama: Path) -> None:
    found = record(finished)
    assert found["format"] == "fairprune-run/1"
    assert found["verdict"] in ("fairer", "no-difference", "worse", "abstained", "not-judged")
    assert found["abstained"] is False
    assert found["parameters_before"] - found["parameters_after"] == found["removal"]["cut"] * 3 * 32
    assert set(found["seconds"]) == {"read", *STAGES, "report"}
    assert {"python", "torch", "transformers", "lightning", "fairprune_framework"} <= found["versions"].keys()
    assert {kind: plugin["name"] for kind, plugin in found["plugins"].items()} == {
        "bias": "variance",
        "importance": "max-abs-weight",
        "policy": "uniform",
    }
    assert found["seeds"] == {"run": 0}
    assert {"prompts", "split", "model", "composition", "calibration"} <= found["hashes"].keys()
    assert {"increase", "limit", "held", "text_hash"} <= found["guard"].keys()
    assert found["guard"]["text_hash"] == found["hashes"]["calibration"]


def test_plan_json(finished: Path) -> None:
    plan = json.loads((finished / "plan.json").read_text())
    assert {
        "format",
        "model",
        "operator",
        "factor",
        "sites",
        "categories",
        "category_names",
        "requested",
        "achieved",
        "abstained",
        "reason",
    } == plan.keys()
    assert plan["model"].keys() == {"name", "fingerprint"}
    assert plan["model"]["fingerprint"] == record(finished)["hashes"]["model"]
    assert list(plan["sites"]) == ["model.layers.0.mlp", "model.layers.1.mlp"]
    for units in plan["sites"].values():
        assert units == sorted(set(units))
        assert all(isinstance(unit, int) and 0 <= unit < 48 for unit in units)
    assert plan["requested"] == {"budget": "0.1", "units": 9}
    assert plan["achieved"]["units"] == 8


def test_evaluation_json(finished: Path) -> None:
    found = json.loads((finished / "evaluation.json").read_text())
    for row in found["results"]:
        assert row.keys() >= ROW
        if row["change"] is not None and row["before"] != row["ideal"]:
            assert row["change"] == pytest.approx((row["after"] - row["before"]) / abs(row["before"] - row["ideal"]))
        assert row["difference"] == pytest.approx(row["after"] - row["before"])
    metrics = {row["metric"] for row in found["results"]}
    contrast_metrics = {
        "activation-difference",
        "next-token-divergence",
        "next-token-divergence-to-controls",
        "valence-gap",
        "valence-gap-to-controls",
        "sequence-gap",
        "shared-token-perplexity",
    }
    of_groups = {"valence-of-group", "perplexity-of-group", "perplexity-gap"}
    assert metrics == contrast_metrics | of_groups | {"perplexity", "kl-to-original"}
    places = {(row["split"], row["control"]) for row in found["results"] if row["metric"] == "next-token-divergence"}
    assert places == {("select", False), ("heldout", False), ("select", True), ("heldout", True)}
    layers = {row["layer"] for row in found["results"] if row["metric"] == "activation-difference"}
    assert layers == {None, 0, 1}
    assert [g["prompt"][:11] for g in found["generations"]] == ["A Black man", "A white man"]


def test_scores_file(finished: Path) -> None:
    from safetensors.torch import load_file

    found = load_file(finished / "scores.safetensors")
    sites = ("model.layers.0.mlp", "model.layers.1.mlp")
    names = {f"{head}/{site}" for head in ("bias", "bias@age", "bias@race", "importance") for site in sites}
    assert names <= found.keys()
    for name in names:
        assert found[name].dtype == torch.float64
        assert found[name].shape == (48,)
    for site in sites:
        mean = (found[f"bias@age/{site}"] + found[f"bias@race/{site}"]) / 2
        assert torch.equal(mean, found[f"bias/{site}"])


def test_controls_and_heldout_feed_no_score(fairprune: Any, finished: Path, llama: Path, prompts: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in prompts.read_text().splitlines()]
    kept = [row for row in rows if row["split"] == "select" and not row["control"]]
    only = tmp_path / "only.jsonl"
    only.write_text("".join(json.dumps(row) + "\n" for row in kept))
    words = ("--prompts", only, "--output", tmp_path / "run", "--recipe", "relative-variance")
    assert fairprune("audit", llama, *words).code == 0
    same_files(tmp_path / "run", finished, "statistics.safetensors")


# -- json and quiet --------------------------------------------------------------------------------------------------------


def test_json_stands_alone_on_stdout(finished: Path) -> None:
    command = [sys.executable, "-m", "fairprune_framework", "run", "--output", str(finished), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == record(finished)


def test_json_stands_alone_while_working(fairprune: Callable[..., Any], llama: Path, prompts: Path, tmp_path: Path) -> None:
    answer = fairprune("audit", llama, "--prompts", prompts, "--output", tmp_path / "run", "--json", "--quiet")
    assert json.loads(answer.out)["stages"].keys() == {"read", "audit"}
    assert answer.err == ""


# -- the same from Python --------------------------------------------------------------------------------------------------


def test_the_functions_give_the_files_of_the_command_line(finished: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fairprune_framework as fp
    from fairprune_framework.testing.tiny import tiny_contrasts

    monkeypatch.setattr("fairprune_framework.evaluation.metrics.generation.NEW_TOKENS", 3)
    model, tokenizer = fp.load_model(str(llama))
    options = {
        "recipe": "relative-variance",
        "budget": "0.1",
        "calibration_tokens": 16,
        "calibration_documents": 8,
        "force": True,
    }
    audited = fp.audit(model=model, tokenizer=tokenizer, prompts=tiny_contrasts(), **options)
    done = fp.evaluate(fp.prune(fp.plan(fp.score(audited))))
    assert isinstance(done, fp.Run)
    assert done.verdict == record(finished)["verdict"]
    same = ("contrasts.jsonl", "statistics.safetensors", "scores.safetensors", "evaluation.json", "model/model.safetensors")
    same_files(done.folder, finished, *same)
    assert done.read_plan().sites == {
        site: tuple(units) for site, units in json.loads((finished / "plan.json").read_text())["sites"].items()
    }
    with pytest.raises(ValueError, match="needs its tokenizer"):
        fp.audit(model=model, prompts=tiny_contrasts())


@pytest.mark.parametrize("text", ["sampled", "builtin:en"])
def test_a_perplexity_beyond_all_numbers_abstains(
    fairprune: Any, llama: Path, prompts: Path, quick: Any, tmp_path: Path, text: str
) -> None:
    from safetensors.torch import load_file, save_file

    wild = Path(shutil.copytree(llama, tmp_path / "wild"))
    tensors = load_file(wild / "model.safetensors")
    tensors["lm_head.weight"] *= 1e5
    save_file(tensors, wild / "model.safetensors", metadata={"format": "pt"})
    words = [word for word in quick if word != "--force"]
    answer = fairprune("run", wild, "--prompts", prompts, "--output", tmp_path / "run", "--calibration", text, *words)
    assert answer.code == 0, answer.err
    assert answer.out.startswith("VERDICT  abstained")
    assert record(tmp_path / "run")["guard"]["increase"] is None
    assert record(tmp_path / "run")["guard"]["held"] is False


def test_a_folder_carries_its_prompts_and_text(
    fairprune: Any, llama: Path, prompts: Path, quick: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompt file, calibration file and working directory may go once the audit is done: later stages need the folder alone."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir(), elsewhere.mkdir()
    monkeypatch.chdir(here)
    shutil.copytree(llama, "model")
    shutil.copy(prompts, "p.jsonl")
    words = ["the man at the door was kind .", "a woman at the store was good ."] * 4
    Path("text.jsonl").write_text("".join(json.dumps({"text": f"{line} {line}"}) + "\n" for line in words))
    done = fairprune("run", "model", "--prompts", "p.jsonl", "--calibration", "text.jsonl", "--output", "run", "--force")
    assert done.code == 0, done.err
    before = (here / "run" / "scores.safetensors").read_bytes()
    Path("p.jsonl").unlink(), Path("text.jsonl").unlink()
    monkeypatch.chdir(elsewhere)
    Path("p.jsonl").write_text("something else of that name")
    folder = here / "run"
    at = ("--output", folder)
    for command in (("plan", "--budget", "0.05", "--overwrite", *at), ("prune", *at), ("evaluate", *at), ("report", folder)):
        answer = fairprune(*command)
        assert answer.code == 0, answer.err
    assert (folder / "scores.safetensors").read_bytes() == before
    record = json.loads((folder / "run.json").read_text())
    assert set(record["stages"]) >= {"read", "audit", "score", "plan", "prune", "evaluate"}
    assert str(here) not in (folder / "run.json").read_text()
    changed = fairprune("run", folder.parent / "model", "--prompts", "p.jsonl", "--output", folder)
    assert changed.code == 2  # named anew, it is looked at


def test_a_prompt_file_that_is_named_again_is_looked_at_again(
    fairprune: Any, llama: Path, prompts: Path, quick: Any, tmp_path: Path
) -> None:
    mine = tmp_path / "p.jsonl"
    lines = prompts.read_text().splitlines(keepends=True)
    mine.write_text("".join(lines))
    words = ("run", llama, "--prompts", mine, "--output", tmp_path / "run", *quick)
    assert fairprune(*words).code == 0
    assert "done before" in fairprune(*words).err
    mine.write_text("".join(lines[:-1]))
    answer = fairprune(*words)
    assert answer.code == 2
    assert "other inputs" in answer.errors[-1]
