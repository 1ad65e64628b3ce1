"""One result whatever the layout: world sizes 1 to 4 over gloo, killed and resumed on another number of ranks, bit for bit."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import ranks as processes

NAMES = ("Black", "white", "Asian", "Latino", "Arab")
FRAMES = (
    "The {} nurse walked into the store .",
    "A {} man was waiting at the door of the office late at night .",
    "They are {}",
    "She asked the {} lawyer for help because the loan was bad .",
    "{} people are usually good friends .",
)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, write_prompts: Callable[..., Path]) -> Path:
    """120 contrasts of many lengths, in two categories."""
    pairs = list(itertools.combinations(NAMES, 2))
    rows = []
    for i in range(120):
        frame, values = FRAMES[i % len(FRAMES)], pairs[(i // 5) % len(pairs)]
        variants = [{"attribute": v, "text": f"{'I ' * (i % 7)}{frame.format(v)} {i}"} for v in values]
        rows.append({"id": f"c{i}", "category": ("race", "other")[i % 2], "template_id": f"t{i % 40}", "variants": variants})
    return write_prompts(tmp_path_factory.mktemp("many") / "many.jsonl", rows)


@pytest.fixture(scope="module")
def words(llama: Path, many: Path) -> Callable[..., list[str]]:
    def make(folder: Path, *more: str, prompts: Path | None = None) -> list[str]:
        common = ["--recipe", "variance", "--accelerator", "cpu", "--micro-batch-tokens", "128", "--checkpoint-every", "8"]
        return ["audit", str(llama), "--prompts", str(prompts or many), "--output", str(folder), *common, *more]

    return make


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, words: Callable[..., list[str]]) -> Path:
    """The audit on one rank, never interrupted."""
    return processes.alone(tmp_path_factory.mktemp("alone"), words)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_any_number_of_ranks(world: int, alone: Path, words: Callable[..., list[str]], tmp_path: Path) -> None:
    running = processes.start(world, words(tmp_path / "run"), tmp_path / "log")
    codes = processes.finish(running)
    assert codes == [0] * world, "\n".join(rank.text for rank in running)
    processes.same(alone, tmp_path / "run")
    assert all(rank.text == "" for rank in running[1:])  # rank 0 speaks for all


def test_fewer_micro_batches_than_ranks(llama: Path, many: Path, words: Callable[..., list[str]], tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_text("".join(many.read_text().splitlines(keepends=True)[:2]))
    for world in (1, 3):
        codes, text = processes.run(world, words(tmp_path / str(world), prompts=few), tmp_path / "log")
        assert codes == [0] * world, text
    processes.same(tmp_path / "1", tmp_path / "3")


def test_torchrun_starts_the_ranks(alone: Path, words: Callable[..., list[str]], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python", "--standalone"]
    command += [sys.executable, "-m", "fairprune_framework", *words(tmp_path / "run"), "--devices", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    processes.same(alone, tmp_path / "run")


def test_slurm_starts_the_ranks(alone: Path, words: Callable[..., list[str]], tmp_path: Path) -> None:
    """As `srun` would with two tasks on this machine: its variables are all that is known of it."""
    common = {"JOB_ID": "77", "JOB_NAME": "fp", "NTASKS": "2", "NTASKS_PER_NODE": "2", "NNODES": "1", "NODEID": "0"}
    common |= {"NODELIST": "localhost", "STEP_NODELIST": "localhost"}
    running = []
    for rank in range(2):
        told = {f"SLURM_{name}": value for name, value in {**common, "PROCID": str(rank), "LOCALID": str(rank)}.items()}
        environment = {**os.environ, **told, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "fairprune_framework", *words(tmp_path / "run"), "--devices", "2"]
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    texts = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], texts
    processes.same(alone, tmp_path / "run")


GRID = """
bias: variance
importance: max-abs-weight
policy: {plugin: protected-global, protect: 0.0}
operator: zero
budget: [4n, 8n, 12n]
controls: [{plugin: random, matched: true}]
calibration_documents: 4
calibration_tokens: 12
max_perplexity_increase: 5.0
split: keep
accelerator: cpu
"""


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grid") / "grid.yaml"
    path.write_text(GRID)
    return path


def together(ranks: int, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--no-python", "--standalone"]
    command += [sys.executable, "-m", "fairprune_framework", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def test_cells_of_a_grid_over_ranks(llama: Path, many: Path, grid: Path, tmp_path: Path, fairprune: Any) -> None:
    common = ["--model", str(llama), "--prompts", str(many)]
    answer = fairprune("ablate", grid, *common, "--output", tmp_path / "one")
    assert answer.code == 0, answer.err
    done = together(2, "ablate", str(grid), *common, "--output", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert "cell 6 of 6" in done.stderr  # rank 0 did half of the twelve cells
    assert done.stdout.count("Pareto front") == 1  # and alone prints the leaderboard
    tables = [json.loads((tmp_path / name / "ablation.json").read_text())["cells"] for name in ("one", "two")]
    for row in [row for table in tables for row in table]:
        for name in ("seconds", "planning_seconds", "masking_ms"):
            del row[name]
    assert tables[0] == tables[1]


def test_a_wrong_grid_lets_further_ranks_go(llama: Path, many: Path, grid: Path, tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text(GRID + "protected_layers: [99]\n")
    done = together(2, "ablate", str(grid), "--model", str(llama), "--prompts", str(many), "--output", str(tmp_path / "run"))
    assert done.returncode != 0
    assert done.stderr.count("--protected-layers names layer 99") == 1
    assert not (tmp_path / "run").exists()


SPAWN = """
import sys
import fairprune_framework as fp
from fairprune_framework.models.loading import load_model

