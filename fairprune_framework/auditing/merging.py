"""Passes that share a forward: the objectives of one stream are differentiated one after the other on the graph of one forward, and what
needs no gradient is read from that forward too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from fairprune_framework.api.interfaces import Pass


@dataclass(frozen=True, kw_only=True)
class Merged(Pass):
    """Several passes over one stream in one forward of each micro-batch; `objective` is that of the first."""

    members: tuple[Pass, ...] = ()
    """At least two, those with an objective first."""


def members_of(pass_: Pass) -> tuple[Pass, ...]:
    """The passes that a forward serves: of a plain pass itself alone."""
    return pass_.members if isinstance(pass_, Merged) else (pass_,)


def merged(passes: Iterable[Pass]) -> list[Pass]:
    """Passes over the same stream with the same scaling as one, in the order of the first of each; a pass without an objective joins
    those that scale nothing.

    Micro-batches of passes with an objective have a row for each variant and are of one category, whoever joins them.
    """
    groups: dict[Pass, list[Pass]] = {}
    for pass_ in dict.fromkeys(passes):
        groups.setdefault(replace(pass_, objective=None, logits="last"), []).append(pass_)
    found: list[Pass] = []
    for group in groups.values():
        members = sorted(group, key=lambda pass_: pass_.objective is None)
        first = members[0]
        if len(members) == 1:
            found.append(first)
            continue
        everywhere = next((pass_ for pass_ in members if pass_.logits == "all"), first)
        found.append(
            Merged(
                stream=first.stream,
                objective=first.objective,
                logits=everywhere.logits,
                scale=first.scale,
                layer=first.layer,
                members=tuple(members),
            )
        )
    return found
