"""The numbers of the page for two prompts: differences by layer, next tokens, token representations, generations.

Everything comes from the functions of `evaluate`, so the numbers equal those of the report; the page itself is in `page.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fairprune_framework.auditing.batches import compose
from fairprune_framework.contrasts.alignment import align
from fairprune_framework.contrasts.schema import Contrast, Variant
from fairprune_framework.errors import UserError
from fairprune_framework.evaluation.exhibits import drawn, projection
from fairprune_framework.evaluation.metrics.contrasts import ContrastMeasure, measure_contrasts
from fairprune_framework.evaluation.metrics.generation import Continuation, continue_prompts
from fairprune_framework.evaluation.metrics.outputs import OutputReader, Outputs
from fairprune_framework.models.architecture import Architecture, recognise
from fairprune_framework.models.loading import load_model
from fairprune_framework.reporting.run_data import Source
from fairprune_framework.runs.open import open_existing
from fairprune_framework.runs.run import Run
from fairprune_framework.surgery.masking import masked
from fairprune_framework.utilities.progress import Notify, silent

MOST_CHARACTERS = 10_000
CATEGORY, VALUES = "typed here", ("first prompt", "second prompt")


@dataclass(frozen=True, kw_only=True)
class After:
    """What the plan made of the model: another one, or the same inside a context."""

    model: nn.Module
    architecture: Architecture
    change: Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """One candidate for the next token, with its probabilities."""

    token: str
    before: float
    after: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two prompts under one or two models."""

    prompts: tuple[str, str]
    tokens: tuple[int, int]
    layers: tuple[int, ...]
    before: ContrastMeasure
    after: ContrastMeasure | None
    next_tokens: tuple[tuple[NextToken, ...], tuple[NextToken, ...]]
    """For each prompt, the most probable tokens under either model."""
    source: Source
    """What is drawn of the representations, in the form read by the charts of the report."""


class Explorer:
    """A run with both of its models."""

    def __init__(self, run: Run | str | Path, notify: Notify = silent) -> None:
        self.run: Run = run if isinstance(run, Run) else open_existing(run, notify=notify)
        _ = self.run.fingerprint  # refuses a model other than that of the run
        self.name = str(self.run.recipe.model or "in memory")
        self.after: After | None = self._changed()
        self.layers = self.run.loaded.layers

    def _changed(self) -> After | None:
        """The pruned model; after an abstention the original with the plan masked; None without a plan."""
        run, saved = self.run, self.run.folder / "model"
        if saved.is_dir():
            other: nn.Module = load_model(str(saved), dtype=run.recipe.dtype, trust_remote_code=run.recipe.trust_remote_code)[
                0
            ].to(run.loaded.device)
            architecture: Architecture = recognise(other, run.recipe.architecture)
            return After(model=other, architecture=architecture, change=nullcontext)
        if not run.folder.has("plan") or not any(run.read_plan().sites.values()):
            return None
        plan = run.read_plan()

        def change() -> AbstractContextManager[None]:
            return masked(run.loaded.model, run.loaded.architecture, plan.sites, plan.scaling)

        return After(model=run.loaded.model, architecture=run.loaded.architecture, change=change)

    @property
    def how(self) -> str:
        """A description of `after`."""
        if self.after is None:
            return "this run has no plan: only one model is shown"
        return (
            "the original with the plan masked: the run abstained"
            if self.after.model is self.run.loaded.model
            else "the pruned model"
        )

    @contextmanager
    def _changed_model(self) -> Iterator[nn.Module]:
        assert self.after is not None
        with self.after.change():
            yield self.after.model

    def compare(self, first: str, second: str, top: int = 8) -> Comparison:
        """Measure two prompts.

        Raises:
            UserError: one is empty, too long, or they are equal.
        """
        prompts = checked(first, second)
        contrast = Contrast(
            id="typed",
            category=CATEGORY,
            template_id="typed",
            variants=tuple(Variant(attribute=value, text=text) for value, text in zip(VALUES, prompts, strict=True)),
        )
        run = self.run
        aligned = align(run.loaded.encoder, contrast, {value: index for index, value in enumerate(VALUES)})
        batches = list(compose([aligned], {CATEGORY: 2}, max(run.recipe.micro_batch_tokens, 1)))
        readers = {"before": OutputReader([aligned])}
        (before,) = measure_contrasts(run.loaded.model, run.loaded.architecture, batches, outputs=readers["before"])
        after = None
        if self.after is not None:
            readers["after"] = OutputReader([aligned])
            with self.after.change():
                (after,) = measure_contrasts(self.after.model, self.after.architecture, batches, outputs=readers["after"])
        ids = [list(tokens.ids) for tokens in aligned.variants]
        outputs = {when: reader.outputs.get(aligned.id, Outputs()) for when, reader in readers.items()}
        shown = projection(run.loaded.tokenizer, aligned, contrast, outputs)
        return Comparison(
            prompts=prompts,
            tokens=(len(ids[0]), len(ids[1])),
            layers=self.layers,
            before=before,
            after=after,
            next_tokens=(self._next(ids[0], top), self._next(ids[1], top)),
            source=Source(
                folder=run.folder.path,
                exhibits={"projections": [shown]},
                representations={name: value.numpy() for name, value in drawn(0, shown["variants"], outputs).items()},
            ),
        )

    def _next(self, ids: Sequence[int], top: int) -> tuple[NextToken, ...]:
        before = _distribution(self.run.loaded.model, ids)
        after = None
        if self.after is not None:
            with self._changed_model() as model:
                after = _distribution(model, ids)
        most = before if after is None else torch.maximum(before, after)
        return tuple(
            NextToken(
                token=self.run.loaded.tokenizer.decode([token]),
                before=float(before[token]),
                after=None if after is None else float(after[token]),
            )
            for token in most.topk(min(top, len(most))).indices.tolist()
        )

    def generate(self, first: str, second: str) -> list[tuple[str, Continuation, Continuation | None]]:
        """(prompt, continuation before, after), with the settings of `evaluate`."""
        prompts = checked(first, second)
        run = self.run
        before = continue_prompts(run.loaded.model, run.loaded.tokenizer, run.loaded.encoder, prompts)
        after: list[Continuation] | list[None] = [None, None]
        if self.after is not None:
            with self._changed_model() as model:
                after = continue_prompts(model, run.loaded.tokenizer, run.loaded.encoder, prompts)
        return list(zip(prompts, before, after, strict=True))


@torch.inference_mode()
def _distribution(model: nn.Module, ids: Sequence[int]) -> torch.Tensor:
    """Probabilities of the next token, (vocabulary,) float64 on the CPU."""
    device = next(model.parameters()).device
    rows = torch.tensor([list(ids)], device=device)
    return model(input_ids=rows, use_cache=False).logits[0, -1].double().softmax(-1).cpu()  # type: ignore[no-any-return]


def checked(first: str, second: str) -> tuple[str, str]:
    """Validate both prompts.

    Raises:
        UserError: empty, longer than `MOST_CHARACTERS`, or equal.
    """
    for name, text in (("first", first), ("second", second)):
        if not text.strip():
            raise UserError(f"the {name} prompt is empty")
        if len(text) > MOST_CHARACTERS:
            raise UserError(f"the {name} prompt has {len(text):,} characters; the limit is {MOST_CHARACTERS:,}")
    if first == second:
        raise UserError("the prompts are equal: change the word under test")
    return first, second
