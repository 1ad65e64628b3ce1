"""The quadratic program of gates: diagonal, with a few linear constraints, solved through its dual."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

STEPS = 80
"""Halvings of the multiplier of the cost, on a logarithmic scale."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """min over d of slope . d + price / 2 sum curvature d^2, with low <= d <= high, equal @ d = 0 and at_most @ d <= 0."""

    slope: Tensor
    """(N,) float64."""
    curvature: Tensor
    """(N,) float64, above 0."""
    low: Tensor
    """(N,) float64, at most 0."""
    high: Tensor
    """(N,) float64, at least 0."""
    equal: Tensor
    """(E, N) float64; (0, 0): no such constraint."""
    at_most: Tensor
    """(M, N) float64, as `equal`."""

    def solve(self, cost: float, counted: Tensor) -> Tensor:
        """The gates d, (N,) float64, whose cost 1/2 sum counted d^2 is at most `cost`, and as near to it as the bounds let it be.

        Args:
            counted: (N,) float64, what the cost counts of each gate.
        """
        rows = [block for block in (self.equal, self.at_most) if len(block)]
        rows_RN = torch.cat(rows) if rows else self.slope.new_zeros(0, len(self.slope))
        size_R1 = (rows_RN.square() / self.curvature).sum(1, keepdim=True).sqrt()
        rows_RN = rows_RN / size_R1.clamp_min(torch.finfo(torch.float64).tiny)  # dual variables of one order of magnitude
        typical = float((self.slope.square() / self.curvature).sum().sqrt())
        if typical == 0:
            return torch.zeros_like(self.slope)
        dual_R = self.slope.new_zeros(len(rows_RN))
        low, high = 1e-6 * typical, 1e12 * typical
        found = torch.zeros_like(self.slope)
        for _ in range(STEPS):
            price = (low * high) ** 0.5
            dual_R = self._dual(rows_RN, price, dual_R, typical)
            gates = self.at(rows_RN, dual_R, price)
            if 0.5 * float((counted * gates.square()).sum()) > cost:
                low = price
            else:
                high, found = price, gates
            if high / low < 1 + 1e-9:
                break
        return found

    def at(self, rows_RN: Tensor, dual_R: Tensor, price: float) -> Tensor:
        """The minimiser for given multipliers of the constraints, (N,)."""
        return (-(self.slope + dual_R @ rows_RN) / (price * self.curvature)).clamp(self.low, self.high)

    def _dual(self, rows_RN: Tensor, price: float, start_R: Tensor, typical: float) -> Tensor:
        """The multipliers that maximise the dual: concave, once differentiable, its gradient rows @ d."""
        if not len(rows_RN):
            return start_R
        from scipy.optimize import minimize

        def negative(dual: Any) -> tuple[float, Any]:
            dual_R = torch.as_tensor(dual, dtype=torch.float64) * typical
            gates = self.at(rows_RN, dual_R, price)
            value = ((self.slope + dual_R @ rows_RN) * gates).sum() + 0.5 * price * (self.curvature * gates.square()).sum()
            scale = price / typical**2
            return -float(value) * scale, (-(rows_RN @ gates) * typical * scale).numpy()

        bounds = [(None, None)] * len(self.equal) + [(0.0, None)] * len(self.at_most)
        options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 500}
        answer = minimize(negative, (start_R / typical).numpy(), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        return torch.as_tensor(answer.x, dtype=torch.float64) * typical
