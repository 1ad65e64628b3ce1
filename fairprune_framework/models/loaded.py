"""The model of a run: weights, tokenizer, sites, encoder and fingerprint, each created on first access."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairprune_framework.errors import UserError
from fairprune_framework.recipes.recipe import Recipe
from fairprune_framework.utilities.progress import Notify, silent

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fairprune_framework.models.architecture import Architecture
    from fairprune_framework.models.checkpoint import Checkpoint
    from fairprune_framework.models.encoder import Encoder

FIELDS = ("model", "revision", "dtype", "trust_remote_code", "allow_pickle", "architecture", "chat_template", "accelerator")
"""The fields of a recipe that determine the loaded model and its device."""


class LoadedModel:
    """The model of a recipe, or one in memory.

    Args:
        recipe: name, loading options and device of the model.
        model: a model in memory instead of the named one.
        tokenizer: its tokenizer; required with `model`.
        place: location of the named model, if it is not at its name.
        notify: receives a message about sites that could not be verified.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        model: nn.Module | None = None,
        tokenizer: Any = None,
        place: str | None = None,
        notify: Notify = silent,
    ) -> None:
        self._recipe, self._place, self._notify = recipe, place, notify
        self._given = None if model is None else (model, tokenizer)

    @property
    def name(self) -> str:
        """Its name in the recipe; `in-memory` without one."""
        return self._recipe.model or "in-memory"

    @property
    def in_memory(self) -> bool:
        """Whether the model was passed in memory."""
        return self._given is not None

    @property
    def is_loaded(self) -> bool:
        """The model is in memory."""
        return "_pair" in self.__dict__

    def under(self, recipe: Recipe) -> LoadedModel:
        """The model for another recipe: this one if the relevant fields are equal."""
        if all(getattr(recipe, name) == getattr(self._recipe, name) for name in FIELDS):
            return self
        model, tokenizer = self._given or (None, None)
        place = self._place if recipe.model == self._recipe.model else None
        return LoadedModel(recipe, model=model, tokenizer=tokenizer, place=place, notify=self._notify)

    @cached_property
    def _pair(self) -> tuple[nn.Module, Any]:
        from fairprune_framework.models.loading import load_model

        if self._given is not None:
            if self._given[1] is None:
                raise UserError("a model in memory needs its tokenizer: tokenizer=...")
            if any(
                hasattr(parameter, "placements") for parameter in self._given[0].parameters()
            ):  # DTensor, of FSDP2 or a TP plan
                raise UserError(
                    "the model in memory is sharded over a device mesh: evaluation and pruning need whole parameters. Give it whole, "
                    "and take the strategy fsdp to share an audit"
                )
            return self._given
        recipe = self._recipe
        if recipe.model is None:
            raise UserError("no model is named: pass a hub id, a folder or 'smollm2-135m'")
        model, tokenizer = load_model(
            self._place or recipe.model,
            dtype=recipe.dtype,
            revision=recipe.revision,
            trust_remote_code=recipe.trust_remote_code,
            allow_pickle=recipe.allow_pickle,
        )
        return model.to(self.device), tokenizer

    @property
    def model(self) -> nn.Module:
        """The original model, in eval mode.

        Raises:
            UserError: no model has this name, or it cannot be loaded.
        """
        return self._pair[0]

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self._pair[1]

    @property
    def folder(self) -> Path | None:
        """The folder with its files; None for a GGUF file and for a model in memory."""
        from fairprune_framework.models.loading import folder_of

        if self._given is not None or self._recipe.model is None:
            return None
        return folder_of(self._place or self._recipe.model, self._recipe.revision)

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype that the recipe asks for; None: as stored."""
        import torch

        return None if self._recipe.dtype == "auto" else getattr(torch, self._recipe.dtype)

    @property
    def device(self) -> torch.device:
        """The device of the model outside a Trainer.

        Raises:
            UserError: the accelerator of the recipe is not available.
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

    @property
    def architecture(self) -> Architecture:
        """The adapter of the model with its sites, verified causally.

        Raises:
            UnsupportedArchitecture: no adapter supports the model.
            ContractViolation: a tap of the adapter has the wrong values.
        """
        return self._confirmed[0]

    @property
    def unconfirmed(self) -> tuple[str, ...]:
        """Sites that could not be verified, since no token reached them; raises as `architecture`."""
        return self._confirmed[1]

    @cached_property
    def _confirmed(self) -> tuple[Architecture, tuple[str, ...]]:
        from fairprune_framework.models.architecture import recognise
        from fairprune_framework.models.confirmation import confirm

        architecture = recognise(self.model, self._recipe.architecture)
        unchecked = confirm(self.model, architecture)
        if unchecked:
            self._notify(f"{len(unchecked)} sites could not be verified: no token reached them")
        return architecture, tuple(unchecked)

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers with a site, ascending."""
        return tuple(sorted({site.layer for site in self.architecture.sites.values()}))

    @cached_property
    def fingerprint(self) -> str:
        """A hash that identifies the weights: see `models.weights.fingerprint`."""
        from fairprune_framework.models.weights import fingerprint

        return fingerprint(self.model)

    @cached_property
    def encoder(self) -> Encoder:
        """The tokenizer with the settings of the recipe."""
        from fairprune_framework.models.encoder import Encoder
        from fairprune_framework.models.loading import context_length

        encoder = Encoder(
            self.tokenizer,
            chat_template=self._recipe.chat_template,
            limit=context_length(self.model),
            rows=int(self.model.get_input_embeddings().weight.shape[0]),  # type: ignore[operator]
        )
        for note in encoder.notes:
            self._notify(note)
        return encoder

    def to_device(self) -> None:
        """Move the model to its device, which a strategy that shards it leaves."""
        self.model.to(self.device)

    def release(self) -> None:
        """Release a loaded model to make room for another; it is loaded again on the next access."""
        if self._given is None:
            for name in ("_pair", "_confirmed", "encoder"):
                self.__dict__.pop(name, None)


class UnreadModel(LoadedModel):
    """The model of a recipe, read tensor by tensor and never whole: `model` has names and shapes alone, on the meta device.

    Sites are not verified causally, which takes a forward.
    """

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Its files; raises as `open_checkpoint`."""
        from fairprune_framework.models.checkpoint import open_checkpoint

        recipe = self._recipe
        if self._given is not None or recipe.model is None:
            raise UserError("a model in memory cannot be pruned shard by shard: it was read whole already")
        if recipe.trust_remote_code or recipe.allow_pickle:
            raise UserError("--shard-by-shard reads safetensors of classes that transformers has: no other code is run")
        return open_checkpoint(self._place or recipe.model, dtype=recipe.dtype, revision=recipe.revision)

    @property
    def _pair(self) -> tuple[nn.Module, Any]:
        from fairprune_framework.models.loading import load_tokenizer

        return self.checkpoint.model, load_tokenizer(str(self.checkpoint.folder))

    @property
    def model(self) -> nn.Module:
        """On the meta device, in eval mode."""
        return self.checkpoint.model

    @cached_property
    def _confirmed(self) -> tuple[Architecture, tuple[str, ...]]:
        from fairprune_framework.models.architecture import recognise

        architecture = recognise(self.model, self._recipe.architecture)
        return architecture, tuple(architecture.sites)

    @property
    def fingerprint(self) -> str:
        """As that of the loaded model."""
        return self.checkpoint.digests[0]
