"""An edited or upgraded plugin never passes off an earlier version's numbers as its own; `--overwrite` does a stage again."""

from __future__ import annotations

import importlib
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from fairprune_framework import discovery
from fairprune_framework.errors import UserError

SOURCE = """
from dataclasses import dataclass
from fairprune_framework.api import BiasScorer, Needs, Statistic

@dataclass(frozen=True, kw_only=True)
class Spread(Statistic):
    name: str = "stale-spread"

    def summands(self, obs):
        acts = obs.aligned["neuron"]
        return {"off": (acts.amax((1, 2)) - acts.amin((1, 2))).abs().unsqueeze(1)}

@dataclass(frozen=True, kw_only=True)
class Stale(BiasScorer):
    def needs(self):
        return Needs(statistics=(Spread(),))

    def score(self, at):
        return at.sums["stale-spread.off"][0] * 1.0
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A plugin in a file of its own; called with (old, new), it is edited and imported anew."""
    file = tmp_path / "stale_plugin.py"
    file.write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    known = discovery.offers

    def more() -> Any:
        return [*known(), (metadata.EntryPoint("stale", "stale_plugin:Stale", "fairprune.bias_scorers"), "unknown", "0")]

    monkeypatch.setattr(discovery, "offers", more)

    def edit(old: str, new: str) -> None:
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))
        sys.modules.pop("stale_plugin", None)
        importlib.invalidate_caches()

    yield edit
    sys.modules.pop("stale_plugin", None)


@pytest.fixture
def scored(fairprune: Any, llama: Path, prompts: Path, quick: Any, tmp_path: Path, plugin: Any) -> Path:
    folder = tmp_path / "run"
    words = ("--output", folder, "--bias", "stale", "--budget", "0.1")
    assert fairprune("audit", llama, "--prompts", prompts, *words, *[w for w in quick if w != "--force"]).code == 0
    assert fairprune("score", "--output", folder).code == 0
    return folder


def first_score(folder: Path) -> float:
    return float(load_file(folder / "scores.safetensors")["bias/model.layers.0.mlp"][0])


def test_an_edited_score_is_seen(fairprune: Any, scored: Path, plugin: Any) -> None:
    before = first_score(scored)
    assert "done before" in fairprune("score", "--output", scored).err
    plugin("* 1.0", "* 3.0")
    answer = fairprune("plan", "--output", scored)
    assert answer.code == 2
    assert "holds the stage 'score' with another version of bias 'stale'" in answer.errors[-1]
    assert first_score(scored) == before
    answer = fairprune("score", "--output", scored, "--overwrite")
    # the statistic lies in the same file: its sums may be of the earlier source too
    assert answer.code == 2
    assert "run `fairprune audit --overwrite`" in answer.errors[-1]
    assert fairprune("audit", "--output", scored, "--overwrite").code == 0
    assert fairprune("score", "--output", scored).code == 0
    assert first_score(scored) == pytest.approx(3 * before, rel=1e-12)


@pytest.mark.parametrize("stage", ["audit", "score", "plan"])
def test_overwrite_does_the_named_stage_again(fairprune: Any, scored: Path, stage: str) -> None:
    assert fairprune("plan", "--output", scored).code == 0
    file = {"audit": "statistics.safetensors", "score": "scores.safetensors", "plan": "plan.json"}[stage]
    whole = (scored / file).read_bytes()
    (scored / file).write_bytes(whole[: len(whole) // 2])
    answer = fairprune(stage, "--output", scored, "--overwrite")
    assert answer.code == 0, answer.err
    assert "done before" not in "\n".join(line for line in answer.err.splitlines() if line.startswith(f"[{stage}] {stage}"))
    assert (scored / file).read_bytes() == whole


def test_the_record_names_the_source_of_each_statistic(scored: Path) -> None:
    record = json.loads((scored / "run.json").read_text())
    names = json.loads((scored / "statistics.json").read_text())["statistics"]
    assert set(record["statistic_sources"]) == set(names)


def test_scores_are_of_the_source_that_was_imported(
    fairprune: Any, llama: Path, prompts: Path, quick: Any, tmp_path: Path, plugin: Any
) -> None:
    """An edit while a command works, which may take hours, makes no other source of what it computes."""
    folder = tmp_path / "run"
    words = [word for word in quick if word != "--force"]
    assert fairprune("audit", llama, "--prompts", prompts, "--output", folder, "--bias", "stale", *words).code == 0
    plugin("return at.sums", "edit(); return at.sums")
    file = tmp_path / "stale_plugin.py"
    file.write_text(
        f"{file.read_text()}\ndef edit():\n    from pathlib import Path\n    text = Path(__file__).read_text()\n"
        "    Path(__file__).write_text(text.replace('* 1.0', '* 3.0'))\n"
    )
    assert fairprune("audit", "--output", folder, "--overwrite").code == 0
    assert fairprune("score", "--output", folder).code == 0
    sys.modules.pop("stale_plugin")  # as in another process
    assert "another version of bias 'stale'" in fairprune("score", "--output", folder).errors[-1]


def test_in_one_process_an_edit_is_refused_until_it_is_imported(
    llama: Path, prompts: Path, tmp_path: Path, plugin: Any
) -> None:
    import fairprune_framework as fp

    recipe = fp.Recipe(
        model=str(llama), prompts=str(prompts), bias="stale", importance="max-abs-weight", policy="uniform", budget="0.1"
    )
    audited = fp.audit(output=tmp_path / "run", recipe=recipe)
    fp.score(audited)
    before = first_score(tmp_path / "run")
    file = tmp_path / "stale_plugin.py"
    file.write_text(file.read_text().replace("* 1.0", "* 3.0"))
    with pytest.raises(UserError, match="bias 'stale' of unknown 0 was edited after this process imported it"):
        fp.score(audited, overwrite=True)
    sys.modules.pop("stale_plugin")
    renewed = fp.audit(output=tmp_path / "run", overwrite=True)
    fp.score(renewed)
    assert first_score(tmp_path / "run") == pytest.approx(3 * before, rel=1e-12)
