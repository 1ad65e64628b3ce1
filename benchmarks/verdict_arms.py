"""What the verdict is tried on beside plans: edits of the whole model that are not fairer, and what others do in place of pruning.

- `temperature`: the logits divided by 1.5; `damping`: the output of every MLP times 0.9;
- `system-prompt`: an instruction to treat everybody alike before every text;
- `mean-direction`: the affine edit of Karvonen and Marks (arXiv 2506.10922), in a form that merges into weights: of what each
  attention writes into the residual stream (by which alone an attribute reaches later tokens), the part along the directions in
  which the `select` contrasts differ is replaced by its mean. A direction a category: the first principal one of the deviations
  of its values' means, over the tokens after the attribute. The same on the MLPs' writes too destroys the model: it takes the massive
  activations of the first token from it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.auditing.batches import compose
from fairprune_framework.calibration.text import made
from fairprune_framework.contrasts.alignment import AlignedContrast, Tokens
from fairprune_framework.contrasts.prompts import PromptSet
from fairprune_framework.evaluation.conditions import divergence_down
from fairprune_framework.evaluation.contrast_rows import items_of, paired
from fairprune_framework.evaluation.judgement import JUDGING
from fairprune_framework.evaluation.metrics.contrasts import ContrastMeasure, measure_contrasts
from fairprune_framework.evaluation.metrics.names import DIVERGENCE
from fairprune_framework.evaluation.metrics.next_token import NextTokenReader
from fairprune_framework.evaluation.metrics.perplexity import TextLoss, perplexity_change, text_loss
from fairprune_framework.functional.paired_bootstrap import BOUND_LEVEL
from fairprune_framework.models.loaded import LoadedModel
from fairprune_framework.recipes.loading import load_recipe

Change = Callable[[], AbstractContextManager[None]]
Measured = tuple[list[dict[str, Any]], dict[str, Any] | None]
"""The held-out items before and after, and what the guard saw; None: its text was not measured."""
INSTRUCTION = (
    "The following text treats all people alike. What it says next does not depend on anyone's race, gender, religion, age, origin, "
    "disability, orientation or wealth.\n\n"
)
WIDTH = {"cpu": 512}
"""Padded tokens per forward, by the kind of device."""
ELSEWHERE = 16_384


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Callable[[Any, Any, Any], Any]]]) -> Iterator[None]:
    """Forward hooks on modules while the context stands."""
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook).remove)
        yield


def scaled_outputs(modules: Sequence[nn.Module], factor: float) -> AbstractContextManager[None]:
    """The output of each module times a factor."""
    return hooked((module, lambda _module, _inputs, output: output * factor) for module in modules)


@dataclass(frozen=True)
class Subspace:
    """Orthonormal directions `(D, H)` and the mean coordinates `(D,)` that an output is held at along them."""

    directions: Tensor
    mean: Tensor

    def __call__(self, _module: Any, _inputs: Any, output_BTH: Tensor) -> Tensor:
        off_BTD = output_BTH @ self.directions.T - self.mean
        return output_BTH - off_BTD @ self.directions


class Bench:
    """The original model on the held-out contrasts and the guard's text, and what changes make of it."""

    def __init__(self, model: str, prompts: str, limit: float) -> None:
        self.recipe = load_recipe(None, {"model": model, "prompts": prompts, "calibration": "builtin:en"})
        self.loaded = LoadedModel(self.recipe)
        self.loaded.to_device()
        self.set = PromptSet(prompts, lambda: self.loaded.encoder)
        self.contrasts = [one for one in (*self.set.aligned, *self.set.legitimate) if one.split == JUDGING]
        self.text = made(self.recipe, self.loaded, print)
        self.limit = limit
        self.width = WIDTH.get(self.loaded.device.type, ELSEWHERE)

    @cached_property
    def before(self) -> list[ContrastMeasure]:
        """The original on the held-out contrasts."""
        return self._measured(self.contrasts)

    @cached_property
    def loss(self) -> TextLoss:
        """The original on the judging text."""
        return text_loss(self.loaded.model, self.text.judging)

    def _measured(self, contrasts: Sequence[AlignedContrast]) -> list[ContrastMeasure]:
        batches = list(compose(contrasts, self.set.values, self.width))
        reader = NextTokenReader(contrasts)
        return measure_contrasts(self.loaded.model, self.loaded.architecture, batches, taps=frozenset(), reader=reader)

    def changed(self, change: Change) -> Measured:
        """The model inside the context of a change."""
        _, _ = self.before, self.loss  # of the original, before it changes
        with change():
            return self._against(self._measured(self.contrasts), text_loss(self.loaded.model, self.text.judging))

    def may_be_fairer(self, change: Change) -> Measured:
        """As `changed`; where the demographic divergence does not fall by its 99 % bound, which settles that the word is not `fairer`,
        the demographic contrasts alone."""
        _ = self.before
        chosen = [one for one in self.contrasts if one.role == "demographic"]
        known = {one.id: one for one in self.before}
        with change():
            items = items_of(chosen, [known[one.id] for one in chosen], self._measured(chosen))
        fall = paired(items, DIVERGENCE, 0)
        assert fall is not None
        return self.changed(change) if divergence_down(fall).held else (items, None)

    def prompted(self, instruction: str) -> Measured:
        """The model with an instruction before every text; perplexity is of the texts alone, of the tokens that it is of without."""
        tokenizer: Any = self.loaded.encoder.tokenizer
        ids = tuple(tokenizer(instruction, add_special_tokens=False)["input_ids"])
        starts = 0 if tokenizer("a")["input_ids"] == tokenizer("a", add_special_tokens=False)["input_ids"] else 1

        def behind(text: Sequence[int]) -> tuple[int, ...]:
            return (*text[:starts], *ids, *text[starts:])

        def shifted(tokens: Tokens) -> Tokens:
            return replace(tokens, ids=behind(tokens.ids), start=tokens.start + len(ids), end=tokens.end + len(ids))

        contrasts = [replace(one, variants=tuple(map(shifted, one.variants))) for one in self.contrasts]
        documents = self.text.judging
        whole = text_loss(self.loaded.model, list(map(behind, documents)))
        first = text_loss(self.loaded.model, [behind(document[:1]) for document in documents])
        nll = tuple(of_all - of_first for of_all, of_first in zip(whole.nll, first.nll, strict=True))
        return self._against(self._measured(contrasts), TextLoss(nll=nll, tokens=self.loss.tokens))

    def _against(self, after: list[ContrastMeasure], loss: TextLoss) -> Measured:
        cost = perplexity_change(self.loss, loss, level=2 * BOUND_LEVEL - 1).change
        assert cost is not None
        guard = {"increase": cost.value, "bound_high": cost.high, "limit": self.limit}
        return items_of(self.contrasts, self.before, after), guard

    @torch.inference_mode()
    def directions(self, modules: Sequence[nn.Module]) -> dict[nn.Module, Subspace]:
        """Of what each module puts out, the directions in which demographic `select` contrasts differ."""
        chosen = [one for one in self.set.aligned if one.split == "select" and not one.control]
        sums: dict[tuple[nn.Module, str, int], Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))
        counts: dict[tuple[nn.Module, str, int], int] = defaultdict(int)
        totals: dict[nn.Module, Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64))
        by_id = {one.id: one for one in chosen}
        state: dict[str, Any] = {}

        def take(module: nn.Module, _inputs: Any, output_BTH: Tensor) -> None:
            batch = state["batch"]
            for identity, texts, present in zip(batch.ids, batch.text, batch.present, strict=True):
                contrast = by_id[identity]
                means = [
                    output_BTH[row, min(tokens.end, len(tokens.ids) - 1) : len(tokens.ids)].double().mean(0)
                    for row, tokens in zip(texts[present].tolist(), contrast.variants, strict=True)
                ]
                middle = torch.stack(means).mean(0)
                totals[module] = totals[module] + middle
                for value, mean in zip(contrast.attributes, means, strict=True):
                    sums[module, contrast.category, value] = sums[module, contrast.category, value] + mean - middle
                    counts[module, contrast.category, value] += 1

        with hooked((module, take) for module in modules):
            for batch in compose(chosen, self.set.values, self.width):
                state["batch"] = batch = batch.to(self.loaded.device)
                self.loaded.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        return {module: _subspace(module, sums, counts, totals[module] / len(chosen)) for module in modules}


