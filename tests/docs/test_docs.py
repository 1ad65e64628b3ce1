"""The documentation against the code: examples run, links resolve, options exist, every built-in has its page, doctests hold.

Fences: `python` blocks of a file run in order, as one module. In `console tiny` blocks, lines `$ fairprune ...` run, and must exit with 0
or with what `exit=N` says; of the other lines each must be found in the output, in order, where `...` stands for anything. In both,
`smollm2-135m` and `builtin:en` are replaced by a tiny random model and a dozen contrasts, and all work in scratch folders.
"""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import json
import re
import shlex
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from fairprune_framework import discovery
from fairprune_framework.calibration import text as calibration
from fairprune_framework.cli import stages
from fairprune_framework.cli.main import collect, main
from fairprune_framework.evaluation.metrics import generation
from fairprune_framework.recipes.option import GROUPS
from fairprune_framework.recipes.recipe import OPTIONS
from fairprune_framework.testing.tiny import save_tiny, tiny_contrasts

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "fairprune_framework"
TOP = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
PAGES = [*TOP, *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
STAND_INS = {
    "smollm2-135m": "tiny-model",
    "builtin:en-small": "tiny.jsonl",
    "builtin:en-1": "tiny.jsonl",
    "builtin:en": "tiny.jsonl",
    "builtin:es": "tiny.jsonl",
}
WIDTH = 128


def _blocks(page: Path, info: str) -> list[tuple[str, str]]:
    found = [(match["info"].strip(), match["body"]) for match in FENCE.finditer(page.read_text(encoding="utf-8"))]
    return [(words, body) for words, body in found if words == info or words.startswith(f"{info} ")]


def _pages_with(info: str) -> list[Path]:
    return [page for page in PAGES if _blocks(page, info)]


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def _replaced(text: str) -> str:
    for name, stand_in in STAND_INS.items():
        text = text.replace(name, stand_in)
    return text


def _run(words: list[str]) -> tuple[int, str]:
    """Exit code and all output of a command, in this process."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = main(words)
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue()


# -- examples ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def brief() -> Iterator[None]:
    """Short texts: calibration documents of 32 tokens, generations of 4."""
    sample = calibration.sample
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "sample", lambda model, tokenizer, n, tokens, seed: sample(model, tokenizer, n, 32, seed))
        patch.setattr(generation, "NEW_TOKENS", 4)
        yield


@pytest.fixture(scope="module")
def samples(brief: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages name: models, prompt files, and a finished run folder `run`."""
    folder = tmp_path_factory.mktemp("docs")
    save_tiny(folder / "tiny-model", "llama")
    save_tiny(folder / "other-model", "llama", seed=1)
    lines = [json.dumps(contrast.to_json()) + "\n" for contrast in tiny_contrasts()]
    (folder / "tiny.jsonl").write_text("".join(lines))
    one = {"id": "one", "category": "age", "variants": [{"attribute": "old", "text": "The old man"}]}
    (folder / "bad.jsonl").write_text(json.dumps(one) + "\n" + lines[0])
    (folder / "pairs.csv").write_text("kind,a,b\nage,The young clerk said that,The old clerk said that\n")
    table = next(body for _, body in _blocks(ROOT / "docs/prompts.md", "text") if body.startswith("templates.csv"))
    for name, *rows in (piece.split("\n") for piece in re.split(r"^(?=\w+\.csv)", table, flags=re.MULTILINE) if piece.strip()):
        file, first = name.split(None, 1)
        (folder / file).write_text("\n".join([first, *(row.strip() for row in rows)]))
    with contextlib.chdir(folder):
        code, output = _run(shlex.split("run tiny-model --prompts tiny.jsonl --output run --quiet"))
    assert code == 0, output
    return folder


@pytest.fixture
def scratch(samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for each page."""
    for item in samples.iterdir():
        if item.name != "run":
            (tmp_path / item.name).symlink_to(item)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the variable is read once, on import
    return tmp_path


@pytest.mark.parametrize("page", _pages_with("python"), ids=_name)
def test_python_blocks_run(page: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("docs_" + re.sub(r"\W", "_", _name(page)))
    monkeypatch.setitem(sys.modules, module.__name__, module)  # a plugin's class must be found by its name, to be pickled
    for number, (_, body) in enumerate(_blocks(page, "python"), 1):
        exec(compile(_replaced(body), f"{_name(page)}, python block {number}", "exec"), vars(module))
    for name, value in list(vars(module).items()):
        if name.startswith("test_"):
            value()


@pytest.mark.parametrize("page", _pages_with("console"), ids=_name)
def test_console_blocks_run(page: Path, scratch: Path, samples: Path) -> None:
    if page.name in ("run-folder.md", "plan-for-another-model.md"):  # they are about a run that exists
        (scratch / "run").symlink_to(samples / "run")
    for words, body in _blocks(page, "console tiny"):
        expected_code = int((re.search(r"exit=(\d+)", words) or ["", "0"])[1])
        for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
            command, *wanted = _replaced(part).strip().split("\n")
            code, output = _run(shlex.split(command)[1:])
            assert code == expected_code, f"{_name(page)}: {command} exits with {code}:\n{output}"
            flat = " ".join(output.split())
            pattern = ".*".join(re.escape(" ".join(piece.split())) for line in wanted for piece in line.split("..."))
            assert re.search(pattern, flat, re.DOTALL), f"{_name(page)}: {command} does not say {wanted}, but:\n{output}"


def test_every_console_block_is_run_or_says_why_not() -> None:
    for page in PAGES:
        for words, _ in _blocks(page, "console"):
            assert words.startswith("console tiny"), f"{_name(page)}: a console block is not run; use another fence"


# -- links and layout ----------------------------------------------------------------------------------------------------


def _anchors(page: Path) -> set[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    return {slug if not again else f"{slug}-{number}" for slug, again in found.items() for number in range(again + 1)}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_resolve(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        aim = (page.parent / path).resolve() if path else page
        assert aim.exists(), f"{_name(page)}: no {target}"
        if anchor:
            assert anchor in _anchors(aim), f"{_name(page)}: no heading for {target}; there are {sorted(_anchors(aim))}"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_layout(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    long = [number for number, line in enumerate(text.split("\n"), 1) if len(line) > WIDTH]
    assert not long, f"{_name(page)}: lines {long} are wider than {WIDTH}"
    assert text.startswith("# "), f"{_name(page)}: no title"
    assert len(re.findall(r"^```", text, re.MULTILINE)) % 2 == 0, f"{_name(page)}: a fence is open"


def test_index_links_every_page() -> None:
    linked = set(re.findall(r"\]\(([^)#\s]+)", (ROOT / "docs/index.md").read_text(encoding="utf-8")))
    there = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")} - {"index.md"}
    assert there <= linked, f"docs/index.md does not link {sorted(there - linked)}"


def test_tour_names_every_module() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    items = {
        item.name + ("/" if item.is_dir() else "")
        for item in PACKAGE.iterdir()
        if (item.is_dir() and (item / "__init__.py").is_file()) or (item.suffix == ".py" and not item.name.startswith("__"))
    }
    missing = {item for item in items if f"](fairprune_framework/{item})" not in readme}
    assert not missing, f"the tour of the README misses {sorted(missing)}"


def test_demo_output_is_delimited() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.count("<!-- demo-output -->") == readme.count("<!-- /demo-output -->") == 1


def test_pages_that_code_names_exist() -> None:
    for file in [*PACKAGE.rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]:
        for name in re.findall(r"(?<![\w/])docs/[\w./-]+\.md", file.read_text(encoding="utf-8")):
            assert (ROOT / name).is_file(), f"{file.relative_to(ROOT)} names {name}"


# -- command line --------------------------------------------------------------------------------------------------------


def _options_of(command: str) -> set[str]:
    code, text = _run([*command.split(), "--help"])
    assert code == 0, text
    return set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", text, re.MULTILINE)) - {"--help"}


def _documented(title: str) -> set[str]:
    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"docs/cli.md has no section {title!r}"
    return set(re.findall(r"^\| `(--[a-z-]+)", section[1], re.MULTILINE))


STAGES = [command.title for command in stages.COMMANDS]
OTHERS = [command.title for command in collect() if command not in stages.COMMANDS]


@pytest.mark.parametrize("command", STAGES)
def test_options_of_stages(command: str) -> None:
    some = {"--plan": ["prune"], "--shard-by-shard": ["prune"], "--no-speed": ["run", "prune"], "--look": ["score"]}
    of_others = {option for option, stages in some.items() if command not in stages}
    documented = _documented("Options of the stages") - of_others
    assert documented == _options_of(command)


@pytest.mark.parametrize("section", sorted({"ask" if title.startswith("ask ") else title for title in OTHERS}))
def test_options_of_other_commands(section: str) -> None:
    commands = [title for title in OTHERS if title == section or (section == "ask" and title.startswith("ask "))]
    assert _documented(f"fairprune {section}") == set().union(*map(_options_of, commands))


@pytest.mark.parametrize("group", GROUPS)
def test_options_stand_in_their_group(group: str) -> None:
    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    table = re.search(rf"^\*\*{group.capitalize()}\*\*.*?\n\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    assert table, f"docs/cli.md has no table {group.capitalize()!r}"
    wanted = {f"--{name.replace('_', '-')}" for name, option in OPTIONS.items() if option.group == group}
    assert set(re.findall(r"^\| `(--[a-z-]+)", table[1], re.MULTILINE)) == wanted


def test_every_command_is_documented() -> None:
    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `fairprune ([a-z]+(?: [a-z]+)?)`", text, re.MULTILINE)
    assert sorted(named) == sorted(STAGES + OTHERS)
    for first in {command.partition(" ")[0] for command in named}:
        assert f"    {first} " in _run(["--help"])[1], first


# -- methods -------------------------------------------------------------------------------------------------------------

BUILT_INS = [
    entry.name for kind in discovery.GROUPS for entry in discovery.entries(kind) if entry.distribution == "fairprune_framework"
]


def method_page(name: str) -> Path:
    """The page of a plugin: its own, or that of its relatives, whose first line names it."""
    own = ROOT / "docs/method" / f"{name}.md"
    if own.is_file():
        return own
    shared = [page for page in own.parent.glob("*.md") if f"`{name}`" in page.read_text(encoding="utf-8").partition("\n")[0]]
    assert len(shared) == 1, f"no page for {name}, or several: {shared}"
    return shared[0]


@pytest.mark.parametrize("name", [*BUILT_INS, "activation-difference", "next-token-divergence", "guard", "verdict"])
def test_method_page(name: str) -> None:
    page = method_page(name)
    text = page.read_text(encoding="utf-8")
    assert "\n## Formula\n" in text, f"{_name(page)}: no formula"
    assert re.search(r"^Source: \S", text, re.MULTILINE), f"{_name(page)}: no source"
    assert re.search(r"^## (Limits|What the interval covers)$", text, re.MULTILINE), f"{_name(page)}: no limits"


def test_options_of_built_ins_are_documented() -> None:
    for kind in discovery.GROUPS:
        for entry in discovery.entries(kind):
            if entry.distribution == "fairprune_framework":
                page = method_page(entry.name)
                text = page.read_text(encoding="utf-8")
                for option in discovery.options_of(discovery.build(kind, entry.name)):
                    assert f"`{option}`" in text, f"{_name(page)} does not name the option {option}"


# -- doctests ------------------------------------------------------------------------------------------------------------

DOCTESTED = sorted(
    ".".join(file.relative_to(ROOT).with_suffix("").parts)
    for file in PACKAGE.rglob("*.py")
    if ">>> " in file.read_text("utf-8")
)


@pytest.mark.parametrize("name", DOCTESTED)
def test_doctests(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0


def test_the_table_of_scale_is_what_the_calculator_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    scale = importlib.import_module("scale_model")
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- scale-table -->\n(.*?)\n<!-- /scale-table -->", text, re.DOTALL)
    assert shown
    assert shown[1].splitlines() == list(scale.table(scale.Assumptions()))
