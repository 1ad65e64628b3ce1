"""The documentation site: pages are staged so that every link has an aim, the notebooks run, and the checker finds what is wrong."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`docs/site.py`, writing elsewhere."""
    spec = importlib.util.spec_from_file_location("fairprune_docs_site", ROOT / "docs" / "site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "STAGE", tmp_path / "build" / "docs")
    monkeypatch.setattr(module, "SITE", tmp_path / "site")
    return module


def test_pages_are_staged_with_links_that_stay_inside(site: Any) -> None:
    pytest.importorskip("nbformat")
    site.stage(notebooks=False)
    for page in site.STAGE.rglob("*.md"):
        for _, aim in site.LINK.findall(page.read_text(encoding="utf-8")):
            if ":" not in aim and not aim.startswith("#") and "](" not in aim:
                assert (page.parent / aim.partition("#")[0]).exists(), f"{page.name}: {aim}"
    named = {name for section in site.navigation() for pages in section.values() for one in pages for name in one.values()}
    assert named == {page.relative_to(site.STAGE).as_posix() for page in site.STAGE.rglob("*.md")}


def test_notebooks_run(site: Any, tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for source in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        site.place_notebook(source, tmp_path / "page.md", True)
        text = (tmp_path / "page.md").read_text()
        assert "restored bit by bit: True" in text
        assert text.startswith("# Notebook")


def test_the_checker_finds_dead_links_and_foreign_loads(site: Any, tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<h1 id="x"></h1><a href="b.html#y"></a><a href="c.html"></a><a href="#x"></a>')
    (tmp_path / "b.html").write_text('<script src="https://cdn.example/x.js"></script><a href="https://example.org">out</a>')
    (tmp_path / "s.css").write_text("@import '//fonts.example/x';")
    assert site.problems(tmp_path) == [
        "a.html: no anchor b.html#y",
        "a.html: no c.html",
        "b.html loads https://cdn.example/x.js",
        "s.css loads //fonts.example/x",
    ]


def test_forms_of_the_repository_are_read(site: Any) -> None:
    """GitHub shows a form only where this holds."""
    for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")):
        form = yaml.safe_load(path.read_text())
        if path.name != "config.yml":
            assert {"name", "description", "body"} <= set(form)
            assert len({field["id"] for field in form["body"]}) == len(form["body"])
    release = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    assert release["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in (ROOT / ".github" / "workflows" / "release.yml").read_text()


def test_citation_is_the_version(site: Any) -> None:
    import fairprune_framework

    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == fairprune_framework.__version__
