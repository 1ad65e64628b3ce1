"""Which rank a process is, from its environment alone, and what cannot run on it."""

from __future__ import annotations

import os

import pytest

from fairprune_framework.auditing.distributed.parallel import (
    Parallelism,
    destroy_process_group,
    environments,
    is_worker_rank,
    launched_ranks,
    strategy_of,
)
from fairprune_framework.errors import UserError

NAMES = (
    "TORCHELASTIC_RUN_ID",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "NODE_RANK",
    "SLURM_PROCID",
    "SLURM_NTASKS",
    "SLURM_JOB_NAME",
)
TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SLURM = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4"}
LIGHTNING = {"LOCAL_RANK": "1", "NODE_RANK": "2"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def set_all(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "launched", "rank", "worker"),
    [
        ({}, (0, 1), 0, False),
        (TORCHRUN, (5, 8), 5, True),
        ({**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0"}, (0, 8), 0, False),
        (SLURM, (3, 8), 3, True),
        ({**SLURM, "SLURM_JOB_NAME": "interactive"}, (0, 1), 0, False),  # a shell of an allocation, no job step
        ({**SLURM, "SLURM_NTASKS": "1"}, (0, 1), 0, False),
        (LIGHTNING, (0, 1), 2 * 4 + 1, True),
    ],
)
def test_the_rank_of_a_process(
    variables: dict[str, str], launched: tuple[int, int], rank: int, worker: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, variables)
    assert launched_ranks() == launched
    assert is_worker_rank() == worker
    assert Parallelism(devices=4, nodes=2).rank == rank
    assert Parallelism(devices=4, nodes=2).external == (launched[1] > 1)
    assert Parallelism().rank == 0
    assert Parallelism(devices=2, strategy="ddp_spawn").rank == 0


@pytest.mark.parametrize(
    ("strategy", "sharded", "tensor_parallel", "forked"),
    [
        ("auto", False, False, False),
        ("ddp", False, False, False),
        ("ddp_spawn", False, False, True),
        ("ddp_fork", False, False, True),
        ("fsdp", True, False, False),
        ("tensor_parallel", True, True, False),
    ],
)
def test_strategies_mean_something_on_several_devices_alone(
    strategy: str, sharded: bool, tensor_parallel: bool, forked: bool
) -> None:
    several, one = Parallelism(devices=2, strategy=strategy), Parallelism(strategy=strategy)
    assert (several.sharded, several.tensor_parallel, several.forked) == (sharded, tensor_parallel, forked)
    assert (one.is_distributed, one.sharded, one.tensor_parallel, one.forked) == (False, False, False, False)


@pytest.mark.parametrize(
    ("parallelism", "variables", "text"),
    [
        (Parallelism(strategy="ddp"), {}, "--strategy ddp needs more than one device"),
        (Parallelism(devices=10**5), {}, "--devices 100000 are more processes than this machine bears"),
        (Parallelism(devices=2, nodes=2, strategy="ddp_fork"), {}, "works on one node: take ddp for 2 nodes"),
        (Parallelism(devices=2), TORCHRUN, "torchrun started 8 processes, but --devices 2 times --nodes 1 is 2"),
        (Parallelism(devices=4, nodes=2), {"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, "give --ntasks-per-node"),
        (Parallelism(devices=3, nodes=2), SLURM, "SLURM started 8 processes, but --devices 3 times --nodes 2 is 6"),
    ],
)
def test_what_cannot_run(
    parallelism: Parallelism, variables: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, variables)
    with pytest.raises(UserError) as caught:
        parallelism.check()
    assert text in str(caught.value)


@pytest.mark.parametrize("variables", [TORCHRUN, SLURM])
def test_what_was_launched_may_run(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, variables)
    Parallelism(devices=4, nodes=2).check()
    Parallelism(devices=-1, nodes=2).check()  # how many there are is known later
    assert len(environments(Parallelism(devices=4, nodes=2))) == (variables is SLURM)


def test_the_mesh_of_a_sharded_model() -> None:
    for strategy, data, tensor in (("fsdp", 4, 1), ("tensor_parallel", 1, 4)):
        made = strategy_of(Parallelism(devices=2, nodes=2, strategy=strategy))
        assert (made._data_parallel_size, made._tensor_parallel_size) == (data, tensor)
    assert strategy_of(Parallelism()) == "auto"
    assert strategy_of(Parallelism(devices=2)) == "ddp"
    assert strategy_of(Parallelism(devices=2, strategy="ddp_spawn")) == "ddp_spawn"


def test_what_lightning_left_in_the_environment_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairprune_framework.auditing.distributed.parallel._OURS", ("LOCAL_RANK", "WORLD_SIZE"))
    set_all(monkeypatch, {"LOCAL_RANK": "0", "WORLD_SIZE": "2", "NODE_RANK": "0"})
    destroy_process_group(Parallelism())
    assert os.environ["LOCAL_RANK"] == "0"  # not ours: the audit was not distributed
    destroy_process_group(Parallelism(devices=2))
    assert "LOCAL_RANK" not in os.environ
    assert "WORLD_SIZE" not in os.environ
    assert os.environ["NODE_RANK"] == "0"  # was set before this process began
