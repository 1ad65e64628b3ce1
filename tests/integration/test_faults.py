"""Kills, signals, second writers and links: a folder is never locked, never littered, and nothing outside of it is touched."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.utilities import files, lock
from fairprune_framework.utilities.files import RUN_PARTS

WORDS = (
    "--recipe",
    "relative-variance",
    "--budget",
    "0.1",
    "--calibration-tokens",
    "16",
    "--calibration-documents",
    "8",
    "--quiet",
)


def leftovers(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if files.is_unfinished(path) or path.name == lock.FILE]


@pytest.fixture
def command(llama: Path, prompts: Path, tmp_path: Path) -> list[str]:
    return ["run", str(llama), "--prompts", str(prompts), "--output", str(tmp_path / "o"), *WORDS]


@pytest.fixture
def done(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "o"))


@pytest.mark.parametrize("name", [".run.json.abcd1234.tmp", ".recipe.yaml.abcd1234.tmp", lock.FILE])
def test_a_folder_with_only_unfinished_files_is_taken(name: str, fairprune: Any, command: list[str], tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / name).write_text("{")
    answer = fairprune(*command)
    assert answer.code == 0, answer.err
    assert leftovers(tmp_path) == []


def test_a_folder_of_the_user_is_not_taken(fairprune: Any, command: list[str], tmp_path: Path) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / ".mine.settings").write_text("x")
    answer = fairprune(*command)
    assert answer.code == 2
    assert os.listdir(tmp_path / "o") == [".mine.settings"]


def test_what_a_kill_left_goes_and_what_is_not_ours_stays(fairprune: Any, done: Path) -> None:
    (done / ".model.abcd1234.tmp").mkdir()
    (done / ".model.abcd1234.tmp" / "config.json").write_text("{}")
    (done / "model" / ".README.md.abcd1234.tmp").write_text("")
    (done / ".notes.tmp").write_text("mine")
    assert fairprune("prune", "--output", done, "--overwrite").code == 0
    assert leftovers(done) == []
    assert (done / ".notes.tmp").read_text() == "mine"


def test_what_a_process_left_that_was_killed_when_all_was_done(fairprune: Any, done: Path) -> None:
    """No stage is done again; where another process writes, its lock stays, and the answer is there all the same."""
    for name in (lock.FILE, ".run.json.abcd1234.tmp", "model/.README.md.abcd1234.tmp"):
        (done / name).write_text("")
    before = (done / "run.json").read_bytes()
    assert fairprune("evaluate", "--output", done).code == 0
    assert leftovers(done) == []
    assert (done / "run.json").read_bytes() == before
    with holder(done):
        assert fairprune("evaluate", "--output", done).code == 0
        assert (done / lock.FILE).is_file()
    assert fairprune("evaluate", "--output", done).code == 0
    assert leftovers(done) == []


def test_an_empty_output_is_refused(fairprune: Any, llama: Path, prompts: Path) -> None:
    answer = fairprune("audit", llama, "--prompts", prompts, "--output", "", *WORDS)
    assert (answer.code, len(answer.errors)) == (2, 1)
    assert "must not be empty" in answer.err


@pytest.mark.parametrize("name", RUN_PARTS)
def test_a_link_in_the_folder_is_not_followed(name: str, fairprune: Any, done: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "README.md").write_text("mine")
    (outside / ".x.abcd1234.tmp").write_text("mine")
    files.remove(done / name)
    (done / name).symlink_to(outside)
    answer = fairprune("score", "--output", done, "--overwrite")
    assert (answer.code, len(answer.errors)) == (2, 1)
    assert "is a link" in answer.err
    assert sorted(os.listdir(outside)) == [".x.abcd1234.tmp", "README.md"]


def test_a_linked_file_is_replaced_and_its_target_stays(fairprune: Any, done: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("mine")
    (done / "plan.json").unlink()
    (done / "plan.json").symlink_to(tmp_path / "outside")
    assert fairprune("plan", "--output", done, "--overwrite").code == 0
    assert not (done / "plan.json").is_symlink()
    assert (tmp_path / "outside").read_text() == "mine"


# -- one writer --------------------------------------------------------------------------------------------------------------

HOLD = """import sys, time
from pathlib import Path
from fairprune_framework.utilities import lock
lock.acquire(Path(sys.argv[1]), shared=len(sys.argv) > 2)
print("held", flush=True)
time.sleep(60)"""


@contextlib.contextmanager
def holder(folder: Path, *, shared: bool = False) -> Any:
    more = ["shared"] if shared else []
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), *more], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_second_writer_is_told_who_writes_and_a_dead_one_is_not_in_the_way(fairprune: Any, done: Path) -> None:
    with holder(done) as process:
        answer = fairprune("score", "--output", done, "--overwrite")
        assert (answer.code, len(answer.errors)) == (2, 1)
        assert f"is being written by process {process.pid} on " in answer.err
        assert (done / "scores.safetensors").is_file()
    assert (done / lock.FILE).is_file()
    assert fairprune("score", "--output", done, "--overwrite").code == 0
    assert leftovers(done) == []


def test_one_process_writes_an_ablation_and_parts_share_it(fairprune: Any, llama: Path, prompts: Path, tmp_path: Path) -> None:
    grid, out = tmp_path / "grid.yaml", tmp_path / "g"
    grid.write_text("bias: variance\nbudget: ['0.1', '0.2']\ncalibration_tokens: 16\ncalibration_documents: 8\n")
    words = ("ablate", grid, "--model", llama, "--prompts", prompts, "--output", out)
    out.mkdir()
    (out / ".grid.yaml.abcd1234.tmp").write_text("")  # what a killed one left
    with holder(out) as process:
        for more in ((), ("--part", "0/2")):
            answer = fairprune(*words, *more)
            assert (answer.code, len(answer.errors)) == (2, 1)
            assert f"is being written by process {process.pid} on " in answer.err
        assert sorted(os.listdir(out)) == [".grid.yaml.abcd1234.tmp", lock.FILE]
    assert lock.acquire(out, shared=True)
    lock.release(out)
    with holder(out, shared=True):  # another part
        assert fairprune(*words, "--part", "0/2").code == 0
        assert (out / lock.FILE).is_file()
        assert fairprune(*words).code == 2
    assert fairprune(*words).code == 0
    assert leftovers(out) == []


def test_an_ablation_stopped_after_its_cells_goes_on(
    fairprune: Any, llama: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fairprune_framework.ablation import search

    grid, out, usual = tmp_path / "grid.yaml", tmp_path / "g", search.write_json
    grid.write_text("bias: variance\nbudget: ['0.1']\ncalibration_tokens: 16\ncalibration_documents: 8\n")
    words = ("ablate", grid, "--model", llama, "--prompts", prompts, "--output", out)

    def stopped(path: Path, data: Any) -> None:
        usual(path, data)
        if path.parent.name == "cells":
            raise KeyboardInterrupt

    monkeypatch.setattr(search, "write_json", stopped)
    assert fairprune(*words).code == 130
    monkeypatch.undo()
    answer = fairprune(*words)
    assert answer.code == 0, answer.err
    assert (out / "ablation.json").is_file()


def test_a_report_sweeps_what_a_killed_one_left(fairprune: Any, done: Path) -> None:
    left = done / ".report.html.abcd1234.tmp"
    left.write_text("")
    with holder(done):
        assert fairprune("report", done).code == 0
        assert left.exists()
    assert fairprune("report", done).code == 0
    assert leftovers(done) == []


def test_what_another_process_wrote_in_between_is_not_overwritten(done: Path) -> None:
    from fairprune_framework.errors import RunFolderError
    from fairprune_framework.runs.open import open_existing

    opened = open_existing(done)
    record = json.loads((done / "run.json").read_text())
    (done / "run.json").write_text(json.dumps(record))  # other bytes
    with pytest.raises(RunFolderError, match="another process has written"):
        opened.folder.begin("score")
    assert (done / "scores.safetensors").is_file()
    assert leftovers(done) == []


# -- signals -----------------------------------------------------------------------------------------------------------------


class Swallowed:
    """Raises a signal where Python ignores the exception: while the object is collected."""

    def __init__(self, number: int) -> None:
        self.number, self.me = number, self

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_is_swallowed_is_not_lost(
    number: int, code: int, fairprune: Any, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fairprune_framework.surgery import removal

    collect = gc.collect

    def collected() -> int:
        Swallowed(number)
        return collect()

    monkeypatch.setattr(removal.gc, "collect", collected)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    answer = fairprune("prune", "--output", done, "--overwrite")
    assert answer.code == code, answer.err
    assert "Traceback" not in answer.err.split("Exception ignored")[0]
    assert leftovers(done) == []
    assert not (done / "model").exists()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    monkeypatch.undo()
    assert fairprune("prune", "--output", done).code == 0


def test_a_signal_after_the_last_micro_batch_is_not_lost(fairprune: Any, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairprune_framework.auditing.distributed.checkpoint_callback import CheckpointCallback

    usual, before = CheckpointCallback.on_predict_end, (done / "statistics.safetensors").read_bytes()

    def signalled(self: Any, *words: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        usual(self, *words)

    monkeypatch.setattr(CheckpointCallback, "on_predict_end", signalled)
    answer = fairprune("audit", "--output", done, "--overwrite")
    assert (answer.code, len(answer.errors)) == (143, 1), answer.err
    assert leftovers(done) == []
    monkeypatch.undo()
    assert fairprune("audit", "--output", done, "--overwrite").code == 0
    assert (done / "statistics.safetensors").read_bytes() == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_the_shell_ignores_stays_ignored(fairprune: Any, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under `nohup`, and in the background of a script."""
    before, noted = signal.signal(signal.SIGINT, signal.SIG_IGN), []
    monkeypatch.setattr(
        "fairprune_framework.surgery.removal.stopping.check", lambda: noted.append(signal.raise_signal(signal.SIGINT))
    )
    try:
        assert fairprune("prune", "--output", done, "--overwrite").code == 0
        assert noted
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("wait", [0.0, 0.7])
def test_a_signal_ends_a_command_in_one_line(number: int, wait: float, command: list[str], tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "fairprune_framework", *command], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    limit = time.monotonic() + 60
    while not (tmp_path / "o" / "run.json").exists() and time.monotonic() < limit:
        time.sleep(0.01)
    time.sleep(wait)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (0, 130 if number == signal.SIGINT else 143)
    assert "Traceback" not in err
    assert "cannot load" not in err
    assert len(err.splitlines()) <= 1
    assert leftovers(tmp_path) == []


# -- what a model folder shows -----------------------------------------------------------------------------------------------


def test_a_saved_model_has_ordinary_permissions_and_names_no_path(
    fairprune: Any, command: list[str], llama: Path, tmp_path: Path
) -> None:
    assert fairprune(*command).code == 0
    umask = os.umask(0)
    os.umask(umask)
    model = tmp_path / "o" / "model"
    assert model.stat().st_mode & 0o777 == 0o777 & ~umask
    assert {path.stat().st_mode & 0o777 for path in model.rglob("*") if path.is_file()} == {0o666 & ~umask}
    places = [*model.rglob("*"), *(tmp_path / "o" / name for name in ("plan.json", "report.html", "restoration.safetensors"))]
    assert [str(path) for path in places if path.is_file() and str(llama.parent).encode() in path.read_bytes()] == []
