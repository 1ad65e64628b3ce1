"""Commands as processes of their own, forked from this one so that nothing is imported again, and what they should leave.

A `Bench` holds a tiny model, prompts and, for each command, what it leaves undisturbed. `start` begins one; a `prepare` that runs in the
new process before it can count file operations, kill at one of them, or let it fail.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import importlib
import io
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as the command line does, before torch is imported here
os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")  # a fork beside a thread may wait for ever
sys.path.insert(0, str(Path(__file__).parents[1] / "golden"))
import renew

QUICK = (
    "--recipe",
    "relative-variance",
    "--budget",
    "0.1",
    "--calibration-tokens",
    "16",
    "--calibration-documents",
    "8",
    "--force",
)
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "run": ("run", "MODEL", "--prompts", "PROMPTS", "--output", "OUT", "--checkpoint-every", "2", *QUICK),
    "audit": ("audit", "--output", "OUT", "--overwrite"),
    "score": ("score", "--output", "OUT", "--overwrite"),
    "plan": ("plan", "--output", "OUT", "--overwrite"),
    "prune": ("prune", "--output", "OUT", "--overwrite"),
    "evaluate": ("evaluate", "--output", "OUT", "--overwrite"),
    "report": ("report", "OUT"),
    "finetune": ("finetune", "OUT", "--distill", "--method", "full", "--batch-tokens", "32", "--steps", "2"),
    "restore": ("restore", "RUN", "--output", "OUT"),
    "adopt": ("prune", "MODEL", "--plan", "RUN/plan.json", "--output", "OUT", "--force", *QUICK[4:8]),
    "ablate": ("ablate", "GRID", "--output", "OUT"),
}
"""Name -> words. MODEL, PROMPTS, GRID and RUN (a finished run) are never written; OUT is, and for those in a run it is a copy of RUN."""
IN_A_RUN = ("audit", "score", "plan", "prune", "evaluate", "report", "finetune")
LIMIT = 240.0
"""Seconds after which a command counts as hung."""
CHANGES = frozenset(
    {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.link", "os.symlink", "shutil.rmtree"}
)
"""Audit events that change files; beside them `open`, for writing."""
GRID = "bias: variance\nbudget: ['0.1', '0.2']\ncontrols: [random]\ncontrol_seeds: 1\ncalibration_tokens: 16\ncalibration_documents: 8\n"


@dataclass
class Process:
    """A command that was started."""

    pid: int
    out: Path
    began: float
    code: int | None = None
    """Exit code, or minus the signal; None: it runs, or was killed for taking too long."""
    seconds: float = 0.0

    def poll(self) -> bool:
        """Whether it has ended."""
        if self.code is None and self.pid:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid, self.code, self.seconds = 0, os.waitstatus_to_exitcode(status), time.monotonic() - self.began
        return self.pid == 0

    def wait(self, limit: float = LIMIT) -> Process:
        """Wait; what takes longer than `limit` seconds writes where it is into its text, and is killed; its code stays None."""
        until = time.monotonic() + limit
        while not self.poll():
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGUSR1)
                time.sleep(1)
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                self.pid, self.seconds = 0, time.monotonic() - self.began
                break
            time.sleep(0.005)
        return self

    def signal(self, number: int) -> bool:
        """Send a signal; False where it has ended."""
        if self.poll():
            return False
        os.kill(self.pid, number)
        return True

    @property
    def text(self) -> str:
        """All that it wrote to stderr, libraries in C++ included; nothing where it was killed before it could."""
        return self.out.read_text(encoding="utf-8", errors="replace") if self.out.exists() else ""

    @property
    def errors(self) -> list[str]:
        """Lines of stderr that are no progress."""
        return [line for line in self.text.splitlines() if line.strip() and not line.startswith("[")]

    @property
    def events(self) -> int:
        """File operations, where they were counted."""
        return int(self.out.with_suffix(".events").read_text())


Prepare = Callable[[], None]


def start(words: list[str], out: Path, prepare: Prepare | None = None, environment: Mapping[str, str] | None = None) -> Process:
    """Fork, and do a command there; its stderr goes to `out`."""
    began = time.monotonic()
    pid = os.fork()
    if pid:
        return Process(pid, out, began)
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _redirect(out)
        _own_locks()
        faulthandler.register(signal.SIGUSR1)
        os.environ.update(environment or {})
        from fairprune_framework.cli.main import main
        from fairprune_framework.evaluation.metrics import generation

        generation.NEW_TOKENS = 3
        if prepare is not None:
            prepare()
        code = main(words)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:  # after the command had its answer
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stderr.flush()
        os._exit(code)


def _own_locks() -> None:
    """tqdm's lock is one of all forked processes: who is killed with it in hand would lock out every later one."""
    from tqdm.std import tqdm

    kinds = [tqdm]
    for kind in kinds:
        kinds += kind.__subclasses__()
        if "_lock" in vars(kind) or kind is tqdm:
            kind.set_lock(threading.RLock())


