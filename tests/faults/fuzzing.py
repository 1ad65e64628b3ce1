"""Readers under mutated files, in this process: each returns, or says in one message of bounded length what is wrong."""

from __future__ import annotations

import os
import random
import shutil
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mutations
from commands import Bench

LONGEST = 1010
"""Characters of a message."""
TURN = 0.5
"""Seconds that each reader is given in turn."""
SLOWEST = 10.0
"""CPU seconds of one reading: other programs of the machine do not count."""


@dataclass
class Reader:
    """A reader, and a right file to begin with."""

    name: str
    """Of the file, as the reader wants it."""
    right: bytes
    read: Callable[[Path], object]
    beside: dict[str, bytes] = field(default_factory=dict)
    """Further files of the folder."""


def readers(bench: Bench) -> dict[str, Reader]:
    """Every reader of a file that a user or a stranger may have written."""
    from fairprune_framework.ablation.grid import read_grid
    from fairprune_framework.api.types import Plan
    from fairprune_framework.auditing.distributed.checkpoint import Checkpoint, Part
    from fairprune_framework.auditing.statistics import Statistics
    from fairprune_framework.calibration.text import Calibration
    from fairprune_framework.contrasts import formats
    from fairprune_framework.contrasts.readers import read
    from fairprune_framework.evaluation.results import Evaluation
    from fairprune_framework.models import saving, untrusted
    from fairprune_framework.recipes.loading import load_recipe, read_options
    from fairprune_framework.reporting.run_data import read_source
    from fairprune_framework.surgery import restoration
    from fairprune_framework.utilities import schemas
    from fairprune_framework.utilities.files import parse_json, read_json, read_tensors
    from fairprune_framework.utilities.yaml_text import read_yaml

    run = bench.root / "run"
    rows = (bench.root / "prompts.jsonl").read_bytes()
    checkpoint = bench.root / "checkpoint"
    Checkpoint(checkpoint, {}).keep(Part(words={}, counts={"contrasts": [1]}), 0)
    (kept,) = checkpoint.glob("rank-*")
    csv = b"id,category,prompt_1,prompt_2,template_id\na,race,The Black man .,The white man .,t\nb,race,A Black cat .,A white cat .,u\n"

    def stored(name: str) -> bytes:
        return (run / name).read_bytes()

    def schema(name: str, kind: type[Any]) -> Reader:
        return Reader(name, stored(name), lambda path: schemas.read_checked(path, kind))

    items = {
        name: stored(name) for name in ("evaluation_items.parquet", "evaluation_samples.parquet") if (run / name).is_file()
    }
    whole = {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file() and path.parent == run}
    return {
        "prompts jsonl": Reader("p.jsonl", rows, lambda path: read(path)),
        "prompts json": Reader("p.json", b"[" + b",".join(rows.splitlines()) + b"]", lambda path: read(path)),
        "prompts csv": Reader("p.csv", csv, lambda path: read(path)),
        "prompts tsv": Reader("p.tsv", csv.replace(b",", b"\t"), lambda path: read(path)),
        "prompts skipped": Reader("p.jsonl", rows, lambda path: read(path, bad="skip")),
        "templates": Reader("t.yaml", b"templates:\n- {id: a, text: 'The {x} man .'}\nvalues: {x: [Black, white]}\n", formats.document),
        "recipe": Reader("r.yaml", stored("recipe.yaml"), lambda path: load_recipe(str(path), {})),
        "options": Reader("recipe.yaml", stored("recipe.yaml"), read_options),
        "yaml": Reader("g.yaml", (bench.root / "grid.yaml").read_bytes(), lambda path: read_yaml(path)),
        "grid": Reader("g.yaml", (bench.root / "grid.yaml").read_bytes(), lambda path: read_grid(path)),
        "json": Reader("x.json", stored("run.json"), lambda path: parse_json(path.read_text(encoding="utf-8", errors="surrogateescape"))),
        "plan": Reader("plan.json", stored("plan.json"), lambda path: Plan.from_json(read_json(path), str(path))),
        "run": schema("run.json", schemas.RunRecord),
        "plan of a run": schema("plan.json", schemas.PlanFile),
        "statistics": Reader("statistics.json", stored("statistics.json"), lambda path: Statistics.load(path.parent),
                             {"statistics.safetensors": stored("statistics.safetensors")}),
        "sums": Reader("statistics.safetensors", stored("statistics.safetensors"), lambda path: Statistics.load(path.parent),
                       {"statistics.json": stored("statistics.json")}),
        "scores": Reader("scores.safetensors", stored("scores.safetensors"), read_tensors),
        "evaluation": Reader("evaluation.json", stored("evaluation.json"), lambda path: Evaluation.load(path.parent), items),
        "evaluation items": Reader("evaluation_items.parquet", items["evaluation_items.parquet"], lambda path: Evaluation.load(path.parent),
                                   {**items, "evaluation.json": stored("evaluation.json")}),
        "restoration": Reader("restoration.safetensors", stored("restoration.safetensors"), restoration.load),
        "calibration": Reader("calibration.jsonl", stored("calibration.jsonl"), Calibration.load),
        "checkpoint": Reader(kept.name, kept.read_bytes(), lambda path: Checkpoint(path.parent, {}).load()),
        "model": Reader("config.json", (bench.root / "model" / "config.json").read_bytes(), lambda path: _model(path, untrusted, saving)),
        "index": Reader("model.safetensors.index.json", b'{"metadata": {"total_size": 1}, "weight_map": {"a": "model.safetensors"}}',
                        lambda path: _model(path, untrusted, saving), {"config.json": (bench.root / "model" / "config.json").read_bytes()}),
        "report: run": Reader("run.json", stored("run.json"), lambda path: read_source(path.parent), whole),
    }  # fmt: skip


