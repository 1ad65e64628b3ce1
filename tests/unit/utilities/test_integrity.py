"""What was written is told from what was not, and no file is read twice."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fairprune_framework.utilities import integrity


def test_damage_is_named(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    files = integrity.seal(tmp_path, ["model", "b"])
    assert list(files) == ["model/a", "b"]
    assert files["b"] == {"sha256": hashlib.sha256(b"two").hexdigest(), "size": 3}
    assert integrity.damage(tmp_path, files) is None
    (tmp_path / "b").write_bytes(b"owt")
    assert str(integrity.damage(tmp_path, files)).endswith(
        "b is damaged or was changed: its sha256 is not that of what was written"
    )
    (tmp_path / "b").write_bytes(b"longer")
    assert str(integrity.damage(tmp_path, files)).endswith("b is damaged: it has 6 bytes, 3 were written")
    (tmp_path / "model" / "a").unlink()
    assert str(integrity.damage(tmp_path, files)).endswith("model/a is missing")
