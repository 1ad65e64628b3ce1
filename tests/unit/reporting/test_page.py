"""The page as a document: nothing external, texts as text, a table behind every chart; what is missing or broken is named."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fairprune_framework.functional.planes import planes
from fairprune_framework.reporting.page import CHARTS, charts_of, command_of, packed, page, recipe_of
from fairprune_framework.reporting.run_data import read_source


class Document(HTMLParser):
    """Elements with their attributes, and all text outside of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._raw: str | None = None
        self.feed(html)
        self.text = "".join(self.texts)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        self._raw = tag if tag in ("script", "style") else None

    def handle_endtag(self, tag: str) -> None:
        self._raw = None

    def handle_data(self, data: str) -> None:
        if self._raw is None:
            self.texts.append(data)


@pytest.fixture(scope="module")
def documents(pages: dict[str, Path]) -> dict[str, Document]:
    return {name: Document(path.read_text(encoding="utf-8")) for name, path in pages.items()}


def test_nothing_external(documents: dict[str, Document]) -> None:
    for document in documents.values():
        for tag, attributes in document.elements:
            for name in ("src", "href", "action", "srcset", "poster"):
                assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
            assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        (policy,) = [a["content"] for _, a in document.elements if a.get("http-equiv") == "Content-Security-Policy"]
        assert "default-src 'none'" in str(policy)
        assert "unsafe-inline" not in str(policy).split("script-src")[1].split(";")[0]


def test_hostile_texts_are_texts(documents: dict[str, Document], hostile_texts: tuple[str, ...]) -> None:
    document = documents["hostile"]
    for text in hostile_texts:
        assert text in document.text
    scripts = [a for tag, a in document.elements if tag == "script"]
    assert len(scripts) == 3
    assert len({a["nonce"] for a in scripts}) == 1
    assert not [tag for tag, _ in document.elements if tag == "img"]


def test_charts_and_the_tables_behind_them(documents: dict[str, Document], full: Path) -> None:
    charts = charts_of(read_source(full))
    assert {chart.name for chart in charts} == set(CHARTS)
    labels = {a.get("aria-label") for _, a in documents["full"].elements}
    for chart in charts:
        assert f"Table for the chart: {chart.title}" in labels
        assert chart.table.rows, chart.name
        assert all(len(row) == len(chart.table.columns) for row in chart.table.rows), chart.name
        assert chart.caption in documents["full"].text


def test_labels_of_charts_hold_no_markup(hostile: Path) -> None:
    """plotly reads some HTML in labels: a user's `<` must arrive as an entity."""
    allowed = re.compile(r"</?b>|<br>|<extra>|</extra>")
    for chart in charts_of(read_source(hostile)):
        for text in re.findall(r'"(?:[^"\\]|\\.)*"', json.dumps(json.loads(packed(chart.to_json())), ensure_ascii=False)):
            assert "<" not in allowed.sub("", text), (chart.name, text[:80])


def test_accessible_names(documents: dict[str, Document]) -> None:
    for document in documents.values():
        identifiers = [a["id"] for _, a in document.elements if "id" in a]
        assert len(identifiers) == len(set(identifiers))
        assert [a.get("lang") for tag, a in document.elements if tag == "html"] == ["en"]
        assert len([tag for tag, _ in document.elements if tag == "h1"]) == 1
        assert all(a.get("aria-label") for _, a in document.elements if a.get("role") in ("img", "region"))
        assert all(a.get("scope") for tag, a in document.elements if tag == "th")


def test_the_verdict_its_numbers_and_its_limits(documents: dict[str, Document], full: Path) -> None:
    text = " ".join(documents["full"].text.split())
    record = json.loads((full / "run.json").read_text())
    assert record["verdict"] in text
    assert record["verdict_because"] in text
    assert "What this does not show" in text
    row = next(
        row
        for row in json.loads((full / "evaluation.json").read_text())["results"]
        if (row["metric"], row["split"], row["control"], row["category"]) == ("next-token-divergence", "heldout", False, None)
    )
    assert f"{100 * row['change']:+.1f} %".replace("-", "−") in text


def test_provenance(documents: dict[str, Document], full: Path) -> None:
    text, record = documents["full"].text, json.loads((full / "run.json").read_text())
    for name, value in {**record["versions"], **record["hashes"]}.items():
        assert name in text
        assert value in text
    assert recipe_of(read_source(full)).strip() in text


def test_the_command_is_quoted_for_a_shell(full: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(full, tmp_path / "a run; rm -rf $HOME"))
    words = shlex.split(command_of(read_source(folder)))
    assert words[:2] == ["fairprune", "run"]
    assert words[words.index("--recipe") + 1] == f"{folder.name}/recipe.yaml"


def test_it_is_the_same_twice_and_small(full: Path) -> None:
    first = page([read_source(full)])
    assert first == page([read_source(full)])
    assert len(first.encode()) < 3_000_000


