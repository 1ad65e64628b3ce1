"""`fairprune export`: the pruned model of a run for another program.

hf    a folder of plain transformers: uneven layers are filled up with zeros to the width that the config says, no code beside it
vllm  the folder as it is stored; uneven layers want vLLM's Transformers backend
gguf  one file for llama.cpp; uneven layers as they are where the model is Llama-shaped, else filled up
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch

from fairprune_framework.errors import UserError, VerificationFailed
from fairprune_framework.surgery.restore import found_in
from fairprune_framework.utilities.files import (
    move_folder,
    read_json,
    refuse_inside,
    refuse_part_of_run,
    refuse_unwritable,
    sweep,
    temporary_folder,
)

Format = Literal["hf", "vllm", "gguf"]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    format: Format
    output: str
    bytes: int
    """Of the weights in a folder, or of the file."""
    filled: int
    """Parameters that were filled up with zeros."""
    architecture: str | None
    """In a GGUF file."""
    serve: str
    """How it is read."""

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def misfit(format: Format, model: Any, tokenizer: Any) -> str | None:
    """Why a model cannot be written in a format; None: it can. What `export` refuses and what `fairprune doctor` says is decided here.

    Args:
        model: as it would be written; no value is read, so that it may be on `meta`.
    """
    from fairprune_framework.models.gguf_writing import is_llama_shaped, unfit
    from fairprune_framework.surgery.filling import why_unfilled

    if format == "vllm":
        return _why_unserved(model)
    if format == "gguf" and ((why := unfit(model, tokenizer)) is not None or is_llama_shaped(model)):
        return None if why is None else f"{why}. --format hf writes a folder that converters read"
    return why_unfilled(model)


def _why_unserved(model: Any) -> str | None:
    """vLLM reads uneven widths through its Transformers backend alone, which asks a class whether it may."""
    from fairprune_framework.models.uneven import FIELD

    if not getattr(model.config, FIELD, None) or type(model).is_backend_compatible():
        return None
    return (
        f"its layers have widths of their own, which vLLM reads through its Transformers backend alone, and that does not take "
        f"{type(model).__name__}: --format hf fills them up"
    )


def export(
    folder: Path, output: str | Path, format: str, *, trust_remote_code: bool = False, allow_pickle: bool = False
) -> Exported:
    """Write the pruned model of a run, or the model in a folder, for another program.

    Args:
        output: the folder to make, or the file that ends in `.gguf`; it must not exist, or be an empty folder.
        format: `hf`, `vllm` or `gguf`.

    Raises:
        UserError: no such model, an output that is taken, or a model that the format cannot hold; the text says why.
        VerificationFailed: what was written does not answer as the model; nothing is kept.
    """
    from fairprune_framework.models.checkpoint import Checkpoint, skeleton
    from fairprune_framework.models.loading import load_model
    from fairprune_framework.models.uneven import FIELD

    if format not in get_args(Format):
        raise UserError(f"--format must be hf, vllm or gguf. Got {format!r} instead.")
    target = Path(output)
    source, _ = found_in(folder)
    _refuse_taken(target, file=format == "gguf")
    refuse_inside(target, source)
    refuse_part_of_run(target)
    model, tokenizer = None, None
    if format != "vllm":
        model, tokenizer = load_model(str(source), trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    else:
        _refuse_broken(source, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
        if FIELD in read_json(source / "config.json", constants="keep"):  # a class of transformers; no weight need be read
            model = Checkpoint(source, skeleton(source, str(source))).model
    if model is not None and (why := misfit(cast(Format, format), model, tokenizer)) is not None:
        raise UserError(f"{source} cannot be written in the format {format}: {why}")
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent, target.name)
    if format == "vllm":
        return _stored(source, target)
    if format == "gguf":
        return _gguf(model, tokenizer, source, target)
    return _plain(model, source, target, trust_remote_code=trust_remote_code)


def _refuse_taken(target: Path, *, file: bool) -> None:
    refuse_unwritable(target.parent if file else target)
    if file and target.suffix != ".gguf":
        raise UserError(f"--output must end in .gguf. Got {str(target)!r} instead.")
    if target.exists() and (file or not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists: choose another --output")


def _refuse_broken(source: Path, *, trust_remote_code: bool, allow_pickle: bool) -> None:
    """Raise `UserError` for a folder that would not be loaded, as far as that can be told without reading weights."""
    from fairprune_framework.models.saving import WEIGHTS, WHOLE, shards
    from fairprune_framework.models.untrusted import refuse_code, refuse_oversized

    refuse_code(source, str(source), trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    absent = [file.name for file in shards(source) if not file.is_file()]
    if absent or not any(file.suffix in WEIGHTS for file in source.iterdir()):
        raise UserError(f"there is no {absent[0] if absent else WHOLE} in {source}")
    refuse_oversized(source, str(source))


def _plain(model: Any, source: Path, target: Path, *, trust_remote_code: bool) -> Exported:
    from fairprune_framework.models import uneven
    from fairprune_framework.models.loading import load_model
    from fairprune_framework.models.saving import KEPT_README, README, save_like
    from fairprune_framework.surgery.equality import MAX_DIFFERENCE, in_float32, logits_of
    from fairprune_framework.surgery.filling import fill_in_place

    ids = torch.arange(3, 19).remainder(int(model.config.get_text_config().vocab_size)).unsqueeze(0)
    with in_float32(model):
        expected = logits_of(model, ids)
    names = fill_in_place(model)
    with temporary_folder(target) as temporary:
        if names:
            save_like(source, temporary, model, parameters=names, fields={})
            uneven.mark(temporary, model, names)
            for name in (README, KEPT_README):
                if (source / name).is_file():
                    shutil.copyfile(source / name, temporary / name)
        else:
            _copy(source, temporary)
        again = load_model(str(temporary), trust_remote_code=trust_remote_code)[0]
        with in_float32(again):
            difference = (logits_of(again, ids) - expected).abs().max().item()
        if not difference <= MAX_DIFFERENCE:
            raise VerificationFailed(
                f"the exported model answers otherwise: logits differ by {difference:.2e}. Nothing was kept."
            )
        move_folder(temporary, target)
    return _exported("hf", target, len(names), f'AutoModelForCausalLM.from_pretrained("{target}")')


def _stored(source: Path, target: Path) -> Exported:
    from fairprune_framework.models.uneven import FIELD

    with temporary_folder(target) as temporary:
        _copy(source, temporary)
        move_folder(temporary, target)
    more = " --model-impl transformers --trust-remote-code" if read_json(target / "config.json").get(FIELD) else ""
    return _exported("vllm", target, 0, f"vllm serve {target}{more}")


def _gguf(model: Any, tokenizer: Any, source: Path, target: Path) -> Exported:
    from fairprune_framework.models.gguf_writing import is_llama_shaped, write_gguf
    from fairprune_framework.surgery.filling import fill_in_place

    names = [] if is_llama_shaped(model) else fill_in_place(model)
    with temporary_folder(target) as temporary:
        architecture = write_gguf(model, tokenizer, temporary / target.name, source.resolve().parent.name)
        move_folder(temporary / target.name, target)
    return _exported("gguf", target, len(names), f"llama-cli -m {target}", architecture)


def _copy(source: Path, target: Path) -> None:
    """Everything in a model's folder but what belongs to its pruning."""
    from fairprune_framework.models.saving import OURS

    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*OURS))


def _exported(format: Format, target: Path, filled: int, serve: str, architecture: str | None = None) -> Exported:
    from fairprune_framework.models.saving import shards

    files = [target] if target.is_file() else shards(target)
    size = sum(file.stat().st_size for file in files)
    return Exported(format=format, output=str(target), bytes=size, filled=filled, architecture=architecture, serve=serve)
