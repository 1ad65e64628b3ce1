"""`fairprune explore`: the numbers are those of an untouched forward, the page answers over HTTP and in a browser, all text stays text."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.exploring.compare import Explorer

FIRST, SECOND = "The young clerk said that", "The old clerk said that"
HOSTILE = "<script>window.hurt = 1</script><img src=x onerror='window.hurt = 1'> \"quoted\" שלום 🙂 clerk"


def test_representations_of_both_models_are_there(explorer: Explorer) -> None:
    from fairprune_framework.exploring.page import by_layer, facts, next_tokens, projection

    found = explorer.compare(FIRST, SECOND)
    parts = ("before", "after", "share", "distance_before", "distance_after")
    assert set(found.source.representations) == {f"{part}/0/{tap}" for part in parts for tap in ("attention", "mlp")}
    assert [trace.name for trace in by_layer(found).data] == ["before", "after"]
    for tap in ("attention", "mlp"):
        figure = projection(found, tap, 1)
        assert figure is not None
        assert len(figure.data) > 0
    assert "not evidence" in facts(found)
    assert len(next_tokens(found, 0)) == 8


def test_texts_stay_text(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairprune_framework.evaluation.metrics import generation
    from fairprune_framework.exploring.page import generations

    monkeypatch.setattr(generation, "NEW_TOKENS", 3)
    shown = generations(explorer.generate(HOSTILE, FIRST))
    assert "<script" not in shown
    assert "<img" not in shown
    assert "&lt;script&gt;" in shown
    assert "dir='auto'" in shown


def test_without_gradio_it_says_what_to_install(fairprune: Any, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    answer = fairprune("explore", finished)
    assert (answer.code, len(answer.errors)) == (2, 1)
    assert "fairprune_framework[explore]" in answer.errors[0]


# -- served ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(explorer: Explorer) -> Iterator[str]:
    pytest.importorskip("gradio")
    from fairprune_framework.evaluation.metrics import generation
    from fairprune_framework.exploring.page import serve

    kept, generation.NEW_TOKENS = generation.NEW_TOKENS, 3
    page, address = serve(explorer, block=False)
    yield address
    page.close()
    generation.NEW_TOKENS = kept


def test_it_answers_over_http_and_on_the_loopback_alone(url: str) -> None:
    from gradio_client import Client

    assert url.startswith("http://127.0.0.1:")
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    client = Client(url, verbose=False)
    told, *_ = client.predict(FIRST, SECOND, "mlp", 1, api_name="/compare")
    assert "next-token divergence" in told
    assert "&lt;script&gt;" in client.predict(HOSTILE, FIRST, api_name="/generate")
    with pytest.raises(Exception, match="are equal"):
        client.predict(FIRST, FIRST, "mlp", 1, api_name="/compare")


@pytest.mark.parametrize(("headers", "refused"), [({"Host": "evil.example"}, True), ({"Host": "localhost"}, False)])
def test_a_page_of_another_host_is_refused(url: str, headers: dict[str, str], refused: bool) -> None:
    import httpx

    assert (httpx.get(f"{url}config", headers=headers).status_code == 400) is refused


def test_another_origin_is_not_answered(url: str) -> None:
    import httpx

    answer = httpx.get(f"{url}config", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_no_file_is_taken(url: str) -> None:
    import httpx

    answer = httpx.post(f"{url}gradio_api/upload", files={"files": ("x.txt", b"x" * 100)})
    assert answer.status_code == 413


def test_in_a_browser(url: str) -> None:
    """Typed into, clicked, read back; no request leaves the page; nothing that is typed becomes markup."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("there is no Chromium with its driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1600"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        browser.get(url)
        until(lambda: browser.find_elements("css selector", "#first textarea"))
        for name, text in (("first", HOSTILE), ("second", FIRST)):
            box = browser.find_element("css selector", f"#{name} textarea")
            browser.execute_script(
                "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))", box, text
            )
        browser.find_element("id", "compare").click()
        until(lambda: "divergence" in browser.find_element("id", "facts").text)
        until(lambda: len(browser.find_elements("css selector", ".js-plotly-plot")) == 2)
        browser.find_element("id", "generate").click()
        until(lambda: "before" in browser.find_element("id", "written").text)
        assert "<script>window.hurt" in browser.find_element("id", "written").text
        assert browser.execute_script("return window.hurt") is None
        asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        urls = [m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"]
        away = [one for one in urls if not one.startswith((url, "data:", "blob:", url.replace("127.0.0.1", "localhost")))]
        assert away == []
    finally:
        browser.quit()


def until(holds: Any, seconds: float = 60) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)
