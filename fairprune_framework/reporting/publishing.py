"""`fairprune push`: upload `model/` of a finished run with its card, and nothing else; an abstained run is refused."""

from __future__ import annotations

import os
from pathlib import Path

from fairprune_framework.errors import FairpruneError, RunFolderError, UserError
from fairprune_framework.utilities import integrity
from fairprune_framework.utilities.files import RUN_RECORD
from fairprune_framework.utilities.schemas import RunRecord, read_checked


def pushable(folder: Path) -> Path:
    """The model folder of a run, if it may be uploaded.

    Raises:
        RunFolderError: not a run folder, or the run abstained, is unfinished, or has no card.
    """
    if not (folder / RUN_RECORD).is_file():
        raise RunFolderError(f"{folder} is not a run folder (it contains no run.json)")
    record = read_checked(folder / "run.json", RunRecord)
    if record.get("abstained"):
        raise RunFolderError(
            f"{folder} abstained, there is nothing to push: {record.get('abstained_because', 'no reason given')}"
        )
    model = folder / "model"
    if not model.is_dir():
        raise RunFolderError(f"{folder} contains no pruned model: run `fairprune prune --output {folder}` first")
    stages = record.get("stages") or {}
    if "evaluate" not in stages:
        raise RunFolderError(f"{folder} has not been evaluated: run `fairprune evaluate --output {folder}` first, then report")
    if not (model / "README.md").is_file():
        raise RunFolderError(f"{model} has no card: run `fairprune report {folder}` first")
    for stage in ("prune", "evaluate", "report"):
        files = stages.get(stage, {}).get("files", {})
        if (damage := integrity.damage(folder, {name: files[name] for name in files if name.startswith("model/")})) is not None:
            raise RunFolderError(f"{damage}: do the stage {stage!r} again with `fairprune {stage} --overwrite`")
    return model


def push(folder: Path, repo: str, *, private: bool = False, revision: str | None = None) -> str:
    """Upload `model/` of a run as one commit; a missing repository is created.

    Args:
        repo: `owner/model` on the hub given by `HF_ENDPOINT` (by default the public one).
        private: create the repository as private.
        revision: branch; created if missing.

    Returns:
        Address of the commit.

    Raises:
        UserError: the run cannot be pushed, the name is invalid, `HF_TOKEN` has no token, or the hub refuses.
        FairpruneError: the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    model = pushable(folder)
    verdict = read_checked(folder / "run.json", RunRecord).get("verdict")
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise UserError(
            "no token: set the environment variable HF_TOKEN to a token with write access (it is read from nowhere else)"
        )
    endpoint = os.environ.get("HF_ENDPOINT")
    api = HfApi(endpoint=endpoint, token=token, library_name="fairprune_framework")
    try:
        api.create_repo(repo, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            folder_path=model,
            revision=revision,
            commit_message=f"Upload a model pruned by fairprune_framework: {verdict}",
        )
    except HFValidationError as error:
        raise UserError(f"--repo must be a name such as owner/model. Got {repo!r} instead: {error}") from error
    except OfflineModeIsEnabled as error:
        raise UserError("HF_HUB_OFFLINE is set: unset it to push") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = {401: "the token in HF_TOKEN is not accepted", 403: "the token in HF_TOKEN has no write access there"}
        raise UserError(
            f"the hub refuses {repo!r}: {hint.get(status, f'{error}'.splitlines()[0])} (status {status})"
        ) from error
    except ValueError as error:  # the hub's validation of the card's metadata
        raise UserError(f"the hub does not accept the card {model / 'README.md'}: {error}") from error
    except Exception as error:
        if not isinstance(error, OSError) and not type(error).__module__.startswith("httpx"):
            raise
        raise FairpruneError(f"the hub cannot be reached ({type(error).__name__}): nothing was pushed") from error
    return str(done.commit_url)
