"""`fairprune score RUN --bias all`: several scorers go to `score_many`, one to the stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.analysis import scorers
from fairprune_framework.runs import open as opening


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """What was asked of `score_many`, on a folder that passes for a run."""
    (tmp_path / "run.json").write_text("{}")
    found: list[Any] = []

    def many(run: Any, names: Any, notify: Any) -> dict[str, Any]:
        found.append((run, names))
        return {"scorers": [], "top": {}, "skipped": {}, "rank_correlation": []}

    monkeypatch.setattr(scorers, "score_many", many)
    monkeypatch.setattr(opening, "open_existing", lambda folder, unsafe, notify: folder)
    return found


@pytest.mark.parametrize(("given", "names"), [("all", "all"), ("variance,d-prime", ["variance", "d-prime"])])
def test_several_scorers(given: str, names: Any, asked: list[Any], tmp_path: Path, fairprune: Any) -> None:
    answer = fairprune("score", str(tmp_path), "--bias", given, "--json", "--quiet")
    assert answer.code == 0, answer.err
    assert asked == [(str(tmp_path), names)]


def test_they_are_compared_under_the_settings_of_the_run(asked: list[Any], tmp_path: Path, fairprune: Any) -> None:
    answer = fairprune("score", str(tmp_path), "--bias", "all", "--importance", "wanda")
    assert (answer.code, asked) == (2, [])
    assert "leave out --importance" in answer.err
