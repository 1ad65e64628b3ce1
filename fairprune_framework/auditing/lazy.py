"""A mapping from taps to values that are made when first asked for: most statistics look at one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from torch import Tensor

from fairprune_framework.api.types import Tap


class Lazy(Mapping[Tap, Tensor]):
    """A read-only mapping whose values are made when first asked for."""

    def __init__(self, taps: frozenset[Tap], make: Callable[[Tap], Tensor]) -> None:
        self._taps, self._make, self._made = taps, make, dict[Tap, Tensor]()

    def __getitem__(self, tap: Tap) -> Tensor:
        if tap not in self._taps:
            raise KeyError(f"tap {tap!r} was not declared; declared: {', '.join(sorted(self._taps))}")
        if tap not in self._made:
            self._made[tap] = self._make(tap)
        return self._made[tap]

    def only(self, taps: frozenset[Tap]) -> Lazy:
        """A view of some taps that shares what is made."""
        view = Lazy(self._taps & taps, self._make)
        view._made = self._made
        return view

    def __iter__(self) -> Iterator[Tap]:
        return iter(self._taps)

    def __len__(self) -> int:
        return len(self._taps)
