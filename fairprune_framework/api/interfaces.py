"""The four interfaces that plugins implement, and what they see and give.

Two ideas carry them. A *statistic* is a pure map from what one micro-batch shows of one site to one row of summands per
contrast; the core owns the only state and sums it exactly, so that merging, checkpoints and resumption cost an author
nothing. An *adapter* says where a unit lives as data (`Slice`); the core alone zeroes, cuts and restores through slices.

A plugin is a frozen, keyword-only dataclass: its fields are its options in recipes and on the command line. Import all that
an author needs from `fairprune_framework.api`. Letters: see `types.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from fairprune_framework.api.observations import Observation as Observation
from fairprune_framework.api.observations import Pass as Pass
from fairprune_framework.api.observations import ValueSums as ValueSums
from fairprune_framework.api.types import Budget, Choice, Measurement, Scores, Site, Stream, Tap

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

API_VERSION = 1
"""Major version of these interfaces. A plugin of another major version is refused."""

Reduction = Literal["sum", "max", "min"]

Handler = Callable[[Site, Tap, "Tensor", "Tensor | None"], "Tensor | None"]
"""(site, tap, values (M, K), rows (M,) flat token index into B*T; None = all of them in order). A returned tensor of the same
shape and dtype replaces the values: masks, scaling and the causal check all go this way."""


@dataclass(frozen=True, kw_only=True)
class Statistic(ABC):
    """A pure map to summands, equal by value, so that equal ones run once. The core sums the rows in compensated float64."""

    reduce: ClassVar[Reduction] = "sum"
    """How the rows of contrasts become one: added up, or the highest or lowest of each quantity. A row of `-inf` (of `inf` for `min`)
    says nothing; where no contrast said anything, plugins are given 0."""

    optional_taps: ClassVar[frozenset[Tap]] = frozenset()
    """Those of `taps` that the statistic does without at a site that does not show them. A site that lacks another one is refused before
    the audit."""

    name: str
    taps: frozenset[Tap] = frozenset({"neuron"})

    @abstractmethod
    def summands(self, obs: Observation) -> Mapping[str, Tensor | ValueSums]:
        """Return output name -> (C, R, K) float64: R quantities per contrast and column, to be reduced over contrasts; or `ValueSums`,
        of which R is the number of attribute values.

        Must not keep or change anything. A contrast must give the same row whatever else is in the micro-batch. The name of an output
        holds neither `/` nor `:`.
        """

    def after(self) -> Sequence[Statistic]:
        """Statistics that are finished over all contrasts before this one begins, and that it sees as `Observation.before`: the edges
        of a histogram, for instance. The streams are then read once more."""
        return ()

    def passes(self, layers: int) -> Sequence[Pass]:
        """The passes that this statistic listens to; `layers` is L."""
        return (Pass(),)


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a scorer or policy must be given. A stage loads only what is declared."""

    statistics: tuple[Statistic, ...] = ()
    weights: bool = False
    readout: bool = False
    probe: bool = False
    replicates: int = 0
    """Bootstrap replicates over clusters; the audit then keeps the cluster axis."""
    optional_streams: frozenset[Stream] = frozenset()
    """Streams without which the plugin does: where the prompts have no contrasts of one, its count is 0 and it has no sums, and the
    audit says so. Prompts without contrasts of any other stream are refused."""


@dataclass(frozen=True, kw_only=True)
class StreamSums:
    """What one site added up over one stream: over one category of it, or over all."""

    sums: Mapping[str, Tensor]
    """"<statistic name>.<output>" -> (R, K) float64, K = N * unit_width for neuron taps. Names that were not declared for
    this stream raise KeyError; a site that the stream never reached has zeros."""
    count: int
    """Contrasts or documents behind `sums`."""
    observed: Tensor
    """(K,) int64: contrasts (or documents) in which the unit of a column was seen."""


class Probe(Protocol):
    """Masks the units of a choice, measures on `select` only, unmasks."""

    def __call__(self, choice: Choice, /, *, cost: bool = True) -> Measurement:
        """What the choice would do; without `cost` no perplexity is measured, and the cost is NaN."""


class StreamReader(Protocol):
    """Gives what a site added up over a stream that the plugin declared."""

    def __call__(self, stream: Stream, category: str | None = None) -> StreamSums:
        """Sums of one category of a stream, by default of all its categories together.

        Raises:
            KeyError: a stream that none of the plugin's statistics listens to, or a category that the stream has not; the
                text lists those that there are.
        """


def no_streams(stream: Stream, category: str | None = None) -> StreamSums:
    """The reader of a context that was given no sums."""
    raise KeyError(f"no sums of the stream {stream!r} were given")


