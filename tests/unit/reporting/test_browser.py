"""The page in a headless Chromium: no console error, every chart drawn, the slider moves the tokens, no request leaves it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest


def opened(chromium: Any, path: Path, width: int = 1280) -> None:
    """Open a page and wait until every chart is drawn."""
    chromium.get_log("browser"), chromium.get_log("performance")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    chromium.get(path.as_uri())
    ready = (
        "const done = arguments[0];"
        "const look = () => document.documentElement.dataset.ready ? done(true) : setTimeout(look, 50); look()"
    )
    assert chromium.execute_async_script(ready)


def requests(chromium: Any) -> list[str]:
    messages = [json.loads(line["message"])["message"] for line in chromium.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


@pytest.mark.parametrize("name", ["full", "hostile", "both"])
@pytest.mark.parametrize("width", [1280, 390])
def test_drawn_without_an_error_or_a_request(chromium: Any, pages: dict[str, Path], name: str, width: int) -> None:
    opened(chromium, pages[name], width)
    assert [entry["message"] for entry in chromium.get_log("browser")] == []
    assert {url for url in requests(chromium) if not url.startswith(("data:", "blob:"))} == {pages[name].as_uri()}
    plots = chromium.execute_script(
        "return [...document.querySelectorAll('.plot')].map((p) => [p.dataset.name, p.dataset.drawn, p.getBoundingClientRect().width,"
        " p.querySelectorAll('.trace, .hm, .imagelayer image, .heatmaplayer image').length])"
    )
    assert plots
    for chart, drawn, wide, marks in plots:
        assert drawn == "true", chart
        assert wide <= width
        assert marks > 0, chart
    assert chromium.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


def test_the_slider_moves_the_tokens(chromium: Any, pages: dict[str, Path]) -> None:
    opened(chromium, pages["full"])
    read = (
        "const p = document.getElementById('plot-token-projection'); return [p.data[0].x.slice(), p.layout.xaxis.title.text,"
        " document.querySelector('input[type=range]').getAttribute('aria-valuetext')]"
    )
    move = (
        "const s = document.querySelector('input[type=range][data-chart=token-projection]'); s.value = arguments[0];"
        " s.dispatchEvent(new Event('input', {bubbles: true}))"
    )
    seen = []
    for layer in (0, 1, 0):
        chromium.execute_script(move, layer)
        seen.append(chromium.execute_script(read))
        assert seen[-1][2] == str(layer)
    assert seen[0] == seen[2]
    assert seen[0][0] != seen[1][0]
    from selenium.webdriver.common.keys import Keys

    chromium.find_element("css selector", "input[type=range]").send_keys(Keys.ARROW_RIGHT)  # and by keyboard
    assert chromium.execute_script(read) == seen[1]


def test_hostile_texts_are_shown_and_not_run(chromium: Any, pages: dict[str, Path], hostile_texts: tuple[str, ...]) -> None:
    opened(chromium, pages["hostile"])
    assert "owned" not in chromium.title
    assert chromium.execute_script("return document.querySelectorAll('main img, main script').length") == 0
    body = chromium.execute_script("return document.body.textContent")
    for text in hostile_texts:
        assert text in body
    labels = chromium.execute_script(
        "return [...document.querySelectorAll('#plot-token-projection text')].map((t) => t.textContent).join('\\n')"
    )
    assert "<script>document.title=" in labels  # the token as it is written, not as markup


def test_it_can_be_used_soon(chromium: Any, pages: dict[str, Path]) -> None:
    """A loose bound: the machine of the tests may be busy. Where it is idle, the page is drawn within 2 s."""
    opened(chromium, pages["full"])
    assert chromium.execute_script("return performance.now()") < 30_000


@pytest.mark.skipif(not os.environ.get("AXE_CORE"), reason="AXE_CORE names no axe.min.js (npm pack axe-core)")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["full", "both"])
def test_axe_finds_no_serious_violation(chromium: Any, pages: dict[str, Path], name: str, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    opened(chromium, pages[name])
    chromium.execute_cdp_cmd("Runtime.evaluate", {"expression": Path(os.environ["AXE_CORE"]).read_text(encoding="utf-8")})
    chromium.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    found = chromium.execute_async_script("const done = arguments[0]; axe.run().then((r) => done(r.violations))")
    serious = [(v["id"], v["nodes"][0]["html"][:200]) for v in found if v["impact"] in ("serious", "critical")]
    assert serious == []
