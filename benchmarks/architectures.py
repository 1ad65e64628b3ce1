"""How many families of the installed transformers work end to end? One tiny random model each, in a process of its own.

    OMP_NUM_THREADS=1 python benchmarks/architectures.py [--jobs 2] [--results DIR] [--again] [--page FILE] [family ...]

A family passes if it is recognised and confirmed, its pruned folder is smaller, loads by plain `from_pretrained` and answers as the
original with the same neurons zeroed by hand, and the restoration gives every weight back bit by bit. Finished families are not
repeated; `--page` writes docs/reference/architectures.md from the results.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import resource
import shutil
import signal
import tempfile
import textwrap
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import without_place
from torch import Tensor, nn

from fairprune_framework.api import Site, layer_path
from fairprune_framework.api.types import Plan
from fairprune_framework.errors import FairpruneError
from fairprune_framework.testing.families import Kind, model_types, small_model
from fairprune_framework.testing.tiny import tiny_tokenizer

RESULTS = Path(__file__).resolve().parents[1] / "build" / "architectures"
IDS = torch.randint(3, 500, (2, 12), generator=torch.Generator().manual_seed(0))
SHARE = 0.25
TOLERANCE = 1e-3
SECONDS, BYTES = 300, 8 << 30
BESIDE = re.compile(
    r"attn|attention|self_att|vision|visual|audio|image|conv|router|embed|norm|mamba|mixer\.(in|out|q|k|v|o)_proj|receptance|rel_attn|linear_attn"
    r"|per_layer|laurel|altup|temporal_block|q_lin|k_lin|v_lin|out_lin|block_sparse_moe\.gate|indexer|gate\.weight|mlp\.gate\.|hyper|_hc|mlstm"
)
"""Matrices of a decoder layer that are no MLP; written independently of the coverage that the package checks."""


class Stop(Exception):
    """A stage failed; the record says how."""


@torch.no_grad()
def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    """Logits of fixed token ids, float32."""
    return model(input_ids=ids, use_cache=False).logits.float()


def off(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference."""
    return (a - b).abs().max().item()


def plan_of(model: nn.Module, sites: dict[str, Site], operator: Any = "remove") -> Plan:
    """Random neurons, a quarter of each site."""
    from fairprune_framework.models.weights import fingerprint

    drawn = torch.Generator().manual_seed(1)
    chosen = {
        name: tuple(sorted(torch.randperm(site.units, generator=drawn)[: max(1, int(site.units * SHARE))].tolist()))
        for name, site in sites.items()
    }
    return Plan(model="tiny", fingerprint=fingerprint(model), operator=operator, sites=chosen, requested={}, achieved={})


