"""The result of an audit: saved and read back, by site and category, and its resamples against numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fairprune_framework.auditing.replicates import resampled
from fairprune_framework.auditing.statistics import Statistics, cluster_id, cluster_of, finished
from fairprune_framework.auditing.sums import StatisticSums
from fairprune_framework.errors import RunFolderError


def made(**more: object) -> Statistics:
    generator = torch.Generator().manual_seed(0)
    sums = {
        f"contrasts/{site}/{name}": torch.randn((2, 1, 3), generator=generator, dtype=torch.float64)
        for site in ("layer.0", "layer.1")
        for name in ("x.y", "observed")
    }
    words: dict[str, object] = {
        "sums": sums,
        "categories": ("age", "race"),
        "counts": {"contrasts": (3, 5), "calibration": ()},
        "statistics": ("contrasts/x",),
        "composition": "hash",
    }
    return Statistics(**{**words, **more})  # type: ignore[arg-type]


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    before = made(
        clustered={"contrasts/layer.0/x.y": torch.ones(2, 4, 1, 3, dtype=torch.float64)},
        cluster_counts=((1, 1, 1, 0), (2, 1, 1, 1)),
    )
    before.save(tmp_path)
    after = Statistics.load(tmp_path)
    assert after.described() == before.described()
    for kind in ("sums", "clustered"):
        one, other = getattr(before, kind), getattr(after, kind)
        assert one.keys() == other.keys()
        assert all(value.equal(other[key]) for key, value in one.items())


def test_a_file_without_its_sums_is_refused(tmp_path: Path) -> None:
    made().save(tmp_path)
    save_file({"else": torch.ones(1)}, tmp_path / "statistics.safetensors")
    with pytest.raises(RunFolderError, match="is damaged"):
        Statistics.load(tmp_path)


def test_a_site_in_one_category_and_in_all() -> None:
    found = made()
    values = found.sums["contrasts/layer.1/x.y"]
    assert found.sites() == {"layer.0", "layer.1"}
    assert found.of("contrasts", "layer.1", 1)["x.y"].equal(values[1])
    assert found.of("contrasts", "layer.1", None)["x.y"].equal(values.sum(0))
    assert found.by_category("contrasts", "layer.1")["x.y"].equal(values)
    assert (found.count("contrasts", None), found.count("contrasts", 0), found.count("controls", None)) == (8, 3, 0)
    assert found.observed("contrasts", "elsewhere", None) == 0
    assert not found.of("contrasts", "layer.2", None)["x.y"].any()  # an expert that no token reached, beside one that some did


def test_clusters_of_templates_are_the_same_everywhere() -> None:
    assert cluster_id("age", "T1") == 5830154453751526121
    assert cluster_of("age", "T1") == cluster_of("age", "T1", 32)
    assert 0 <= cluster_of("age", "T1", 7) < 7
    assert len({cluster_id("age", f"T{number}") for number in range(1000)} | {cluster_id("race", "T1")}) == 1001


def test_resampled_statistics_are_weighted_sums_of_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn((2 * 4, 3, 5), generator=generator, dtype=torch.float64)
    values[6:] = 0  # two clusters of the second category are empty
    sums = StatisticSums()
    sums.update({"contrasts/site/x.y": values, "calibration/site/x.y": values[:1]})
    counts = {"contrasts": [5, 1, 2, 3, 4, 4, 0, 0], "calibration": [7]}
    found = finished(sums.words(), {"contrasts": ("a", "b")}, counts, 4, ("contrasts/x",), "hash")
    np.testing.assert_allclose(found.sums["contrasts/site/x.y"], values.numpy().reshape(2, 4, 3, 5).sum(1), rtol=1e-12)
    assert found.counts == {"contrasts": (11, 8), "calibration": (7,)}
    means = []
    for one in resampled(found, 400, torch.Generator().manual_seed(1)):
        assert one.sums["calibration/site/x.y"].equal(found.sums["calibration/site/x.y"])
        assert 4 <= one.counts["contrasts"][0] <= 20
        assert one.counts["contrasts"][1] == 8  # both of its clusters hold four contrasts
        means.append(one.sums["contrasts/site/x.y"][0].numpy())
    spread = values.numpy().reshape(2, 4, 3, 5)[0].std(0) * np.sqrt(4)  # of a sum of four draws
    assert np.abs(np.mean(means, 0) - found.sums["contrasts/site/x.y"][0].numpy()).max() < 5 * spread.max() / 20
    np.testing.assert_allclose(np.std(means, 0), spread, rtol=0.2)
