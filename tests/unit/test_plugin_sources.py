"""What a plugin is made of: the files of its distribution, however that was installed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from fairprune_framework import discovery
from fairprune_framework.auditing.code_digest import class_digest
from fairprune_framework.errors import UserError
from fairprune_framework.plugin_sources import digest_in_use, files_of, refuse_edited, remember, source_digest, sources_with

BIAS = "fairprune.bias_scorers"
MODULES = {
    "pair_plugin.py": "class Statistic: ...\n",
    "pair_helper/__init__.py": "",
    "pair_helper/inner.py": "FACTOR = 1\n",
}
RUNS = "raise RuntimeError('it was imported')\n"
BESIDE_THEM = {"tests/__init__.py": RUNS, "setup.py": RUNS, "setup.bak.py": RUNS, "notes/of_mine.py": RUNS}
"""Of the project, and of no distribution."""
METADATA = {
    "METADATA": "Metadata-Version: 2.1\nName: pair-plugin\nVersion: 1\n",
    "entry_points.txt": f"[{BIAS}]\npair = pair_plugin:Statistic\n",
}
Install = Callable[[Mapping[str, str]], None]


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(text, errors="surrogateescape")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The modules of a distribution, which can be imported."""
    folder = tmp_path / "project"
    write(folder, MODULES | BESIDE_THEM)
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    sys.modules.pop("pair_plugin", None)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts metadata, and what else lies in site-packages, on the path."""

    def put(files: Mapping[str, str]) -> None:
        site = tmp_path / "site"
        write(site, {f"pair_plugin-1.dist-info/{name}": text for name, text in METADATA.items()} | dict(files))
        monkeypatch.syspath_prepend(str(site))

    return put


INSTALLED: dict[str, Callable[[Path], dict[str, str]]] = {
    "files that are listed": lambda project: {
        "pair_plugin-1.dist-info/RECORD": "../project/pair_plugin.py,,\npair_helper/__init__.py,,\n../../bin/it.py,,\n",
        "pair_helper/__init__.py": "",
        "pair_helper/inner.py": "FACTOR = 1\n",
    },
    "files that are listed, and a path that is no text": lambda project: {
        "pair_plugin-1.dist-info/RECORD": "pair_helper/__init__.py,,\n_pair_plugin.pth,,\n_gone.pth,,\n",
        "pair_helper/__init__.py": "",
        "pair_helper/inner.py": "FACTOR = 1\n",
        "_pair_plugin.pth": "\udcff",
    },
    "editable, by a path": lambda project: {
        "pair_plugin-1.dist-info/RECORD": "_pair_plugin.pth,,\npair_plugin-1.dist-info/METADATA,,\n",
        "_pair_plugin.pth": f"# of an editable installation\n\n{project}\n",
    },
    "editable, by a relative path": lambda project: {
        "pair_plugin-1.dist-info/RECORD": "__editable__.pair_plugin-1.pth,,\npair_plugin-1.dist-info/METADATA,,\n",
        "__editable__.pair_plugin-1.pth": ".\n../nowhere\n../project\n",
    },
    "editable, by a finder": lambda project: {
        "pair_plugin-1.dist-info/RECORD": "__editable__.pair_plugin-1.pth,,\n__editable___pair_plugin_1_finder.py,,\n",
        "pair_plugin-1.dist-info/top_level.txt": "pair_helper\npair_plugin\npair_plugin.inner\n",
        "__editable__.pair_plugin-1.pth": "import __editable___pair_plugin_1_finder\n",
        "__editable___pair_plugin_1_finder.py": "",
    },
}


@pytest.mark.parametrize("how", INSTALLED)
def test_what_is_installed_with_a_plugin_is_its_source_too(how: str, project: Path, install: Install) -> None:
    """A distribution may hold several modules: an edit of any makes another plugin, and other sums."""
    install(INSTALLED[how](project))
    statistic = importlib.import_module("pair_plugin").Statistic

    def digests() -> tuple[str, str]:
        return source_digest(discovery.find("bias", "pair")), class_digest(statistic)

    before = digests()
    assert list(sources_with("pair_plugin")) == ["pair_plugin", "pair_helper"]
    for name in BESIDE_THEM:
        (project / name).write_text("OTHER = 1\n")
    assert digests() == before
    (Path(files_of("pair_helper")[0]).parent / "inner.py").write_text("FACTOR = 22\n")
    after = digests()
    assert all(one != other for one, other in zip(after, before, strict=True))
    (Path(files_of("pair_helper")[0]).parent / "words.json").write_text("[]")  # what its code may read
    assert all(one != other for one, other in zip(digests(), after, strict=True))


PART = {"pair_space/of_pair/__init__.py": "", "pair_space/of_pair/inner.py": "FACTOR = 1\n"}
SPACES: dict[str, Callable[[Path], dict[str, str]]] = {
    "listed": lambda _project: {"pair_plugin-1.dist-info/RECORD": "".join(f"{name},,\n" for name in PART), **PART},
    "editable": lambda project: {"pair_plugin-1.dist-info/RECORD": "_pair_plugin.pth,,\n", "_pair_plugin.pth": f"{project}\n"},
}


@pytest.mark.parametrize("module", ["pair_plugin", "pair_space"])
@pytest.mark.parametrize("how", SPACES)
def test_the_part_of_a_namespace(
    how: str, module: str, project: Path, install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a distribution has in it is source of the plugin, beside it or with the plugin in it; what others have there is not."""
    where = tmp_path / "site" if how == "listed" else project
    install(SPACES[how](project))
    write(where, PART | {"pair_space/of_pair/plugin.py": "class Statistic: ...\n"})
    write(project, {"pair_plugin.py": "def late():\n    import pair_space.of_pair\n\n\nclass Statistic: ...\n"})
    if how == "listed":
        write(
            where,
            {"pair_plugin-1.dist-info/RECORD": "".join(f"{name},,\n" for name in (*PART, "pair_space/of_pair/plugin.py"))},
        )
    if module == "pair_space":
        points = METADATA["entry_points.txt"].replace("pair_plugin:", "pair_space.of_pair.plugin:")
        write(tmp_path / "site", {"pair_plugin-1.dist-info/entry_points.txt": points})
    other = tmp_path / "other" / "pair_space" / "of_others.py"
    write(tmp_path, {"other/pair_space/of_others.py": ""})
    monkeypatch.syspath_prepend(str(tmp_path / "other"))
    statistic = importlib.import_module("pair_plugin" if module == "pair_plugin" else "pair_space.of_pair.plugin").Statistic

    def digests() -> tuple[str, str]:
        return source_digest(discovery.find("bias", "pair")), class_digest(statistic)

    before = digests()
    other.write_text("OTHER = 1\n")
    assert digests() == before
    (where / "pair_space" / "of_pair" / "inner.py").write_text("FACTOR = 22\n")
    assert all(one != other for one, other in zip(digests(), before, strict=True))
    for name in [name for name in sys.modules if name.startswith("pair_space")]:
        monkeypatch.delitem(sys.modules, name)


