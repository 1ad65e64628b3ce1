"""What a run folder remembers: which stages are done with which inputs, and what goes when one is done again."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairprune_framework.errors import RunFolderError
from fairprune_framework.recipes.loading import with_defaults
from fairprune_framework.recipes.recipe import STAGE_FIELDS, PluginSpec, Recipe
from fairprune_framework.runs.folder import FILES, STAGES, RunFolder
from fairprune_framework.utilities.files import refuse_unwritable

RECIPE = with_defaults(Recipe(model="some/model", prompts="builtin:en", budget="0.1"))


def folder(path: Path, recipe: Recipe = RECIPE, **more: Any) -> RunFolder:
    return RunFolder(recipe, path, **more)


def do(run: RunFolder, *stages: str) -> RunFolder:
    """Each stage, with all files that it may leave."""
    for stage in stages:
        run.begin(stage)
        for name in FILES[stage]:
            (run / name).parent.mkdir(exist_ok=True)
            (run / name).mkdir() if name == "model" else (run / name).write_text("x")
        run.finish(stage, 1.2345, FILES[stage])
    return run


def test_nothing_is_written_before_a_stage_begins(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    assert not run.done("read")
    assert not run.has("read")
    assert not (tmp_path / "run").exists()
    run.begin("read")
    assert yaml.safe_load((run / "recipe.yaml").read_text()) == RECIPE.to_file()


def test_a_stage_is_done_for_whoever_opens_the_folder_the_same(tmp_path: Path) -> None:
    heard: list[str] = []
    do(folder(tmp_path / "run", notify=heard.append), *STAGES)
    again = folder(tmp_path / "run")
    assert all(again.done(stage) and again.current(stage) and again.has(stage) for stage in STAGES)
    assert again.record["seconds"] == dict.fromkeys(STAGES, 1.234)
    assert heard == [f"{stage}: 1.2 s" for stage in STAGES]


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        ({"prompts": "x.jsonl"}, "read"),
        ({"prefix_sharing": "never"}, "audit"),
        ({"calibration_tokens": 99}, "audit"),
        ({"bias": PluginSpec(plugin="variance", options={"relative": True})}, "score"),
        ({"budget": "0.2"}, "plan"),
        ({"suite": ("boolq",)}, "evaluate"),
    ],
)
def test_an_option_concerns_its_stage_and_all_later_ones(tmp_path: Path, change: dict[str, Any], stage: str) -> None:
    one, other = folder(tmp_path / "run"), folder(tmp_path / "run", replace(RECIPE, **change))
    same = [name for name in STAGES if one.key(name) == other.key(name)]
    assert same == list(STAGES[: STAGES.index(stage)])
    assert set(change) <= set(STAGE_FIELDS[stage])


@pytest.mark.parametrize("change", [{"accelerator": "cpu"}])
def test_how_it_is_computed_concerns_no_stage(tmp_path: Path, change: dict[str, Any]) -> None:
    one, other = folder(tmp_path / "run"), folder(tmp_path / "run", replace(RECIPE, **change))
    assert all(one.key(stage) == other.key(stage) for stage in STAGES)


def test_other_options_are_refused_by_name_and_overwritten_if_asked_for(tmp_path: Path) -> None:
    do(folder(tmp_path / "run"), *STAGES)
    other = replace(RECIPE, budget="0.2")
    assert folder(tmp_path / "run", other).done("score")
    with pytest.raises(RunFolderError, match=r"already holds the stage 'plan' with other options \(budget\)"):
        folder(tmp_path / "run", other).done("plan")
    with pytest.raises(RunFolderError, match=r"the stage 'plan' of .* is outdated"):
        folder(tmp_path / "run", other, overwrite=True).needs("plan")
    assert not folder(tmp_path / "run", other, overwrite=True).done("plan")


def test_a_stage_that_begins_takes_its_files_and_all_later_ones_away(tmp_path: Path) -> None:
    run = do(folder(tmp_path / "run"), *STAGES)
    run.note(verdict="fairer", guard={"held": True})
    run.begin("plan")
    later = {name for stage in STAGES[STAGES.index("plan") :] for name in FILES[stage]}
    earlier = {name for stage in STAGES[: STAGES.index("plan")] for name in FILES[stage]}
    assert not any((run / name).exists() for name in later)
    assert all((run / name).exists() for name in earlier)
    again = folder(tmp_path / "run")
    assert set(again.record["stages"]) == set(again.record["seconds"]) == {"read", "audit", "score"}
    assert "verdict" not in again.record
    assert "guard" not in again.record


def test_a_verdict_outlives_a_report_that_is_made_again(tmp_path: Path) -> None:
    run = do(folder(tmp_path / "run"), *STAGES)
    run.note(verdict="fairer")
    run.begin("report")
    assert run.record["verdict"] == "fairer"
    assert (run / "evaluation.json").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    run = do(folder(tmp_path / "run"), "read", "audit")
    (run / "statistics.json").unlink()
    with pytest.raises(RunFolderError, match=r"statistics\.json is missing: give --overwrite to do the stage 'audit' again"):
        folder(tmp_path / "run").done("audit")
    assert not folder(tmp_path / "run").current("audit")
    assert not folder(tmp_path / "run", overwrite=True).done("audit")


def test_what_a_stage_needs(tmp_path: Path) -> None:
    run = do(folder(tmp_path / "run"), "read")
    run.needs("read")
    with pytest.raises(RunFolderError, match="holds no result of the stage 'audit': run `fairprune audit` first"):
        run.needs("audit")


def test_inputs_are_hashed_and_remembered_until_they_are_named_again(tmp_path: Path) -> None:
    hashes = {"prompts": "one"}
    asked: list[list[str]] = []

    def contents(names: Any) -> dict[str, Any]:
        asked.append(sorted(names))
        return {name: hashes[name] for name in names if name in hashes}

    do(folder(tmp_path / "run", contents=contents), "read")
    hashes["prompts"] = "two"
    with pytest.raises(RunFolderError, match="with other inputs"):
        folder(tmp_path / "run", contents=contents).done("read")
    kept = folder(tmp_path / "run", contents=contents, given=())
    assert kept.done("read")
    assert kept.input_hash("prompts") == "one"
    assert "prompts" not in asked[-1]


@pytest.mark.parametrize(("field", "stage"), [("calibration", "audit"), ("decisions", "evaluate")])
def test_a_file_is_known_by_its_content(field: str, stage: str, tmp_path: Path) -> None:
    text = tmp_path / "x.txt"
    text.write_text("one")
    recipe = replace(RECIPE, **{field: str(text)})  # type: ignore[arg-type]
    before = folder(tmp_path / "run", recipe).key(stage)
    text.write_text("two")
    assert folder(tmp_path / "run", recipe).key(stage) != before
    text.write_text("one")
    assert folder(tmp_path / "run", recipe).key(stage) == before


def test_another_model_is_refused(tmp_path: Path) -> None:
    run = do(folder(tmp_path / "run"), "read")
    run.note(hashes={"model": "a" * 64})
    assert run.accept_model("a" * 64) == "a" * 64
    with pytest.raises(RunFolderError, match=r"was made with another model \(aaaaaaaaaaaa\); this one is bbbbbbbbbbbb"):
        run.accept_model("b" * 64)


def test_a_local_model_is_found_from_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "model").mkdir(parents=True)
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    do(folder(Path("run"), replace(RECIPE, model="model")), "read")
    opened = folder(tmp_path / "here" / "run", replace(RECIPE, model="model"), given=())
    assert opened.place_of_model() is None  # it is where its name says
    monkeypatch.chdir(tmp_path / "there")
    place = opened.place_of_model()
    assert place is not None
    assert os.path.samefile(place, tmp_path / "here" / "model")


def test_notes_are_merged_and_saved_whole(tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    run.begin("read")
    run.note(hashes={"a": "1"}, verdict="x")
    run.note(hashes={"b": "2"}, verdict="y")
    run.save()
    record = json.loads((run / "run.json").read_text())
    assert (record["hashes"], record["verdict"]) == ({"a": "1", "b": "2"}, "y")
    assert record["plugins"]["bias"]["distribution"] == "fairprune_framework"


def test_a_temporary_folder_goes_with_its_object() -> None:
    run = RunFolder(RECIPE, None)
    path = run.path
    assert run.temporary
    assert path.is_dir()
    assert os.fspath(run) == str(run) == str(path)
    other = run.with_recipe(RECIPE, overwrite=False, notify=lambda text: None, contents=lambda names: {})
    del run
    assert path.is_dir()  # the other one still works in it
    del other
    assert not path.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot read"),
        ('{"format": "x"}', "must be of format"),
        ('{"format": "fairprune-run/1"}', "the field 'stages': field required"),
        ('{"format": "fairprune-run/1", "stages": {"audit": 5}}', "'stages.audit': .* Got 5 instead"),
        ('{"format": "fairprune-run/1", "stages": {"read": {"key": "k", "files": ["a"]}}}', "'stages.read.files'"),
        (
            '{"format": "fairprune-run/1", "stages": {"read": {"key": "k", "files": {"../x": {"sha256": "", "size": 1}}}}}',
            "must be a path below the folder",
        ),
        ('{"format": "fairprune-run/1", "stages": {}, "seconds": {"read": "long"}}', "'seconds.read'"),
        ('{"format": "fairprune-run/1", "stages": {}, "guard": {}}', "'guard.increase': field required"),
        ('{"format": "fairprune-run/1", "stages": {}, "verdict": "\\ud800"}', "surrogates not allowed"),
    ],
)
def test_a_damaged_record(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunFolderError, match=words):
        folder(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    refuse_unwritable(tmp_path / "a" / "b")
    with pytest.raises(RunFolderError, match="is a file"):
        refuse_unwritable(tmp_path / "file" / "run")
