"""What plugins ask an audit for is united, each of equal statistics once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from torch import Tensor

from fairprune_framework import discovery
from fairprune_framework.api.interfaces import Needs, Observation, Pass, Plugin, Statistic
from fairprune_framework.api.outputs import Outputs
from fairprune_framework.auditing.demand import Demand, passes_of, selecting
from fairprune_framework.contrasts.alignment import AlignedContrast
from fairprune_framework.errors import UserError


@dataclass(frozen=True)
class Loss:
    def __call__(self, outputs: Outputs) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Recorded(Statistic):
    """Declares passes, and sums nothing here."""

    name: str = "recorded"
    exponent: int = 1
    over: tuple[Pass, ...] = (Pass(),)

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        raise NotImplementedError

    def passes(self, layers: int) -> Sequence[Pass]:
        return self.over


@dataclass(frozen=True, kw_only=True)
class Asking(Plugin):
    wanted: Needs = field(default_factory=Needs)

    def needs(self) -> Needs:
        return self.wanted


def asking(*statistics: Statistic, **more: Any) -> Plugin:
    return Asking(wanted=Needs(statistics=statistics, **more))


def test_equal_statistics_are_summed_once() -> None:
    demand = Demand.of([asking(Recorded()), asking(Recorded(), Recorded(name="other"))], 2)
    assert demand.statistics == (Recorded(), Recorded(name="other"))
    assert not demand.calibration
    assert not demand.weights
    assert not demand.clusters


def test_two_statistics_of_one_name_stand_beside_each_other_but_not_in_one_plugin() -> None:
    assert len(Demand.of([asking(Recorded()), asking(Recorded(exponent=2))], 2).statistics) == 2
    with pytest.raises(UserError, match=r"two statistics of Asking are named 'recorded' and differ: .*exponent=1.*exponent=2"):
        Demand.of([asking(Recorded(), Recorded(exponent=2))], 2)


def test_one_plugin_is_enough_for_calibration_weights_and_clusters() -> None:
    calibrating = Recorded(name="calibrating", over=(Pass(stream="calibration"),))
    assert Demand.of([asking(Recorded()), asking(calibrating)], 2).calibration
    assert Demand.of([asking(Recorded(), weights=True), asking()], 2).weights
    assert not Demand.of([asking(weights=True)], 2).weights  # there is no statistic that could see them
    assert Demand.of([asking(), asking(replicates=4)], 2).clusters


def test_contrasts_are_passed_over_in_any_case() -> None:
    gradient = Pass(objective=Loss())
    single = Pass(objective=Loss(), layer=1)
    documents = Pass(stream="calibration")
    assert passes_of([], 2) == [Pass()]
    assert passes_of([Recorded(over=(documents, gradient)), Recorded(over=(gradient,))], 2) == [documents, gradient]
    assert passes_of([Recorded(over=(documents, single))], 2) == [Pass(), documents, single]


def test_only_demographic_contrasts_of_select_feed_scores() -> None:
    every = [
        SimpleNamespace(id=f"{split}-{role}", split=split, role=role)
        for split in (None, "select", "heldout")
        for role in ("demographic", "control", "legitimate")
    ]
    asked = cast(list[AlignedContrast], every)
    assert [contrast.id for contrast in selecting(asked)] == ["None-demographic", "select-demographic"]
    assert [contrast.id for contrast in selecting(asked, "controls")] == ["None-control", "select-control"]
    assert [contrast.id for contrast in selecting(asked, "legitimate")] == ["None-legitimate", "select-legitimate"]


def test_relatives_of_two_packages_share_a_statistic() -> None:
    plugins = [discovery.build("bias", name) for name in ("signed-difference", "paired-effect", "eta-squared", "d-prime")]
    names = [statistic.name for statistic in Demand.of(plugins, 2).statistics]
    assert names == ["value-deviation", "deviation-squares", "group-moments"]
