"""Build the documentation site: stage the pages, run the notebooks, call zensical, and check what came out.

`python docs/site.py [--no-notebooks]` writes to `build/site/`. Pages stay plain Markdown that also reads well in a file viewer; what the
site needs beyond that is done on a copy: records of measurements and top-level pages join it, links to source files name them
only, fences keep the first word of their info, notebooks become pages with their real output. Dead links stop the build, and so
does a page that would load anything from elsewhere.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[1]
STAGE, SITE = ROOT / "build" / "docs", ROOT / "build" / "site"
LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s]+)\)")
REFERENCE = re.compile(r"^(\[\w+\]): (\S+)$", re.MULTILINE)
FENCE = re.compile(r"^```(\w+)[^\n`]*$", re.MULTILINE)
TOP = {
    "README.md": "tour.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Page of the repository -> page of the site."""
NAVIGATION: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Start", ("index.md", "quickstart.md", "concepts.md", "notebooks/*.md", "comparison.md", "responsible-use.md")),
    ("How to", ("prompts.md", "howto/*.md", "many-devices.md", "ablations.md", "write-a-plugin.md")),
    ("Reference", ("cli.md", "python.md", "api.md", "scale.md")),
    ("Methods", ("method/*.md",)),
    ("Errors", ("errors/*.md",)),
    ("Project", ("tour.md", "decisions.md", "changelog.md", "contributing.md", "security.md")),
    ("Measurements", ("benchmarks/index.md", "benchmarks/*.md")),
)
"""Section -> pages, in order; what no section names comes at the end of `How to`."""
PUBLIC = ("run", "audit", "score", "plan", "prune", "evaluate", "report", "restore")


def stage(notebooks: bool) -> None:
    """Lay out the pages of the site under `build/docs`."""
    shutil.rmtree(STAGE, ignore_errors=True)
    for path in sorted((ROOT / "docs").rglob("*")):
        inside = path.relative_to(ROOT / "docs")
        if path.suffix in (".png", ".svg", ".css"):
            (STAGE / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, STAGE / inside)
        elif path.suffix == ".md":
            place(path, STAGE / inside)
        elif path.suffix == ".ipynb":
            place_notebook(path, STAGE / inside.with_suffix(".md"), notebooks)
    for path in sorted((ROOT / "benchmarks").glob("*.md")):
        place(path, STAGE / "benchmarks" / path.name)
    records = [f"- [{title(path)}]({path.name})" for path in sorted((STAGE / "benchmarks").glob("*.md"))]
    (STAGE / "benchmarks" / "index.md").write_text(
        "# Records of measurements\n\nWhat was measured, on which machine, with which versions. Scripts: `benchmarks/`.\n\n"
        + "\n".join(records)
        + "\n",
        encoding="utf-8",
    )
    for name, page in TOP.items():
        if (ROOT / name).is_file():
            place(ROOT / name, STAGE / page)
    (STAGE / "api.md").write_text(api_page(), encoding="utf-8")


def navigation() -> list[dict[str, list[dict[str, str]]]]:
    """Every page of the stage, under its section."""
    pages: dict[str, list[str]] = {}
    seen: set[str] = set()
    for section, patterns in NAVIGATION:
        found = [path.relative_to(STAGE).as_posix() for pattern in patterns for path in sorted(STAGE.glob(pattern))]
        pages[section] = [page for page in dict.fromkeys(found) if page not in seen]
        seen |= set(found)
    pages["How to"] += sorted({path.relative_to(STAGE).as_posix() for path in STAGE.rglob("*.md")} - seen)
    return [{section: [{title(STAGE / page): page} for page in found]} for section, found in pages.items() if found]


def configure() -> Path:
    """Write the configuration that zensical reads: `mkdocs.yml`, with folders and navigation."""
    import yaml

    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    config |= {"docs_dir": "docs", "site_dir": "site", "nav": navigation()}
    python = next(plugin for plugin in config["plugins"] if "mkdocstrings" in plugin)["mkdocstrings"]["handlers"]["python"]
    python["paths"] = [str(ROOT), str(ROOT / "plugins")]
    target = ROOT / "build" / "mkdocs.yml"
    target.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return target


def title(page: Path) -> str:
    """The first heading."""
    return page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ").replace("`", "")


def place(source: Path, target: Path) -> None:
    """Copy a page; its links go to pages of the site, or name a file of the repository in words."""
    text = source.read_text(encoding="utf-8")
    pieces = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    moved = [piece if piece.startswith("```") else _relinked(piece, source, target) for piece in pieces]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(FENCE.sub(r"```\1", "".join(moved)), encoding="utf-8")


def _relinked(text: str, source: Path, target: Path) -> str:
    """Text of a page with its links as the site needs them; a link to no page becomes its label."""

    def inline(match: re.Match[str]) -> str:
        aim = aimed(match[2], source, target)
        return match[1][1:-1] if aim is None else f"{match[1]}({aim})"

    def reference(match: re.Match[str]) -> str:
        return f"{match[1]}: {aimed(match[2], source, target) or match[2]}"

    return REFERENCE.sub(reference, LINK.sub(inline, text))


def aimed(aim: str, source: Path, target: Path) -> str | None:
    """Where a link of `source` leads from `target`; None: to a file or folder of the repository that is no page."""
    if re.match(r"[a-z]+:|#", aim):
        return aim
    path, hash_, anchor = aim.partition("#")
    page = staged((source.parent / path).resolve())
    return None if page is None else f"{Path(os.path.relpath(page, target.parent)).as_posix()}{hash_}{anchor}"


def staged(path: Path) -> Path | None:
    """Where a file of the repository lies on the site; None: not there."""
    if path == ROOT / "docs":
        return STAGE / "index.md"
    if path.parent == ROOT and path.name in TOP:
        return STAGE / TOP[path.name]
    if path == ROOT / "benchmarks":
        return STAGE / "benchmarks" / "index.md"
    if path.suffix in (".md", ".png", ".svg", ".ipynb"):
        for folder, to in ((ROOT / "docs", STAGE), (ROOT / "benchmarks", STAGE / "benchmarks")):
            if path.is_relative_to(folder):
                inside = path.relative_to(folder)
                return to / (inside.with_suffix(".md") if path.suffix == ".ipynb" else inside)
    return None


def place_notebook(source: Path, target: Path, run: bool) -> None:
    """Run a notebook in a scratch folder, and write it as a page with what it printed."""
    import nbformat

    book = nbformat.read(source, as_version=4)
    if run:
        import tempfile

        from nbclient import NotebookClient

        with tempfile.TemporaryDirectory() as folder:
            NotebookClient(book, timeout=600, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
    parts = []
    for cell in book.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
        printed = [out.get("text") or (out.get("data") or {}).get("text/plain", "") for out in outputs]
        if text := "".join(part if part.endswith("\n") else f"{part}\n" for part in printed if part):
            parts.append(f"```text\n{text.rstrip()}\n```")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def api_page() -> str:
    """The public names, from their docstrings."""
    sys.path.insert(0, str(ROOT))
    import fairprune_framework as fp

    lines = [
        "# API reference",
        "",
        "What `import fairprune_framework as fp` offers. Stages are functions; see [Python](python.md).",
    ]
    for heading, names in (
        ("Stages", [name for name in PUBLIC if name in fp._EXPORTS]),
        ("Everything else", sorted(set(fp._EXPORTS) - set(PUBLIC) - {"figures"})),
    ):
        lines += ["", f"## {heading}", ""]
        lines += [f"::: fairprune_framework.{fp._EXPORTS[name]}.{name}\n" for name in names]
    lines += ["## For plugins", "", "What a plugin imports from `fairprune_framework.api`.", ""]
    interfaces = ("BiasScorer", "ImportanceScorer", "SelectionPolicy", "ArchitectureAdapter", "Statistic", "Needs")
    lines += [f"::: fairprune_framework.api.interfaces.{name}\n" for name in interfaces]
    return "\n".join(lines) + "\n"


class _Page(HTMLParser):
    """Links, anchors and everything that a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if "id" in found:
            self.anchors.add(found["id"])
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in ("img", "script", "iframe", "source") and "src" in found:
            self.loads.append(found["src"])
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload", "preconnect", "modulepreload"):
            self.loads.append(found.get("href", ""))


def problems(site: Path) -> list[str]:
    """Dead links, and whatever would be loaded from elsewhere, of all pages."""
    pages = {}
    for path in site.rglob("*.html"):
        page = _Page()
        page.feed(path.read_text(encoding="utf-8"))
        pages[path.resolve()] = page
    found = []
    for path, page in pages.items():
        name = path.relative_to(site.resolve()).as_posix()
        if name == "404.html":  # its links begin at the root of a server
            continue
        found += [f"{name} loads {load}" for load in page.loads if urlsplit(load).netloc]
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            aim = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            aim = aim / "index.html" if aim.is_dir() else aim
            if not aim.exists():
                found.append(f"{name}: no {link}")
            elif parts.fragment and aim in pages and unquote(parts.fragment) not in pages[aim].anchors | {"__top"}:
                found.append(f"{name}: no anchor {link}")
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        found += [f"{sheet.name} loads {aim}" for aim in re.findall(r"(?:url\(|@import )[\"']?((?:https?:)?//[^\"')]+)", text)]
    return sorted(set(found))


def main() -> int:
    """Build and check; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-notebooks", action="store_true", help="do not run the notebooks: their pages show code alone")
    stage(not parser.parse_args().no_notebooks)
    shutil.rmtree(SITE, ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "-f", str(configure())], cwd=ROOT, check=False
    )
    if done.returncode:
        return done.returncode
    bad = problems(SITE)
    print("\n".join(bad) if bad else f"{len(list(SITE.rglob('*.html')))} pages in {SITE.relative_to(ROOT)}, no dead link")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
