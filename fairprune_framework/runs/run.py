"""One run: its recipe, and what it has loaded: model, architecture, prompts, calibration text, results of its stages.

What it holds is made when first asked for. The folder that remembers it is a `RunFolder`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fairprune_framework import discovery
from fairprune_framework.calibration.builtin import text_file
from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.errors import RunFolderError, UserError
from fairprune_framework.recipes.loading import with_options
from fairprune_framework.recipes.recipe import STAGE_FIELDS, PluginSpec, Recipe
from fairprune_framework.runs.folder import RunFolder
from fairprune_framework.utilities import files as provenance

if TYPE_CHECKING:
    from torch import nn

    from fairprune_framework.api.interfaces import BiasScorer, ImportanceScorer, Pass, Plugin, SelectionPolicy
    from fairprune_framework.api.types import Plan, Scores
    from fairprune_framework.auditing.distributed.parallel import Parallelism
    from fairprune_framework.auditing.prefix_sharing import Sharing
    from fairprune_framework.auditing.sums import Statistics
    from fairprune_framework.calibration.text import Calibration
    from fairprune_framework.contrasts.alignment import AlignedContrast
    from fairprune_framework.contrasts.sets import Alignment, ContrastSet
    from fairprune_framework.evaluation.results import Evaluation
    from fairprune_framework.models.architecture import Architecture
    from fairprune_framework.models.encoder import Encoder


LOADED = (
    "_model_and_tokenizer",
    "architecture",
    "fingerprint",
    "encoder",
    "contrasts",
    "alignment",
    "aligned",
    "calibration",
)
"""What a run has loaded, and hands on to another view of the same folder."""


class Run(RunFolder):
    """A run folder that is open for work, or was finished before. Made by `open_run` and by the functions of `pipeline.py`."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path | None,
        *,
        overwrite: bool = False,
        model: nn.Module | None = None,
        tokenizer: Any = None,
        contrasts: Sequence[Contrast | Mapping[str, Any]] | None = None,
        notify: Callable[[str], None] = lambda text: None,
    ) -> None:
        super().__init__(recipe, folder, overwrite=overwrite, notify=notify)
        self._given_model, self._given_tokenizer, self._given_contrasts = model, tokenizer, contrasts
        self.also: tuple[Plugin, ...] = ()
        """Plugins that the audit serves beside those of the recipe."""

    def changed(self, options: Mapping[str, Any], overwrite: bool) -> Run:
        """The same folder, model and prompts under a recipe with some fields changed."""
        if not options and overwrite == self.overwrite:
            return self
        run = Run(
            with_options(self.recipe, options) if options else self.recipe,
            self.folder,
            overwrite=overwrite,
            model=self._given_model,
            tokenizer=self._given_tokenizer,
            contrasts=self._given_contrasts,
            notify=self.notify,
        )
        run._temporary, run.also = self._temporary, self.also
        if all(
            getattr(run.recipe, name) == getattr(self.recipe, name) for name in (*STAGE_FIELDS["read"], *STAGE_FIELDS["audit"])
        ):
            vars(run).update({name: value for name, value in vars(self).items() if name in LOADED})
        return run

    def under(self, **choices: Any) -> Run:
        """The same folder, and all that is loaded, under a recipe with other choices, the seed among them: for the cells of a grid,
        which share one split, one calibration text and one audit."""
        run = Run(
            with_options(self.recipe, choices),
            self.folder,
            model=self.model,
            tokenizer=self.tokenizer,
            contrasts=self._given_contrasts,
            notify=self.notify,
        )
        run._temporary, run.also = self._temporary, self.also
        vars(run).update({name: value for name, value in vars(self).items() if name in LOADED})
        return run

    # -- what the recipe names ------------------------------------------------------------------------------------------

    def label(self, kind: str) -> str:
        """`distribution:name` of a plugin of the recipe."""
        entry = discovery.find(kind, cast(PluginSpec, getattr(self.recipe, kind)).plugin)
        return f"{entry.distribution}:{entry.name}"

    def _plugin(self, kind: discovery.Kind) -> Any:
        spec = cast(PluginSpec, getattr(self.recipe, kind))
        return discovery.build(kind, spec.plugin, spec.options)

    @cached_property
    def bias(self) -> BiasScorer:
        """The recipe's bias scorer."""
        return cast("BiasScorer", self._plugin("bias"))

    @cached_property
    def importance(self) -> ImportanceScorer:
        """The recipe's importance scorer."""
        return cast("ImportanceScorer", self._plugin("importance"))

    @cached_property
    def policy(self) -> SelectionPolicy:
        """The recipe's selection policy."""
        return cast("SelectionPolicy", self._plugin("policy"))

    @cached_property
    def _model_and_tokenizer(self) -> tuple[nn.Module, Any]:
        from fairprune_framework.models.loading import load_model

        if self._given_model is not None:
            if self._given_tokenizer is None:
                raise UserError("a model in memory needs its tokenizer: tokenizer=...")
            return self._given_model, self._given_tokenizer
        recipe = self.recipe
        if recipe.model is None:
            raise UserError("no model is named: give a hub id, a folder or 'smollm2-135m'")
        model, tokenizer = load_model(
            recipe.model, dtype=recipe.dtype, revision=recipe.revision, trust_remote_code=recipe.trust_remote_code
        )
        return model.to(self.device), tokenizer

    @property
    def device(self) -> Any:
        """Where the model computes outside a Trainer."""
        import torch

        wanted = self.recipe.accelerator
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
    def model(self) -> nn.Module:
        """The original model, loaded when first asked for."""
        return self._model_and_tokenizer[0]

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self._model_and_tokenizer[1]

    @cached_property
    def architecture(self) -> Architecture:
        """The adapter that knows the model, with its sites, confirmed causally."""
        from fairprune_framework.models.architecture import confirm, recognise

        found = recognise(self.model, self.recipe.architecture)
        unchecked = confirm(self.model, found)
        if unchecked:
            self.notify(f"{len(unchecked)} sites could not be confirmed: no token reached them")
        return found

    @cached_property
    def sharing(self) -> Sharing:
        """Whether prefixes that texts share are computed once, and why."""
        from fairprune_framework.auditing.prefix_sharing import Sharing, prefix_sharing

        if self.recipe.prefix_sharing == "never":
            return Sharing(up_to=0, because="--prefix-sharing never")
        steps = [pass_ for pass_ in self._passes if pass_.stream == "contrasts"]
        if steps and all(pass_.objective for pass_ in steps):
            return Sharing(
                up_to=0, because="every pass over the contrasts has an objective: each text carries a gradient of its own"
            )
        return prefix_sharing(self.model)

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the model; raises `RunFolderError` where the folder was made with another one."""
        from fairprune_framework.models.loading import fingerprint

        found = fingerprint(self.model)
        known = self.record.get("hashes", {}).get("model")
        replaced = self.overwrite and not self.done("read")
        if known is not None and known != found and self.record["stages"] and not replaced:
            raise RunFolderError(
                f"{self.folder} was made with another model ({known[:12]}); this one is {found[:12]}: choose another --output"
            )
        return found

    @cached_property
    def encoder(self) -> Encoder:
        """The tokenizer as the recipe wants it used."""
        from fairprune_framework.models.encoder import Encoder
        from fairprune_framework.models.loading import context_length

        return Encoder(self.tokenizer, chat_template=self.recipe.chat_template, limit=context_length(self.model))

    @cached_property
    def contrasts(self) -> ContrastSet:
        """The prompt set with its splits, checked as a whole; it is gone through again and again, and not held in memory."""
        from fairprune_framework.contrasts.sets import ContrastSet

        source = self._given_contrasts if self._given_contrasts is not None else self.recipe.prompts
        if source is None:
            raise UserError("no prompt set is named: give a file, a data set or 'builtin:en' with --prompts")
        recipe = self.recipe
        return ContrastSet(source, columns=recipe.columns, bad=recipe.bad_prompts, split=recipe.split, seed=recipe.seed)

    @cached_property
    def alignment(self) -> Alignment:
        """What the prompt set is under the model's tokenizer: counts, and what cannot be used."""
        from fairprune_framework.contrasts.sets import check_alignment

        return check_alignment(self.contrasts, self.encoder, self.recipe.bad_prompts)

    @property
    def prompts(self) -> tuple[list[Contrast], list[tuple[str, str]], str]:
        """All contrasts in memory, what was skipped while reading, and the hash of the source."""
        return list(self.contrasts), self.contrasts.skipped, self.contrasts.sha256

    @cached_property
    def aligned(self) -> tuple[list[AlignedContrast], list[tuple[str, str]]]:
        """All contrasts under the model's tokenizer, in memory, and what was skipped there."""
        from fairprune_framework.contrasts.alignment import aligned

        skipped: list[tuple[str, str]] = []
        found = aligned(self.contrasts, self.encoder, self.contrasts.vocabularies, self.recipe.bad_prompts, skipped)
        return list(found), skipped

    @cached_property
    def judged(self) -> dict[str, tuple[list[Contrast], list[AlignedContrast], str]]:
        """Name -> the contrasts of a set that judges alone, under the model's tokenizer, and the hash of its source.

        Raises:
            PromptError: it shares a template or a text with what chooses neurons.
        """
        from fairprune_framework.contrasts.alignment import align_all
        from fairprune_framework.contrasts.check import contrasts_of
        from fairprune_framework.contrasts.splits import refuse_shared

        found = {}
        for name, source in (self.recipe.judge_prompts or {}).items():
            contrasts, _, source_hash = contrasts_of(source, bad=self.recipe.bad_prompts)
            if "plan_file" not in self.record:
                refuse_shared(self.prompts[0], contrasts, name)
            found[name] = (contrasts, align_all(contrasts, self.encoder, self.recipe.bad_prompts)[0], source_hash)
        return found

    def release(self) -> None:
        """Let go of the model, so that another one finds room; it is loaded again when asked for. One in memory stays."""
        if self._given_model is None:
            self.forget_model()

    @property
    def values(self) -> dict[str, int]:
        """category -> number of attribute values, `other` included."""
        return self.contrasts.values

    @property
    def categories(self) -> list[str]:
        """Categories of the contrasts that may feed scores."""
        return sorted(self.alignment.selecting_categories)

    @property
    def parallelism(self) -> Parallelism:
        """Devices, nodes and strategy of an audit."""
        from fairprune_framework.auditing.distributed.parallel import Parallelism

        recipe = self.recipe
        return Parallelism(
            accelerator=recipe.accelerator,
            devices=recipe.devices,
            nodes=recipe.nodes,
            strategy=recipe.strategy,
            compile=recipe.compile,
        )

    @property
    def micro_batch_tokens(self) -> int:
        """Padded tokens per forward: the recipe's, or what suits the device, found once and kept in the record."""
        if self.recipe.micro_batch_tokens:
            return self.recipe.micro_batch_tokens
        from fairprune_framework.auditing.autotune import CPU_TOKENS, max_tokens_on

        if self.device.type != "cuda":
            return CPU_TOKENS
        known = self.record.get("micro_batch_tokens")
        if known is None:
            gradients = any(pass_.objective for pass_ in self._passes)
            known = max_tokens_on(self.model, self.device, self.alignment.longest, gradients)
            self.note(micro_batch_tokens=known)
        return int(known)

    @property
    def _passes(self) -> list[Pass]:
        """The passes that the plugins' statistics listen to."""
        plugins = (self.bias, self.importance, self.policy, *self.also)
        return [pass_ for plugin in plugins for statistic in plugin.needs().statistics for pass_ in statistic.passes(1)]

    def forget_model(self) -> None:
        """Let go of the model that an audit spread over devices: the next stage loads it whole."""
        for name in ("_model_and_tokenizer", "architecture", "encoder"):
            vars(self).pop(name, None)

    @cached_property
    def calibration(self) -> Calibration:
        """Calibration text: from the folder, from the recipe's file, or sampled and kept."""
        from fairprune_framework.calibration import text as calibration

        path, recipe = self.folder / "calibration.jsonl", self.recipe
        file = None if recipe.calibration is None else provenance.file_digest(text_file(recipe.calibration))
        wanted = [file, recipe.calibration_documents, recipe.calibration_tokens, recipe.seed, self.fingerprint]
        key = provenance.digest(wanted)
        if path.is_file() and self.record.get("calibration", {}).get("key") == key:
            return calibration.Calibration.load(path)
        if recipe.calibration is not None:
            found = calibration.from_file(
                recipe.calibration, self.encoder, recipe.calibration_tokens, recipe.calibration_documents
            )
        else:
            self.notify(f"sampling {recipe.calibration_documents} calibration documents of {recipe.calibration_tokens} tokens")
            tokens = min(recipe.calibration_tokens, self.encoder.limit or recipe.calibration_tokens)
            found = calibration.sample(self.model, self.tokenizer, recipe.calibration_documents, tokens, recipe.seed)
        self.folder.mkdir(parents=True, exist_ok=True)
        found.save(path, self.tokenizer)
        self.note(hashes={"calibration": found.hash}, calibration={"key": key, "source": found.source})
        self.save()
        return found

    # -- what stages left -----------------------------------------------------------------------------------------------

    @property
    def statistics(self) -> Statistics:
        """The result of `audit`."""
        from fairprune_framework.auditing.sums import Statistics

        return Statistics.load(self.folder)

    @property
    def scores(self) -> Scores:
        """The result of `score`."""
        from fairprune_framework.selection.scoring import load_scores

        return load_scores(self.folder / "scores.safetensors", self.architecture.sites, self.bias.signed)

    @property
    def plan(self) -> Plan:
        """The result of `plan`."""
        from fairprune_framework.api.types import Plan

        path = self.folder / "plan.json"
        return Plan.from_json(provenance.read_json(path), str(path))

    @property
    def evaluation(self) -> Evaluation:
        """The result of `evaluate`."""
        from fairprune_framework.evaluation.results import Evaluation

        return Evaluation.load(self.folder)

    @property
    def verdict(self) -> str | None:
        """The word of the run, once it was judged."""
        return self.record.get("verdict")

    def contents(self, names: Sequence[str]) -> dict[str, Any]:
        """Hashes of the prompts and of the model, where these come as a file or are in memory."""
        found = super().contents(names)
        from_file = self.recipe.prompts is not None and Path(self.recipe.prompts).is_file()
        if "prompts" in names and (self._given_contrasts is not None or from_file):
            found["prompts"] = self.contrasts.sha256
        if self.recipe.model is None and self._given_model is not None:
            found["model"] = self.fingerprint
        if "judge_prompts" in names and self.recipe.judge_prompts:
            found["judge_prompts"] = {name: self.judged[name][2] for name in self.recipe.judge_prompts}
        return found
