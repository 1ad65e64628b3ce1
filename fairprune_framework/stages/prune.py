"""The stage `prune`: guard, then model + plan -> `model/`, verified; or an abstention with its reason."""

from __future__ import annotations

from fairprune_framework.api.types import Plan
from fairprune_framework.calibration.text import padded
from fairprune_framework.errors import UserError
from fairprune_framework.evaluation import judging_text
from fairprune_framework.evaluation.guard import guard
from fairprune_framework.models.loaded import UnreadModel
from fairprune_framework.models.loading import load_model, parameter_count
from fairprune_framework.models.saving import check_savable
from fairprune_framework.runs.run import Run
from fairprune_framework.surgery.by_shard import NO_BIASES, prune_by_shard
from fairprune_framework.surgery.masking import check_fits
from fairprune_framework.surgery.obstacles import refuse_obstacles
from fairprune_framework.surgery.record import Removal
from fairprune_framework.surgery.removal import save_pruned_model
from fairprune_framework.utilities import freed_memory


def check_unread(run: Run) -> None:
    """Raise `UserError` for options that are not of a model of which no forward is computed."""
    if not run.recipe.force:
        raise UserError(
            "--shard-by-shard computes no forward, so that the guard cannot measure what the plan costs: give --force to carry it out "
            "unmeasured"
        )
    if run.recipe.operator == "mean":
        raise UserError(NO_BIASES)


def check(run: Run) -> None:
    """Raise `UserError` for a model that cannot be pruned so, or could not be saved once it is."""
    loaded, operator, protected = run.loaded, run.recipe.operator, set(run.recipe.protected_layers)
    if operator is not None and "plan_file" not in run.record:  # of a plan that was given, the planned sites alone, later
        free = [site for site in loaded.architecture.sites.values() if site.layer not in protected]
        refuse_obstacles(loaded.model, free, operator, run.recipe.widths)
    if (original := loaded.folder) is not None:
        sites = loaded.architecture.sites.values()
        check_savable(original, loaded.model, sorted({slice_.parameter for site in sites for slice_ in site.slices}))


def run(run: Run) -> list[str]:
    """Do the stage; returns the files that it left."""
    loaded, folder, recipe = run.loaded, run.folder, run.recipe
    plan = run.read_plan()
    check_fits(plan, loaded.fingerprint, loaded.architecture)
    if isinstance(loaded, UnreadModel):
        return _by_shard(run, loaded, plan)
    if run.has_calibration:
        _ = run.calibration  # a damaged one is refused before anything is removed
    folder.begin("prune")
    count = parameter_count(loaded.model)
    folder.note(parameters_before=count, parameters_after=count)
    if plan.count == 0:
        folder.note(abstained=True, abstained_because=plan.reason or "the plan is empty")
        return []
    text, limit, max_tokens = run.calibration, recipe.max_perplexity_increase, run.micro_batch_tokens
    judged, cost = guard(loaded.model, loaded.architecture, plan.sites, text, limit, plan.scaling, max_tokens)
    folder.note(guard=judged.to_json())
    key = judging_text.key_of(run.fingerprint, loaded.model, plan, text.judging, max_tokens)
    files = judging_text.save(folder.path, key, cost)
    if not judged.held and not recipe.force:
        because = (
            f"perplexity on judging text would change by {judged.increase:+.1%}, "
            f"more than --max-perplexity-increase {judged.limit:.1%} allows"
        )
        folder.note(abstained=True, abstained_because=because)
        run.notify(f"abstained: {because}")
        return files
    freed_memory.give_back()
    ids, mask = padded([document[:64] for document in run.calibration.judging[:4]])
    removal = save_pruned_model(
        loaded.model,
        loaded.tokenizer,
        plan,
        loaded.architecture,
        folder / "model",
        probe_ids=ids[:, : int(mask.sum(1).min())],
        round_to=recipe.round_to,
        widths=recipe.widths,
        reload=lambda saved: load_model(str(saved), dtype=recipe.dtype, trust_remote_code=recipe.trust_remote_code)[0].to(
            loaded.device
        ),
        restoration=folder / "restoration.safetensors",
        original=loaded.folder,
        dtype=loaded.dtype,
        measured=(lambda speed: folder.note(speed=speed.to_json())) if run.measures_speed else None,
    )
    return [*_done(run, removal), *files]


def _by_shard(run: Run, loaded: UnreadModel, plan: Plan) -> list[str]:
    """The stage for a model that is read tensor by tensor: no guard, and nothing of `guard` in the record."""
    folder, recipe = run.folder, run.recipe
    folder.begin("prune")
    count = parameter_count(loaded.model)
    folder.note(parameters_before=count, parameters_after=count)
    if plan.count == 0:
        folder.note(abstained=True, abstained_because=plan.reason or "the plan is empty")
        return []
    removal = prune_by_shard(
        loaded.checkpoint,
        plan,
        loaded.architecture,
        folder / "model",
        restoration=folder / "restoration.safetensors",
        round_to=recipe.round_to,
        widths=recipe.widths,
        dtype=loaded.dtype,
        notify=run.notify,
    )
    run.notify("the guard did not measure the plan: shard by shard no forward is computed")
    return _done(run, removal)


def _done(run: Run, removal: Removal) -> list[str]:
    """Write down and say what was done; returns the files."""
    run.folder.note(abstained=False, removal=removal.to_json(), parameters_after=removal.parameters_after)
    for note in (removal.note, *removal.files):
        if note:
            run.notify(f"prune: {note}")
    return ["model", "restoration.safetensors"]