def _redirect(out: Path) -> None:
    to = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    os.dup2(to, 2)
    sys.stdout = sys.__stdout__ = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8", write_through=True)
    sys.stderr = sys.__stderr__ = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), encoding="utf-8", write_through=True)


def at_write(folder: Path, number: int, act: Callable[[], None]) -> None:
    """Call `act` right before the file operation of this number below a folder; to be run in the new process."""
    seen, below = 0, str(folder)

    def hook(event: str, words: tuple[Any, ...]) -> None:
        nonlocal seen
        if _writes(event, words, below):
            seen += 1
            if seen == number:
                act()

    sys.addaudithook(hook)


def from_write(folder: Path, number: int, act: Callable[[], None]) -> None:
    """As `at_write`, before this file operation and every later one that opens or makes something."""
    seen, below = 0, str(folder)

    def hook(event: str, words: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in ("open", "os.mkdir") and _writes(event, words, below):
            seen += 1
            if seen >= number:
                act()

    sys.addaudithook(hook)


def count_writes(folder: Path, out: Path) -> None:
    """Write down how many file operations there were, for `Process.events`; to be run in the new process."""
    seen, below, file = 0, str(folder), os.open(out.with_suffix(".events"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)

    def hook(event: str, words: tuple[Any, ...]) -> None:
        nonlocal seen
        if _writes(event, words, below):
            seen += 1
            os.pwrite(file, str(seen).encode(), 0)

    os.pwrite(file, b"0", 0)
    sys.addaudithook(hook)


def _writes(event: str, words: tuple[Any, ...], below: str) -> bool:
    """An audit event changes something below a folder, or takes a lock."""
    if event == "fcntl.flock":
        return True
    if event == "open":
        mode, flags = words[1], words[2]
        if not (any(letter in mode for letter in "wax+") if isinstance(mode, str) else flags & (os.O_WRONLY | os.O_RDWR)):
            return False
    elif event not in CHANGES:
        return False
    return isinstance(words[0], (str, bytes, os.PathLike)) and os.fsdecode(words[0]).startswith(below)


# -- what a command should leave -------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """The inputs of all commands, and what each leaves undisturbed."""

    root: Path
    events: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    _expected: dict[str, dict[str, str]] = field(default_factory=dict)
    _trials: int = 0

    def __post_init__(self) -> None:
        from tqdm import tqdm

        from fairprune_framework.models.quiet import quietly
        from fairprune_framework.testing.tiny import save_tiny, tiny_contrasts

        tqdm.monitor_interval = 0  # it would start a thread, and processes are forked from here
        self.root = self.root.resolve()
        (self.root / "trials").mkdir(parents=True)
        with quietly():
            save_tiny(self.root / "model", "llama")
        rows = [json.dumps(contrast.to_json()) for contrast in tiny_contrasts()]
        (self.root / "prompts.jsonl").write_text("\n".join(rows) + "\n")
        (self.root / "grid.yaml").write_text(f"model: {self.root / 'model'}\nprompts: {self.root / 'prompts.jsonl'}\n{GRID}")
        modules = self.root / "modules.txt"
        first = start(self.words("run", self.root / "run"), self.root / "first.txt", lambda: _list_modules(modules)).wait()
        if first.code != 0:
            raise RuntimeError(f"the undisturbed run failed: {first.text}")
        for name in modules.read_text().split():  # here, and not again in every process
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        self.inputs = self.hashes(self.root / "model") | self.hashes(self.root / "run")

    def words(self, name: str, out: Path) -> list[str]:
        """The command line of a command."""
        places = {
            "MODEL": "model",
            "PROMPTS": "prompts.jsonl",
            "GRID": "grid.yaml",
            "RUN": "run",
            "RUN/plan.json": "run/plan.json",
        }
        words = COMMANDS[name]
        return [str(out) if word == "OUT" else str(self.root / places[word]) if word in places else word for word in words]

    def place(self, name: str) -> Path:
        """A new OUT for a command, all at the same depth; for those in a run it is a copy of the finished one."""
        self._trials += 1
        out = self.root / "trials" / f"{self._trials:04}" / "o"
        out.parent.mkdir()
        if name in IN_A_RUN:
            shutil.copytree(self.root / "run", out)
        return out

    def expected(self, name: str) -> dict[str, str]:
        """What the command leaves: path -> hash. Taken twice; a file that differs between two undisturbed runs counts by its name."""
        if name not in self._expected:
            one, two = (self._undisturbed(name) for _ in range(2))
            if one.keys() != two.keys():
                raise RuntimeError(f"two undisturbed runs of {name} left other files: {sorted(one.keys() ^ two.keys())}")
            self._expected[name] = {path: value if value == two[path] else "differs" for path, value in one.items()}
        return self._expected[name]

    def _undisturbed(self, name: str) -> dict[str, str]:
        out = self.place(name)
        text = out.parent / "err.txt"
        done = start(self.words(name, out), text, lambda: count_writes(out.parent, text)).wait()
        if done.code != 0:
            raise RuntimeError(f"undisturbed, {name} ended with {done.code}: {done.text}")
        found = self.hashes(out)
        self.events[name], self.seconds[name] = done.events, done.seconds
        shutil.rmtree(out.parent)
        return found

    def differences(self, name: str, out: Path) -> dict[str, str]:
        """What is not as it should be after a command: kind -> which file."""
        expected, found = self.expected(name), self.hashes(out)
        wrong = [path for path, value in found.items() if path in expected and expected[path] not in (value, "differs")]
        absent, more = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        kinds = {"wrong": wrong, "lost": absent, "littered": more}
        return {kind: ", ".join(paths) for kind, paths in kinds.items() if paths}

    def inputs_changed(self) -> bool:
        """The model or the finished run is not as it was."""
        return self.hashes(self.root / "model") | self.hashes(self.root / "run") != self.inputs

    @staticmethod
    def hashes(folder: Path) -> dict[str, str]:
        """Path below a folder -> hash of the content, without timings and what a resumed audit tells of itself."""
        return {
            path.relative_to(folder).as_posix(): hashlib.sha256(_content(path)).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }


def _content(path: Path) -> bytes:
    data = renew.content(path)
    if path.name != "run.json":
        return data
    record = json.loads(data)
    record.get("work", {}).pop("audit", None)  # of a resumed one: what it computed since
    for name in ("resumed", "sessions", "out_of_memory_splits"):
        record.get("audit", {}).pop(name, None)
    return json.dumps(record, sort_keys=True).encode()


def _list_modules(path: Path) -> None:
    leave = os._exit

    def exit_(code: int) -> None:
        packages = (
            "fairprune",
            "transformers",
            "lightning",
            "torch",
            "scipy",
            "lm_eval",
            "pyarrow",
            "plotly",
            "rich",
            "pydantic",
        )
        path.write_text("\n".join(sorted(name for name in sys.modules if name.startswith(packages))))
        leave(code)

    os._exit = exit_


def leftovers(folder: Path) -> list[str]:
    """Temporary files and locks below a folder."""
    from fairprune_framework.utilities import files, lock

    found = folder.rglob("*") if folder.is_dir() else ()
    return [path.relative_to(folder).as_posix() for path in found if files.is_unfinished(path) or path.name == lock.FILE]
