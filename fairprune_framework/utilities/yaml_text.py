"""YAML from strangers: plain data alone, bounded in size and depth; no aliases, no repeated keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fairprune_framework.errors import UserError, shortened

MOST_BYTES = 256 * 1024
"""Of a file: a recipe has some 40 options, a grid a few hundred lines."""
MOST_DEPTH = 20
"""Collections inside one another."""


def parse_yaml(text: str) -> Any:
    """Parse a text as plain data.

    Raises:
        ValueError: not YAML, with its line; an anchor or alias, a tag that makes an object, a key that occurs twice, more than
            `MOST_DEPTH` collections inside one another, or a value out of range. The message has at most 500 characters.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses what lets a small file become large, and a key that occurs twice, where YAML drops the first in silence."""

        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()  # type: ignore[no-untyped-call]
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                raise yaml.MarkedYAMLError(problem="anchors and aliases (&, *) are refused", problem_mark=event.start_mark)
            self.depth += 1
            if self.depth > MOST_DEPTH + 1:  # the innermost is a scalar
                problem = f"more than {MOST_DEPTH} collections inside one another"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen: set[str] = set()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen:
                        problem = f"the key {shortened(key.value)!r} occurs twice"
                        raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                    seen.add(key.value)
            return dict(super().construct_mapping(node, deep))

    def integer(loader: Any, node: Any) -> int:
        value = int(yaml.SafeLoader.construct_yaml_int(loader, node))
        if abs(value) >= 2**64:
            raise yaml.MarkedYAMLError(problem="a number beyond 64 bits", problem_mark=node.start_mark)
        return value

    Loader.add_constructor("tag:yaml.org,2002:int", integer)
    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark is not None else ""
        raise ValueError(shortened(f"{line}{getattr(error, 'problem', None) or error}", 500)) from None
    except (ValueError, RecursionError) as error:  # dates and numbers out of range; keys inside one another
        raise ValueError(shortened(str(error), 500)) from None


def read_yaml(path: Path, what: str = "recipe file") -> dict[str, Any]:
    """Read a file that holds a mapping.

    Args:
        what: what messages call the file.

    Raises:
        UserError: no such file, too large, no YAML (with its line), or no mapping.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
        if len(raw) > MOST_BYTES:
            raise UserError(f"the {what} {path} is larger than {MOST_BYTES // 1024} KiB")
        text = raw.decode()
    except FileNotFoundError:
        raise UserError(f"no {what} {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the {what} {path}: {error}") from error
    try:
        data = parse_yaml(text)
    except ValueError as error:
        line, separator, problem = str(error).partition(": ")
        where = f", {line}" if separator and line.startswith("line ") else ""
        raise UserError(f"{path}{where} is no YAML: {problem if where else error}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} must hold a mapping of options. Got {type(data).__name__} instead.")
    return data
