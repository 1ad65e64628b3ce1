"""The record: published recipe, optipfair's own code, random controls and our default, side by side at equal budgets.

    python benchmarks/evidence.py --arms article=recipe:article optipfair=optipfair ours=runs/ours chance-0=random:0 \
        --ours ours --controls chance-0 --record benchmarks/evidence_smollm2-135m_202611.md

Every arm is applied by masking; every (model, task) cell is kept in the work folder, so that a call goes on where the last one stopped and
the base model is measured once. Items are fixed by seed 0; their ids are stored beside the record. What it will cost is printed first.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import DATA, machine
from evidence_arms import FORMS, plan_of, row_of
from evidence_record import render

from fairprune_framework.contrasts.alignment import align_all, vocabularies
from fairprune_framework.contrasts.check import contrasts_of
from fairprune_framework.contrasts.formats import rows as rows_in
from fairprune_framework.errors import UserError
from fairprune_framework.evaluation.cache import MeasurementCache
from fairprune_framework.evaluation.contrast_rows import contrast_rows, items_of
from fairprune_framework.evaluation.metrics.continuations import Answer, Request, score, tokens_of
from fairprune_framework.evaluation.metrics.perplexity import TextLoss, perplexity_change
from fairprune_framework.evaluation.metrics.sentences import SentenceMeasure, start_token
from fairprune_framework.evaluation.rows import ResultRow, RowKey
from fairprune_framework.evaluation.sentence_rows import sentence_items, sentence_rows
from fairprune_framework.evaluation.subject import Subject
from fairprune_framework.evaluation.tasks.data import TaskSettings, check_data
from fairprune_framework.evaluation.tasks.harness import language_model, run_task
from fairprune_framework.evaluation.tasks.result import TaskResult
from fairprune_framework.evaluation.tasks.rows import task_rows
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.models.loading import load_model
from fairprune_framework.models.weights import fingerprint
from fairprune_framework.utilities.files import digest, write_json, write_text

LIMITS = {"bbq": 100, "lambada_openai": 1000, "boolq": 400}
TOKENS, WINDOW, SEED = 32768, 512, 0
PARTS = ("contrasts", "crows", "winobias", "bbq", "lambada_openai", "boolq", "wikitext2")


class Material:
    """What every arm is judged on, read once."""

    def __init__(self, options: argparse.Namespace, encoder: Encoder) -> None:
        self.limits = {task: min(limit, options.limit or limit) for task, limit in LIMITS.items()}
        self.data = Path(options.data)
        check_data([part for part in options.parts if part in LIMITS], self.data)
        self.contrasts, _, self.prompts_hash = contrasts_of(options.prompts, bad="skip", split=options.split)
        self.sets = {"contrasts": self.contrasts}
        for name, path in (
            ("crows", self.data / "crows_pairs" / "crows_pairs_anonymized.csv"),
            ("winobias", self.data / "winobias"),
        ):
            if name in options.parts:
                self.sets[name] = contrasts_of(str(path), bad="skip")[0]
        if options.limit:
            self.sets = {name: found[:: max(1, len(found) // (4 * options.limit))] for name, found in self.sets.items()}
        self.aligned = {name: align_all(found, encoder, "skip")[0] for name, found in self.sets.items()}
        self.values = {category: len(found) for category, found in vocabularies(self.contrasts).items()}
        tokens = options.limit * WINDOW if options.limit else TOKENS
        self.ids = (
            first_tokens(self.data / "wikitext2" / "test_docs.jsonl", encoder, tokens) if "wikitext2" in options.parts else []
        )


def first_tokens(path: Path, encoder: Encoder, tokens: int) -> list[int]:
    """The first tokens of the pages of a .jsonl file."""
    ids: list[int] = []
    for row in rows_in(path):
        ids += encoder.ids(str(row.data["page"]))
        if len(ids) >= tokens:
            break
    return ids[:tokens]


class Measured:
    """Everything about one subject."""

    def __init__(self, subject: Subject, material: Material, parts: Sequence[str], start: int | None) -> None:
        self.contrasts = subject.contrasts("contrasts", material.aligned["contrasts"], material.values)
        self.sentences: dict[str, list[SentenceMeasure]] = {}
        self.tasks: dict[str, TaskResult] = {}
        self.text: TextLoss | None = None
        for part in ("contrasts", "crows", "winobias"):
            if part in parts:
                self.sentences[part] = subject.sentences(part, material.aligned[part], start)
        for part in parts:
            if part in LIMITS:
                (self.tasks[part],) = subject.task(
                    TaskSettings(
                        task=part, limit=material.limits[part], data=material.data, micro_batch_tokens=subject.max_tokens
                    )
                )
        if "wikitext2" in parts:
            self.text = subject.text("wikitext2", material.ids, WINDOW)


def rows_of(material: Material, base: Measured, arm: Measured) -> list[ResultRow]:
    """Base against arm, everything paired."""
    items = items_of(material.aligned["contrasts"], base.contrasts, arm.contrasts)
    rows = contrast_rows(items, [], SEED)
    for part, before in base.sentences.items():
        found = sentence_items(material.sets[part], before, arm.sentences[part])
        prefix = "" if part == "contrasts" else f"{part}/"
        rows += sentence_rows(found, SEED, prefix)
        for half, chosen in _halves(part, found).items():
            rows += [row for row in sentence_rows(chosen, SEED, f"{half}/") if row.category is None]
    for part, before in base.tasks.items():
        rows += task_rows(before, arm.tasks[part], SEED)
    if base.text is not None and arm.text is not None:
        rows.append(text_row(base.text, arm.text))
    return rows


def _halves(part: str, items: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """CrowS-Pairs by odd and even rows, WinoBias by dev and test: what chose neurons may not judge them."""
    if part == "crows":
        return {
            "crows-odd": [item for item in items if row_of(item["id"]) % 2 == 1],
            "crows-even": [item for item in items if row_of(item["id"]) % 2 == 0],
        }
    if part == "winobias":
        return {f"winobias-{half}": [item for item in items if f"-{half}-" in item["id"]] for half in ("dev", "test")}
    return {}


def text_row(before: TextLoss, after: TextLoss) -> ResultRow:
    """Perplexity on the first tokens of WikiText-2."""
    key = RowKey(metric="wikitext2/perplexity", unit="perplexity per token")
    row = ResultRow.of_change(key, perplexity_change(before, after, SEED), clusters_are="windows")
    note = f"windows of {WINDOW} tokens; the first token of each is not predicted"
    return replace(row, n=sum(before.tokens)).noted(note)


# -- cost ------------------------------------------------------------------------------------------------------------------


def cost(subject: Subject, material: Material, parts: Sequence[str], start: int | None) -> dict[str, int]:
    """Tokens of the forwards of one arm, by part; the same code lays them out, and counts instead of computing."""
    found = {"contrasts": sum(len(tokens.ids) for one in material.aligned["contrasts"] for tokens in one.variants)}
    for part in ("contrasts", "crows", "winobias"):
        if part in parts:
            texts = {tokens.ids for one in material.aligned[part] for tokens in one.variants}
            found[f"{part}, sentences"] = sum(map(len, texts)) + (len(texts) if start is not None else 0)

    def counting(name: str) -> Callable[[Any, list[Request], int], list[Answer]]:
        def count(_model: Any, asked: list[Request], _budget: int) -> list[Answer]:
            found[name] = found.get(name, 0) + tokens_of(asked)
            return [(0.0, False)] * len(asked)

        return count

    for part in parts:
        if part in LIMITS:
            lm = language_model(subject.model, subject.tokenizer, subject.max_tokens, counting(part))
            run_task(lm, TaskSettings(task=part, limit=material.limits[part], data=material.data))
    if "wikitext2" in parts:
        found["wikitext2"] = len(material.ids)
    return found


def speed(subject: Subject) -> float:
    """Tokens a second of a plain forward, on two micro-batches."""
    ids = list(range(3, 3 + 100))
    asked = [((ids[i % 50],), tuple(ids[i % 40 :][:50])) for i in range(20)]
    began = time.perf_counter()
    score(subject.model, asked, subject.max_tokens)
    return 20 * 50 / (time.perf_counter() - began)


# -- main ------------------------------------------------------------------------------------------------------------------


def options_of(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--arms", nargs="+", required=True, metavar="NAME=WHAT", help=f"WHAT: {FORMS}")
    parser.add_argument("--ours", help="the arm that the goals are about")
    parser.add_argument("--crows-arm", help="the arm that was chosen on the odd rows of CrowS-Pairs; by default --ours")
    parser.add_argument("--transfer-arm", help="the arm that public benchmarks of another source judge; by default --ours")
    parser.add_argument("--controls", nargs="*", default=[], help="arms of random neurons")
    parser.add_argument("--note", action="append", default=[], metavar="NAME=TEXT", help="what chose an arm, for the record")
    parser.add_argument("--prompts", default="builtin:en", help="contrasts for recipes, optipfair, and the contrast metrics")
    parser.add_argument("--split", default="keep")
    parser.add_argument("--neurons", type=int, default=90, help="budget of the arms that are made here")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--data", default=str(DATA), help="folder of public data, as benchmarks/README.md explains")
    parser.add_argument("--work", default="runs/evidence", help="measurements, plans and runs; a later call goes on from it")
    parser.add_argument("--limit", type=int, help="few items, for a trial: never for a record")
    parser.add_argument(
        "--first-token", action="store_true", help="count the first token of a sentence after BOS, as lm-eval does"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--max-tokens", type=int, default=512, help="padded tokens per forward")
    parser.add_argument("--record", help="the .md file to write; by default it is printed")
    options = parser.parse_args(words)
    names = [arm.partition("=")[0] for arm in options.arms]
    if bad := [arm for arm in options.arms if not all(arm.partition("="))] or [name for name in names if names.count(name) > 1]:
        parser.error(f"--arms must be NAME=WHAT, each name once: {bad[0]}")
    for given in [
        options.ours,
        options.crows_arm,
        options.transfer_arm,
        *options.controls,
        *(note.partition("=")[0] for note in options.note),
    ]:
        if given is not None and given not in names:
            parser.error(f"no arm is named {given!r}: {', '.join(names)}")
    if "contrasts" not in options.parts:
        options.parts = ["contrasts", *options.parts]
    return options


def main(words: Sequence[str] | None = None) -> int:
    options = options_of(words)
    torch.set_num_threads(options.threads)
    work = Path(options.work)

    def say(text: str) -> None:
        print(f"[evidence] {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    model, tokenizer = load_model(options.model, dtype="float32")
    model.to(options.device)
    architecture = recognise(model)
    encoder = Encoder(tokenizer)
    material = Material(options, encoder)
    subject = Subject(
        model,
        tokenizer,
        architecture,
        MeasurementCache(work / "cache", say),
        encoder=encoder,
        max_tokens=options.max_tokens,
        notify=say,
    )
    start = start_token(tokenizer) if options.first_token else None
    arms = dict(arm.split("=", 1) for arm in options.arms)
    plans = {
        name: plan_of(
            spec,
            name,
            model=model,
            model_name=options.model,
            tokenizer=tokenizer,
            architecture=architecture,
            fingerprint=fingerprint(model),
            prompts=options.prompts,
            contrasts=material.contrasts,
            neurons=options.neurons,
            work=work,
            data=material.data,
        )
        for name, spec in arms.items()
    }
    tokens = cost(subject, material, options.parts, start)
    rate = speed(subject)
    total = sum(tokens.values())
    listed = ", ".join(f"{name} {count:,}" for name, count in tokens.items())
    say(f"tokens an arm: {total:,} ({listed})")
    say(
        f"{len(arms) + 1} arms at {rate:,.0f} tokens/s: {(len(arms) + 1) * total / rate / 60:.0f} minutes, what is kept left aside"
    )
    base = Measured(subject, material, options.parts, start)
    rows: dict[str, list[ResultRow]] = {}
    for name, plan in plans.items():
        say(f"arm {name}: {plan.count} neurons")
        arm = Measured(subject.masked_by(plan.sites, plan.scaling), material, options.parts, start)
        rows[name] = rows_of(material, base, arm)
        (work / "rows").mkdir(parents=True, exist_ok=True)
        write_json(work / "rows" / f"{name}.json", {"rows": [row.to_json() for row in rows[name]]})
    ids = {part: [item["id"] for item in result.items] for part, result in base.tasks.items()}
    text = render(
        rows,
        plans,
        arms=arms,
        notes=dict(note.split("=", 1) for note in options.note),
        ours=options.ours,
        crows_arm=options.crows_arm or options.ours,
        transfer_arm=options.transfer_arm or options.ours,
        controls=options.controls,
        facts={
            "model": f"{options.model} ({fingerprint(model)[:12]}), float32, masked",
            "machine": machine(),
            "prompts": f"{options.prompts}, split {options.split}, sha256 {material.prompts_hash[:12]}",
            "items": f"seed 0, ids hash {digest(ids)[:12]}; "
            + ", ".join(f"{part} {len(found)}" for part, found in ids.items()),
            "tokens": f"{total:,} an arm",
            "sentences": "first token counted after BOS, as lm-eval does" if options.first_token else "first token not counted",
            "trial": "yes: few items, no record" if options.limit else "",
        },
    )
    if options.record:
        record = Path(options.record)
        write_text(record, text)
        write_json(record.with_name(f"{record.stem}_items.json"), ids)
        say(f"written: {record}")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"evidence: {error}")
