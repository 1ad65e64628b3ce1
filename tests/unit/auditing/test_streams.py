"""The files of a run folder give the same windows as contrasts in memory, and only those that are wanted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fairprune_framework.auditing import streams
from fairprune_framework.auditing.demand import selecting
from fairprune_framework.auditing.streams import FiledStreams, Held, HeldStreams, Job
from fairprune_framework.contrasts.alignment import AlignedContrast, align_all, vocabularies
from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.testing.tiny import tiny_contrasts, tiny_tokenizer


@pytest.fixture
def contrasts() -> list[Contrast]:
    return tiny_contrasts()


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(tiny_tokenizer())


@pytest.fixture
def folder(tmp_path: Path, contrasts: list[Contrast]) -> Path:
    lines = [json.dumps(contrast.to_json(), ensure_ascii=False) for contrast in contrasts]
    (tmp_path / "contrasts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def job_of(contrasts: list[Contrast], selected: list[AlignedContrast]) -> Job:
    return Job(
        categories={"contrasts": ("age",)},
        values={},
        sizes={"contrasts": len(selected), "controls": 0, "calibration": 0},
        max_tokens=64,
        facts={"vocabularies": vocabularies(contrasts)},
    )


@pytest.mark.parametrize("window", [1, 2, 3, 100])
def test_files_and_memory_give_the_same_windows(
    window: int, folder: Path, contrasts: list[Contrast], encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "WINDOW", window)
    selected = selecting(align_all(contrasts, encoder)[0])
    assert 3 < len(selected) < len(contrasts)
    job = job_of(contrasts, selected)
    filed = FiledStreams(folder, encoder)(job)["contrasts"]
    held = HeldStreams(Held(selected), Held(()), Held(()))(job)["contrasts"]
    everything = list(held(lambda number: True))
    assert list(filed(lambda number: True)) == everything
    assert [contrast for _, part in everything for contrast in part] == selected
    assert [number for number, _ in everything] == list(range(-(-len(selected) // window)))
    for kept in range(len(everything)):
        assert list(filed(kept.__eq__)) == list(held(kept.__eq__)) == [everything[kept]]


def test_only_wanted_windows_are_tokenized(
    folder: Path, contrasts: list[Contrast], encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "WINDOW", 2)
    tokenized: list[str] = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda texts: tokenized.extend(texts) or encode(texts))
    selected = selecting(align_all(contrasts, Encoder(tiny_tokenizer()))[0])
    windows = FiledStreams(folder, encoder)(job_of(contrasts, selected))["contrasts"]
    ((_, part),) = windows(lambda number: number == 1)
    wanted = {
        variant.text for contrast in contrasts if contrast.id in {one.id for one in part} for variant in contrast.variants
    }
    assert set(tokenized) == wanted


def test_calibration_text_is_read_only_if_there_are_documents(
    folder: Path, contrasts: list[Contrast], encoder: Encoder
) -> None:
    selected = selecting(align_all(contrasts, encoder)[0])
    assert FiledStreams(folder, encoder)(job_of(contrasts, selected)).keys() == {"contrasts", "controls", "legitimate"}


def test_controls_are_a_stream_of_their_own_and_held_out_ones_are_in_none(
    tmp_path: Path, contrasts: list[Contrast], encoder: Encoder
) -> None:
    controls = [contrast.id for contrast in contrasts if contrast.control]
    assert len(controls) > 1
    divided = [replace(one, split="heldout" if one.id == controls[0] else "select") for one in contrasts]
    lines = [json.dumps(contrast.to_json(), ensure_ascii=False) for contrast in divided]
    (tmp_path / "contrasts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    opened = FiledStreams(tmp_path, encoder)(job_of(divided, []))
    found = {stream: [one.id for _, part in windows(lambda number: True) for one in part] for stream, windows in opened.items()}
    assert found["controls"] == controls[1:]
    assert not set(found["contrasts"]) & set(controls)


def test_each_stream_keeps_rows_for_its_own_vocabularies(contrasts: list[Contrast]) -> None:
    job = replace(
        job_of(contrasts, []),
        categories={"contrasts": ("age", "gender"), "controls": ("colour",), "legitimate": ()},
        values={"age": 3, "gender": 2, "colour": 9, "elsewhere": 17},
    )
    assert job.largest == {"contrasts": 3, "controls": 9, "legitimate": 1}
