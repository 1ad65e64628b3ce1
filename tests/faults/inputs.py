"""Bad input: a mutated file, given to a command that reads it. One clear line and exit 2, or it is accepted; nothing is half-written."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import mutations
from commands import QUICK, Bench, leftovers, start
from trials import Trial

AUDIT = ("--prompts", "PROMPTS", "--output", "OUT", *QUICK)
USER: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("prompts.jsonl", ("audit", "MODEL", "--prompts", "FILE", "--output", "OUT", *QUICK)),
    ("recipe.yaml", ("audit", "MODEL", "--prompts", "PROMPTS", "--output", "OUT", "--recipe", "FILE")),
    ("grid.yaml", ("ablate", "FILE", "--output", "OUT")),
    ("plan.json", ("prune", "MODEL", "--plan", "FILE", "--output", "OUT", "--force", *QUICK[4:8])),
    ("text.jsonl", ("audit", "MODEL", *AUDIT, "--calibration", "FILE")),
    ("model/config.json", ("audit", "FOLDER", *AUDIT)),
    ("model/tokenizer.json", ("audit", "FOLDER", *AUDIT)),
    ("model/tokenizer_config.json", ("audit", "FOLDER", *AUDIT)),
    ("model/model.safetensors", ("audit", "FOLDER", *AUDIT)),
    ("restoration.safetensors", ("restore", "RUN/model", "--restoration", "FILE", "--output", "OUT")),
)
"""File of a user -> a command that reads it."""
OF_A_RUN: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("run.json", ("report", "COPY")),
    ("run.json", ("score", "--output", "COPY", "--overwrite")),
    ("run.json", ("evaluate", "--output", "COPY", "--overwrite")),
    ("recipe.yaml", ("score", "--output", "COPY", "--overwrite")),
    ("contrasts.jsonl", ("audit", "--output", "COPY", "--overwrite")),
    ("contrasts.jsonl", ("report", "COPY")),
    ("calibration.jsonl", ("prune", "--output", "COPY", "--overwrite")),
    ("statistics.json", ("score", "--output", "COPY", "--overwrite")),
    ("statistics.safetensors", ("score", "--output", "COPY", "--overwrite")),
    ("scores.safetensors", ("plan", "--output", "COPY", "--overwrite")),
    ("scores.safetensors", ("ask", "overlap", "COPY")),
    ("scores.safetensors", ("inspect", "COPY", "--unit", "0:1")),
    ("plan.json", ("prune", "--output", "COPY", "--overwrite")),
    ("plan.json", ("report", "COPY")),
    ("evaluation.json", ("report", "COPY")),
    ("exhibits.json", ("report", "COPY")),
    ("exhibits.safetensors", ("report", "COPY")),
    ("restoration.safetensors", ("restore", "COPY", "--output", "OUT")),
    ("model/config.json", ("evaluate", "--output", "COPY", "--overwrite")),
    ("model/model.safetensors", ("restore", "COPY", "--output", "OUT")),
)
"""File of a finished run -> a command that reads it."""
SEALED = frozenset({"run.json", "recipe.yaml", "calibration.jsonl"})
"""Files without a hash in `run.json`: a change that makes sense is theirs to make."""


CASES = [(name, words, False) for name, words in USER] + [(name, words, True) for name, words in OF_A_RUN]
"""(file, command, whether it is one of a run)."""


def trial_of(bench: Bench, number: int, draw: random.Random) -> Trial:
    """The trial of a number, over all files in turn; some of a run's files have the hash of what they now hold."""
    name, words, of_a_run = CASES[number % len(CASES)]
    return one(bench, name, words, draw, of_a_run=of_a_run, resealed=of_a_run and draw.random() < 0.4)


def one(bench: Bench, name: str, words: tuple[str, ...], draw: random.Random, *, of_a_run: bool, resealed: bool) -> Trial:
    """Mutate a file, give it to a command."""
    place = bench.place("run").parent
    copy, out = place / "run", place / "o"
    if of_a_run:
        shutil.copytree(bench.root / "run", copy)
        file = copy / name
    else:
        file = place / name
        if name.startswith("model/"):
            shutil.copytree(bench.root / "model", place / "model")
        else:
            file.write_bytes(_original(bench, name))
    before = file.read_bytes()
    after = mutations.fitting(name)(before, draw)
    file.write_bytes(after)
    if resealed:
        _reseal(copy)
    places = {
        "MODEL": bench.root / "model", "PROMPTS": bench.root / "prompts.jsonl", "RUN/model": bench.root / "run" / "model", "FILE": file,
        "FOLDER": place / "model", "COPY": copy, "OUT": out,
    }  # fmt: skip
    seen = _hashes(place)
    process = start([str(places.get(word, word)) for word in words], place.parent / f"{place.name}.txt").wait()
    trial = Trial(f"{name} {'resealed ' if resealed else ''}-> {' '.join(words[:2])}")
    if process.code is None:
        trial.note("hung", f"after {process.seconds:.0f} s: {process.text[-1200:]}")
    elif process.code not in (0, 2):
        trial.note("crashed", f"exit code {process.code}: {process.text[-1200:]}")
    if "Traceback" in process.text:
        trial.note("crashed", process.text[-1200:])
    if process.code == 2:
        if len(process.errors) != 1:
            trial.note("crashed", f"{len(process.errors)} lines: {process.errors[:4]}")
        if any(len(line) > 700 for line in process.errors):
            trial.note("crashed", f"a line of {max(map(len, process.errors))} characters: {process.errors[0][:300]}")
        if changed := sorted(path for path, value in (seen.items() ^ _hashes(place).items())):
            trial.note("littered", f"written or removed: {', '.join(dict.fromkeys(changed))}")
    used = process.code == 0 and of_a_run and not resealed and name not in SEALED
    if used and file.read_bytes() != before and not (words[0] == "report" and str(file) in process.text):  # nor made again
        trial.note("wrong", "a file that is not what was written was used")
    if left := leftovers(place):
        trial.note("littered", ", ".join(left))
    if trial.found:
        kept = bench.root / "found" / f"{place.name}-{file.name}"
        kept.parent.mkdir(exist_ok=True)
        kept.write_bytes(after)
    shutil.rmtree(place)
    return trial


def _original(bench: Bench, name: str) -> bytes:
    if name == "text.jsonl":
        return b"".join(json.dumps({"text": f"The nurse {number} walked home . " * 8}).encode() + b"\n" for number in range(8))
    if name == "recipe.yaml":
        recipe = (bench.root / "run" / name).read_text().splitlines(keepends=True)
        return "".join(line for line in recipe if not line.startswith(("model:", "prompts:"))).encode()
    here = bench.root / name
    return (here if here.exists() else bench.root / "run" / name).read_bytes()


def _reseal(run: Path) -> None:
    """Write the hashes of what the files now hold into `run.json`."""
    from fairprune_framework.utilities.integrity import seal

    try:
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        for stage in record["stages"].values():
            stage["files"] = seal(run, stage["files"])
        text = json.dumps(record)
        (run / "run.json").write_text(text, encoding="utf-8")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return  # it is the record itself that was changed


def _hashes(folder: Path) -> dict[str, str]:
    import hashlib

    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }
