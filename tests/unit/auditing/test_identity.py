"""A statistic is told from every other, in every process, and reads no sums but its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, make_dataclass, replace

from torch import Tensor

from fairprune_framework.api.interfaces import Observation, Statistic
from fairprune_framework.auditing.identity import described, own_sums, stored_names
from fairprune_framework.discovery import build


@dataclass(frozen=True, kw_only=True)
class Deviation(Statistic):
    name: str = "deviation"
    power: int = 1

    def summands(self, obs: Observation) -> Mapping[str, Tensor]:
        raise NotImplementedError


def of_another_package() -> Statistic:
    """A class of the same name and fields that another package holds."""
    other = make_dataclass("Deviation", [], bases=(Deviation,), frozen=True, kw_only=True)
    other.__module__, other.__qualname__ = "other_package", Deviation.__qualname__
    return other()  # type: ignore[no-any-return]


def test_described_alike_in_every_process() -> None:
    """`repr` of a set follows its order, which for words differs from process to process."""
    assert repr(frozenset([0, 8])) != repr(frozenset([8, 0]))  # collide, so that the first one in comes out first
    assert described(frozenset([0, 8])) == described(frozenset([8, 0])) == "{0, 8}"
    assert described({"b": (1, 2), "a": {3}}) == "{'a': {3}, 'b': (1, 2)}"


def test_module_class_and_options_are_told_apart() -> None:
    (statistic,) = build("bias", "gate-up-difference").needs().statistics
    assert described(statistic) == "fairprune_gate_up_difference.PairDifference(name='gate-up-difference', taps={'gate', 'up'})"
    assert described(replace(statistic, taps=frozenset({"up"}))) != described(statistic)
    assert described(of_another_package()) != described(Deviation())


def test_a_name_is_stored_as_it_is_unless_two_bear_it() -> None:
    mine, theirs, alone = Deviation(), of_another_package(), Deviation(name="alone")
    assert stored_names([mine, mine, alone]) == {mine: "deviation", alone: "alone"}
    names = stored_names([mine, theirs, Deviation(power=2), alone])
    assert len(set(names.values())) == 4
    assert names[alone] == "alone"


def test_each_reads_its_own_sums() -> None:
    mine, theirs, alone = Deviation(), of_another_package(), Deviation(name="alone")
    names = stored_names([mine, theirs, alone])
    sums = {f"{names[mine]}.mean": 1, f"{names[theirs]}.mean": 2, "alone.mean": 3, "observed": 4}
    assert own_sums(sums, [mine]) == {"deviation.mean": 1}
    assert own_sums(sums, [theirs, alone]) == {"deviation.mean": 2, "alone.mean": 3}
    assert own_sums({"deviation.mean": 5, "alone.mean": 3}, [mine]) == {"deviation.mean": 5}
