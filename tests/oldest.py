"""Print the oldest versions that pyproject.toml admits of what this project depends on most, for pip."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PACKAGES = ("torch", "transformers", "lightning", "lm-eval")


def oldest() -> list[str]:
    """`torch==2.9.0` and so on."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = []
    for requirement in project["dependencies"]:
        match = re.match(r"([\w-]+)>=([\d.]+)", requirement)
        if match and match[1] in PACKAGES:
            version = match[2] + ".0" * (2 - match[2].count("."))
            found.append(f"{match[1]}=={version}")
    return found


if __name__ == "__main__":
    print(" ".join(oldest()))