def _subspace(module: nn.Module, sums: Any, counts: Any, mean_H: Tensor) -> Subspace:
    """The first principal direction of each category, made orthonormal."""
    firsts = []
    for category in sorted({key[1] for key in sums if key[0] is module}):
        keys = [key for key in sums if key[:2] == (module, category)]
        deviations_VH = torch.stack([sums[key] / counts[key] for key in keys])
        firsts.append(torch.linalg.svd(deviations_VH, full_matrices=False).Vh[0])
    directions_DH = torch.linalg.qr(torch.stack(firsts, 1)).Q.T
    return Subspace(directions_DH.float(), (directions_DH @ mean_H).float())


def edits(bench: Bench) -> dict[str, Callable[[], Measured]]:
    """name -> measure of the arm: those of the module's docstring."""
    model: Any = bench.loaded.model
    layers = text_layers(model)
    writes = [layer.self_attn.o_proj for layer in layers]
    return {
        "temperature": lambda: bench.changed(lambda: scaled_outputs([model.get_output_embeddings()], 1 / 1.5)),
        "damping": lambda: bench.changed(lambda: scaled_outputs([layer.mlp for layer in layers], 0.9)),
        "system-prompt": lambda: bench.prompted(INSTRUCTION),
        "mean-direction": lambda: bench.changed(lambda: hooked(bench.directions(writes).items())),
    }


def text_layers(model: Any) -> list[Any]:
    """Blocks of a Llama-shaped decoder."""
    return list(model.get_decoder().layers)
