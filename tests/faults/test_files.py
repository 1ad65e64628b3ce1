"""A share of the mutated files of `benchmarks/faults.py`: through every reader with hypothesis, and through the command line."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import fuzzing
import inputs
import mutations
from commands import Bench

NAMES = (
    *(
        "prompts jsonl",
        "prompts json",
        "prompts csv",
        "prompts tsv",
        "prompts skipped",
        "templates",
        "recipe",
        "options",
        "yaml",
    ),
    *(
        "grid",
        "json",
        "plan",
        "run",
        "plan of a run",
        "statistics",
        "sums",
        "scores",
        "evaluation",
        "evaluation items",
        "restoration",
        "calibration",
    ),
    *("checkpoint", "model", "index", "report: run"),
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("files") / "bench")


@pytest.fixture(scope="module")
def readers(bench: Bench) -> dict[str, fuzzing.Reader]:
    return fuzzing.readers(bench)


def test_every_reader_is_named(readers: dict[str, fuzzing.Reader]) -> None:
    assert set(NAMES) == set(readers)


@pytest.mark.parametrize("name", NAMES)
def test_a_right_file_is_read(name: str, readers: dict[str, fuzzing.Reader], tmp_path: Path) -> None:
    reader = readers[name]
    path = fuzzing.prepared(reader, tmp_path / "f") / reader.name
    path.write_bytes(reader.right)
    reader.read(path)


@pytest.mark.parametrize("name", NAMES)
def test_a_mutated_file_is_read_or_refused(name: str, readers: dict[str, fuzzing.Reader], tmp_path: Path) -> None:
    reader = readers[name]
    folder = fuzzing.prepared(reader, tmp_path / "f")
    mutate = mutations.fitting(reader.name)

    @settings(max_examples=40, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(draw=st.randoms(use_true_random=False), bytes_too=st.booleans())
    def holds(draw: random.Random, bytes_too: bool) -> None:
        data = mutate(reader.right, draw)
        assert fuzzing.fault_of(reader, mutations.of_bytes(data, draw) if bytes_too else data, folder) is None

    holds()


@pytest.mark.parametrize("case", inputs.CASES[::4], ids=lambda case: f"{case[0]}-{case[1][0]}")
def test_bad_input_is_one_line(case: tuple[str, tuple[str, ...], bool], bench: Bench) -> None:
    name, words, of_a_run = case
    trial = inputs.one(bench, name, words, random.Random(f"{case}"), of_a_run=of_a_run, resealed=of_a_run)
    assert trial.found == {}, trial.what


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_bad_input_of_every_kind(seed: int, bench: Bench) -> None:
    for number in range(len(inputs.CASES)):
        trial = inputs.trial_of(bench, number, random.Random(f"{seed} {number}"))
        assert trial.found == {}, trial.what
