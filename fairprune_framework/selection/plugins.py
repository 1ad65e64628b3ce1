"""The plugins that a recipe names, each built when first asked for, and what they want an audit to sum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from fairprune_framework import discovery
from fairprune_framework.api.declared import needs_of, passes_at
from fairprune_framework.api.interfaces import BiasScorer, ImportanceScorer, Pass, Plugin, SelectionPolicy, SiteContext
from fairprune_framework.api.types import VECTORS, Site
from fairprune_framework.auditing.code_digest import digest_in_use
from fairprune_framework.auditing.demand import Demand, with_earlier
from fairprune_framework.auditing.statistics import Statistics
from fairprune_framework.errors import PluginError, UserError, raised
from fairprune_framework.plugin_sources import remember, source_digest
from fairprune_framework.recipes.recipe import PLUGIN_KINDS, PluginSpec, Recipe
from fairprune_framework.selection.contexts import prepares
from fairprune_framework.selection.scoring import needs_of_scorer
from fairprune_framework.utilities.aside import plugin_call

if TYPE_CHECKING:
    from torch import Tensor


class Plugins:
    """Bias scorer, importance scorer and policy of a recipe.

    Args:
        recipe: names them.
        also: further plugins that the audit serves.
    """

    def __init__(self, recipe: Recipe, also: tuple[Plugin, ...] = ()) -> None:
        self._recipe, self.also = recipe, also

    def label(self, kind: str) -> str:
        """`distribution:name`; it seeds the plugin's random draws.

        Raises:
            UnknownName: no such plugin is installed.
        """
        entry = discovery.find(kind, cast(PluginSpec, getattr(self._recipe, kind)).plugin)
        return f"{entry.distribution}:{entry.name}"

    def check_names(self) -> None:
        """Raise `UserError` for a plugin that is not installed; nothing is imported."""
        for kind in PLUGIN_KINDS:
            if getattr(self._recipe, kind) is not None:
                self.label(kind)

    def _built(self, kind: discovery.Kind) -> Any:
        spec = cast(PluginSpec, getattr(self._recipe, kind))
        entry = discovery.find(kind, spec.plugin)
        source, built = source_digest(entry), discovery.build_of(entry, spec.options)
        remember(type(built), source)
        for statistic in with_earlier(needs_of(built).statistics):
            digest_in_use(type(statistic))  # of what was just imported, however long the audit takes to begin
        return built

    def renew(self) -> None:
        """Build them again when they are asked for: in a notebook a module may have been loaded again since."""
        for kind in PLUGIN_KINDS:
            self.__dict__.pop(kind, None)

    @cached_property
    def bias(self) -> BiasScorer:
        """The bias scorer."""
        return cast(BiasScorer, self._built("bias"))

    @cached_property
    def importance(self) -> ImportanceScorer:
        """The importance scorer."""
        return cast(ImportanceScorer, self._built("importance"))

    @cached_property
    def policy(self) -> SelectionPolicy:
        """The selection policy."""
        return cast(SelectionPolicy, self._built("policy"))

    def check_sites(self, sites: Iterable[Site]) -> None:
        """Raise `UserError` for a plugin that looks at what a site does not show, such as the gate of an MLP that has none, or the gate
        and up weights of attention heads."""
        for site in sites:
            for plugin in self.all:
                if why := missing_taps(plugin, site) or misfit_of_weights(plugin, site):
                    raise UserError(f"the plugin {type(plugin).__name__} {why}")

    @property
    def all(self) -> tuple[Plugin, ...]:
        """The three, then the further ones."""
        return (self.bias, self.importance, self.policy, *self.also)

    def passes(self) -> list[Pass]:
        """The passes that the plugins' statistics listen to."""
        return [pass_ for plugin in self.all for statistic in needs_of(plugin).statistics for pass_ in passes_at(statistic, 1)]

    def demand(self, layers: int) -> Demand:
        """What the plugins want an audit of a model of `layers` layers to sum.

        Raises:
            UserError: two statistics that differ bear one name.
        """
        return Demand.of(self.all, layers)

    def missing(self, statistics: Statistics, sources: Mapping[str, str], layers: int) -> str | None:
        """A statistic that the plugins want and an audit does not hold, or holds as an earlier source of it summed.

        Args:
            sources: of `Demand.sources`, when the audit was made.
        """
        return self.demand(layers).missing(statistics, sources, layers)

    def check_needs(self) -> None:
        """Raise `UserError` where a plugin asks for what it cannot be given."""
        needs_of_scorer(self.bias, self.label("bias"))
        needs_of_scorer(self.importance, self.label("importance"))
        if needs_of(self.policy).probe and self._recipe.factor == "auto":
            raise UserError(
                f"{self.label('policy')} probes while it chooses, and needs a number for --factor: auto comes after it"
            )


def missing_taps(plugin: Plugin, site: Site) -> str | None:
    """What a plugin wants to see of a site that does not show it; None where there is nothing."""
    wanted = {tap for statistic in needs_of(plugin).statistics for tap in statistic.taps - statistic.optional_taps}
    if missing := sorted(wanted - site.taps):
        return f"looks at {', '.join(missing)}, which {site.name} does not have: it shows {', '.join(sorted(site.taps))}"
    return None


def misfit_of_weights(plugin: Plugin, site: Site) -> str | None:
    """Why a scorer that reads weights alone cannot score a site; None where it can, or where it needs more than weights.

    It is tried on two units of such a site, with made-up weights: no scorer has to say which roles it knows.
    """
    import torch

    needs = needs_of(plugin)
    if not isinstance(plugin, (BiasScorer, ImportanceScorer)) or needs.statistics or needs.readout or needs.probe:
        return None
    small = replace(site, units=2)
    columns = small.units * small.unit_width
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {
        slice_.role: torch.rand(2 * slice_.width, *() if slice_.role in VECTORS else (4,), generator=generator)
        for slice_ in small.slices
    }
    at = SiteContext(
        site=small,
        category=None,
        sums={},
        count=0,
        observed=torch.zeros(columns, dtype=torch.long),
        weights=weights if needs.weights else {},
        readout=None,
        attribute_tokens=(),
        probe=None,
        generator=generator,
    )
    try:
        with plugin_call("it"):
            score = plugin.score(replace(at, prepared=plugin.prepare(at)) if prepares(plugin) else at)
    except PluginError as error:
        why = raised(error.__cause__ or error)
    else:
        if isinstance(score, torch.Tensor) and score.shape == (columns,):
            return None
        got = (
            f"{tuple(score.shape)} scores" if isinstance(score, torch.Tensor) else f"{type(score).__name__} in place of a score"
        )
        why = f"{got} for {columns} columns"
    return f"cannot score {site.name}, whose weights are {', '.join(sorted(weights))}: {why}"
