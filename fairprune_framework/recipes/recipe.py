"""The recipe: every option of a run in one frozen dataclass. `loading.py` reads it from files and options.

A field is the one place of its option: `option(...)` says which stage depends on it and what the help says. What a run folder keys
on, what it hands on and the command line are derived from that.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fairprune_framework import discovery
from fairprune_framework.api.types import Budget, Operator, check_factor
from fairprune_framework.errors import UserError, did_you_mean
from fairprune_framework.recipes.option import Option, Stage, option, options_of, storable

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
    """Every option of a run. A plugin, an operator or a budget that is None is taken from the recipe `default`.

    `OPTIONS` holds the description of each field; `fairprune run --help` shows it.
    """

    model: str | None = option(
        None, "Hub id, local folder, a `.gguf` file, or `smollm2-135m`, the embedded model.", stage="read", adopted=True
    )
    revision: str | None = option(
        None, "Branch, tag or commit of a hub model.", group="model and machine", stage="read", adopted=True
    )
    trust_remote_code: bool = option(
        False, "Allow code that comes with the model to run.", group="model and machine", unsafe=True
    )
    allow_pickle: bool = option(
        False,
        "Load weights that are pickles (`pytorch_model.bin`), which can run code.",
        group="model and machine",
        unsafe=True,
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        "The model's dtype in memory and in `model/`; auto: as stored.",
        group="model and machine",
        stage="read",
        adopted=True,
    )
    prompts: str | None = option(
        None,
        "A file, a data set (`NAME[:CONFIGURATION][:SPLIT]`, on the hub or in a folder), or `builtin:en`.",
        group="what to audit",
        stage="read",
    )
    columns: Mapping[str, str] | None = option(
        None, "Our field -> the prompt set's column.", group="what to audit", stage="read", metavar="FIELD=COLUMN"
    )
    bad_prompts: Literal["error", "skip"] = option(
        "error",
        "What to do with a contrast that cannot be used; `skip` lists it in the run folder.",
        group="what to audit",
        stage="read",
    )
    split: str = option("keep", "keep | template:0.5 | row:odd-even | templates:T1,T2.", group="what to audit", stage="read")
    chat_template: bool = option(
        False,
        "Wrap each text in the tokenizer's chat template, as one user turn with the assistant's prompt after it.",
        group="what to audit",
        stage="read",
    )
    bias: PluginSpec | None = option(None, "Bias scorer.", group="strategies", stage="score", metavar="NAME")
    importance: PluginSpec | None = option(None, "Importance scorer.", group="strategies", stage="score", metavar="NAME")
    policy: PluginSpec | None = option(None, "Selection policy.", group="strategies", stage="plan", metavar="NAME")
    architecture: PluginSpec | None = option(
        None,
        "Architecture adapter; by default the one that accepts the model.",
        group="strategies",
        stage="read",
        adopted=True,
        metavar="NAME",
    )
    budget: str | None = option(
        None, "0.002 (a fraction of all neurons), 256n (a count) or 16/layer.", group="how much", stage="plan"
    )
    round_to: int = option(
        1,
        "Stored widths become multiples of this; what is planned beyond it is stored as zeros.",
        group="how much",
        stage="plan",
        adopted=True,
    )
    widths: Literal["uniform", "exact"] = option(
        "uniform",
        "uniform: one width for all layers, what is planned beyond it stored as zeros; exact: each layer its own width, in files that "
        "transformers reads with trust_remote_code.",
        group="how much",
        stage="prune",
        adopted=True,
    )
    max_layer_share: float = option(1.0, "No layer loses more than this share of its neurons.", group="how much", stage="plan")
    protected_layers: tuple[int, ...] = option(
        (), "Layers that are left alone.", group="how much", stage="plan", metavar="0,1,..."
    )
    operator: Operator | None = option(
        None,
        "remove (smaller tensors), zero (same shapes), scale (output weights times a factor) or mean (removed, its mean output stays).",
        group="how much",
        stage="plan",
    )
    factor: str | None = option(
        None,
        "For the operator scale: what neurons are multiplied by, or auto: the best of a few on `select`.",
        group="how much",
        stage="plan",
    )
    max_perplexity_increase: float = option(
        0.05, "The guard: a plan that costs more than this is not applied.", group="how much", stage="plan", adopted=True
    )
    force: bool = option(False, "Apply the plan although the guard fails.", group="how much", stage="prune", adopted=True)
    calibration: str | None = option(
        None,
        "Calibration text: `builtin:en`, a .txt or a .jsonl file (field `text`); `sampled`, the same as none: the model itself writes.",
        group="text",
        stage="audit",
        adopted=True,
    )
    calibration_documents: int = option(
        32, "Documents to sample, or to take of `builtin`.", group="text", stage="audit", adopted=True
    )
    calibration_tokens: int = option(256, "Tokens of a document.", group="text", stage="audit", adopted=True)
    generate: tuple[str, ...] = option(
        (),
        "More prompts to continue before and after, beside the two of the article.",
        group="text",
        stage="evaluate",
        metavar="TEXT",
    )
    micro_batch_tokens: int = option(
        0, "Padded tokens per forward; 0: 512 on a CPU, as many as fit on a GPU.", group="model and machine", stage="audit"
    )
    prefix_sharing: Literal["auto", "never"] = option(
        "auto",
        "Compute the tokens that texts begin with in common once, where the model allows it; or never.",
        group="model and machine",
        stage="audit",
    )
    devices: int = option(
        1, "Devices (on a CPU processes) per node that share an audit; -1: all GPUs.", group="many devices", execution=True
    )
    nodes: int = option(1, "Machines that share an audit; torchrun or SLURM starts them.", group="many devices", execution=True)
    strategy: Literal["auto", "ddp", "ddp_spawn", "ddp_fork", "ddp_notebook", "fsdp", "tensor_parallel"] = option(
        "auto",
        "How devices share it, as Lightning names it; fsdp and tensor_parallel also share the model. It changes no result.",
        group="many devices",
        execution=True,
    )
    checkpoint_every: int = option(
        1000, "Contrasts between two checkpoints of an audit; 0: only when it is stopped.", group="many devices"
    )
    rank_timeout: int = option(
        600,
        "Seconds after which a rank that does not start, or computes and gets no further, counts as hung.",
        group="many devices",
        execution=True,
    )
    log: str | None = option(
        None, "Lightning logger of an audit: csv, tensorboard or the import path of one.", group="many devices", execution=True
    )
    compile: bool = option(False, "Compile the trunk with torch.compile.", group="model and machine")
    judge_prompts: Mapping[str, str] | None = option(
        None,
        "NAME=SET: another prompt set that judges before and after and chooses nothing.",
        group="judging",
        stage="evaluate",
        metavar="NAME=SET",
    )
    suite: tuple[str, ...] = option(
        (),
        "Suites (capability, bias), tasks of lm-eval, winobias and stereoset to run before and after, separated by commas.",
        group="judging",
        stage="evaluate",
        metavar="NAME,...",
    )
    task_data: str | None = option(
        None, "Folder with the data of the named tasks; by default lm-eval fetches them.", group="judging", stage="evaluate"
    )
    task_limit: str | None = option(
        None,
        "Items of each task, drawn once by seed 0: 400, or boolq=400,bbq=100 (of bbq for each category and context).",
        group="judging",
        stage="evaluate",
    )
    decisions: str | None = option(
        None,
        "Decisions about persons, asked before and after: builtin:en, or a file of template_id, attribute, group, text.",
        group="judging",
        stage="evaluate",
        metavar="SET",
    )
    continuations: bool = option(
        False,
        "Continue every held-out text 16 times by 20 tokens, before and after, and compare the sentiment between groups.",
        group="judging",
        stage="evaluate",
    )
    random_sets: int = option(
        19,
        "random sets of neurons, matched to the plan by layer and activation norm, that the effect must exceed for the word "
        "`fairer`; 0: none",
        group="judging",
        stage="evaluate",
    )
    against: str | None = option(
        None, "Another model to evaluate as `after`, in a folder without a plan.", group="judging", stage="evaluate"
    )
    cache: str | None = option(
        None, "Folder for measurements that other runs may use again; by default `cache/` in the run folder.", group="judging"
    )
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = option(
        "auto", "Where to compute, as Lightning names it: auto, cpu, gpu (or cuda), mps.", group="model and machine"
    )
    seed: int = option(
        0, "Seed of sampling, random plugins, splits and resampling.", group="model and machine", stage="read", adopted=True
    )

    def __post_init__(self) -> None:
        for kind in PLUGIN_KINDS:
            if getattr(self, kind) is not None:
                object.__setattr__(self, kind, PluginSpec.parse(getattr(self, kind), kind))
        hints = typing.get_type_hints(Recipe)
        for name in (name for name, hint in hints.items() if typing.get_origin(hint) is tuple):
            value = getattr(self, name)
            if isinstance(value, str) or not isinstance(value, (list, tuple)):
                raise UserError(f"The {name!r} of a recipe must be a list. Got {value!r} instead.")
            object.__setattr__(self, name, tuple(value))
        if self.calibration == "sampled":
            object.__setattr__(self, "calibration", None)
        for name, hint in hints.items():
            value = getattr(self, name)
            if hint in (int, float) and (isinstance(value, bool) or not isinstance(value, (int, hint))):
                raise UserError(f"The {name!r} of a recipe must be {discovery.in_words(hint)}. Got {value!r} instead.")
        if self.micro_batch_tokens < 0 or self.micro_batch_tokens == 1:
            raise UserError(
                f"The 'micro_batch_tokens' of a recipe must be 0 (automatic) or at least 2. Got {self.micro_batch_tokens} instead."
            )
        if self.devices < 1 and self.devices != -1:
            raise UserError(f"The 'devices' of a recipe must be at least 1, or -1 for all GPUs. Got {self.devices} instead.")
        if self.rank_timeout < 1:
            raise UserError(f"The 'rank_timeout' of a recipe must be at least 1 second. Got {self.rank_timeout} instead.")
        if self.checkpoint_every < 0:
            raise UserError(f"The 'checkpoint_every' of a recipe must not be negative. Got {self.checkpoint_every} instead.")
        for name, least in {"nodes": 1, "calibration_tokens": 2, "calibration_documents": 4}.items():
            if getattr(self, name) < least:
                raise UserError(f"The {name!r} of a recipe must be at least {least}. Got {getattr(self, name)} instead.")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"The 'seed' of a recipe must be in [0, 2^63). Got {self.seed} instead.")
        if any(layer < 0 for layer in self.protected_layers):
            raise UserError(f"The 'protected_layers' of a recipe are counted from 0. Got {min(self.protected_layers)} instead.")
        if not self.max_perplexity_increase >= 0:
            raise UserError(f"The 'max_perplexity_increase' must not be negative. Got {self.max_perplexity_increase} instead.")
        for name in FIELDS:
            choices = choices_of(name)
            if choices and getattr(self, name) is not None and getattr(self, name) not in choices:
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
        for name in FIELDS:
            if getattr(self, name) == "":
                raise UserError(f"The {name!r} of a recipe must not be empty. Got '' instead.")
            if not storable(getattr(self, name)):
                raise UserError(f"The {name!r} of a recipe holds half of a surrogate pair, or bytes that are not UTF-8.")

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

    @property
    def unsafe(self) -> dict[str, Any]:
        """What was given that lets code run which is not ours: name -> value."""
        given: dict[str, Any] = {name: True for name in UNSAFE if getattr(self, name)}
        return given if self.log in (None, *LOGGERS) else given | {"log": self.log}

    def to_file(self) -> dict[str, Any]:
        """The content of `recipe.yaml`: every field but those that let code run, which no file gives."""
        return {name: value for name, value in self.to_yaml().items() if name not in (*UNSAFE, *self.unsafe)}

    def to_yaml(self) -> dict[str, Any]:
        """Every field, in order, as YAML would write it."""
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


OPTIONS: Mapping[str, Option] = options_of(Recipe)
FIELDS = tuple(OPTIONS)
STAGE_FIELDS: Mapping[str, tuple[str, ...]] = {
    stage: tuple(name for name, option in OPTIONS.items() if option.stage == stage) for stage in typing.get_args(Stage)
}
"""Stage -> the fields that its result depends on, beside those of the stages before."""
ADOPTED = tuple(name for name, option in OPTIONS.items() if option.adopted)
"""Those of them that `plan` and `prune` depend on where the plan came as a file."""
EXECUTION_OPTIONS = tuple(name for name, option in OPTIONS.items() if option.execution)
"""Fields that say how a command computes, not what: a run folder does not hand them on to the next command."""
UNSAFE = tuple(name for name, option in OPTIONS.items() if option.unsafe)
"""Fields that let code of strangers run: accepted from the command line and from Python calls alone."""
LOGGERS = ("csv", "tensorboard")
"""Values of `log` that a file may give; any other is the import path of a class."""


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
