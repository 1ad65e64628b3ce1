"""`doctor` tells the truth about the environment."""

from __future__ import annotations

import json
from importlib import metadata
from typing import Any

import pytest


def test_doctor_says_what_is_there(fairprune: Any) -> None:
    answer = fairprune("doctor", "--json")
    report = json.loads(answer.out)
    assert (answer.code, report["ok"]) == (0, True)
    found = {one["what"]: one for one in report["findings"]}
    for name in ("torch", "transformers", "lightning"):
        assert found[name]["text"] == metadata.version(name)
    assert {"python", "cpu", "plugins", "smollm2-135m", "hub"} <= set(found)
    plain = fairprune("doctor").out
    assert plain.endswith("nothing is broken\n")
    assert max(map(len, plain.splitlines())) <= 80


def test_doctor_names_what_is_broken(fairprune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fairprune_framework import discovery
    from fairprune_framework.cli import doctor

    entry = discovery.Entry(kind="bias", name="gone", distribution="elsewhere", version="1", value="no_such_module:Gone")
    known = discovery.entries
    monkeypatch.setattr(doctor.discovery, "entries", lambda kind: [*known(kind), *([entry] if kind == "bias" else [])])
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    answer = fairprune("doctor", "--json")
    report = json.loads(answer.out)
    assert (answer.code, report["ok"]) == (1, False)
    broken = {one["what"]: one["text"] for one in report["findings"] if one["state"] == "broken"}
    assert set(broken) == {"no-such-package", "bias gone"}
    assert "no_such_module" in broken["bias gone"]
