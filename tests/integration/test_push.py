"""`fairprune push` against a local stand-in of the hub: what arrives is `model/` alone; every refusal is one line."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml


@dataclass
class Hub:
    """What the stand-in was asked for."""

    url: str = ""
    status: int = 200
    reject_card: bool = False
    tokens: set[str | None] = field(default_factory=set)
    created: list[dict[str, Any]] = field(default_factory=list)
    branches: list[str] = field(default_factory=list)
    cards: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The endpoints that an upload of small files uses."""
    found = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            found.tokens.add(self.headers.get("Authorization"))
            if found.status != 200:
                return self.answer({"error": "no"}, found.status)
            path = self.path.partition("?")[0]
            if path == "/api/validate-yaml":
                card = json.loads(body)
                found.cards.append(yaml.safe_load(card["content"].split("---")[1]))
                if found.reject_card:
                    return self.answer({"errors": [{"message": "bad licence"}], "warnings": []}, 400)
                return self.answer({"errors": [], "warnings": []})
            if path == "/api/repos/create":
                found.created.append(json.loads(body))
                return self.answer({"url": f"{found.url}/me/small", "name": "me/small"})
            if "/branch/" in path:
                found.branches.append(path.rpartition("/")[2])
                return self.answer({})
            if "/preupload/" in path:
                asked = json.loads(body)["files"]
                return self.answer(
                    {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
                )
            if "/commit/" in path:
                found.commits.append(path)
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        found.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                url = f"{found.url}/me/small/commit/abc"
                return self.answer({"commitUrl": url, "commitOid": "abc", "success": True})
            return self.answer({"error": f"not expected: {path}"}, 404)

        do_GET = do_POST

        def answer(self, data: Any, status: int = 200) -> None:
            content = json.dumps(data).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found.url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("HF_ENDPOINT", found.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield found
    server.shutdown()
    server.server_close()


def test_the_model_and_its_card_arrive_and_nothing_else(fairprune: Any, finished: Path, hub: Hub) -> None:
    answer = fairprune("push", finished, "--repo", "me/small", "--private", "--json")
    assert answer.code == 0, answer.err
    assert json.loads(answer.out) == {"repo": "me/small", "commit": f"{hub.url}/me/small/commit/abc"}
    model = finished / "model"
    there = {path.relative_to(model).as_posix(): path.read_bytes() for path in model.rglob("*") if path.is_file()}
    assert hub.files == there
    assert {"README.md", "plan.json", "config.json", "model.safetensors"} <= set(there)
    assert hub.created[0].get("private") is True or hub.created[0].get("visibility") == "private"
    assert hub.tokens == {"Bearer hf_secret"}
    assert hub.cards[0]["model-index"][0]["name"] == "llama-fairpruned"
    assert "hf_secret" not in answer.out + answer.err


def test_a_revision_is_a_branch(fairprune: Any, finished: Path, hub: Hub) -> None:
    answer = fairprune("push", finished, "--repo", "me/small", "--revision", "trial")
    assert answer.code == 0, answer.err
    assert hub.branches == ["trial"]
    assert hub.commits == ["/api/models/me/small/commit/trial"]
    assert answer.out == f"pushed: {hub.url}/me/small/commit/abc\n"


def refused(fairprune: Any, folder: Path, *words: Any, code: int = 2) -> str:
    answer = fairprune("push", folder, "--repo", "me/small", *words)
    assert answer.code == code, answer
    assert len(answer.errors) == 1
    return str(answer.errors[0])


def test_runs_that_cannot_be_pushed(fairprune: Any, finished: Path, hub: Hub, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    assert "is not a run folder" in refused(fairprune, tmp_path)
    record = json.loads((run / "run.json").read_text())
    (run / "model" / "README.md").unlink()
    assert "has no card" in refused(fairprune, run)
    (run / "run.json").write_text(json.dumps({**record, "abstained": True, "abstained_because": "too dear"}))
    assert "abstained" in refused(fairprune, run)
    assert "too dear" in refused(fairprune, run)
    (run / "run.json").write_text(json.dumps({**record, "stages": {}}))
    assert "has not been evaluated" in refused(fairprune, run)
    shutil.rmtree(run / "model")
    assert "contains no pruned model" in refused(fairprune, run)
    assert (hub.created, hub.files) == ([], {})


def test_what_the_hub_says_is_one_line(fairprune: Any, finished: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--repo must be" in refused(fairprune, finished, "--repo", "no name/at/all")
    hub.reject_card = True
    assert "bad licence" in refused(fairprune, finished)
    hub.reject_card = False
    hub.status = 401
    assert "not accepted" in refused(fairprune, finished)
    hub.status = 403
    assert "has no write access" in refused(fairprune, finished)
    hub.status = 200
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refused(fairprune, finished)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in refused(fairprune, finished, code=1)
    monkeypatch.delenv("HF_TOKEN")
    assert "HF_TOKEN" in refused(fairprune, finished)
    assert hub.files == {}
