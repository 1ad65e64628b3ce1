"""Measurements that are kept: found again by all that they depend on, and never taken for another one."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.evaluation.cache import MeasurementCache, model_key


class Counter:
    """A measurement that counts how often it is made."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> Any:
        self.made += 1
        return {"value": self.made}


def test_a_measurement_is_made_once_for_each_key(tmp_path: Path) -> None:
    make = Counter()
    for _ in range(2):
        cache = MeasurementCache(tmp_path / "measurements")
        assert cache.get("boolq", {"limit": 3}, make) == {"value": 1}
        assert cache.get("boolq", {"limit": 4}, make) == {"value": 2}
        assert cache.get("other/boolq", {"limit": 3}, make) == {"value": 3}
    assert make.made == 3
    assert len(list((tmp_path / "measurements").iterdir())) == 3


def test_without_a_folder_nothing_is_kept() -> None:
    make = Counter()
    assert [MeasurementCache(None).get("x", {}, make)["value"] for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "other/1"}'])
def test_a_broken_file_is_measured_again(tmp_path: Path, content: str) -> None:
    heard: list[str] = []
    make = Counter()
    cache = MeasurementCache(tmp_path, heard.append)
    cache.get("x", {"a": 1}, make)
    (path,) = tmp_path.iterdir()
    path.write_text(content)
    assert cache.get("x", {"a": 1}, make) == {"value": 2}
    assert heard == [f"{path} is broken: x is measured again"]
    assert cache.get("x", {"a": 1}, make) == {"value": 2}


def test_the_key_in_the_file_is_compared_not_its_name_alone(tmp_path: Path) -> None:
    make = Counter()
    cache = MeasurementCache(tmp_path)
    cache.get("x", {"a": 1}, make)
    (path,) = tmp_path.iterdir()
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, "key": {"name": "x", "a": 2}}))
    assert cache.get("x", {"a": 1}, make) == {"value": 2}


def test_a_measurement_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        MeasurementCache(tmp_path / "measurements").get("x", {}, fail)
    assert not (tmp_path / "measurements").exists()
    with pytest.raises(ValueError, match="not JSON compliant"):
        MeasurementCache(tmp_path / "measurements").get("x", {}, lambda: float("inf"))
    assert not list((tmp_path / "measurements").iterdir())


def test_models_are_told_apart() -> None:
    keys = [
        model_key("f"),
        model_key("g"),
        model_key("f", {"a": [1]}),
        model_key("f", {"a": [2]}),
        model_key("f", {"b": [1]}),
        model_key("f", {"a": [1]}, 0.5),
        model_key("f", dtype="torch.float32"),
    ]
    assert all(a != b for a, b in itertools.combinations(keys, 2))


def test_a_mask_that_masks_nothing_changes_no_key() -> None:
    assert model_key("f") == model_key("f", {}) == model_key("f", {"a": []}, 0.5)
    assert model_key("f", {"b": [2], "a": [1], "c": ()}) == model_key("f", {"a": (1,), "b": (2,)})
