"""A model that a run works on: weights, tokenizer, sites, encoder and fingerprint, each made when first asked for."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from fairprune_framework.errors import UserError
from fairprune_framework.recipes.recipe import Recipe
from fairprune_framework.utilities.progress import Notify, silent

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fairprune_framework.models.architecture import Architecture
    from fairprune_framework.models.encoder import Encoder

FIELDS = ("model", "revision", "dtype", "trust_remote_code", "architecture", "chat_template", "accelerator")
"""The fields of a recipe that decide what is loaded, and where."""


class LoadedModel:
    """The model that a recipe names, or one in memory.

    Args:
        recipe: names the model, and says how and where it is loaded.
        model: a model in memory, in place of the named one.
        tokenizer: its tokenizer; needed with `model`.
        notify: told of sites that could not be confirmed.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        model: nn.Module | None = None,
        tokenizer: Any = None,
        notify: Notify = silent,
    ) -> None:
        self._recipe, self._notify = recipe, notify
        self._given = None if model is None else (model, tokenizer)

    @property
    def name(self) -> str:
        """As the recipe names it; `in-memory` where it names none."""
        return self._recipe.model or "in-memory"

    @property
    def in_memory(self) -> bool:
        """The model was given, not loaded."""
        return self._given is not None

    def under(self, recipe: Recipe) -> LoadedModel:
        """The model as another recipe wants it: this one, where both ask for the same."""
        if all(getattr(recipe, name) == getattr(self._recipe, name) for name in FIELDS):
            return self
        model, tokenizer = self._given or (None, None)
        return LoadedModel(recipe, model=model, tokenizer=tokenizer, notify=self._notify)

    @cached_property
    def _pair(self) -> tuple[nn.Module, Any]:
        from fairprune_framework.models.loading import load_model

        if self._given is not None:
            if self._given[1] is None:
                raise UserError("a model in memory needs its tokenizer: tokenizer=...")
            return self._given
        recipe = self._recipe
        if recipe.model is None:
            raise UserError("no model is named: give a hub id, a folder or 'smollm2-135m'")
        model, tokenizer = load_model(
            recipe.model, dtype=recipe.dtype, revision=recipe.revision, trust_remote_code=recipe.trust_remote_code
        )
        return model.to(self.device), tokenizer

    @property
    def model(self) -> nn.Module:
        """The original model, in eval mode.

        Raises:
            UserError: there is none of that name, or it cannot be loaded.
        """
        return self._pair[0]

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self._pair[1]

    @property
    def device(self) -> torch.device:
        """Where the model computes outside a Trainer.

        Raises:
            UserError: the recipe's accelerator is not there.
        """
        import torch

        wanted = self._recipe.accelerator
        if (wanted in ("gpu", "cuda") and not torch.cuda.is_available()) or (
            wanted == "mps" and not torch.backends.mps.is_available()
        ):
            raise UserError(f"--accelerator {wanted}: PyTorch finds none on this machine")
        if wanted in ("gpu", "cuda") or (wanted == "auto" and torch.cuda.is_available()):
            return torch.device("cuda")
        if wanted == "mps" or (wanted == "auto" and torch.backends.mps.is_available()):
            return torch.device("mps")
        return torch.device("cpu")

    @cached_property
    def architecture(self) -> Architecture:
        """The adapter that knows the model, with its sites, confirmed causally.

        Raises:
            UnsupportedArchitecture: no adapter knows it.
            ContractViolation: an adapter's tap does not carry what it says.
        """
        from fairprune_framework.models.architecture import confirm, recognise

        architecture = recognise(self.model, self._recipe.architecture)
        unchecked = confirm(self.model, architecture)
        if unchecked:
            self._notify(f"{len(unchecked)} sites could not be confirmed: no token reached them")
        return architecture

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that hold a site, ascending."""
        return tuple(sorted({site.layer for site in self.architecture.sites.values()}))

    @cached_property
    def fingerprint(self) -> str:
        """By which the model is known again: see `models.loading.fingerprint`."""
        from fairprune_framework.models.loading import fingerprint

        return fingerprint(self.model)

    @cached_property
    def encoder(self) -> Encoder:
        """The tokenizer as the recipe wants it used."""
        from fairprune_framework.models.encoder import Encoder
        from fairprune_framework.models.loading import context_length

        return Encoder(self.tokenizer, chat_template=self._recipe.chat_template, limit=context_length(self.model))

    def to_device(self) -> None:
        """Move the model to its device: Lightning leaves it on the CPU."""
        self.model.to(self.device)

    def release(self) -> None:
        """Let go of a model that was loaded, so that another one finds room; it is loaded again when asked for."""
        if self._given is None:
            for name in ("_pair", "architecture", "encoder"):
                self.__dict__.pop(name, None)