def _model(path: Path, untrusted: Any, saving: Any) -> None:
    untrusted.refuse_code(path.parent, "x", trust_remote_code=False, allow_pickle=False)
    untrusted.refuse_oversized(path.parent, "x")
    saving.class_of(path.parent)
    saving.shards(path.parent)


def fault_of(reader: Reader, data: bytes, folder: Path) -> str | None:
    """What is wrong with how a reader takes a file; None: nothing is."""
    from fairprune_framework.errors import FairpruneError

    path = folder / reader.name
    path.write_bytes(data)
    began = time.process_time()
    try:
        reader.read(path)
    except FairpruneError as error:
        if len(str(error).replace(str(folder), "")) > LONGEST:
            return f"a message of {len(str(error)):,} characters"
    except ValueError as error:  # of `parse_json`, for a caller that names the file
        if reader.name != "x.json" or len(str(error)) > LONGEST:
            return _last_line(error)
    except Exception as error:
        return _last_line(error)
    if (seconds := time.process_time() - began) > SLOWEST:
        return f"it took {seconds:.0f} s"
    return None


def _last_line(error: Exception) -> str:
    frame = next(
        (each for each in reversed(traceback.extract_tb(error.__traceback__)) if "fairprune_framework" in each.filename), None
    )
    return f"{type(error).__name__} in {frame.name if frame else '?'}: {str(error)[:200]}"


def prepared(reader: Reader, folder: Path) -> Path:
    """The folder with what lies beside the file."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in reader.beside.items():
        (folder / name).write_bytes(content)
    return folder


@dataclass
class Result:
    """Of a campaign of fuzzing."""

    executions: int
    findings: list[dict[str, Any]]


def campaign(bench: Bench, count: int, seed: int | str, seconds: float) -> Result:
    """So many executions over all readers in turn, or as many as the time allows; mutations of a mutation are mutated again."""
    memory = Path("/dev/shm")
    root = (memory if os.access(memory, os.W_OK) else bench.root) / f"fairprune-fuzz-{os.getpid()}"
    found: dict[tuple[str, str], dict[str, Any]] = {}
    table = readers(bench)
    done, began = 0, time.monotonic()
    try:
        folders = {name: prepared(reader, root / name.replace(" ", "-").replace(":", "")) for name, reader in table.items()}
        draw = random.Random(seed)
        while done < count and time.monotonic() - began < seconds:
            for name, reader in table.items():
                mutate = mutations.fitting(reader.name)
                until = time.monotonic() + TURN
                while done < count and time.monotonic() < until:
                    data = mutate(reader.right, draw)
                    for _ in range(draw.choice((0, 0, 0, 1, 2))):
                        data = mutations.of_bytes(data, draw)
                    done += 1
                    if (fault := fault_of(reader, data, folders[name])) is not None:
                        what = {"what": f"reader {name!r}", "found": {"crashed": fault}}
                        found.setdefault((name, fault.partition(":")[0]), what)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return Result(done, list(found.values()))