if __name__ == "__main__":
    model, tokenizer = load_model(sys.argv[1])
    for strategy in ("ddp_spawn", "ddp_fork"):
        run = fp.audit(model=model, tokenizer=tokenizer, prompts=sys.argv[2], output=f"{sys.argv[3]}-{strategy}", recipe="variance",
                       accelerator="cpu", micro_batch_tokens=128, devices=2, strategy=strategy, notify=lambda text: None)
        assert run.record["audit"]["seconds"] > 0
"""


def test_ranks_as_children_of_one_process(alone: Path, llama: Path, many: Path, tmp_path: Path) -> None:
    """A model in memory, and a closure that hears the notices."""
    script = tmp_path / "spawn.py"
    script.write_text(SPAWN)
    command = [sys.executable, str(script), str(llama), str(many), str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for strategy in ("ddp_spawn", "ddp_fork"):
        processes.same(alone, tmp_path / f"run-{strategy}")


@pytest.mark.parametrize(("first", "then", "batches"), [(2, 3, 4), (3, 1, 4)])
def test_killed_and_resumed_elsewhere(
    first: int, then: int, batches: int, alone: Path, words: Callable[..., list[str]], tmp_path: Path
) -> None:
    codes, text = processes.run(
        first, words(tmp_path / "run"), tmp_path / "log", processes.after_batches(batches, processes.die)
    )
    assert -signal.SIGKILL in codes, text
    assert list((tmp_path / "run" / "checkpoint").glob("rank-*"))
    codes, text = processes.run(then, words(tmp_path / "run"), tmp_path / "log")
    assert codes == [0] * then, text
    assert processes.record(tmp_path / "run")["audit"]["resumed"] > 0
    processes.same(alone, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_killed_at_random_moments(seed: int, alone: Path, words: Callable[..., list[str]], tmp_path: Path) -> None:
    """Killed from outside at any moment, two times, each time with another number of ranks."""
    draw = random.Random(seed)
    killed = 0
    while killed < 2:
        running = processes.start(draw.randint(1, 3), words(tmp_path / "run"), tmp_path / "log")
        time.sleep(draw.uniform(0.5, 6.0))
        for rank in running:
            rank.process.kill()
        processes.finish(running)
        killed += 1
        print(
            f"seed {seed}: {len(running)} ranks killed; checkpoint: {sorted(p.name for p in tmp_path.glob('run/checkpoint/*'))}"
        )
    world = draw.randint(1, 3)
    codes, text = processes.run(world, words(tmp_path / "run"), tmp_path / "log")
    assert codes == [0] * world, text
    processes.same(alone, tmp_path / "run")


def test_sigterm_keeps_what_was_done(alone: Path, words: Callable[..., list[str]], tmp_path: Path) -> None:
    """Both ranks are asked to leave, as a scheduler asks: rank 0 leaves with 143, and the same command resumes."""

    def ask(_: int) -> None:
        signal.raise_signal(signal.SIGTERM)

    codes, text = processes.run(
        2, words(tmp_path / "run", "--checkpoint-every", "0"), tmp_path / "log", processes.after_batches(3, ask)
    )
    assert codes == [143, 0], text
    assert "stopped by SIGTERM" in text
    codes, text = processes.run(1, words(tmp_path / "run"), tmp_path / "log")
    assert codes == [0], text
    assert 0 < processes.record(tmp_path / "run")["audit"]["resumed"] < 120
    processes.same(alone, tmp_path / "run")


def test_a_rank_that_fails_gives_its_reason(alone: Path, words: Callable[..., list[str]], tmp_path: Path) -> None:
    def fail(_: int) -> None:
        raise RuntimeError("the fan stopped")

    codes, text = processes.run(2, words(tmp_path / "run"), tmp_path / "log", processes.after_batches(5, fail, only=1))
    assert codes == [1, 1], text
    assert "rank 1 failed: the fan stopped" in text
    assert "give the same command again to resume" in text
    codes, text = processes.run(2, words(tmp_path / "run"), tmp_path / "log")
    assert codes == [0, 0], text
    processes.same(alone, tmp_path / "run")


def test_a_rank_that_dies_stops_the_others(words: Callable[..., list[str]], tmp_path: Path) -> None:
    kill = processes.after_batches(5, processes.die, only=1)
    codes, text = processes.run(2, words(tmp_path / "run"), tmp_path / "log", kill)
    assert codes == [1, -signal.SIGKILL], text
    assert "another rank has exited" in text
    assert list((tmp_path / "run" / "checkpoint").glob("rank-*"))


def test_a_rank_that_hangs_is_noticed(words: Callable[..., list[str]], tmp_path: Path) -> None:
    hang = processes.after_batches(3, lambda _: time.sleep(120), only=1)
    ranks = processes.start(2, words(tmp_path / "run", "--rank-timeout", "4"), tmp_path / "log", hang)
    began = time.monotonic()
    ranks[0].process.join(60)
    assert ranks[0].process.exitcode == 1, ranks[0].text
    assert time.monotonic() - began < 60
    (line,) = [line for line in ranks[0].text.splitlines() if not line.startswith("[")]
    assert "rank 1 hangs: it has computed nothing for 4 s (--rank-timeout)" in line
    processes.finish(ranks, 30)
    assert list((tmp_path / "run" / "checkpoint").glob("rank-*"))


@pytest.mark.parametrize("dead", [0, 1])
def test_a_rank_that_dies_before_the_others_have_met_it(dead: int, words: Callable[..., list[str]], tmp_path: Path) -> None:
    def prepare(rank: int) -> None:
        if rank == dead:
            time.sleep(1)
            processes.die(rank)

    codes, text = processes.run(2, words(tmp_path / "run"), tmp_path / "log", prepare)
    assert sorted(codes) == [-signal.SIGKILL, 1], text
    assert text.strip().splitlines() == ["fairprune: error: another rank has exited before all had started"]
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_a_finished_audit_lets_further_ranks_go(alone: Path, words: Callable[..., list[str]], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(alone, tmp_path / "run"))
    codes, text = processes.run(2, words(folder), tmp_path / "log")
    assert codes == [0, 0], text
    assert "audit: done before" in text


# -- checkpoints that cannot be used ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory, words: Callable[..., list[str]]) -> Path:
    """A run folder whose audit was killed after some checkpoints. Read only."""
    scratch = tmp_path_factory.mktemp("interrupted")
    codes, text = processes.run(1, words(scratch / "run"), scratch / "log", processes.after_batches(12, processes.die))
    assert codes == [-signal.SIGKILL], text
    assert len(list((scratch / "run" / "checkpoint").glob("rank-*"))) == 2
    return scratch / "run"


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_checkpoint_is_passed_over(
    damage: str, interrupted: Path, alone: Path, words: Callable[..., list[str]], tmp_path: Path, fairprune: Any
) -> None:
    folder = Path(shutil.copytree(interrupted, tmp_path / "run"))
    newest = max((folder / "checkpoint").glob("rank-*"), key=lambda path: path.stat().st_mtime_ns)
    content = bytearray(newest.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        content[-9] ^= 16
    newest.write_bytes(content)
    answer = fairprune(*words(folder))
    assert answer.code == 0, answer.err
    assert f"checkpoint file {newest.name} is damaged" in answer.err
    processes.same(alone, folder)


def test_a_checkpoint_of_another_composition_is_refused(
    interrupted: Path, words: Callable[..., list[str]], tmp_path: Path, fairprune: Any
) -> None:
    folder = Path(shutil.copytree(interrupted, tmp_path / "run"))
    answer = fairprune(*words(folder, "--micro-batch-tokens", "64"))
    assert answer.code == 2
    assert "another composition of micro-batches" in answer.err
    assert "--overwrite" in answer.err
    assert fairprune(*words(folder, "--micro-batch-tokens", "64", "--overwrite")).code == 0


def test_a_full_disk(
    interrupted: Path, words: Callable[..., list[str]], tmp_path: Path, fairprune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    folder = Path(shutil.copytree(interrupted, tmp_path / "run"))
    before = {path.name: path.read_bytes() for path in (folder / "checkpoint").iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    answer = fairprune(*words(folder))
    assert answer.code == 1
    assert "the disk is full" in answer.err
    assert before == {path.name: path.read_bytes() for path in (folder / "checkpoint").iterdir()}
    assert not list(folder.glob(".*"))


def test_ranks_of_the_command_line_itself(llama: Path, alone: Path, words: Callable[..., list[str]], tmp_path: Path) -> None:
    """`--devices 2 --strategy ddp`: Lightning starts the command again for rank 1."""
    import os
    import subprocess

    command = [sys.executable, "-m", "fairprune_framework", *words(tmp_path / "run", "--devices", "2", "--strategy", "ddp")]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=processes.LIMIT * 2, env=environment)
    assert done.returncode == 0, done.stderr
    processes.same(alone, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["audit"]["contrasts"] == 120


# -- models that no rank holds whole ---------------------------------------------------------------------------------------


def test_fully_sharded_layers_change_no_bit(alone: Path, words: Callable[..., list[str]], tmp_path: Path) -> None:
    codes, text = processes.run(2, words(tmp_path / "run", "--strategy", "fsdp"), tmp_path / "log")
    assert codes == [0, 0], text
    processes.same(alone, tmp_path / "run")


def counting_each_once(_: int) -> None:
    """To be run in a rank before it starts: the progress bar must count what this rank computes, and no more."""
    from fairprune_framework.auditing.progress_bar import RateBar

    usual, computed = RateBar.on_predict_batch_end, []

    def checked(self: Any, trainer: Any, module: Any, outputs: Any, batch: Any, *more: Any) -> None:
        usual(self, trainer, module, outputs, batch, *more)
        computed.append(len(batch.ids))
        assert self.done == sum(computed), f"{self.done} contrasts counted, {sum(computed)} computed"

    RateBar.on_predict_batch_end = checked  # type: ignore[method-assign]


def test_tensor_parallel_ranks_see_their_neurons(alone: Path, words: Callable[..., list[str]], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    asked = words(tmp_path / "run", "--strategy", "tensor_parallel")
    codes, text = processes.run(2, asked, tmp_path / "log", counting_each_once)
    assert codes == [0, 0], text
    one, two = (load_file(folder / "statistics.safetensors") for folder in (alone, tmp_path / "run"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.allclose(value, two[key], rtol=1e-4, atol=1e-12), key


# -- want of memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["before", "within", "twice"])
def test_out_of_memory_loses_nothing(
    where: str, alone: Path, words: Callable[..., list[str]], tmp_path: Path, fairprune: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the allocator before the forward, in its middle after some sites were summed, and again in a half."""
    import torch
    from safetensors.torch import load_file

    from fairprune_framework.auditing.runner import TrunkModule

    usual, seen = TrunkModule.compute, []

    def compute(self: Any, batch: Any) -> Any:
        seen.append(len(batch.ids))
        large = len(batch.ids) > (1 if where == "twice" else 2)
        if large and len(seen) > 1:
            if where == "within":
                usual(self, batch)
            raise torch.OutOfMemoryError("injected")
        return usual(self, batch)

    monkeypatch.setattr(TrunkModule, "compute", compute)
    answer = fairprune(*words(tmp_path / "run"))
    assert answer.code == 0, answer.err
    assert "ran out of memory" in answer.err
    assert processes.record(tmp_path / "run")["audit"]["out_of_memory_splits"] > 0
    one, two = (load_file(folder / "statistics.safetensors") for folder in (alone, tmp_path / "run"))
    for key, value in one.items():
        if key.endswith("/observed"):
            assert value.equal(two[key]), key
        assert torch.allclose(value, two[key], rtol=1e-4, atol=1e-12), key


