"""The model card, `model/README.md`: changes to the model and their effect, in the format of the hub. Reads files only."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fairprune_framework.evaluation.metrics.names import LANGUAGE_METRICS
from fairprune_framework.models.loading import public_name
from fairprune_framework.reporting import prose
from fairprune_framework.reporting.charts.chart import basis
from fairprune_framework.reporting.run_data import Source, read_source
from fairprune_framework.surgery.speed import speed_in_words
from fairprune_framework.utilities.files import in_mb
from fairprune_framework.utilities.versions import __version__
from fairprune_framework.utilities.wording import number_of

TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
FILES = ("model/README.md", "model/plan.json")
KNOWN_BASES = {"smollm2-135m": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")}
"""Embedded model -> its hub id and its licence there."""
HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")


def write_card(folder: Path) -> list[str]:
    """Write the card of a run into the folder of its pruned model, if there is one.

    Returns:
        The written files, relative to the run folder.
    """
    source = read_source(folder)
    if source.plan is None or not (folder / "model" / "config.json").is_file():
        return []
    from fairprune_framework.utilities.files import write_text

    write_text(folder / FILES[0], str(card(source)))
    shutil.copyfile(folder / "plan.json", folder / FILES[1])
    return list(FILES)


def card(source: Source) -> Any:
    """The card as a `huggingface_hub.ModelCard`, with metadata validated by the classes of the hub."""
    from huggingface_hub import ModelCard, ModelCardData

    base, licence = base_of(source.model)
    name = base or public_name(source.model)
    title = f"{name.rpartition('/')[2]}-fairpruned"
    data = ModelCardData(
        language=_language(source),
        license=licence,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["fairness", "pruning", "fairprune"],
        base_model=base,
        base_model_relation="finetune" if base else None,
        model_name=title,
        eval_results=_results(source) or None,
    )
    record = source.record
    plan: Mapping[str, Any] = source.plan or {}
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=_cell(title),
        base=f"`{_cell(name)}`",
        version=_cell(record.get("versions", {}).get("fairprune_framework", __version__)),
        units=f"{sum(len(units) for units in plan.get('sites', {}).values()):,}",
        share=f"{(plan.get('achieved') or {}).get('fraction') or 0:.2%} of all",
        verdict=_escaped(prose.verdict(source)),
        removed=_removed(source),
        plugins=_plugins(source),
        hashes=[(_cell(what), f"`{_cell(value)}`") for what, value in sorted(record.get("hashes", {}).items())],
        versions=", ".join(f"{_cell(what)} {_cell(value)}" for what, value in record.get("versions", {}).items()),
        seed=record.get("seeds", {}).get("run"),
        rows=_rows(source),
        licence=_licence(name, licence),
    )


def base_of(model: str) -> tuple[str | None, str | None]:
    """Hub id and licence of the original model, each None if it cannot be determined without a network."""
    if model in KNOWN_BASES:
        return KNOWN_BASES[model]
    folder = Path(model)
    if folder.exists() or model.endswith(".gguf") or not HUB_ID.fullmatch(model):
        parent = folder.parent if folder.is_file() else folder
        return None, _licence_in(parent / "README.md")
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model, "README.md")
    return model, _licence_in(Path(cached)) if isinstance(cached, str) else None


def _licence_in(readme: Path) -> str | None:
    """The field `license` in the metadata of a card."""
    from huggingface_hub import ModelCard

    if not readme.is_file():
        return None
    try:
        licence = ModelCard.load(readme, ignore_metadata_errors=True).data.to_dict().get("license")
    except Exception:  # a card may have any content; its licence is then reported as unknown
        return None
    return licence if isinstance(licence, str) else None


def _licence(base: str, licence: str | None) -> str:
    if licence is None:
        return f"Unknown: the card of `{_cell(base)}` was not available. The licence of the original applies."
    return f"`{_cell(licence)}`, inherited from {_cell(base)}; this model is a modification of it."


def _cell(text: Any) -> str:
    """Text for a table: as text, never as markup."""
    return _text(" ".join(str(text).split()))


def _text(line: str) -> str:
    """A line as text, on one line; its spaces stay what they are."""
    return re.sub(r"([|<>`\[\]*])", r"\\\1", re.sub(r"[\r\n\x0b\x0c\x1c-\x1e\x85\u2028\u2029]+", " ", line))


def _escaped(verdict: prose.Verdict) -> prose.Verdict:
    """The verdict as text: a run's reasons may hold what a stranger wrote."""
    word, headline = _text(verdict.word), _text(verdict.headline)
    sentences, limits = ([_text(line) for line in lines] for lines in (verdict.sentences, verdict.limits))
    return replace(verdict, word=word, headline=headline, sentences=sentences, limits=limits)


def _language(source: Source) -> str | None:
    name = str(source.recipe.get("prompts") or "")
    return name.partition(":")[2] if re.fullmatch(r"builtin:[a-z]{2}", name) else None


