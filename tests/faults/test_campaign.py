"""A share of the campaign of `benchmarks/faults.py`: disturbed commands, each given once more; its seeds are fixed."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import trials
from commands import COMMANDS, Bench, start

Draw = random.Random


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("faults") / "bench")


def nothing_found(trial: trials.Trial | None) -> None:
    if trial is None:
        pytest.skip("no file system can be mounted here")
    assert trial.found == {}, trial.what


@pytest.mark.parametrize("name", COMMANDS)
def test_a_kill_loses_nothing(name: str, bench: Bench) -> None:
    draw = Draw(f"kill {name}")
    nothing_found(trials.kill(bench, name, draw.choice(trials.SIGNALS), draw))


@pytest.mark.slow
@pytest.mark.parametrize("number", trials.SIGNALS)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_kill_at_any_moment(name: str, number: signal.Signals, bench: Bench) -> None:
    for seed in range(3):
        nothing_found(trials.kill(bench, name, number, Draw(f"{name} {number} {seed}")))


@pytest.mark.parametrize("name", ["run", "prune", "finetune", "restore", "ablate"])
def test_a_full_disk_is_one_line(name: str, bench: Bench) -> None:
    nothing_found(trials.fill(bench, name, Draw(f"fill {name}")))


@pytest.mark.parametrize("how", ["once", "from", "size"])
@pytest.mark.parametrize("name", ["run", "prune", "evaluate", "finetune", "restore"])
def test_a_write_that_fails(name: str, how: str, bench: Bench) -> None:
    nothing_found(trials.fail_writes(bench, name, how, Draw(f"fail {name} {how}")))


@pytest.mark.parametrize("name", ["run", "plan", "ablate"])
def test_two_at_once(name: str, bench: Bench) -> None:
    nothing_found(trials.pair(bench, name, Draw(f"pair {name}")))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_a_rank_that_is_killed_stops_the_others(seed: int, bench: Bench) -> None:
    draw = Draw(f"ranks {seed}")
    nothing_found(trials.kill_a_rank(bench, 2, draw.choice(trials.SIGNALS), draw, draw.choice([1, 2])))


# -- the campaign itself: it finds what is wrong, and nothing of its own ---------------------------------------------------


def overwritten(bench: Bench, out: Path) -> None:
    (out / "model" / "config.json").write_text("{}")


def removed(bench: Bench, out: Path) -> None:
    (out / "plan.json").unlink()


def littered(bench: Bench, out: Path) -> None:
    (out / "model" / "more.txt").write_text("x")


@pytest.mark.parametrize(("damage", "kind"), [(overwritten, "wrong"), (removed, "lost"), (littered, "littered")])
def test_a_difference_is_found(damage: Callable[[Bench, Path], None], kind: str, bench: Bench) -> None:
    out = bench.place("report")
    start(bench.words("report", out), out.parent / "err.txt").wait()
    assert bench.differences("report", out) == {}
    damage(bench, out)
    assert list(bench.differences("report", out)) == [kind]


def test_a_bar_that_a_killed_command_was_drawing_locks_out_no_later_one(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tqdm's lock belongs to all processes that are forked from here: one that ends with it in hand never gives it back."""
    from tqdm.auto import tqdm
    from tqdm.std import TqdmDefaultWriteLock

    monkeypatch.setattr(TqdmDefaultWriteLock, "mp_lock", multiprocessing.RLock())
    monkeypatch.setattr(tqdm, "_lock", TqdmDefaultWriteLock(), raising=False)
    if not (pid := os.fork()):
        TqdmDefaultWriteLock.mp_lock.acquire()
        os._exit(0)
    os.waitpid(pid, 0)
    process = start(bench.words("ablate", tmp_path / "out"), tmp_path / "said.txt").wait(60)
    assert process.code == 0, process.text
