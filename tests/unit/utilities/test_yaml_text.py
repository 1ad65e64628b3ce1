"""Plain data alone: what parses gives what PyYAML gives, and what makes a small file large is refused."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fairprune_framework.errors import UserError
from fairprune_framework.utilities.yaml_text import MOST_BYTES, MOST_DEPTH, parse_yaml, read_yaml

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=20)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


class NoAliases(yaml.SafeDumper):
    """Writes equal objects twice."""

    def ignore_aliases(self, data: object) -> bool:
        return True


@given(VALUES)
@settings(max_examples=100, deadline=None)
def test_what_was_written_is_read_as_pyyaml_reads_it(value: object) -> None:
    text = yaml.dump(value, Dumper=NoAliases, allow_unicode=True)
    assert parse_yaml(text) == yaml.safe_load(text)


@given(st.text(alphabet="ab:-[]{}&*!<>|?#'\"\n 01.~", max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_text_gives_a_value_or_one_short_message(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse_yaml(text)
        return
    with pytest.raises(ValueError) as found:
        parse_yaml(text)
    assert 0 < len(str(found.value)) <= 510


def test_the_depth_is_counted_in_collections() -> None:
    assert parse_yaml("[" * MOST_DEPTH + "1" + "]" * MOST_DEPTH) is not None
    with pytest.raises(ValueError, match="line 1: more than 20 collections"):
        parse_yaml("[" * (MOST_DEPTH + 1) + "1" + "]" * (MOST_DEPTH + 1))


def test_many_keys_take_linear_time() -> None:
    began = time.perf_counter()
    parse_yaml("".join(f"k{i}: 1\n" for i in range(4_000)))
    small = time.perf_counter() - began
    began = time.perf_counter()
    parse_yaml("".join(f"k{i}: 1\n" for i in range(16_000)))
    assert time.perf_counter() - began < 10 * small


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: &x 2\n", "line 2: anchors and aliases"),
        ("a: 1\na: 2\n", "line 2: the key 'a' occurs twice"),
        ("a: !!python/object/apply:os.system [id]\n", "line 1: could not determine a constructor"),
        (f"a: {2**64}\n", "line 1: a number beyond 64 bits"),
        ("a: 2024-99-99\n", "month must be in 1..12"),
        ("? {a: 1}\n: 2\n", "line 1: found unhashable key"),
        ("a: [1\n", "expected ',' or ']'"),
    ],
)
def test_what_is_refused_says_why_and_where(text: str, said: str) -> None:
    with pytest.raises(ValueError) as found:
        parse_yaml(text)
    assert said in str(found.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no grid {path}"),
        (b"a: 1 # " + b"x" * MOST_BYTES, "the grid {path} is larger than 256 KiB"),
        (b"a: \xff\n", "cannot read the grid {path}: 'utf-8' codec"),
        (b"a: 1\nb: *x\n", "{path}, line 2 is no YAML: anchors and aliases (&, *) are refused"),
        (b"a: 2024-99-99\n", "{path} is no YAML: month must be in 1..12"),
        (b"- a\n", "{path} must hold a mapping of options. Got list instead."),
        (b"", "{path} must hold a mapping of options. Got NoneType instead."),
    ],
)
def test_a_file_that_holds_no_mapping(content: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as found:
        read_yaml(path, "grid")
    assert str(found.value).startswith(said.format(path=path))


def test_a_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_bytes(b"a: 1 #".ljust(MOST_BYTES, b"x"))
    assert read_yaml(tmp_path / "grid.yaml") == {"a": 1}
    with pytest.raises(UserError, match="cannot read the recipe file"):
        read_yaml(tmp_path)
