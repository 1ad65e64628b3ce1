"""One run: a recipe and its folder, and what both are worked on with: model, prompts, calibration text, plugins.

The composition root: everything that a stage needs hangs here, and nothing below this package sees a `Run`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from fairprune_framework.api.interfaces import Plugin
from fairprune_framework.api.types import Plan, Scores
from fairprune_framework.auditing.autotune import CPU_TOKENS, max_tokens_on
from fairprune_framework.auditing.distributed.parallel import Parallelism
from fairprune_framework.auditing.statistics import Statistics
from fairprune_framework.calibration.text import FILE as CALIBRATION
from fairprune_framework.calibration.text import Calibration, made
from fairprune_framework.contrasts.prompts import JudgingSet, PromptSet
from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.errors import RunFolderError, UserError
from fairprune_framework.evaluation.results import Evaluation
from fairprune_framework.models.loaded import LoadedModel, UnreadModel
from fairprune_framework.models.work import Ledger
from fairprune_framework.recipes.recipe import FIELDS, STAGE_FIELDS, Recipe
from fairprune_framework.runs.folder import CONTRASTS, RECIPE, RunFolder
from fairprune_framework.selection.decide import Selection
from fairprune_framework.selection.plugins import Plugins
from fairprune_framework.selection.scoring import load_scores
from fairprune_framework.utilities.files import digest
from fairprune_framework.utilities.progress import Notify, silent
from fairprune_framework.utilities.schemas import PlanFile, read_checked


class Run:
    """A run folder that is open for work, or was finished before. Made by `open_run` and by the functions of `pipeline.py`.

    Args:
        recipe: every option.
        folder: where; None: a temporary folder; or the folder of another run, under this recipe.
        overwrite: stages that are done with other inputs are done again.
        loaded, prompts, calibration: parts that exist already; by default what the recipe names.
        contrasts: prompts in memory, in place of those that the recipe names.
        also: plugins that the audit serves beside those of the recipe.
        given: fields of the recipe that were given anew; the folder remembers what the others named.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path | RunFolder | None,
        *,
        overwrite: bool = False,
        loaded: LoadedModel | None = None,
        prompts: PromptSet | None = None,
        calibration: Calibration | None = None,
        contrasts: Sequence[Contrast | Mapping[str, Any]] | None = None,
        also: tuple[Plugin, ...] = (),
        given: Collection[str] = FIELDS,
        notify: Notify = silent,
    ) -> None:
        self.recipe, self.notify, self._contrasts = recipe, notify, contrasts
        if isinstance(folder, RunFolder):
            self.folder = folder.with_recipe(recipe, overwrite=overwrite, notify=notify, contents=self._contents)
        else:
            self.folder = RunFolder(recipe, folder, overwrite=overwrite, notify=notify, contents=self._contents, given=given)
        self.loaded = loaded or LoadedModel(recipe, place=self.folder.place_of_model(), notify=notify)
        self.plugins = Plugins(recipe, also)
        self.measures_speed = True
        """`prune` times forwards of both models where tensors became smaller, for a few seconds."""
        self.work: dict[str, Ledger] = {}
        """Stage -> what models computed in it, of the stages that were done now."""
        self._watched: ExitStack | None = None
        if prompts is not None:
            self.prompts = prompts
        if calibration is not None:
            self.calibration = calibration

    def with_recipe(self, recipe: Recipe, *, overwrite: bool = False, **parts: Any) -> Run:
        """The same folder under another recipe. Parts that it does not change are shared, and `parts` in any case."""
        shared: dict[str, Any] = {"loaded": self.loaded.under(recipe)}
        read_alike = all(
            getattr(recipe, name) == getattr(self.recipe, name) for name in (*STAGE_FIELDS["read"], *STAGE_FIELDS["audit"])
        )
        if read_alike and shared["loaded"] is self.loaded:
            shared["prompts"] = self.prompts
            if "calibration" in self.__dict__:
                shared["calibration"] = self.calibration
        shared |= {"contrasts": self._contrasts, "also": self.plugins.also, "notify": self.notify, **parts}
        return Run(recipe, self.folder, overwrite=overwrite, **shared)

    def unread(self) -> Run:
        """The same run with its model read tensor by tensor, as far as a stage can do with that."""
        loaded = UnreadModel(self.recipe, place=self.folder.place_of_model(), notify=self.notify)
        if self.loaded.in_memory:
            raise UserError("a model in memory cannot be pruned shard by shard: it was read whole already")
        return Run(self.recipe, self.folder, overwrite=self.folder.overwrite, loaded=loaded, notify=self.notify)

    @cached_property
    def prompts(self) -> PromptSet:
        """The prompt set: of the folder, once the stage `read` is done; until then the one that the recipe names."""
        named = self._named_prompts
        if not self.folder.overwrite:
            self.folder.refuse_damaged("read")
        return named.stored_at(self.folder / CONTRASTS) if self.folder.current("read") else named

    @cached_property
    def _named_prompts(self) -> PromptSet:
        recipe = self.recipe
        return PromptSet(
            self._contrasts if self._contrasts is not None else recipe.prompts,
            lambda: self.loaded.encoder,
            columns=recipe.columns,
            bad=recipe.bad_prompts,
            split=recipe.split,
            seed=recipe.seed,
            judging=recipe.judge_prompts,
        )

    @contextmanager
    def counting(self, stage: str) -> Iterator[Ledger]:
        """Count what models compute in a stage: the run's own, and those that the stage gives to `watch`.

        Nothing is counted where other processes compute too, or what is compiled does.
        """
        ledger = self.work[stage] = Ledger()
        with ExitStack() as watched:
            if not self.recipe.is_distributed and not self.recipe.compile:
                self._watched = watched
                if self.loaded.is_loaded:
                    self.watch(self.loaded.model, "original", stage)
            try:
                yield ledger
            finally:
                self._watched = None

    def watch(self, model: Any, name: str, stage: str) -> None:
        """Count what a further model computes until the end of the stage."""
        if self._watched is not None:
            self._watched.enter_context(self.work[stage].watching(model, name))

    @property
    def forward_rate(self) -> float | None:
        """Tokens per second of bare forwards, as the audit measured it; None: it did not."""
        rate: float | None = self.record.get("audit", {}).get("forward_tokens_per_second")
        return rate

    @property
    def record(self) -> dict[str, Any]:
        """The content of `run.json`."""
        return self.folder.record

    @property
    def verdict(self) -> str | None:
        """The word of the run, once it was judged."""
        return self.record.get("verdict")

    @property
    def fingerprint(self) -> str:
        """Of the model; raises `RunFolderError` where the folder was made with another one."""
        return self.folder.accept_model(self.loaded.fingerprint)

    @property
    def judged(self) -> dict[str, JudgingSet]:
        """name -> set that judges alone; nothing of it may have chosen neurons."""
        return self.prompts.judged(choosing="plan_file" not in self.record)

    @cached_property
    def calibration(self) -> Calibration:
        """Calibration text: from the folder, from the recipe's file, or sampled and kept."""
        path, key = self.folder / CALIBRATION, self._calibration_key
        if self.has_calibration:
            if not (self.folder / RECIPE).is_file():  # killed between the two files of `save`
                self.folder.save()
            return self._kept_calibration(path)
        text = made(self.recipe, self.loaded, self.notify)
        path.parent.mkdir(parents=True, exist_ok=True)
        text.save(path, self.loaded.tokenizer)
        self.folder.note(hashes={"calibration": text.hash}, calibration={"key": key, "source": text.source})
        self.folder.save()
        return text

    def _kept_calibration(self, path: Path) -> Calibration:
        """The text in the folder; raises `RunFolderError` where it is not what was written, or not for this model."""
        text = Calibration.load(path)
        if text.hash != self.record.get("hashes", {}).get("calibration"):
            raise RunFolderError(f"{path} is damaged or was changed: remove it, and the same text is made again")
        rows = int(self.loaded.model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
        if (largest := max(map(max, text.documents))) >= rows:
            raise RunFolderError(
                f"{path} holds the token {largest}; the model has {rows}: remove it, and the text is made again"
            )
        return text

    @property
    def has_calibration(self) -> bool:
        """The folder holds the calibration text that the recipe asks for."""
        known = self.record.get("calibration", {}).get("key")
        return (self.folder / CALIBRATION).is_file() and known == self._calibration_key

    @property
    def _calibration_key(self) -> str:
        recipe, file = self.recipe, self.folder.input_hash("calibration")
        return digest([file, recipe.calibration_documents, recipe.calibration_tokens, recipe.seed, self.fingerprint])

    @property
    def parallelism(self) -> Parallelism:
        """Devices, nodes and strategy of the audit."""
        recipe = self.recipe
        return Parallelism(
            accelerator=recipe.accelerator,
            devices=recipe.devices,
            nodes=recipe.nodes,
            strategy=recipe.strategy,
            compile=recipe.compile,
            rank_timeout=recipe.rank_timeout,
        )

    @property
    def micro_batch_tokens(self) -> int:
        """Padded tokens per forward: the recipe's, or what suits the device, found once and kept in the record."""
        known = self.recipe.micro_batch_tokens or self.record.get("micro_batch_tokens")
        if not known and self.loaded.device.type != "cuda":
            return CPU_TOKENS
        if not known:
            gradients = any(pass_.objective for pass_ in self.plugins.passes())
            known = max_tokens_on(self.loaded.model, self.loaded.device, self.prompts.alignment.longest, gradients)
            self.folder.note(micro_batch_tokens=known)
        return int(known)

    @property
    def selection(self) -> Selection:
        """What scorers and the policy are given."""
        return Selection(
            recipe=self.recipe,
            plugins=self.plugins,
            loaded=self.loaded,
            prompts=self.prompts,
            calibration=lambda: self.calibration,
            statistics=self.read_statistics,
            max_tokens=lambda: self.micro_batch_tokens,
            where=str(self.folder),
        )

    # -- what stages left -----------------------------------------------------------------------------------------------

    def read_statistics(self) -> Statistics:
        """The result of `audit`."""
        self.folder.refuse_damaged("audit")
        return Statistics.load(self.folder.path)

    def read_scores(self) -> Scores:
        """The result of `score`."""
        self.folder.refuse_damaged("score")
        return load_scores(self.folder / "scores.safetensors", self.loaded.architecture.sites, self.plugins.bias.signed)

    def read_plan(self) -> Plan:
        """The result of `plan`."""
        self.folder.refuse_damaged("plan")
        path = self.folder / "plan.json"
        return Plan.from_json(read_checked(path, PlanFile), str(path))

    def read_evaluation(self) -> Evaluation:
        """The result of `evaluate`."""
        self.folder.refuse_damaged("evaluate")
        return Evaluation.load(self.folder.path)

    def _contents(self, names: Collection[str]) -> dict[str, Any]:
        """Hashes of the prompts and of the model, where these come as a file or are in memory."""
        hashes: dict[str, Any] = {}
        from_file = self.recipe.prompts is not None and Path(self.recipe.prompts).is_file()
        if "prompts" in names and (self._contrasts is not None or from_file):
            hashes["prompts"] = self._named_prompts.contrasts.sha256
        if "model" in names and self.recipe.model is None and self.loaded.in_memory:
            hashes["model"] = self.loaded.fingerprint
        if "judge_prompts" in names and self.recipe.judge_prompts:
            hashes["judge_prompts"] = {name: judging.sha256 for name, judging in self.judged.items()}
        return hashes