def _prompts(source: Source) -> str:
    name = source.recipe.get("prompts")
    return "contrasts in memory" if not name else str(name) if not Path(str(name)).exists() else Path(str(name)).name


def _removed(source: Source) -> list[tuple[str, str]]:
    record, plan = source.record, source.plan or {}
    requested, achieved, removal = (plan.get("requested") or {}), (plan.get("achieved") or {}), record.get("removal") or {}
    facts = [
        ("requested", _cell(requested.get("budget", "unknown"))),
        ("achieved", f"{number_of(achieved.get('units', 0), 'neuron')}, {achieved.get('fraction') or 0:.4%} of all"),
        ("operator", _cell(plan.get("operator"))),
    ]
    if removal:
        facts.append(("parameters", f"{removal['parameters_before']:,} before, {removal['parameters_after']:,} after"))
        facts.append(("files with weights", f"{in_mb(removal['bytes_before'])} before, {in_mb(removal['bytes_after'])} after"))
        if (speed := record.get("speed")) is not None:
            facts.append(("speed", _cell(speed_in_words(speed))))
        if source.recipe.get("widths") == "exact":
            code = "each layer has its own: `AutoModelForCausalLM.from_pretrained(..., trust_remote_code=True)`"
            facts.append(("widths", f"{code}, or `fairprune_framework.load_model`, which runs no code of this folder"))
        facts.append(("stored as zeros", f"{removal['padded']:,} of the neurons"))
        if removal["max_difference"] is None:
            facts.append(
                ("files verified", "shard by shard: bit by bit the original but for the neurons; no forward was computed")
            )
        else:
            facts.append(("removed against masked", f"logits differ by at most {removal['max_difference']:.1e} (float32)"))
            reader = record.get("versions", {}).get("transformers", "an unknown version")
            facts.append(("files verified with", f"transformers {_cell(reader)}: the same logits as before saving"))
    counts = record.get("contrasts") or {}
    facts.append(
        (
            "prompts",
            f"{_cell(_prompts(source))}, {number_of(counts.get('used', 0), 'contrast')}, {counts.get('skipped', 0)} skipped",
        )
    )
    if allowed := record.get("unsafe_options"):
        facts.append(("code of others", f"allowed by {_cell(', '.join(allowed))}"))
    facts.append(("calibration text", _cell((record.get("calibration") or {}).get("source", "none"))))
    return facts


def _plugins(source: Source) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for kind, entry in source.record.get("plugins", {}).items():
        spec = source.recipe.get(kind)
        options = {name: value for name, value in spec.items() if name != "plugin"} if isinstance(spec, Mapping) else {}
        shown = ", ".join(f"{name} = {json.dumps(value)}" for name, value in options.items()) or "defaults"
        rows.append((_cell(kind), _cell(entry["name"]), _cell(f"{entry['distribution']} {entry['version']}"), _cell(shown)))
    return rows


def _overall(source: Source) -> list[Mapping[str, Any]]:
    """Rows over all categories and layers with values before and after."""
    whole = [row for row in source.rows if row["layer"] is None and row["category"] is None]
    return [row for row in whole if row["before"] is not None and row["after"] is not None]


def _rows(source: Source) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    for row in _overall(source):
        where = f"{row['split'] or 'all'}{', controls' if row['control'] else ''}"
        change = f"{'' if row['change'] is None else format(row['change'], '+.1%')} {basis(row)}".strip()
        interval = "" if row["ci_low"] is None or row["ci_high"] is None else f"{row['ci_low']:+.1%} to {row['ci_high']:+.1%}"
        numbers = (f"{row['before']:.4g}", f"{row['after']:.4g}", change, interval, f"{row['n']:,}")
        lines.append((_cell(row["metric"]), _cell(where), *numbers))
    return lines


def _results(source: Source) -> list[Any]:
    """`model-index`: the values of the pruned model, with the values before and the interval of the change as arguments."""
    from huggingface_hub import EvalResult

    prompts = _prompts(source)
    results = []
    for row in _overall(source):
        where = f"{row['split'] or 'all'}{', controls' if row['control'] else ''}"
        text = row["metric"] in LANGUAGE_METRICS
        results.append(
            EvalResult(
                task_type="text-generation",
                dataset_type="calibration-text" if text else "contrasts",
                dataset_name="judging half of the calibration text" if text else f"{prompts} ({where})",
                dataset_config="controls" if row["control"] else None,  # the hub distinguishes results by this, not by the name
                dataset_split=row["split"],
                metric_type=row["metric"],
                metric_name=row["metric"].replace("-", " "),
                metric_value=row["after"],
                metric_args={
                    name: row[name]
                    for name in ("before", "difference", "change", "ci_low", "ci_high", "p_value", "n", "unit", "ideal")
                    if row.get(name) is not None
                },
            )
        )
    return results
