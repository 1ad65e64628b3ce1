"""Models of which each MLP has a width of its own: `uneven_shapes` in `config.json`, and a modelling file for other readers.

No config of transformers says one width per layer. The family's class is built as its config says, and the parameters that are
narrower, or that the class lacks (biases of output projections), are put there before weights are read: by `load_model` here, and by
the file `modeling_uneven.py`, which is these functions and a subclass, for transformers and vLLM with `trust_remote_code=True`.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fairprune_framework.errors import UserError, shown

FIELD = "uneven_shapes"
"""Config field: parameter -> its shape, where it is not the one that the other fields say, or they say none."""
FILE = "modeling_uneven.py"

_HEAD = '''"""{name} with MLPs of uneven width, written by fairprune_framework.

`{field}` of config.json holds the shapes of the parameters that are narrower than the other fields say, or beside those. Everything else is
{module}. Needs transformers, and no other package.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from {module} import {imports}


'''
_CLASS = """

class {name}({whole}):
    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        narrow(self, getattr(config, "{field}", None) or {{}}{prefix})

    @classmethod
    def is_custom_code(cls):  # tensors are named in files as the family's are
        return False
"""


def put(module: Any, attribute: str, parameter: nn.Parameter | None) -> None:
    """Set a parameter of a module, and the widths that a Linear or Conv1D keeps of its weight."""
    setattr(module, attribute, parameter)
    if parameter is None or attribute != "weight":
        return
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = parameter.shape
    elif hasattr(module, "nf"):  # Conv1D of transformers: (in, out)
        module.nx, module.nf = parameter.shape


def narrow(model: nn.Module, shapes: Mapping[str, Sequence[int]], prefix: str = "") -> None:
    """Give parameters of a model these shapes, without values; `prefix` is what their names begin with in the whole model."""
    for name, shape in shapes.items():
        path, _, attribute = name.removeprefix(prefix).rpartition(".")
        module: Any = model.get_submodule(path)
        old = getattr(module, attribute)
        old = module.weight if old is None else old  # a bias that the class lacks
        empty = torch.empty(shape, dtype=old.dtype, device=old.device)
        put(module, attribute, nn.Parameter(empty, requires_grad=old.requires_grad))


def uneven_shapes(model: Any, names: Iterable[str]) -> dict[str, list[int]]:
    """Those of these parameters, and of those that the config names already, that its other fields do not give this shape. Absent
    ones are left out."""
    config = copy.deepcopy(model.config)
    vars(config).pop(FIELD, None)
    with torch.device("meta"):
        plain = type(model)(config)
    wanted, here = {*names, *(getattr(model.config, FIELD, None) or {})}, dict(model.named_parameters())
    shapes = {name: list(here[name].shape) for name in sorted(wanted & here.keys())}
    there = {name: list(value.shape) for name, value in plain.named_parameters()}
    return {name: shape for name, shape in shapes.items() if shape != there.get(name)}


def check_plain(model: Any) -> None:
    """Raise `UserError` where a model's class is not one of transformers: the modelling file could not name it."""
    if not type(model).__module__.startswith("transformers."):
        raise UserError(
            f"--widths exact needs a class of transformers, and {type(model).__name__} comes from {type(model).__module__}: "
            "use --widths uniform"
        )


def mark(folder: Path, model: Any, names: Iterable[str]) -> None:
    """Make a saved model's `config.json` and modelling file say which of these parameters are uneven; remove both if none is."""
    shapes = uneven_shapes(model, names)
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for field in (FIELD, "auto_map") if FIELD in content else ():
        content.pop(field, None)
    if shapes:
        check_plain(model)
        (folder / FILE).write_text(source_of(model), encoding="utf-8")
        content |= {FIELD: shapes, "auto_map": _auto_map(model)}
    else:
        (folder / FILE).unlink(missing_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def forget(model: Any, names: Iterable[str]) -> None:
    """Make the config of a model in memory say the shapes that it has now."""
    shapes = uneven_shapes(model, names)
    for field in (FIELD, "auto_map") if hasattr(model.config, FIELD) else ():
        if field in vars(model.config):
            delattr(model.config, field)
    if shapes:
        setattr(model.config, FIELD, shapes)


def source_of(model: Any) -> str:
    """The modelling file: `put`, `narrow`, and a subclass of the model's class and of its trunk's."""
    classes = _classes(model)
    imports = ", ".join(f"{name} as Whole{name}" for name, _ in classes)
    functions = "\n\n".join(inspect.getsource(function) for function in (put, narrow))
    parts = [_HEAD.format(name=type(model).__name__, module=type(model).__module__, imports=imports, field=FIELD)]
    parts.append(functions)
    for name, prefix in classes:
        words = f', "{prefix}"' if prefix else ""
        parts.append(_CLASS.format(name=name, whole=f"Whole{name}", field=FIELD, prefix=words))
    return "".join(parts)


def know(base: Any) -> None:
    """Make every class below `PreTrainedModel` narrow its parameters as `uneven_shapes` of its config says, so that its own and the
    Auto classes' `from_pretrained` and `from_config` read such a folder without `trust_remote_code`; other models are as they were.
    """
    ended = base.post_init
    if getattr(ended, "knows_uneven", False):
        return

    @functools.wraps(ended)
    def post_init(self: Any) -> None:
        ended(self)
        if shapes := getattr(self.config, FIELD, None):
            own = dict(self.named_modules())
            for prefix in ("", f"{self.base_model_prefix}."):
                mine = {name: shape for name, shape in shapes.items() if name.removeprefix(prefix).rpartition(".")[0] in own}
                if len(mine) == len(shapes):
                    narrow(self, mine, prefix)
                    return

    post_init.knows_uneven = True  # type: ignore[attr-defined]
    base.post_init = post_init


def load_uneven(source: str, content: Mapping[str, Any], **options: Any) -> tuple[nn.Module, Mapping[str, Any]]:
    """The model of a folder with `uneven_shapes`, and what transformers says of loading it; runs no code of the folder.

    Args:
        content: of `config.json`.
        options: of `from_pretrained`.

    Raises:
        UserError: it names no class of transformers.
    """
    import transformers

    name = next(iter(content.get("architectures") or ()), None)
    plain: Any = getattr(transformers, str(name), None)
    if not (isinstance(plain, type) and issubclass(plain, transformers.PreTrainedModel)):
        raise UserError(f"config.json has {FIELD!r} and names no class of transformers: {shown(name)}")

    def begin(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        super(uneven, self).__init__(config, *args, **kwargs)
        narrow(self, content[FIELD])

    uneven: Any = type(plain.__name__, (plain,), {"__init__": begin, "__module__": plain.__module__})
    model, loaded = uneven.from_pretrained(source, output_loading_info=True, **options)
    model.__class__ = plain
    return model, loaded


def check_uneven_shapes(content: Mapping[str, Any], total: int, name: str) -> None:
    """Raise `UserError` for shapes in a config that are none, or larger than the `total` numbers that its weights hold."""
    shapes = content.get(FIELD)
    if shapes is None:
        return
    for parameter, shape in shapes.items() if isinstance(shapes, dict) else [(FIELD, shapes)]:
        sizes = shape if isinstance(shape, list) and shape else [0]
        if any(type(size) is not int or size < 1 for size in sizes) or math.prod(sizes) > total:
            raise UserError(
                f"{FIELD} of the config of {name!r} gives {shown(parameter)} the shape {shown(shape)}, which its weights do not hold"
            )


def _classes(model: Any) -> list[tuple[str, str]]:
    """(class, what its parameters' names begin with in the model) of a model and of its trunk, where that is a module of its own file."""
    trunk, prefix = getattr(model, model.base_model_prefix, None), model.base_model_prefix
    found = [(type(model).__name__, "")]
    if isinstance(trunk, nn.Module) and type(trunk).__module__ == type(model).__module__:
        found.insert(0, (type(trunk).__name__, f"{prefix}."))
    return found


def _auto_map(model: Any) -> dict[str, str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as WRAPPERS

    module = FILE.removesuffix(".py")
    whole = "AutoModelForImageTextToText" if type(model).__name__ in WRAPPERS.values() else "AutoModelForCausalLM"
    return {"AutoModel" if prefix else whole: f"{module}.{name}" for name, prefix in _classes(model)}


def register() -> None:
    """The entry point `vllm.general_plugins`: vLLM calls it in each process before it reads a model, and then serves such folders with
    `model_impl="transformers"` alone, without `trust_remote_code`.
    """
    from transformers import PreTrainedModel

    know(PreTrainedModel)
