"""`doctor` tells the truth about the environment."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from fairprune_framework import discovery
from fairprune_framework.testing.families import small_model
from fairprune_framework.testing.tiny import tiny_tokenizer


def test_doctor_says_what_is_there(fairprune: Any) -> None:
    answer = fairprune("doctor", "--json")
    report = json.loads(answer.out)
    assert (answer.code, report["ok"]) == (0, True)
    found = {one["what"]: one for one in report["findings"]}
    for name in ("torch", "transformers", "lightning"):
        assert found[name]["text"] == metadata.version(name)
    assert {"python", "cpu", "plugins", "smollm2-135m", "hub"} <= set(found)
    plain = fairprune("doctor").out
    assert plain.endswith("nothing is broken\n")
    assert max(map(len, plain.splitlines())) <= 80


def test_doctor_names_what_is_broken(fairprune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairprune_framework import discovery
    from fairprune_framework.cli import doctor

    entry = discovery.Entry(kind="bias", name="gone", distribution="elsewhere", version="1", value="no_such_module:Gone")
    known = discovery.entries
    monkeypatch.setattr(doctor.discovery, "entries", lambda kind: [*known(kind), *([entry] if kind == "bias" else [])])
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    answer = fairprune("doctor", "--json")
    report = json.loads(answer.out)
    assert (answer.code, report["ok"]) == (1, False)
    broken = {one["what"]: one["text"] for one in report["findings"] if one["state"] == "broken"}
    assert set(broken) == {"no-such-package", "bias gone"}
    assert "no_such_module" in broken["bias gone"]


def test_doctor_of_a_model_says_what_can_be_done(fairprune: Any, llama: Path) -> None:
    report = json.loads(fairprune("doctor", llama, "--json").out)
    assert (report["adapter"], report["sites"], report["units"], report["confirmed"]) == ("fairprune_framework:glu", 2, 96, 2)
    assert report["operators"] == {"remove": None, "zero": None, "scale": None, "mean": None}
    assert report["exact_widths"] is None
    assert {kind: sum(why is None for why in plugins.values()) for kind, plugins in report["plugins"].items()} == {
        kind: len(discovery.entries(kind)) for kind in ("bias", "importance", "policy")
    }
    plain = fairprune("doctor", llama)
    assert plain.code == 0
    assert "2 of 2: a changed neuron changes the logits" in plain.out
    assert max(map(len, plain.out.splitlines())) <= 80


def test_doctor_of_a_model_names_obstacles(fairprune: Any, tmp_path: Path, prompts: Path) -> None:
    """An inner norm would undo a scale; what has no gate shows none. Both are refused before an audit too."""
    for family, words, expected in (
        ("bitnet", ("--operator", "scale", "--factor", "0.5"), "cannot be scaled: a norm between its neurons"),
        ("gpt2", ("--bias", "gate-up-difference"), "GateUpDifference looks at gate"),
    ):
        folder = save_small(tmp_path / family, family)
        report = json.loads(fairprune("doctor", folder, "--json").out)
        assert ("cannot be scaled" in str(report["operators"]["scale"])) == (family == "bitnet")
        assert ("looks at gate" in str(report["plugins"]["bias"]["gate-up-difference"])) == (family == "gpt2")
        assert "\n" in fairprune("doctor", folder).out
        answer = fairprune("run", folder, "--prompts", prompts, "--recipe", "variance", *words, "--output", tmp_path / "o")
        assert answer.code == 2
        assert expected in answer.err
        assert not (tmp_path / "o").exists()


def test_doctor_of_a_model_with_bad_input(fairprune: Any, tmp_path: Path) -> None:
    for words, expected in (
        (("--dtype", "float32"), "--dtype is of a model: fairprune doctor MODEL"),
        ((tmp_path / "none",), "there is no model folder"),
    ):
        answer = fairprune("doctor", *words)
        assert answer.code == 2
        assert expected in answer.err


def save_small(folder: Path, family: str) -> Path:
    model: Any = small_model(family)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_doctor_of_a_model_says_which_formats_fit(fairprune: Any, llama: Path, tmp_path: Path) -> None:
    """The reasons are those that `fairprune export` gives."""
    small_model("gpt2").save_pretrained(tmp_path / "gpt2")  # type: ignore[operator]
    tiny_tokenizer().save_pretrained(tmp_path / "gpt2")
    formats = json.loads(fairprune("doctor", tmp_path / "gpt2", "--json").out)["formats"]
    assert list(formats) == ["hf", "vllm", "gguf"]
    assert (formats["hf"], formats["vllm"]) == (None, None)
    assert formats["gguf"].startswith("GPT2LMHeadModel is none of those that are written")
    refused = fairprune("export", tmp_path / "gpt2", "--format", "gguf", "--output", tmp_path / "out.gguf")
    assert refused.code == 2
    assert formats["gguf"] in refused.err
    plain = " ".join(fairprune("doctor", tmp_path / "gpt2").out.split())
    assert "export --format hf, vllm gguf: GPT2LMHeadModel is none of those" in plain