def test_files_that_nobody_can_list_leave_the_first_module(project: Path, install: Install) -> None:
    install({"pair_plugin-1.dist-info/RECORD/of_a_folder": ""})
    before = source_digest(discovery.find("bias", "pair"))
    (project / "pair_plugin.py").write_text("class Statistic: FACTOR = 1\n")
    assert source_digest(discovery.find("bias", "pair")) != before


def test_files_of(project: Path) -> None:
    left = {
        "__pycache__/inner.cpython-311.pyc": "",
        ".cache/seen.txt": "",
        ".inner.py.swp": "",
        "inner.py~": "",
        "words.txt": "she",
    }
    write(project / "pair_helper", left)
    assert files_of("pair_plugin") == [project / "pair_plugin.py"]
    assert [path.name for path in files_of("pair_helper")] == ["__init__.py", "inner.py", "words.txt"]
    assert files_of("no_such_module") == files_of("") == files_of("sys") == []


def test_linked_subpackages_are_part_of_it(project: Path, install: Install, tmp_path: Path) -> None:
    """A package may hold links: to a folder elsewhere, to a file, to a folder above, to nothing."""
    install({})
    write(tmp_path / "elsewhere", {"__init__.py": "", "deep/inner.py": "FACTOR = 1\n", "words.txt": "one\n"})
    package = project / "pair_helper"
    (package / "shared").symlink_to(tmp_path / "elsewhere")
    (package / "words.txt").symlink_to(tmp_path / "elsewhere" / "words.txt")
    (package / "shared" / "up").symlink_to(package)
    (package / "shared" / "itself").symlink_to(tmp_path / "elsewhere")
    (package / "nothing.py").symlink_to(tmp_path / "nowhere.py")
    (package / "again").symlink_to(package / "deep")
    write(package / "deep", {"__init__.py": "", "one.py": ""})
    write(tmp_path / "corpus", {"large.txt": "no module"})
    (package / "data").symlink_to(tmp_path / "corpus")
    (package / "project").symlink_to(project)
    names = [path.relative_to(package).as_posix() for path in files_of("pair_helper")]
    assert names == [
        "__init__.py",
        "deep/__init__.py",
        "deep/one.py",
        "inner.py",
        "shared/__init__.py",
        "shared/deep/inner.py",
        "shared/words.txt",
        "words.txt",
    ]
    before = {path: path.read_bytes() for path in files_of("pair_helper")}
    (tmp_path / "elsewhere" / "deep" / "inner.py").write_text("FACTOR = 2\n")
    assert {path: path.read_bytes() for path in files_of("pair_helper")} != before


def test_what_was_imported_keeps_its_digest(project: Path, install: Install) -> None:
    install(INSTALLED["editable, by a path"](project))
    entry = discovery.find("bias", "pair")
    plugin = importlib.import_module("pair_plugin").Statistic
    remember(plugin, before := source_digest(entry))
    refuse_edited(entry)
    (project / "pair_plugin.py").write_text("class Statistic: FACTOR = 1\n")
    assert digest_in_use(entry) == before != source_digest(entry)
    with pytest.raises(UserError, match="bias 'pair' of pair-plugin 1 was edited after this process imported it: start Python"):
        refuse_edited(entry)
    importlib.reload(sys.modules["pair_plugin"])
    refuse_edited(entry)
    assert digest_in_use(entry) == source_digest(entry)
