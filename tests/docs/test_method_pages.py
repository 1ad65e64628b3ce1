"""Every plugin that ships has a method page that names it: formula, source, unit, and when it fails."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fairprune_framework import discovery

PAGES = {path: path.read_text(encoding="utf-8") for path in (Path(__file__).parents[2] / "docs" / "method").glob("*.md")}
KINDS = {
    "bias": r"bias scorers?|both|scorers?",
    "importance": r"importance scorers?|scorers?",
    "policy": r"(selection )?polic(y|ies)",
    "architecture": r"(architecture )?adapters?",
}
SHIPPED = [
    entry for kind in discovery.GROUPS for entry in discovery.entries(kind) if entry.distribution == "fairprune_framework"
]
ASKED = {
    "formula or rule": r"^## (Formula|Rule|Formulas|Rules|Choice|Method|What it does|What it takes)|```text",
    "source": r"\bSource\b",
    "when it fails": r"^## Limits",
}


def page_of(entry: discovery.Entry) -> Path:
    named = [path for path, text in PAGES.items() if f"`{entry.name}`" in text.partition("\n")[0]]
    of_kind = [path for path in named if re.search(KINDS[entry.kind], PAGES[path].partition("\n")[0])] or named
    assert of_kind, f"no page of docs/method/ has {entry.kind} `{entry.name}` in its title"
    return of_kind[0]


@pytest.mark.parametrize("entry", SHIPPED, ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_every_plugin_has_a_page(entry: discovery.Entry) -> None:
    page = page_of(entry)
    text = PAGES[page]
    asked = dict(ASKED)
    if entry.kind == "architecture":
        del asked["formula or rule"]
    if entry.kind in ("bias", "importance"):
        asked["unit"] = r"\bunits?\b"
    absent = [what for what, pattern in asked.items() if not re.search(pattern, text, re.MULTILINE | re.IGNORECASE)]
    assert not absent, f"{page.name} does not tell of {entry.kind} `{entry.name}`: {', '.join(absent)}"


def test_pages_that_sources_name_are_there() -> None:
    root = Path(__file__).parents[2]
    named = {
        (source.parent.name, page)
        for source in (root / "plugins").glob("fairprune_*/__init__.py")
        for page in re.findall(r"docs/(?:method/)?[a-z-]+\.md", source.read_text(encoding="utf-8"))
    }
    assert len(named) > 10
    assert not [pair for pair in named if not (root / pair[1]).is_file()]
