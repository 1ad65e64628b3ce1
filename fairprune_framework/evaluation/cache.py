"""Measurements that are kept: one JSON file for every (model, measurement), named by a hash over all that the value depends on.

What is there is not measured again, so that an interrupted evaluation goes on where it stopped, and the base model of many runs is measured
once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fairprune_framework.api.types import Held, Scaling
from fairprune_framework.errors import RunFolderError
from fairprune_framework.utilities.files import digest, read_json, write_json
from fairprune_framework.utilities.progress import Notify, silent

FORMAT = "fairprune-measurement/1"


def model_key(
    fingerprint: str, units: Mapping[str, Sequence[int]] | None = None, factor: Scaling = 0.0, dtype: str = ""
) -> str:
    """Identity of a model with some units masked: the mask takes part only where it changes something."""
    chosen = {site: list(indices) for site, indices in sorted((units or {}).items()) if len(indices)}
    return digest([fingerprint, chosen, _plain(factor) if chosen else 0.0, dtype])


def _plain(factor: Scaling) -> Any:
    """A JSON value that tells one scaling from another."""
    if isinstance(factor, Held):
        return {"held": {site: [list(unit) for unit in each] for site, each in sorted(factor.means.items())}}
    return factor if isinstance(factor, (int, float)) else {site: list(each) for site, each in sorted(factor.items())}


class MeasurementCache:
    """A folder of measurements; without one nothing is kept."""

    def __init__(self, folder: Path | None, notify: Notify = silent) -> None:
        self.folder, self.notify = folder, notify

    def get(self, name: str, key: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """The JSON value for this key: from its file, or made now and kept.

        Args:
            name: of the measurement, for the file name and for progress.
            key: everything that the value depends on, as JSON values.
        """
        if self.folder is None:
            return make()
        wanted = {"name": name, **key}
        path = self.folder / f"{name.replace('/', '-')}-{digest(wanted)[:20]}.json"
        if path.is_file():
            try:
                kept = read_json(path, FORMAT)
                if kept.get("key") == wanted:
                    return kept["value"]
            except RunFolderError:
                self.notify(f"{path} is broken: {name} is measured again")
        value = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": FORMAT, "key": wanted, "value": value})
        return value
