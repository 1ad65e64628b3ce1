"""Which runs may be pushed; uploads themselves are tested with a stand-in of the hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fairprune_framework.errors import RunFolderError, UserError
from fairprune_framework.reporting.publishing import push, pushable


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def changed(folder: Path, **facts: object) -> None:
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, **facts}))


def test_a_finished_run_gives_its_model(finished: Path) -> None:
    assert pushable(finished) == finished / "model"


def test_what_may_not_be_pushed(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"is not a run folder \(it contains no run\.json\)"):
        pushable(tmp_path)
    (folder / "model" / "README.md").rename(tmp_path / "README.md")
    with pytest.raises(RunFolderError, match="has no card"):
        pushable(folder)
    stages = json.loads((folder / "run.json").read_text())["stages"]
    changed(folder, stages={name: stage for name, stage in stages.items() if name != "evaluate"})
    with pytest.raises(RunFolderError, match="has not been evaluated"):
        pushable(folder)
    shutil.rmtree(folder / "model")
    with pytest.raises(RunFolderError, match="contains no pruned model"):
        pushable(folder)
    changed(folder, abstained=True, abstained_because="it costs too much")
    with pytest.raises(RunFolderError, match="abstained, there is nothing to push: it costs too much"):
        pushable(folder)


@pytest.mark.parametrize("token", [None, ""])
def test_without_a_token_nothing_is_asked_of_the_hub(
    finished: Path, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda **_: pytest.fail("the hub was asked"))
    with pytest.raises(UserError, match="set the environment variable HF_TOKEN"):
        push(finished, "me/small")
