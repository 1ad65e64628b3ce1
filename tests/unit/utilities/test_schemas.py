"""What reads `run.json` finds it checked."""

from __future__ import annotations

import re
from pathlib import Path

import fairprune_framework
from fairprune_framework.recovery.record import FinetuneFile
from fairprune_framework.utilities.schemas import RunRecord

READ = re.compile(r"\b(?:run|source|self|folder|opened|record_of)?\.?record(?:\.get\(|\[)\"(\w+)\"")
ABLATION = "ablation"  # its record is `ablation.json`
SCHEMAS = {"recovery": FinetuneFile}
"""Of folders of the package that read another record beside `run.json`."""


def test_every_field_of_the_record_that_is_read_has_a_schema() -> None:
    root = Path(fairprune_framework.__file__).parent
    found = {
        (name, path.relative_to(root))
        for path in root.rglob("*.py")
        if ABLATION not in path.parts
        for name in READ.findall(path.read_text(encoding="utf-8"))
    }
    assert len({name for name, _ in found}) > 15
    unknown = set()
    for name, path in found:
        also = SCHEMAS.get(path.parts[0])
        known = {*RunRecord.model_fields, *(also.model_fields if also else ()), "format"}
        unknown |= {(name, str(path))} - {(one, str(path)) for one in known}
    assert unknown == set()
