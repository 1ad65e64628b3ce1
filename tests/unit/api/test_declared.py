"""What a plugin or a statistic declares is of its type, or one line says what it is and what it should be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from fairprune_framework.api import BiasScorer, Needs, Pass, Statistic
from fairprune_framework.api.declared import earlier, needs_of, passes_at
from fairprune_framework.auditing.demand import with_earlier
from fairprune_framework.errors import BrokenPlugin, ContractViolation, FairpruneError


@dataclass(frozen=True, kw_only=True)
class Sizes(Statistic):
    name: Any = "sizes"
    taps: Any = frozenset({"neuron"})
    heard: Any = (Pass(),)
    behind: Any = ()

    def summands(self, obs: Any) -> Any:
        return {}

    def passes(self, layers: int) -> Any:
        return self.heard

    def after(self) -> Any:
        return self.behind


@dataclass(frozen=True, kw_only=True)
class Listing(Statistic):
    name: str = "listing"
    edges: list[float] = field(default_factory=list)

    def summands(self, obs: Any) -> Any:
        return {}


@dataclass(kw_only=True)
class Thawed:
    """An objective that is equal to none."""

    weights: Any = None

    def __call__(self, outputs: Any) -> Any:
        return outputs

    def __eq__(self, other: object) -> bool:
        return self is other


@dataclass(frozen=True, kw_only=True)
class Asking(BiasScorer):
    wanted: Any

    def needs(self) -> Any:
        return self.wanted

    def score(self, at: Any) -> Any:
        return None


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"statistics": [Sizes()]}, "the 'statistics' of Needs must be a tuple of statistics"),
        ({"statistics": ("sizes",)}, "needs 'sizes', which is no statistic"),
        ({"statistics": (Sizes,)}, "which is no statistic"),
        ({"statistics": (Listing(),)}, "Listing must be a frozen dataclass whose fields can be hashed"),
        ({"statistics": (Sizes(name=None),)}, "its name must be a text without / and :. Got None"),
        ({"statistics": (Sizes(name="a/b"),)}, "its name must be a text without / and :. Got 'a/b'"),
        ({"statistics": (Sizes(taps=frozenset({"nurons"})),)}, "its `taps` must be a frozenset of layer_input, attention"),
        ({"statistics": (Sizes(taps=("neuron",)),)}, "its `taps` must be a frozenset of layer_input, attention"),
        ({"weights": "yes"}, "the 'weights' of Needs must be true or false. Got 'yes'"),
        ({"probe": None}, "the 'probe' of Needs must be true or false. Got None"),
        ({"replicates": 2.5}, "the 'replicates' of Needs must be a whole number of at least 0. Got 2.5"),
        ({"replicates": -1}, "the 'replicates' of Needs must be a whole number of at least 0. Got -1"),
        ({"optional_streams": ("controls",)}, "the 'optional_streams' of Needs must be a frozenset of contrasts"),
        ({"optional_streams": frozenset({"dreams"})}, "the 'optional_streams' of Needs must be a frozenset of contrasts"),
    ],
)
def test_needs_of_the_wrong_type(wanted: dict[str, Any], words: str) -> None:
    with pytest.raises(ContractViolation) as caught:
        needs_of(Asking(wanted=Needs(**wanted)), "bias 'asking' of toys 1")
    assert str(caught.value).startswith("bias 'asking' of toys 1")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("heard", "words"),
    [
        (None, "passes() must return a sequence, each a Pass. Got None"),
        (Pass(), "passes() must return a sequence, each a Pass"),
        (["contrasts"], "passes() must return a sequence, each a Pass. Got ['contrasts']"),
        ((Pass(stream="dreams"),), "a stream must be one of contrasts, controls, legitimate, calibration. Got 'dreams'"),  # type: ignore[arg-type]
        ((Pass(logits="first"),), "the 'logits' of a pass must be last or all. Got 'first'"),  # type: ignore[arg-type]
        ((Pass(scale=float("nan")),), "the 'scale' of a pass must be a finite number. Got nan"),
        ((Pass(layer="last"),), "the 'layer' of a pass must be the number of a layer, or None. Got 'last'"),  # type: ignore[arg-type]
        ((Pass(objective=3),), "the 'objective' of a pass must be a frozen dataclass that can be called. Got 3"),  # type: ignore[arg-type]
        ((Pass(objective=Thawed()),), "the 'objective' of a pass must be a frozen dataclass that can be called"),
    ],
)
def test_passes_that_there_are_not(heard: Any, words: str) -> None:
    with pytest.raises(ContractViolation) as caught:
        passes_at(Sizes(heard=heard), 3)
    assert words in str(caught.value)


def test_what_is_declared_well_is_given_as_it_is() -> None:
    first, needs = Sizes(name="first"), Needs(statistics=(Sizes(),), replicates=3, optional_streams=frozenset({"controls"}))
    assert needs_of(Asking(wanted=needs)) is needs
    assert passes_at(Sizes(heard=[Pass(), Pass(stream="controls")]), 3) == (Pass(), Pass(stream="controls"))
    assert earlier(Sizes(behind=[first])) == (first,)


@dataclass(frozen=True, kw_only=True)
class Circle(Statistic):
    """Comes after itself, or after a new one each time."""

    name: str = "circle"
    number: int = 0
    step: int = 0

    def summands(self, obs: Any) -> Any:
        return {}

    def after(self) -> Any:
        return (Circle(number=self.number + self.step, step=self.step),)


@pytest.mark.parametrize("step", [0, 1])
def test_a_circle_of_statistics_is_refused(step: int) -> None:
    with pytest.raises(ContractViolation, match="statistic 'circle' comes after itself, or after more than 16 others in a row"):
        with_earlier([Circle(step=step)])


class Leaving(Asking):
    def needs(self) -> Any:
        raise SystemExit(self.wanted)


def test_an_end_of_the_interpreter_is_an_error_and_an_interrupt_stays_one() -> None:
    with pytest.raises(BrokenPlugin, match=r"the plugin Leaving: needs\(\) raised SystemExit: 3") as caught:
        needs_of(Leaving(wanted=3))
    assert isinstance(caught.value.__cause__, SystemExit)

    class Interrupted(Asking):
        def needs(self) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        needs_of(Interrupted(wanted=None))
    assert issubclass(BrokenPlugin, FairpruneError)
