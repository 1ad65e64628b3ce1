"""Wrong files made of right ones: of their bytes, and of the values in them."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

WRONG: tuple[Any, ...] = (
    *(None, True, -1, 0, 1.5, 10**18, 10**400, float("nan"), float("inf"), "", "text", "\ud800", "a\x00b", "x" * 5000),
    *("../../x", "/etc/passwd", [], {}, ["x"], {"x": 1}, [[[]]], [None], "2024-99-99", "\u202e", [1] * 300),
)
"""Values that a field may not expect."""
PIECES = (
    *(
        b"",
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"[" * 3000,
        b"{" * 3000,
        b'"',
        b",",
        b"\\ud800",
        b"9" * 5000,
        b"1e999",
        b"NaN",
    ),
    *(b": ", b"\n", b"\r", b"&a [*a, *a]", b"!!python/object/apply:os.getcwd []", b"- ", b"\xe2\x80\xa8", b'{"a":1,"a":2}'),
)


def of_bytes(data: bytes, draw: random.Random) -> bytes:
    """Cut, flipped, repeated, or with a piece of something else in it."""
    kind = draw.randrange(7)
    at = draw.randint(0, len(data))
    to = draw.randint(at, min(len(data), at + 200))
    if kind == 0:
        return data[:at]
    if kind == 1 and data:
        changed = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        return bytes(changed)
    if kind == 2:
        return data[:at] + data[to:]
    if kind == 3:
        return data[:to] + data[at:]
    if kind == 4:
        return data[:at] + draw.choice(PIECES) + data[to:]
    if kind == 5:
        return data[:at] + draw.choice(PIECES) + data[at:]
    return draw.choice(PIECES) * draw.randint(1, 3)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(value, dict):
        for key, inner in value.items():
            found += _paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value[:3]):
            found += _paths(inner, (*path, index))
    return found


def of_value(data: Any, draw: random.Random) -> Any:
    """A JSON value with one or two of its values replaced, removed or renamed."""
    data = json.loads(json.dumps(data))
    for _ in range(draw.randint(1, 2)):
        if not (paths := _paths(data)):
            return copy.deepcopy(draw.choice(WRONG))
        path = draw.choice(paths)
        holder = data
        for step in path[:-1]:
            holder = holder[step]
        kind = draw.random()
        if isinstance(holder, dict) and kind < 0.15:
            del holder[path[-1]]
        elif isinstance(holder, dict) and kind < 0.2:
            holder[f"{path[-1]}x"] = holder.pop(path[-1])
        else:
            holder[path[-1]] = copy.deepcopy(draw.choice(WRONG))
    return data


def of_json(data: bytes, draw: random.Random) -> bytes:
    """As `of_value`, of a JSON file; every fourth as `of_bytes`."""
    if draw.random() < 0.25:
        return of_bytes(data, draw)
    return _dumped(of_value(json.loads(data), draw))


def of_lines(data: bytes, draw: random.Random) -> bytes:
    """As `of_json`, of one line of a JSONL file."""
    lines = data.splitlines(keepends=True)
    if not lines or draw.random() < 0.25:
        return of_bytes(data, draw)
    at = draw.randrange(len(lines))
    lines[at] = of_json(lines[at].rstrip(b"\n"), draw) + b"\n"
    return b"".join(lines)


def of_safetensors(data: bytes, draw: random.Random) -> bytes:
    """With another header of the right length, or other bytes."""
    kind = draw.random()
    size = int.from_bytes(data[:8], "little")
    if kind < 0.4:
        return of_bytes(data, draw)
    header = json.loads(data[8 : 8 + size])
    if kind < 0.7 and "fairprune" in header.get("__metadata__", {}):
        header["__metadata__"]["fairprune"] = _dumped(of_value(json.loads(header["__metadata__"]["fairprune"]), draw)).decode(
            errors="replace"
        )
    elif kind < 0.9:
        header = of_value(header, draw)
    text = _dumped(header)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _dumped(value: Any) -> bytes:
    try:
        return json.dumps(value).encode(errors="surrogatepass")
    except ValueError:  # a number with too many digits for Python to print
        return b'{"n": ' + b"9" * 5000 + b"}"


def fitting(name: str) -> Callable[[bytes, random.Random], bytes]:
    """The mutation for a file of this name."""
    suffix = name.rpartition(".")[2]
    return {"json": of_json, "jsonl": of_lines, "safetensors": of_safetensors}.get(suffix, of_bytes)
