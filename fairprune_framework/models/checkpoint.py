"""A model's folder of safetensors that is not loaded: names and shapes on the meta device, values read one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.errors import UserError
from fairprune_framework.models.loading import class_for, folder_of, reading, refuse_infinite
from fairprune_framework.models.saving import CONFIG, partners_of, refuse_part, shards
from fairprune_framework.models.untrusted import refuse_code, refuse_oversized
from fairprune_framework.models.weights import Digest, saved_tensors
from fairprune_framework.utilities import stopping
from fairprune_framework.utilities.files import read_json
from fairprune_framework.utilities.tensor_files import TensorFile


class Checkpoint:
    """The safetensors of a folder under the names that a model has for them.

    Args:
        folder: with `config.json` and all shards.
        model: on the meta device, of the dtypes in which `load_model` would load it.

    Raises:
        UserError: the files lack a tensor of the model, name it otherwise, or hold it in another shape.
    """

    def __init__(self, folder: Path, model: nn.Module) -> None:
        self.folder, self.model = folder, model
        self.shards = {path.name: TensorFile(path) for path in shards(folder)}
        self._file_of = {name: file for file in self.shards.values() for name in file}
        self._like = dict(saved_tensors(model))
        partners = partners_of(self._like, self._file_of)
        if partners is None:
            refuse_part(folder, model)
            absent = next((name for name in self._like if name not in self._file_of), "a tensor")
            raise UserError(
                f"the files of {folder.name} hold {absent} under another name, or not at all: {type(model).__name__} is put together "
                "from them when it is loaded, and cannot be pruned shard by shard"
            )
        self.stored_as = partners
        """Name in the model -> name in the files."""
        for name, like in self._like.items():
            found = tuple(self.stored(name).shape)
            if found != tuple(like.shape):
                raise UserError(
                    f"the weights of {folder.name} do not fit its config.json: {name} is {found}, not {tuple(like.shape)}"
                )

    def stored(self, name: str) -> Tensor:
        """A parameter or buffer of the model as the files hold it, mapped from the disk."""
        return self._file_of[self.stored_as[name]][self.stored_as[name]]

    def read(self, name: str) -> Tensor:
        """A parameter or buffer of the model, in the dtype in which it would be loaded."""
        return self.stored(name).to(self._like[name].dtype)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """As `saved_tensors` of the loaded model."""
        for name in self._like:
            stopping.check()
            yield name, self.read(name)

    @cached_property
    def digests(self) -> tuple[str, str]:
        """`fingerprint` and `weights_digest` of the model, from one reading of all values.

        Raises:
            UserError: a weight is NaN or infinite.
        """
        rounded, exact = Digest(exact=False), Digest(exact=True)
        for name, value in self.tensors():
            refuse_infinite(self.folder.name, name, value)
            rounded.add(name, value)
            exact.add(name, value)
        return rounded.hexdigest(), exact.hexdigest()


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
    files = shards(folder)
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
    """
    import transformers

    with reading(name):
        config = transformers.AutoConfig.from_pretrained(folder)
        wanted = _dtype(config, folder) if dtype == "auto" else getattr(torch, dtype)
        family: Any = class_for(str(folder), {})
        make = getattr(family, "from_config", None) or family._from_config
        with torch.device("meta"):
            model: nn.Module = make(config, dtype=wanted)
    return model.eval()


def _dtype(config: Any, folder: Path) -> torch.dtype:
    """What `dtype="auto"` means: what the config says, or that of the first floating tensor."""
    if config.dtype is not None:
        found: torch.dtype = getattr(torch, config.dtype) if isinstance(config.dtype, str) else config.dtype
        return found
    file = TensorFile(shards(folder)[0])
    return next((value.dtype for value in file.values() if value.is_floating_point()), torch.float32)
