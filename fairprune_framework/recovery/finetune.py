"""`fairprune finetune`: a run with a pruned model in, a model after a short training out, measured, in a folder of its own.

The folder appears when the trained model was saved, loaded again and compared bit by bit; the verdict, which takes longest, is added to it.
The same command goes on where it was stopped: a training that is done is not done again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fairprune_framework.errors import RunFolderError, UserError, VerificationFailed
from fairprune_framework.models.architecture import recognise
from fairprune_framework.models.loading import load_model, public_name
from fairprune_framework.models.saving import KEPT_README, README, save_like
from fairprune_framework.models.weights import fingerprint
from fairprune_framework.recovery import record as manifest
from fairprune_framework.recovery.adapters import add_adapters, linear_modules, merge
from fairprune_framework.recovery.held import Held, remaining
from fairprune_framework.recovery.measuring import NULL, Losses, judge, losses_of, perplexities, side_by_side
from fairprune_framework.recovery.options import Options
from fairprune_framework.recovery.text import RecoveryText, read
from fairprune_framework.recovery.training import RecoveryDataModule, RecoveryModule, fit, train_decoder
from fairprune_framework.runs.run import Run
from fairprune_framework.surgery.restoration import load
from fairprune_framework.surgery.restore import found_in
from fairprune_framework.utilities import stopping
from fairprune_framework.utilities.files import (
    digest,
    move_folder,
    refuse_inside,
    refuse_part_of_run,
    refuse_unwritable,
    remove,
    sweep,
    temporary_folder,
    write_text,
)
from fairprune_framework.utilities.versions import versions

FOLDER = "finetuned"
"""In the run folder, where no other is named."""


def finetune(
    run: Run, options: Options, output: str | Path | None = None, *, overwrite: bool = False, verdict: bool = True
) -> tuple[Path, dict[str, Any]]:
    """Train the pruned model of a run, save it, and measure it against the original.

    Args:
        output: the folder to make; None: `finetuned/` in the run folder.
        overwrite: replace a finetuned model that is there.
        verdict: evaluate the run's contrasts too; otherwise perplexity alone.

    Returns:
        The folder, and the content of its `finetune.json`.

    Raises:
        RunFolderError: the run has no pruned model, or the output is taken.
        UserError: a text that cannot be used, or a model that cannot be trained so.
        VerificationFailed: a planned neuron changed, or the saved model is not the trained one; nothing is kept.
    """
    source, beside = found_in(run.folder.path)
    target = _target(run, output, source)
    try:
        run.folder.own()
        text = read(options, run.loaded.encoder, run.calibration)
        key = _key(run, options, text)
        done = _known(target, key, overwrite)
        if done is None:
            done = _trained(run, options, text, source, beside, target, key)
        else:
            run.notify("training: done before")
        if verdict and done["verdict"] is None:
            done = _judged(run, target, done)
        return target, done
    finally:
        run.folder.release()


def _target(run: Run, output: str | Path | None, source: Path) -> Path:
    if output == "":
        raise UserError("--output must name a folder. Got '' instead.")
    target = run.folder / FOLDER if output is None else Path(output)
    refuse_unwritable(target)
    if target.resolve() in (source.resolve(), run.folder.path.resolve()):
        raise UserError(f"{target} holds what is trained: choose another --output")
    refuse_inside(target, source)
    if target.resolve() != (run.folder / FOLDER).resolve():
        refuse_part_of_run(target)
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UserError(f"{target} exists and is no folder: choose another --output")
    if target.is_dir() and not (target / manifest.FILE).is_file() and any(target.iterdir()):
        raise UserError(f"{target} exists and holds no finetuned model (no {manifest.FILE}): choose another --output")
    return target


def _key(run: Run, options: Options, text: RecoveryText) -> str:
    """Hash of all that the trained weights depend on."""
    pruned = run.record["stages"]["prune"]["files"]
    weights = sorted((name, file["sha256"]) for name, file in pruned.items())
    wanted = {name: value for name, value in options.to_json().items() if name not in ("text", "tokens")}
    return digest([wanted, weights, text.training, text.heldout, run.fingerprint])


def _known(target: Path, key: str, overwrite: bool) -> dict[str, Any] | None:
    """The manifest of the same training, where it is done; None: there is nothing, or what may be replaced."""
    if overwrite or not (target / manifest.FILE).is_file():
        return None
    known = manifest.read(target)
    if known["key"] == key:
        return known
    raise RunFolderError(
        f"{target} holds a model finetuned otherwise, or from another model/: give --overwrite to replace it, or another --output"
    )


def _trained(
    run: Run, options: Options, text: RecoveryText, source: Path, beside: Path, target: Path, key: str
) -> dict[str, Any]:
    recipe, loaded = run.recipe, run.loaded
    model = _loaded(run, source)
    losses: dict[str, Losses] = {"pruned": losses_of(run, model, text)}
    sites = recognise(model, recipe.architecture).sites
    for parameter in model.parameters():  # a step is smaller than what 16 bits tell apart
        parameter.data = parameter.data.float()
    held = Held(model, sites, remaining(load(beside)))
    losses["original"] = losses_of(run, loaded.model, text)
    if not options.distill:
        loaded.release()
    run.notify(f"training on {len(text.training)} documents of {text.source}, {text.tokens:,} tokens")
    model, names, module = _fitted(run, options, text, model, held)
    held.check(model)
    model.cpu()
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent, target.name)
    with temporary_folder(target) as temporary:
        save_like(source, temporary, model, parameters=names, fields={})
        for name in {
            README,
            *(set() if (source / KEPT_README).is_file() else {KEPT_README}),
        }:  # the card is of the pruned model
            (temporary / name).unlink(missing_ok=True)
        _verify(model, _loaded(run, temporary, as_stored=True))
        del model
        saved = _loaded(run, temporary)
        losses["finetuned"] = losses_of(run, saved, text)
        named = None if options.text is None else Path(options.text).name
        record = {
            "key": key,
            "options": options.to_json() | {"text": named},
            "text": {
                "source": named or text.source,
                "training_documents": len(text.training),
                "training_tokens": text.tokens,
                "heldout_documents": len(text.heldout),
                "left_out": text.left_out,
                "hash": digest(text.training),
            },
            "held": held.count,
            "trained_parameters": module.trained_parameters,
            "trained_tokens": module.seen,
            "losses": module.losses,
            "perplexity": perplexities(run, text, losses),
            "hashes": {"original": run.fingerprint, "finetuned": fingerprint(saved)},
            "versions": versions(),
            "verdict": None,
            "measures": [],
        }
        (temporary / README).write_text(manifest.card(record, public_name(loaded.name)), encoding="utf-8")
        record = manifest.write(temporary, record)
        stopping.check()
        with stopping.shielded():
            remove(target)
            move_folder(temporary, target)
    return record


def _fitted(
    run: Run, options: Options, text: RecoveryText, model: nn.Module, held: Held
) -> tuple[nn.Module, list[str], RecoveryModule]:
    """The trained model, the names of the weights that were trained, and what trained them."""
    device = run.loaded.device
    adapted = None
    teacher = run.loaded.model if options.distill else None
    with _seeded(options.seed, device):
        if options.method == "lora":
            names = [f"{name}.weight" for name in linear_modules(model)]
            adapted = add_adapters(model, options.lora_rank)
        else:
            train_decoder(model)
            names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        module = RecoveryModule(
            model,
            teacher=teacher,
            learning_rate=options.highest_rate,
            steps=options.planned_steps,
        )
        data = RecoveryDataModule(text.training, options.batch_tokens, options.planned_steps, options.seed)
        fit(module, data, held, device)
    return (model if adapted is None else merge(adapted)), names, module


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from a seed, and leave the generators as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _loaded(run: Run, folder: Path, *, as_stored: bool = False) -> nn.Module:
    """A model in a folder, in the dtype and on the device of the run; or on the CPU, in the dtypes of its files."""
    recipe = run.recipe
    model = load_model(
        str(folder),
        dtype="auto" if as_stored else recipe.dtype,
        trust_remote_code=recipe.trust_remote_code,
        allow_pickle=recipe.allow_pickle,
    )[0]
    return model if as_stored else model.to(run.loaded.device)


def _verify(model: nn.Module, again: nn.Module) -> None:
    """Raise `VerificationFailed` unless a model that was saved loads as it was, in the dtypes of its files."""
    found, wanted = dict(again.named_parameters()), dict(model.named_parameters())
    if found.keys() != wanted.keys() or not all(
        torch.equal(found[name], wanted[name].to(found[name].dtype)) for name in wanted
    ):
        raise VerificationFailed("the reloaded model is not the one that was trained. Nothing was kept.")


def _judged(run: Run, target: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Add the verdict and what it rests on to a finetuned model's folder."""
    if "plan_file" in run.record or not run.folder.has("read"):
        run.notify("no verdict: the plan came as a file, and the run has no contrasts")
        return record
    sweep(target)
    evaluation, verdict = judge(run, lambda: _loaded(run, target))
    evaluation.save(target)
    reasons = [reason.to_json() for reason in verdict.reasons]
    judged = {"word": verdict.word, "because": verdict.because, "reasons": reasons, "needs": list(verdict.needs), "null": NULL}
    of_pruning = run.read_evaluation() if run.folder.has("evaluate") else None
    record = {**record, "verdict": judged, "measures": side_by_side(evaluation, of_pruning)}
    write_text(target / README, manifest.card(record, public_name(run.loaded.name)))
    return manifest.write(target, record)