def test_a_wide_model_stays_below_eight_megabytes(full: Path) -> None:
    """Scores as wide as a 7B model's: 32 layers of 14,336 neurons, with representations of its size in tokens and layers."""
    from dataclasses import replace

    draw = np.random.default_rng(0)
    source = read_source(full)
    names = [f"model.layers.{layer}.mlp" for layer in range(32)]
    scores = {f"{kind}/{name}": draw.lognormal(size=14_336) for kind in ("bias", "importance") for name in names}
    scores["bias/model.layers.3.mlp"][7_001] = 1e4
    variants = [
        {
            "attribute": f"a{i}",
            "text": "word " * 20,
            "tokens": [f" token{j}" for j in range(20)],
            "start": 1,
            "end": 2,
            "all_tokens": 20,
        }
        for i in range(4)
    ]
    projections = [
        {"contrast": f"c{i}", "category": f"k{i}", "control": False, "split": None, "variants": variants,
         "layers": {"attention": list(range(32)), "mlp": list(range(32))}, "cut_to_float16": 0}
        for i in range(11)
    ]  # fmt: skip
    tensors = {
        f"{part}/{i}/{tap}": value
        for i in range(11)
        for tap in ("attention", "mlp")
        for part, value in planes(*draw.normal(size=(2, 32, 80, 16)), variants).parts.items()
    }
    wide = replace(source, scores=scores, exhibits={**source.exhibits, "projections": projections}, representations=tensors)  # type: ignore[dict-item]
    html = page([wide])
    assert 2_000_000 < len(html.encode()) < 8_000_000
    heatmap = next(chart for chart in charts_of(wide) if chart.name == "layer-neuron-map")
    assert "Each cell is the maximum over 8 neighbouring neurons" in heatmap.caption
    raw = heatmap.data[0]["customdata"]
    assert raw.shape == (32, 1792)
    np.testing.assert_allclose(raw[3, 7_001 // 8], 1e4)
    np.testing.assert_allclose(raw, np.array([scores[f"bias/{n}"].reshape(-1, 8).max(1) for n in names]), rtol=1e-6)


# -- what is missing or broken -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gone", "says"),
    [
        ("scores.safetensors", "fairprune score --output"),
        ("plan.json", "fairprune plan --output"),
        ("evaluation.json", "fairprune evaluate --output"),
        ("exhibits.json", "fairprune evaluate --overwrite --output"),
        ("contrasts.jsonl", "fairprune audit --output"),
    ],
)
def test_a_file_that_is_missing_is_named(fairprune: Any, finished: Path, tmp_path: Path, gone: str, says: str) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    (folder / gone).unlink()
    answer = fairprune("report", folder)
    assert answer.code == 0, answer.err
    assert f"missing: {gone}" in answer.err
    text = " ".join(Document((folder / "report.html").read_text(encoding="utf-8")).text.split())
    assert "This folder is incomplete" in text
    assert says in text


def test_broken_files_are_named(fairprune: Any, finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    for name in ("scores.safetensors", "exhibits.json", "plan.json"):
        (folder / name).write_bytes(b"\x00 nonsense")
    answer = fairprune("report", folder, "--json")
    assert answer.code == 0, answer.err
    assert {Path(item["file"]).name for item in json.loads(answer.out)["damaged"]} == {
        "scores.safetensors",
        "exhibits.json",
        "plan.json",
    }
    assert "cannot be read" in Document((folder / "report.html").read_text(encoding="utf-8")).text


def test_a_folder_with_an_audit_alone(fairprune: Any, llama: Path, prompts: Path, tmp_path: Path) -> None:
    assert fairprune("audit", llama, "--prompts", prompts, "--output", tmp_path / "run").code == 0
    answer = fairprune("report", tmp_path / "run")
    assert answer.code == 0, answer.err
    assert "evaluation.json" in answer.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("report",), "missing: RUN"),
        (("report", "nowhere"), "there is no run folder nowhere"),
        (("report", "{run}", "{run}"), "name it with --output FILE.html"),
        (("report", "{run}", "--output", "{run}"), "is a folder: name a file"),
        (("report", "{run}", "--output", "no/such/page.html"), "there is no folder"),
        (("report", "{models}"), "it contains neither run.json nor ablation.json"),
    ],
)
def test_bad_input_is_one_line(fairprune: Any, finished: Path, llama: Path, words: tuple[str, ...], says: str) -> None:
    answer = fairprune(*(word.replace("{run}", str(finished)).replace("{models}", str(llama)) for word in words))
    assert answer.code == 2
    assert says in answer.err
    assert len(answer.errors) == 1


def test_runs_of_different_models_are_said(finished: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(finished, tmp_path / "other"))
    record = json.loads((other / "run.json").read_text())
    record["hashes"]["model"] = "0" * 64
    (other / "run.json").write_text(json.dumps(record))
    text = " ".join(Document(page([read_source(finished), read_source(other)])).text.split())
    assert "These runs have different models" in text
    assert "interpret each change within its own run only" in text
    same = " ".join(Document(page([read_source(finished), read_source(finished)])).text.split())
    assert "different models" not in same
    assert "have the same model, prompts, split and calibration text" in same


def test_an_ablation_folder(full: Path, tmp_path: Path) -> None:
    shutil.copy(full / "ablation.json", tmp_path / "ablation.json")
    text = " ".join(Document(page([read_source(tmp_path)])).text.split())
    assert "Ablation of" in text
    assert "No combination has been confirmed" in text
    assert "1 combinations have no result and are omitted" in text