@torch.no_grad()
def zeroed(model: nn.Module, sites: dict[str, Site], plan: Plan) -> Tensor:
    """Logits with the planned neurons zeroed by hand: their output weights, or before an inner norm their `up` weights."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name, units in plan.sites.items():
        roles = {piece.role for piece in sites[name].slices}
        wanted = ("up", "up_bias") if "inner_norm" in roles else ("out",)
        for piece in sites[name].slices:
            if piece.role in wanted:
                values = model.get_parameter(piece.parameter).data
                for index in piece.lead:
                    values = values[index]
                places = [piece.start + unit * piece.step + column for unit in units for column in range(piece.width)]
                values.index_fill_(piece.axis - len(piece.lead), torch.tensor(places), 0)
    found = logits(model)
    model.load_state_dict(state)
    return found


def uncovered(model: nn.Module, sites: dict[str, Site]) -> list[str]:
    """Matrices of decoder layers that look like part of an MLP and belong to no site, with numbers left out."""
    covered = {piece.parameter for site in sites.values() for piece in site.slices}
    stack = {layer_path(name).rpartition(".")[0] for name in covered}
    found = set()
    for name, parameter in model.named_parameters():
        layer = layer_path(name)
        if name in covered or not layer or layer.rpartition(".")[0] not in stack or parameter.ndim < 2:
            continue
        rest = name.removeprefix(layer).lstrip(".")
        if min(parameter.shape[-2:]) > 8 and not BESIDE.search(rest):
            found.add(re.sub(r"(?<=\.)\d+(?=\.)", "#", rest) + str(tuple(parameter.shape)))
    return sorted(found)


def layout(model: nn.Module, sites: dict[str, Site]) -> str:
    """What its sites are made of: roles, and how many of which kind."""
    kinds: dict[str, int] = {}
    for site in sites.values():
        kinds[site.kind] = kinds.get(site.kind, 0) + 1
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def examine(kind: Kind, family: str, folder: Path, record: dict[str, Any], save: Callable[[], None]) -> None:
    """All stages of one family, each noted in the record as soon as it is done.

    Raises:
        Stop: a stage failed.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    from fairprune_framework.models.architecture import recognise
    from fairprune_framework.models.confirmation import confirm
    from fairprune_framework.models.loading import load_model
    from fairprune_framework.surgery import restoration, undoing
    from fairprune_framework.surgery.obstacles import obstacle
    from fairprune_framework.surgery.removal import save_pruned_model

    auto: Any = AutoModelForCausalLM if kind == "causal" else AutoModelForImageTextToText

    def stage(name: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        try:
            return work()
        except Exception as error:
            where = [frame for frame in traceback.extract_tb(error.__traceback__) if "fairprune" in frame.filename]
            at = f"{Path(where[-1].filename).name}:{where[-1].lineno}" if where else ""
            record["failed"] = {
                "stage": name,
                "type": type(error).__name__,
                "clear": isinstance(error, FairpruneError),
                "text": " ".join(str(error).split())[:500],
                "at": at,
            }
            raise Stop from error
        finally:
            record.setdefault("seconds", {})[name] = round(time.perf_counter() - began, 2)
            save()

    def whole() -> Any:
        built: Any = stage_model
        built.save_pretrained(folder / "whole")
        tiny_tokenizer().save_pretrained(folder / "whole")
        return load_model(str(folder / "whole"))[0]

    stage_model: Any = stage("build", lambda: small_model(family, kind))
    record["class"] = type(stage_model).__name__
    stage("forward", lambda: logits(stage_model))
    model: Any = stage("load", whole)
    record["loaded"] = type(model).__name__
    record["kept"] = type(model) is type(stage_model)
    plain = logits(model)
    architecture = stage("recognise", lambda: recognise(model))
    sites = dict(architecture.sites)
    record |= {"adapter": architecture.name, "sites": layout(model, sites), "uncovered": uncovered(model, sites)}
    unchecked = stage("confirm", lambda: confirm(model, architecture))
    record["unchecked"] = len(unchecked)
    obstacles = sorted({why for site in sites.values() if (why := obstacle(site, "uniform"))})
    record["obstacles"] = obstacles
    operator = "zero" if obstacles else "remove"
    plan = plan_of(model, sites, operator)
    expected = zeroed(model, sites, plan)
    record["effect"] = off(expected, plain)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    kept = folder / "restoration.safetensors"

    def remove() -> Any:
        return save_pruned_model(
            model,
            tiny_tokenizer(),
            plan,
            architecture,
            folder / "model",
            probe_ids=IDS,
            reload=lambda saved: load_model(str(saved))[0],
            restoration=kept,
        )

    done = stage("remove", remove)
    record |= {"operator": operator, "cut": done.cut, "parameters": [done.parameters_before, done.parameters_after]}

    def reload() -> Any:
        by = auto if type(stage_model.config) in auto._model_mapping else type(stage_model)
        return by.from_pretrained(folder / "model", dtype="auto").eval()

    again = stage("reload", reload)
    record["difference"] = off(logits(again), expected)

    def restore() -> bool:
        undoing.restore_in_place(again, restoration.load(kept))
        return all(torch.equal(value, state[name]) for name, value in again.state_dict().items())

    record["restored"] = stage("restore", restore)


def verdict(record: dict[str, Any]) -> str:
    """One of: end to end, zero and scale, refused, partial, wrong, crash, not buildable."""
    failed = record.get("failed")
    if record.get("died"):
        return "crash"
    if failed and failed["stage"] in ("build", "forward"):
        return "not buildable"
    if failed:
        return "refused" if failed["clear"] and failed["type"] not in ("ContractViolation", "VerificationFailed") else "crash"
    if record["uncovered"]:
        return "partial"
    right = record["kept"] and record["effect"] > TOLERANCE >= record["difference"] and record["restored"]
    if not right:
        return "wrong"
    if record["operator"] == "zero":
        return "zero and scale"
    return "end to end" if record["cut"] and record["parameters"][1] < record["parameters"][0] else "wrong"


def child(kind: Kind, family: str, file: Path) -> None:
    """Examine one family and write its record."""
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    signal.alarm(SECONDS)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    if not os.environ.get("FAIRPRUNE_DEBUG"):
        os.dup2(nowhere, 2)
    record: dict[str, Any] = {"kind": kind, "family": family}
    folder = Path(tempfile.mkdtemp(prefix="architectures-"))

    def save() -> None:
        file.write_text(json.dumps(record, indent=1))

    try:
        examine(kind, family, folder, record, save)
    except Stop:
        if os.environ.get("FAIRPRUNE_DEBUG"):
            traceback.print_exc()
    except BaseException as error:
        record["died"] = f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    record["verdict"] = verdict(record)
    save()


def run(work: list[tuple[Kind, str, Path]], jobs: int) -> None:
    """Examine families, `jobs` at a time, each in a fork of this process."""
    running: dict[int, tuple[Kind, str, Path]] = {}
    work = list(work)
    while work or running:
        while work and len(running) < jobs:
            one = work.pop(0)
            pid = os.fork()
            if pid == 0:
                child(*one)
                os._exit(0)
            running[pid] = one
        pid, status = os.wait()
        kind, family, file = running.pop(pid)
        record = json.loads(file.read_text()) if file.exists() else {"kind": kind, "family": family}
        if status:
            record |= {"died": f"status {status}", "verdict": "crash"}
            file.write_text(json.dumps(record, indent=1))
        why = record.get("failed", {})
        text = f"{why.get('stage', '')}: {why.get('type', '')}: {why.get('text', '')[:200]}" if why else ""
        more = "; ".join([*record.get("obstacles", [])[:1], *record.get("uncovered", [])[:3]])
        seconds = sum(record.get("seconds", {}).values())
        adapter = record.get("adapter", "-").replace("fairprune_framework:", "")
        print(
            f"{kind:8}{family:28}{seconds:6.1f}s  {record['verdict']:15}{adapter:24}{text}{more}{record.get('died', '')}",
            flush=True,
        )


WORDS = {
    "end to end": "removed, reloaded, restored",
    "zero and scale": "zeroed or scaled, not removed",
    "refused": "refused",
    "partial": "WRONG: a part of the MLP is in no site",
    "wrong": "WRONG",
    "crash": "WRONG: a traceback",
    "not buildable": "cannot be built small",
}
"""Verdict -> what the page says."""


def page(records: list[dict[str, Any]]) -> str:
    """The table of all families, those that pass first."""
    import transformers

    lines = [
        "# Architectures",
        "",
        f"Every entry of `AutoModelForCausalLM` and `AutoModelForImageTextToText` in transformers {transformers.__version__}, each as a",
        "tiny random model, taken through recognition, the causal check, removal of a quarter of the neurons, a plain",
        "`from_pretrained` of what was saved, and restoration. `removed, reloaded, restored`: the pruned folder has fewer parameters,",
        f"answers as the original with the same neurons zeroed by hand (within {TOLERANCE:g} of a logit), and the restoration gave",
        "every weight back bit by bit. Written by `make architectures`",
        "([`benchmarks/architectures.py`](../../benchmarks/architectures.py)); for one model of your own: `fairprune doctor MODEL`.",
        "",
        "| | entries that can be built | removed, reloaded, restored | zeroed or scaled | refused, with the reason | wrong |",
        "|---|---|---|---|---|---|",
    ]
    for kind, named in (("causal", "causal language models"), ("wrapper", "models with other modalities")):
        verdicts = [record["verdict"] for record in records if record["kind"] == kind and record["verdict"] != "not buildable"]
        good, zero, refused = (verdicts.count(word) for word in ("end to end", "zero and scale", "refused"))
        wrong = len(verdicts) - good - zero - refused
        lines.append(f"| {named} | {len(verdicts)} | {good} | {zero} | {refused} | {wrong} |")
    lines += [
        "",
        "An earlier census of the same transformers, with tiny configurations of its own, had Torch-Pruning 1.6.1 cut 108 of 182 causal",
        "models as zeroed, 96 of which reload once their widths are written into the config by hand, and 18 of 23 wrappers; optipfair",
        "0.4.2 took 38 end to end, and no wrapper. It is not part of this repository, and was not repeated.",
        "",
        "| family | class | adapter | sites | result |",
        "|---|---|---|---|---|",
    ]
    order, reasons = list(WORDS), []
    for record in sorted(records, key=lambda one: (one["kind"], order.index(one["verdict"]), one["family"])):
        adapter = record.get("adapter", "").replace("fairprune_framework:", "")
        cells = (record["family"], record.get("class", ""), adapter, record.get("sites", ""), WORDS[record["verdict"]])
        lines.append("| " + " | ".join(cells) + " |")
        why = record.get("failed", {}).get("text", "") or "; ".join(record.get("obstacles", [])[:1])
        if why and record["verdict"] != "not buildable":
            reasons += textwrap.wrap(
                f"- `{record['family']}`: {without_place(why)}", 128, subsequent_indent="  ", break_on_hyphens=False
            )
    lines += ["", "## Why not", "", *(reasons or ["Every family that can be built works."])]
    return "\n".join(lines) + "\n"


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--kinds", default="causal,wrapper")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--page", type=Path, help="write the table to this .md file")
    parser.add_argument("family", nargs="*")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    given.results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:  # what every child imports, imported once
        examine("causal", "llama", Path(folder), {}, lambda: None)
    work = [
        (kind, family, given.results / f"{kind}-{family}.json")
        for kind in ("causal", "wrapper")
        if kind in given.kinds.split(",")
        for family in model_types(kind)  # type: ignore[arg-type]
        if not given.family or family in given.family
    ]
    run([one for one in work if given.again or not one[2].exists()], given.jobs)
    counts: dict[str, dict[str, int]] = {}
    for kind, _, file in work:
        found = json.loads(file.read_text())["verdict"]
        counts.setdefault(kind, {})[found] = counts.setdefault(kind, {}).get(found, 0) + 1
    print(json.dumps(counts, indent=1))
    if given.page:
        given.page.write_text(page([json.loads(file.read_text()) for _, _, file in work]), encoding="utf-8")


if __name__ == "__main__":
    main()
