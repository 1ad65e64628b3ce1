"""Plain data alone: what parses gives what PyYAML gives, and what makes a small file large is refused."""

from __future__ import annotations

import contextlib
import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fairprune_framework.utilities.yaml_text import MOST_DEPTH, parse_yaml

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
