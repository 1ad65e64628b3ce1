"""The versions that numbers depend on."""

from __future__ import annotations

import platform
from importlib import metadata

__version__ = "0.1.0"

PACKAGES = ("fairprune_framework", "torch", "lightning", "transformers", "torchmetrics", "lm_eval", "safetensors", "tokenizers")


def versions() -> dict[str, str]:
    """Python, the machine's kind, and every package that numbers depend on."""
    installed = {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "absent"
    return installed