@dataclass(frozen=True, kw_only=True)
class SiteContext:
    """What a plugin sees of one site. Its own stream is at hand: of a bias scorer the contrasts of one category at a time, of an
    importance scorer or a policy the calibration text. `of` gives every other stream that its statistics listen to."""

    site: Site
    category: str | None
    sums: Mapping[str, Tensor]
    """Of the own stream, as `StreamSums.sums`."""
    count: int
    """Of the own stream, as `StreamSums.count`."""
    observed: Tensor
    """Of the own stream, as `StreamSums.observed`."""
    weights: Mapping[str, Tensor]
    """role -> (N, H) or (N,) float32, unfused; `out` too is (N, H). Read-only; empty unless declared."""
    readout: Callable[[Tensor], Tensor] | None
    """(R, H) -> logits (R, vocab) through the final norm and head; None unless declared."""
    attribute_tokens: tuple[tuple[int, ...], ...]
    """First token ids of each attribute value of the category, as the texts spell it; given with `readout`. Without a category, as in
    `prepare`: of all categories in turn."""
    probe: Probe | None
    """For a bias scorer it measures the contrasts of `category` alone."""
    generator: torch.Generator
    """Seeded by run seed, plugin and site, on the CPU. The only source of randomness allowed."""
    of: StreamReader = no_streams
    """`at.of("controls")`, `at.of("contrasts", "age")`: the sums of any stream that the plugin's statistics listen to."""
    prepared: Any = None
    """What `BiasScorer.prepare` gave back for this site; None anywhere but in `BiasScorer.score`."""


class Plugin(ABC):
    """Base of the four. Subclasses are frozen, keyword-only dataclasses."""

    api_version: ClassVar[int] = API_VERSION
    exemptions: ClassVar[Mapping[str, str]] = {}
    """Check of the contract suite -> why it does not apply to this plugin by its definition; the suite counts it as skipped."""

    def needs(self) -> Needs:
        """What this plugin must be given; nothing by default."""
        return Needs()


class BiasScorer(Plugin):
    """One bias score per neuron. Entry-point group `fairprune.bias_scorers`."""

    signed: ClassVar[bool] = False
    """True: below zero means that removing the neuron would raise the bias. The core never plans a unit at or below 0 then."""

    def prepare(self, at: SiteContext) -> Any:
        """What every category of a site has in common, computed once for each site: `score` finds it as `at.prepared`.

        Args:
            at: without a category; its sums are over all categories together.
        """
        return None

    @abstractmethod
    def score(self, at: SiteContext) -> Tensor:
        """Score one site in one category.

        Returns: (K,) float64, finite, >= 0 unless `signed`; higher = more biased. Unit: the plugin's, said in its docstring. A unit of
            several columns, such as a head, gets the mean over them.

        Raises: whatever it likes; the core names the plugin and its distribution and chains the cause.
        """

    def finish(self, scores: Mapping[str, Tensor], at: Callable[[str], SiteContext]) -> Mapping[str, Tensor]:
        """A step over the whole model, once for each category: false-discovery control, global normalisation.

        Args:
            scores: site -> (K,) float64, what `score` returned, for the sites that the category reached.
            at: site -> its context, made anew at each call.

        Returns: the same sites, under the same rules as `score`. By default the scores as they are.
        """
        return scores


class ImportanceScorer(Plugin):
    """One importance score per neuron. Entry-point group `fairprune.importance_scorers`."""

    @abstractmethod
    def score(self, at: SiteContext) -> Tensor:
        """Score one site. Returns: (K,) float64, finite; higher = more important, harder to spare. Means as of `BiasScorer.score`."""

    def finish(self, scores: Mapping[str, Tensor], at: Callable[[str], SiteContext]) -> Mapping[str, Tensor]:
        """A step over the whole model, as `BiasScorer.finish`."""
        return scores


@dataclass(frozen=True, kw_only=True)
class PolicyContext:
    """What a policy sees beyond scores and budget."""

    operator: str
    max_cost: float
    """The guard's limit: relative increase of perplexity."""
    at: Callable[[str], SiteContext]
    """Sums and weights of a site, as far as declared."""
    replicates: Callable[[], Iterator[Scores]]
    """The scorers re-run on resampled clusters, one set in memory at a time."""
    probe: Probe | None
    generator: torch.Generator


class SelectionPolicy(Plugin):
    """Chooses units from scores. Entry-point group `fairprune.selection_policies`."""

    blind: ClassVar[bool] = False
    """True: a control that does not look at the bias of what it takes; of signed scores, the core then plans units at or below 0
    as well."""

    @abstractmethod
    def select(self, scores: Scores, budget: Budget, context: PolicyContext) -> Choice:
        """Return the units to take out, most removable first; an empty choice with a reason is a valid answer.

        The core trims the choice to the budget, keeps at least one unit of each site, and never plans a unit that was not
        observed. Must be deterministic for given scores and generator, ties included.
        """


class ArchitectureAdapter(Plugin):
    """Says where the neurons of a model family live. Entry-point group `fairprune.architecture_adapters`."""

    @abstractmethod
    def sites(self, model: nn.Module) -> Sequence[Site]:
        """Name all sites of the model, in forward order; works on meta tensors.

        Raises:
            UnsupportedArchitecture: this adapter does not know the layout; the text says what it looked for and found.
        """

    @abstractmethod
    def tap(
        self, model: nn.Module, sites: Sequence[Site], taps: frozenset[Tap], handler: Handler
    ) -> AbstractContextManager[None]:
        """Call `handler` for each tap of each site during forwards inside the context; leave no trace after it.

        Taps of a layer (`attention`, `norm`, `layer`, `layer_input`) and of a block of experts (`mlp`, `mlp_input`) are given
        once, with the first site of that layer; the core hands them to every expert that lists them. Taps that a site does not
        list in `site.taps` are skipped.
        """
