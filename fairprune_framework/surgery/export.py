"""`fairprune export`: the pruned model of a run for another program.

hf    a folder of plain transformers: uneven layers are filled up with zeros to the width that the config says, no code beside it
vllm  the folder as it is stored; uneven layers want vLLM's Transformers backend
gguf  one file for llama.cpp; uneven layers as they are where the model is Llama-shaped, else filled up
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from fairprune_framework.errors import UserError, VerificationFailed
from fairprune_framework.surgery.restore import found_in
from fairprune_framework.utilities.files import move_folder, refuse_unwritable, sweep, temporary_folder

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


def misfits(model: Any, tokenizer: Any) -> dict[Format, str | None]:
    """Format -> why a model cannot be written in it; None: it can, pruned or not."""
    from fairprune_framework.models.gguf_writing import unfit

    return {"hf": None, "vllm": None, "gguf": unfit(model, tokenizer)}


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
    from fairprune_framework.models.loading import load_model

    if format not in get_args(Format):
        raise UserError(f"--format must be hf, vllm or gguf. Got {format!r} instead.")
    target = Path(output)
    source, _ = found_in(folder)
    _refuse_taken(target, file=format == "gguf")
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent, target.name)
    if format == "vllm":
        return _stored(source, target)
    model, tokenizer = load_model(str(source), trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
    if format == "gguf":
        return _gguf(model, tokenizer, source, target)
    return _plain(model, source, target, trust_remote_code=trust_remote_code)


def _refuse_taken(target: Path, *, file: bool) -> None:
    refuse_unwritable(target.parent if file else target)
    if file and target.suffix != ".gguf":
        raise UserError(f"--output must end in .gguf. Got {str(target)!r} instead.")
    if target.exists() and (file or not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists: choose another --output")


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
    from fairprune_framework.utilities.files import read_json

    with temporary_folder(target) as temporary:
        _copy(source, temporary)
        move_folder(temporary, target)
    more = " --model-impl transformers --trust-remote-code" if read_json(target / "config.json").get(FIELD) else ""
    return _exported("vllm", target, 0, f"vllm serve {target}{more}")


def _gguf(model: Any, tokenizer: Any, source: Path, target: Path) -> Exported:
    from fairprune_framework.models.gguf_writing import is_llama_shaped, write_gguf
    from fairprune_framework.surgery.filling import fill_in_place

    if (why := misfits(model, tokenizer)["gguf"]) is not None:
        raise UserError(f"{source} cannot be written as GGUF: {why}. --format hf writes a folder that converters read")
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
