"""The recipe: every option of a run in one frozen dataclass. `loading.py` reads it from files and options."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fairprune_framework import discovery
from fairprune_framework.api.types import Budget, Operator, check_factor
from fairprune_framework.errors import UserError, did_you_mean

PLUGIN_KINDS: tuple[discovery.Kind, ...] = ("bias", "importance", "policy", "architecture")


@dataclass(frozen=True, kw_only=True)
class PluginSpec:
    """A plugin by name with its options: `variance`, or `{plugin: variance, relative: true}`."""

    plugin: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, value: Any, where: str) -> PluginSpec:
        """Read either form.

        Raises:
            UserError: neither a name nor a mapping with the key `plugin`.
        """
        if isinstance(value, PluginSpec):
            return value
        if isinstance(value, str) and value:
            return cls(plugin=value)
        if isinstance(value, Mapping) and isinstance(value.get("plugin"), str):
            return cls(plugin=value["plugin"], options={str(k): v for k, v in value.items() if k != "plugin"})
        raise UserError(
            f"The {where!r} of a recipe must be a plugin's name or {{plugin: name, option: value}}. Got {value!r} instead."
        )

    def to_yaml(self) -> Any:
        """The shorter of the two forms."""
        return {"plugin": self.plugin, **self.options} if self.options else self.plugin


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every option of a run. Fields left at None where a plugin or a budget is meant are taken from the recipe `default`."""

    model: str | None = None
    """Hub id, local folder, a `.gguf` file, or `smollm2-135m`, the embedded model."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Allow code that comes with the model to run."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The model's dtype in memory and in `model/`; auto: as stored."""
    prompts: str | None = None
    """A file, a hub data set, or `builtin:en`."""
    columns: Mapping[str, str] | None = None
    """Our field -> the prompt set's column."""
    bad_prompts: Literal["error", "skip"] = "error"
    """What to do with a contrast that cannot be used; `skip` lists it in the run folder."""
    split: str = "keep"
    """keep | template:0.5 | row:odd-even | templates:T1,T2."""
    chat_template: bool = False
    """Wrap each text in the tokenizer's chat template, as one user turn with the assistant's prompt after it."""
    bias: PluginSpec | None = None
    """Bias scorer."""
    importance: PluginSpec | None = None
    """Importance scorer."""
    policy: PluginSpec | None = None
    """Selection policy."""
    architecture: PluginSpec | None = None
    """Architecture adapter; by default the one that accepts the model."""
    budget: str | None = None
    """0.002 (a fraction of all neurons), 256n (a count) or 16/layer."""
    round_to: int = 1
    """Stored widths become multiples of this; what is planned beyond it is stored as zeros."""
    max_layer_share: float = 1.0
    """No layer loses more than this share of its neurons."""
    protected_layers: tuple[int, ...] = ()
    """Layers that are left alone."""
    operator: Operator | None = None
    """remove (smaller tensors), zero (same shapes) or scale (output weights times a factor)."""
    factor: str | None = None
    """For the operator scale: what neurons are multiplied by, or auto: the best of a few on `select`."""
    max_perplexity_increase: float = 0.05
    """The guard: a plan that costs more than this is not applied."""
    force: bool = False
    """Apply the plan although the guard fails."""
    calibration: str | None = None
    """Calibration text: `builtin:en`, a .txt or a .jsonl file (field `text`); `sampled`, the same as none: the model itself writes."""
    calibration_documents: int = 32
    """Documents to sample, or to take of `builtin`."""
    calibration_tokens: int = 256
    """Tokens of a document."""
    generate: tuple[str, ...] = ()
    """More prompts to continue before and after, beside the two of the article."""
    micro_batch_tokens: int = 0
    """Padded tokens per forward; 0: 512 on a CPU, as many as fit on a GPU."""
    prefix_sharing: Literal["auto", "never"] = "auto"
    """Compute the tokens that texts begin with in common once, where the model allows it; or never."""
    devices: int = 1
    """Devices (on a CPU processes) per node that share an audit; -1: all GPUs."""
    nodes: int = 1
    """Machines that share an audit; torchrun or SLURM starts them."""
    strategy: Literal["auto", "ddp", "ddp_spawn", "ddp_fork", "ddp_notebook", "fsdp", "tensor_parallel"] = "auto"
    """How devices share it, as Lightning names it; fsdp and tensor_parallel also share the model. It changes no result."""
    checkpoint_every: int = 1000
    """Contrasts between two checkpoints of an audit; 0: only when it is stopped."""
    log: str | None = None
    """Lightning logger of an audit: csv, tensorboard or the import path of one."""
    compile: bool = False
    """Compile the trunk with torch.compile."""
    judge_prompts: Mapping[str, str] | None = None
    """NAME=SET: another prompt set that judges before and after and chooses nothing."""
    suite: tuple[str, ...] = ()
    """Suites (capability, bias) and tasks of lm-eval to run before and after, separated by commas."""
    task_data: str | None = None
    """Folder with the data of the named tasks; by default lm-eval fetches them."""
    task_limit: str | None = None
    """Items of each task, drawn once by seed 0: 400, or boolq=400,bbq=100 (of bbq for each category and context)."""
    against: str | None = None
    """Another model to evaluate as `after`, in a folder without a plan."""
    cells: str | None = None
    """Folder for results that other runs may use again; by default `cells/` in the run folder."""
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    """Where to compute, as Lightning names it: auto, cpu, gpu (or cuda), mps."""
    seed: int = 0
    """Seed of sampling, random plugins, splits and resampling."""

    def __post_init__(self) -> None:
        for kind in PLUGIN_KINDS:
            if getattr(self, kind) is not None:
                object.__setattr__(self, kind, PluginSpec.parse(getattr(self, kind), kind))
        for name in ("protected_layers", "generate", "suite"):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, (list, tuple)):
                raise UserError(f"The {name!r} of a recipe must be a list. Got {value!r} instead.")
            object.__setattr__(self, name, tuple(value))
        if self.calibration == "sampled":
            object.__setattr__(self, "calibration", None)
        for name, hint in typing.get_type_hints(Recipe).items():
            value = getattr(self, name)
            if hint in (int, float) and (isinstance(value, bool) or not isinstance(value, (int, hint))):
                raise UserError(f"The {name!r} of a recipe must be {discovery.in_words(hint)}. Got {value!r} instead.")
        if self.micro_batch_tokens < 0 or self.micro_batch_tokens == 1:
            raise UserError(
                f"The 'micro_batch_tokens' of a recipe must be 0 (automatic) or at least 2. Got {self.micro_batch_tokens} instead."
            )
        if self.devices < 1 and self.devices != -1:
            raise UserError(f"The 'devices' of a recipe must be at least 1, or -1 for all GPUs. Got {self.devices} instead.")
        if self.nodes < 1:
            raise UserError(f"The 'nodes' of a recipe must be at least 1. Got {self.nodes} instead.")
        if self.checkpoint_every < 0:
            raise UserError(f"The 'checkpoint_every' of a recipe must not be negative. Got {self.checkpoint_every} instead.")
        for name in ("calibration_tokens",):
            if getattr(self, name) < 2:
                raise UserError(f"The {name!r} of a recipe must be at least 2. Got {getattr(self, name)!r} instead.")
        if self.calibration_documents < 4:
            raise UserError(
                f"The 'calibration_documents' of a recipe must be at least 4. Got {self.calibration_documents} instead."
            )
        if not 0 <= self.seed < 2**63:
            raise UserError(f"The 'seed' of a recipe must be in [0, 2^63). Got {self.seed} instead.")
        if any(layer < 0 for layer in self.protected_layers):
            raise UserError(f"The 'protected_layers' of a recipe are counted from 0. Got {min(self.protected_layers)} instead.")
        if not self.max_perplexity_increase >= 0:
            raise UserError(f"The 'max_perplexity_increase' must not be negative. Got {self.max_perplexity_increase} instead.")
        for name in ("dtype", "bad_prompts", "operator", "accelerator", "strategy", "prefix_sharing"):
            choices = choices_of(name)
            if getattr(self, name) is not None and getattr(self, name) not in choices:
                raise UserError(
                    f"The {name!r} of a recipe must be one of {', '.join(choices)}. Got {getattr(self, name)!r} instead."
                    + did_you_mean(str(getattr(self, name)), choices)
                )
        if self.factor is not None:
            object.__setattr__(self, "factor", str(self.factor))
            self.multiplier()
        if (self.factor is not None) != (self.operator == "scale") and self.operator is not None:
            needs = "needs a factor: a number or auto" if self.factor is None else "takes no factor: only 'scale' does"
            raise UserError(f"The operator {self.operator!r} {needs}.")
        if self.budget is not None:
            object.__setattr__(self, "budget", str(self.budget))
            budget_of(self)

    @property
    def is_distributed(self) -> bool:
        """Whether an audit uses more than one process."""
        return self.devices != 1 or self.nodes > 1

    def multiplier(self) -> float | None:
        """The factor as a number; None where it is `auto` or not given. Raises `UserError` where it is neither."""
        if self.factor is None or self.factor == "auto":
            return None
        try:
            factor = float(self.factor)
        except ValueError:
            raise UserError(f"The 'factor' of a recipe must be a number or 'auto'. Got {self.factor!r} instead.") from None
        return check_factor(factor, "a recipe")

    def to_yaml(self) -> dict[str, Any]:
        """The content of `recipe.yaml`: every field, in order."""
        values = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if isinstance(value, PluginSpec):
                value = value.to_yaml()
            elif isinstance(value, tuple):
                value = list(value)
            elif isinstance(value, Mapping):
                value = dict(value)
            values[item.name] = value
        return values


FIELDS = tuple(item.name for item in dataclasses.fields(Recipe))


def choices_of(name: str) -> tuple[str, ...]:
    """What a field that is one of several words may hold; empty for all other fields."""
    hint = typing.get_type_hints(Recipe)[name]
    if type(None) in typing.get_args(hint):
        hint = typing.get_args(hint)[0]
    return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()


def budget_of(recipe: Recipe) -> Budget:
    """The budget of a recipe with its side conditions.

    Raises:
        UserError: it is out of range, or not given.
    """
    if recipe.budget is None:
        raise UserError("the recipe names no budget")
    return Budget.parse(
        recipe.budget,
        round_to=recipe.round_to,
        max_layer_share=recipe.max_layer_share,
        protected_layers=frozenset(recipe.protected_layers),
    )