def test_rates_go_to_a_logger(words: Callable[..., list[str]], tmp_path: Path, fairprune: Any) -> None:
    answer = fairprune(*words(tmp_path / "run", "--log", "csv"))
    assert answer.code == 0, answer.err
    (found,) = (tmp_path / "run" / "logs").rglob("metrics.csv")
    header, *rows = found.read_text().splitlines()
    assert {"contrasts", "contrasts_per_second", "tokens_per_second"} <= set(header.split(","))
    assert rows
    assert "wrong" in fairprune(*words(tmp_path / "other", "--log", "wrong")).err
    assert not (tmp_path / "other" / "statistics.json").exists()


def test_ranks_that_leave_are_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the audit was done before, the others end at once, and the rest is done without them, however long it takes."""
    from types import SimpleNamespace

    from fairprune_framework import pipeline
    from fairprune_framework.auditing.distributed import liveness, parallel

    told: list[object] = []
    monkeypatch.setattr(pipeline, "_finished", lambda run, name: True)
    monkeypatch.setattr(parallel, "broadcast", lambda parallelism, text: told.append(text))
    live = liveness.Liveness(0, 2, 60.0).start()
    run = SimpleNamespace(
        recipe=SimpleNamespace(is_distributed=True), parallelism=parallel.Parallelism(devices=2), notify=told.append
    )
    pipeline._do(run, "audit", again=False)  # type: ignore[arg-type]
    assert told == ["leave", "audit: done before"]
    assert live._ended.is_set()
    assert liveness.current() is None
