"""A model's folder of safetensors that is not loaded: names and shapes on the meta device, values read one tensor at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.errors import UserError, shown
from fairprune_framework.models.blocks import Layout
from fairprune_framework.models.loading import class_for, folder_of, reading, refuse_infinite
from fairprune_framework.models.saving import CONFIG, refuse_part
from fairprune_framework.models.saving import shards as shards_of
from fairprune_framework.models.uneven import FIELD
from fairprune_framework.models.untrusted import refuse_code, refuse_oversized
from fairprune_framework.models.weights import Digest
from fairprune_framework.utilities import stopping
from fairprune_framework.utilities.files import read_json
from fairprune_framework.utilities.tensor_files import TensorFile, Tensors


class Checkpoint:
    """The safetensors of a folder under the names that a model has for them.

    Args:
        folder: with `config.json` and all shards.
        model: on the meta device, of the dtypes in which `load_model` would load it.
        shards: file -> its tensors; None: as the folder holds them.

    Raises:
        UserError: the files lack a tensor of the model, name it otherwise, or hold it in another shape.
    """

    def __init__(self, folder: Path, model: nn.Module, shards: Mapping[str, Tensors] | None = None) -> None:
        self.folder, self.model = folder, model
        self.shards: Mapping[str, Tensors] = (
            {path.name: TensorFile(path) for path in shards_of(folder)} if shards is None else shards
        )
        self._file_of = {name: file for file in self.shards.values() for name in file}
        self.layout = layout_of(folder, model, self._file_of)
        for name in self.layout.blocks:
            found, wanted = tuple(self._file_of[name].like(name).shape), self.layout.shape(name)
            if found != wanted:
                raise UserError(f"the weights of {folder.name} do not fit its config.json: {name} is {found}, not {wanted}")

    def part(self, stored: str) -> Tensor:
        """A tensor of the files, in the dtype in which it would be loaded; mapped from the disk where that is its own."""
        return self._file_of[stored][stored].to(self.layout.dtype(stored))

    def parts(self, name: str) -> Iterator[Tensor]:
        """The tensors of the files that make a parameter or buffer of the model, in the order of memory."""
        for stored in self.layout.stored_as[name]:
            stopping.check()
            yield self.part(stored)

    @cached_property
    def digests(self) -> tuple[str, str]:
        """`fingerprint` and `weights_digest` of the model, from one reading of all values.

        Raises:
            UserError: a weight is NaN or infinite.
        """
        both = Digest(exact=False), Digest(exact=True)
        for name, like in self.layout.like.items():
            for digest in both:
                digest.begin(name, like)
            for part in self.parts(name):
                refuse_infinite(self.folder.name, name, part)
                for digest in both:
                    digest.feed(part)
                del part  # before the next is read
            for digest in both:
                digest.end()
        return both[0].hexdigest(), both[1].hexdigest()


def layout_of(folder: Path, model: nn.Module, stored: Collection[str]) -> Layout:
    """Where the tensors of the files of a folder lie in a model.

    Raises:
        UserError: they lack a tensor of the model, or transformers puts it together from them in a way that is not known here.
    """
    try:
        return Layout(model, stored)
    except KeyError as error:
        refuse_part(folder, model)
        raise UserError(
            f"the files of {folder.name} hold {error.args[0]} under another name, or not at all: {type(model).__name__} is put together "
            "from them when it is loaded, and cannot be read shard by shard"
        ) from None


def open_checkpoint(name: str, *, dtype: str = "auto", revision: str | None = None) -> Checkpoint:
    """A named model's folder, of which no weight is read yet.

    Args:
        name, dtype, revision: as for `load_model`.

    Raises:
        UserError: it is no folder of safetensors, is quantised, comes with code of its own, keeps some modules in another dtype, or
            names its tensors otherwise than transformers does.
    """
    folder = folder_of(name, revision)
    if folder is None:
        raise UserError(
            f"{name} cannot be pruned shard by shard: it is a GGUF file, and only safetensors are read tensor by tensor"
        )
    refuse_code(folder, name, trust_remote_code=False, allow_pickle=False)
    refuse_oversized(folder, name)
    files = shards_of(folder)
    if absent := [file.name for file in files if not file.is_file()] or ([] if files else ["model.safetensors"]):
        raise UserError(f"{name} cannot be pruned shard by shard: there is no {absent[0]} in {folder}")
    if "quantization_config" in read_json(folder / CONFIG, constants="keep"):
        raise UserError(f"{name} cannot be pruned shard by shard: its weights are quantised")
    model = skeleton(folder, name, dtype)
    strict, half = (getattr(model, f"_keep_in_fp32_modules{more}", None) for more in ("_strict", ""))
    wanted = next(model.parameters()).dtype
    if (strict and wanted != torch.float32) or (half and wanted == torch.float16):
        raise UserError(f"{name} cannot be pruned shard by shard: {type(model).__name__} keeps some of its modules in float32")
    return Checkpoint(folder, model)


def skeleton(folder: Path, name: str, dtype: str = "auto") -> nn.Module:
    """The model of a folder of safetensors on the meta device, all of it in the dtype in which `from_pretrained` loads it.

    Args:
        name: of the model, in messages.

    Raises:
        UserError: its config names parameters of uneven width that the class lacks.
    """
    import transformers

    with reading(name):
        config = transformers.AutoConfig.from_pretrained(folder)
        wanted = _dtype(config, folder) if dtype == "auto" else getattr(torch, dtype)
        family: Any = class_for(str(folder), {})
        make = getattr(family, "from_config", None) or family._from_config
        with torch.device("meta"):
            model: nn.Module = make(config, dtype=wanted)
    named = getattr(config, FIELD, None) or {}
    if strange := sorted(named.keys() - dict(model.named_parameters()).keys()):
        raise UserError(f"{FIELD} of the config of {name!r} names {shown(strange[0])}, which {type(model).__name__} lacks")
    return model.eval()


def _dtype(config: Any, folder: Path) -> torch.dtype:
    """What `dtype="auto"` means: what the config says, or that of the first floating tensor."""
    if config.dtype is not None:
        found: torch.dtype = getattr(torch, config.dtype) if isinstance(config.dtype, str) else config.dtype
        return found
    file = TensorFile(shards_of(folder)[0])
    return next((value.dtype for value in file.values() if value.is_floating_point()), torch.float32)
