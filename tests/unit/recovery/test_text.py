from __future__ import annotations

import json
from pathlib import Path

import pytest

from fairprune_framework.calibration.text import Calibration
from fairprune_framework.errors import UserError
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.recovery.options import Options
from fairprune_framework.recovery.text import SHARED, read, split, without_copies
from fairprune_framework.testing.tiny import WORDS, tiny_tokenizer

ENCODER = Encoder(tiny_tokenizer(), limit=64)
OTHER = Calibration(documents=tuple((400 + i, 401 + i) for i in range(8)), source="sampled")


def document(start: int, length: int = 30) -> tuple[int, ...]:
    return tuple(range(start, start + length))


def options(text: str | None, batch_tokens: int = 20) -> Options:
    return Options(text=text, distill=text is None, method="full", batch_tokens=batch_tokens)


def lines(path: Path, count: int) -> str:
    texts = [" ".join(WORDS[i : i + 30]) for i in range(count)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def test_texts_are_held_out_whole() -> None:
    texts = [[document(100 * i), document(100 * i + 50)] for i in range(11)]
    training, heldout = split(texts)
    assert {text for text, _ in heldout} == {4, 9}
    assert len(training) == 18
    assert len(heldout) == 4


def test_of_one_text_the_end_is_held_out() -> None:
    only = [document(100 * i) for i in range(10)]
    training, heldout = split([only])
    assert [found for _, found in training] == only[:8]
    assert [found for _, found in heldout] == only[8:]


def test_a_text_of_which_a_part_measures_is_left_out_whole() -> None:
    training = [(0, document(0)), (0, document(1000)), (1, document(2000)), (2, document(3000))]
    measuring = [document(1010, SHARED), document(3000, SHARED - 1)]
    assert without_copies(training, measuring) == [document(2000), document(3000)]


def test_the_file_of_the_calibration_text_trains_on_nothing_that_judges(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(" ".join(WORDS * 4))
    whole = read(options(str(path)), ENCODER, OTHER)
    judging = whole.training[1]
    calibration = Calibration(documents=((1, 2), judging, (3, 4), (5, 6)), source="t.txt")
    assert judging not in read(options(str(path)), ENCODER, calibration).training


def test_calibration_text_is_split_in_its_own_halves() -> None:
    calibration = Calibration(documents=tuple(document(100 * i) for i in range(8)), source="sampled")
    found = read(options(None), ENCODER, calibration)
    assert found.training == tuple(one[:20] for one in calibration.scoring)
    assert found.heldout == ()


@pytest.mark.parametrize("content", ["", " \n "])
def test_an_empty_text_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(content)
    with pytest.raises(UserError, match="yields 0 documents"):
        read(options(str(tmp_path / "t.txt")), ENCODER, OTHER)


def test_a_text_that_fills_no_step_is_refused(tmp_path: Path) -> None:
    text = "\n".join(json.dumps({"text": f"The {word} walked"}) for word in WORDS[9:17])
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(UserError, match="less than one step takes"):
        read(options(str(tmp_path / "t.jsonl"), 1000), ENCODER, OTHER)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no training text"):
        read(options(str(tmp_path / "none.txt")), ENCODER, OTHER)
