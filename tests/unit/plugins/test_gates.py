"""The program of gates against scipy's general solver, its constraints and cost, and what the policy makes of it."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from fairprune_gates import Gates
from fairprune_gates.program import Program
from scipy.optimize import LinearConstraint, minimize
from torch import Tensor

from fairprune_framework.api import Budget, PolicyContext
from fairprune_framework.models.architecture import recognise
from fairprune_framework.selection.planning import no_replicates
from fairprune_framework.testing.policy_contract import made_up
from fairprune_framework.testing.tiny import tiny_model


def random_program(seed: int, units: int = 30) -> Program:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    curvature, low, high = draw(units).square() + 0.05, -draw(units).abs().clamp_max(0.5), draw(units).abs().clamp_max(0.5)
    low[::5], high[1::5] = 0.0, 0.0  # that may only rise, that may only fall
    return Program(slope=draw(units), curvature=curvature, low=low, high=high, equal=draw(1, units), at_most=draw(3, units))


@pytest.mark.parametrize("seed", range(6))
def test_it_is_the_solution_of_a_general_solver(seed: int) -> None:
    """The least A . d at that cost, under the same constraints, found without duals."""
    program = random_program(seed)
    free = (-program.slope / program.curvature).clamp(program.low, program.high)
    cost = 0.1 * 0.5 * float((program.curvature * free.square()).sum())
    gates = program.solve(cost, program.curvature)
    slope, curvature = program.slope.numpy(), program.curvature.numpy()
    found = minimize(
        lambda d: slope @ d,
        np.zeros(len(slope)),
        jac=lambda d: slope,
        method="SLSQP",
        bounds=list(zip(program.low.tolist(), program.high.tolist(), strict=True)),
        constraints=[
            LinearConstraint(program.equal.numpy(), 0, 0),
            LinearConstraint(program.at_most.numpy(), -np.inf, 0),
            {"type": "ineq", "fun": lambda d: cost - 0.5 * curvature @ d**2, "jac": lambda d: -curvature * d},
        ],
        options={"maxiter": 1000, "ftol": 1e-14},
    )
    assert float(program.slope @ gates) == pytest.approx(found.fun, rel=1e-5)
    torch.testing.assert_close(gates, torch.from_numpy(found.x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_cost_and_constraints_hold(seed: int) -> None:
    program = random_program(seed, units=5000)
    gates = program.solve(0.5, program.curvature)
    assert 0.5 * float((program.curvature * gates.square()).sum()) == pytest.approx(0.5, rel=1e-6)
    size = gates.norm() * program.equal.norm()
    assert abs(float(program.equal[0] @ gates)) < 1e-6 * float(size)
    assert float((program.at_most @ gates).max()) < 1e-6 * float(size)
    assert float(program.slope @ gates) < 0


def test_without_constraints_it_is_the_closed_form() -> None:
    nothing = torch.zeros(0, 0, dtype=torch.float64)
    program = Program(
        slope=torch.tensor([1.0, -2.0, 0.0, 4.0]).double(),
        curvature=torch.ones(4).double(),
        low=torch.full((4,), -0.5).double(),
        high=torch.full((4,), 0.5).double(),
        equal=nothing,
        at_most=nothing,
    )
    # cost 0.2: the last is at the cap, (1 + 4) t^2 / 2 + 0.125 = 0.2 for the others at t times their slope
    t = (2 * 0.075 / 5) ** 0.5
    torch.testing.assert_close(program.solve(0.2, program.curvature), torch.tensor([-t, 2 * t, 0.0, -0.5]).double())


def test_more_than_the_bounds_allow_is_the_bounds() -> None:
    nothing = torch.zeros(0, 0, dtype=torch.float64)
    slope = torch.tensor([1.0, -2.0]).double()
    low, high = torch.tensor([-0.25, -0.5]).double(), torch.tensor([0.1, 0.125]).double()
    program = Program(slope=slope, curvature=torch.ones(2).double(), low=low, high=high, equal=nothing, at_most=nothing)
    torch.testing.assert_close(program.solve(100.0, program.curvature), torch.tensor([-0.25, 0.125]).double())


def test_a_program_is_made_by_name() -> None:
    with pytest.raises(TypeError, match="positional"):
        Program(*vars(random_program(0)).values())
    with pytest.raises(FrozenInstanceError):
        random_program(0).slope = torch.zeros(1)  # type: ignore[misc]


@pytest.mark.parametrize(("field", "value"), [("cap", 0.0), ("cap", 1.5), ("cost", 0.0), ("cost", -1.0), ("cost", 1.5)])
def test_options_out_of_range(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"'{field}' must be above 0"):
        Gates(**{field: value})


def context() -> PolicyContext:
    """Of a policy that asks for no sums."""
    return PolicyContext(
        operator="scale",
        max_cost=0.05,
        at=lambda site: pytest.fail("no statistics were asked for"),
        replicates=no_replicates,
        probe=None,
        generator=torch.Generator().manual_seed(0),
    )


def test_a_neuron_of_one_site_has_its_gate_where_other_sites_have_none() -> None:
    scores = made_up(recognise(tiny_model("llama", layers=3)))
    policy = Gates(specific=False, legitimate=False, recall=False, cost=0.01)
    choice = policy.select(scores, Budget.parse("1n"), context())
    assert sum(map(len, choice.units.values())) == 1
    ((_, factor),) = choice.factors.items()
    assert factor.shape == (1,)
    assert 0.5 <= float(factor) < 1


def test_without_any_bias_nothing_has_a_gate() -> None:
    scores = made_up(recognise(tiny_model("llama", layers=3)))
    nothing = {name: torch.zeros_like(bias) for name, bias in scores.bias.items()}
    policy = Gates(specific=False, legitimate=False, recall=False)
    choice = policy.select(
        replace(scores, bias=nothing, by_category={"one": nothing, "two": nothing}), Budget.parse("0.5"), context()
    )
    assert not any(map(len, choice.units.values()))
    assert choice.reason == "no neuron has a bias other than 0"


def test_where_the_constraints_forbid_every_gate_none_is_planned() -> None:
    """The bias that is to fall is that of a category that is to stay."""
    scores = made_up(recognise(tiny_model("llama", layers=3)))
    policy = Gates(specific=False, legitimate=False, recall=False, leave=("one",))
    choice = policy.select(scores, Budget.parse("0.5"), context())
    assert (choice.units, choice.factors) == ({}, {})
    assert choice.reason == "no gate lowers the bias under the constraints"


def test_gates_that_cost_hardly_anything_are_small_and_not_none() -> None:
    scores = made_up(recognise(tiny_model("llama", layers=3)))
    policy = Gates(specific=False, legitimate=False, recall=False, cost=1e-9)
    choice = policy.select(scores, Budget.parse("0.5"), context())
    moves = torch.cat([factors - 1 for factors in choice.factors.values()])
    assert 1e-6 < float(moves.abs().max()) < 1e-2
    assert (moves < 0).all()  # every bias of these scores is above 0


def test_costs_that_are_all_0_limit_nothing() -> None:
    scores = made_up(recognise(tiny_model("llama", layers=3)))
    free = {name: torch.zeros_like(values) for name, values in scores.importance.items()}
    policy = Gates(specific=False, legitimate=False, recall=False)
    choice = policy.select(replace(scores, importance=free), Budget.parse("0.5"), context())
    assert (choice.units, choice.reason) == ({}, "every importance is 0: no cost limits the gates")


def test_the_bias_of_categories_left_alone_stays() -> None:
    """A score is a mean over the columns of a unit: units of several columns weigh as many times as much."""
    architecture = recognise(tiny_model("llama", layers=3))
    scores, other = made_up(architecture), made_up(architecture, 1)
    mean = {name: (bias + other.bias[name]) / 2 for name, bias in scores.bias.items()}
    widths = dict(zip(sorted(architecture.sites), (1, 2, 4), strict=True))
    sites = {name: replace(site, unit_width=widths[name]) for name, site in architecture.sites.items()}
    scores = replace(scores, sites=sites, bias=mean, by_category={"one": scores.bias, "two": other.bias})
    names = sorted(scores.by_category)

    def falls(*leave: str) -> dict[str, float]:
        policy = Gates(specific=False, legitimate=False, recall=False, cost=0.01, leave=leave)
        choice = policy.select(scores, Budget.parse("0.5"), context())
        of = {name: (choice.factors[name] - 1, choice.units[name]) for name in choice.factors}
        return {
            category: sum(widths[name] * float(d @ bias[name].double()[units]) for name, (d, units) in of.items())
            for category, bias in scores.by_category.items()
        }

    every, some = falls(), falls(names[0])
    assert all(fall < -1e-3 for fall in every.values())
    assert abs(some[names[0]]) < 1e-6 * abs(every[names[0]])
    assert all(some[name] < -1e-3 for name in names[1:])
    with pytest.raises(ValueError, match=f"'leave' names 'absent'; the categories are {names[0]}, "):
        falls("absent")


def test_what_it_needs() -> None:
    assert [one.name for one in Gates().needs().statistics] == ["control-slopes", "legitimate-slopes", "recall-slopes"]
    assert Gates(specific=False, legitimate=False, recall=False).needs().statistics == ()
