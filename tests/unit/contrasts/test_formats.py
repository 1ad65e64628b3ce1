"""Rows of every file type against the standard library's and pyarrow's own reading."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fairprune_framework.contrasts.formats import Row, document, rows
from fairprune_framework.errors import PromptError

RECORDS = [{"a": "né 男", "b": "one,\ttwo"}, {"a": 'with "quotes"', "b": "two\nlines"}, {"a": "x", "b": "y"}]


def table(delimiter: str) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, ["a", "b"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(RECORDS)
    return out.getvalue().encode()


def parquet() -> bytes:
    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), out, row_group_size=2)
    return out.getvalue()


CONTENT = {
    "x.jsonl": "\n".join(json.dumps(record) for record in RECORDS).encode(),
    "x.json": json.dumps(RECORDS, ensure_ascii=False).encode(),
    "x.csv": table(","),
    "x.tsv": table("\t"),
    "X.CSV": table(","),
    "x.parquet": parquet(),
}


def read(folder: Path, name: str, content: bytes | str) -> list[Row]:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(rows(folder / name))


@pytest.mark.parametrize("name", CONTENT)
def test_every_type_holds_the_same_rows(tmp_path: Path, name: str) -> None:
    found = read(tmp_path, name, CONTENT[name])
    assert [row.data for row in found] == RECORDS
    assert [row.number for row in found] == [1, 2, 3]
    assert {row.table for row in found} == {not name.lower().endswith((".jsonl", ".json"))}
    assert {row.problem for row in found} == {None}
    assert all(row.where.startswith(str(tmp_path / name)) for row in found)


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.json"])
def test_a_byte_order_mark_is_dropped(tmp_path: Path, name: str) -> None:
    assert [row.data for row in read(tmp_path, name, b"\xef\xbb\xbf" + CONTENT[name])] == RECORDS


def test_places_count_lines_and_numbers_count_rows(tmp_path: Path) -> None:
    found = read(tmp_path, "x.jsonl", '{"a": 1}\n\n  \n{"a": 2}\r\n')
    assert [(row.number, row.where.rpartition(" ")[2]) for row in found] == [(1, "1"), (2, "4")]
    found = read(tmp_path, "x.csv", 'a,b\n"two\nlines",x\n\ny,z\n')
    assert [(row.number, row.where.rpartition(" ")[2]) for row in found] == [(1, "2"), (2, "5")]


def test_a_bad_line_is_a_row_with_its_problem(tmp_path: Path) -> None:
    found = read(tmp_path, "x.jsonl", b'{"a": 1}\n{"a"\n"text"\n\xff\n' + b"[" * 100_000 + b'\n{"a": 2}\n')
    assert [row.problem is None for row in found] == [True, False, False, False, False, True]
    problems = [str(row.problem) for row in found]
    assert problems[1] == "not JSON: Expecting ':' delimiter at column 5"
    assert problems[2] == "must be a JSON object. Got a text instead."
    assert problems[3].startswith("not UTF-8 text (byte 0xff at column 1)")
    assert problems[4].startswith("not JSON: ")
    assert [dict(row.data) for row in found if row.problem] == [{}] * 4


def test_a_line_of_a_table_with_another_number_of_cells(tmp_path: Path) -> None:
    found = read(tmp_path, "x.csv", "a,b\n1\n1,2\n1,2,3\n")
    assert [row.problem for row in found] == [
        "has 1 cell(s) where the header names 2 column(s)",
        None,
        "has 3 cell(s) where the header names 2 column(s)",
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.txt", b"", "unknown file type '.txt'; known are .jsonl"),
        ("x.jsnl", b"", "Did you mean '.jsonl'?"),
        ("x.csv", b"", "is empty: its first line must name the columns"),
        ("x.csv", b" , \n1,2\n", "is empty"),
        ("x.csv", b"a,b,a\n", "line 1: the column 'a' occurs 2 times"),
        ("x.csv", b'a,b\n1,"x"y\n', "line 2: a broken table"),
        ("x.csv", b"a,b\n1,\xff\n", "line 2: not UTF-8 text (byte 0xff at column 3)"),
        ("x.json", b'{"a": 1}', "must hold a JSON array of objects. Got an object instead"),
        ("x.json", b"[\n{,\n]", "line 2: not JSON"),
        ("x.parquet", b"PAR1", "not a Parquet file"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    with pytest.raises(PromptError) as caught:
        read(tmp_path, name, content)
    assert words in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="no such file"):
        rows(tmp_path / "x.csv")


# -- documents ---------------------------------------------------------------------------------------------------------------

VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("abé: -#'\"\n", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(value=VALUE)
def test_yaml_is_read_as_it_was_written(value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "value.yaml"
    path.write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")
    assert document(path) == value


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.yaml", "a: 1\nb: 2\na: 3\n", "the key 'a' occurs twice"),
        ("x.yaml", "x:\n  a: 1\n  a: 1\n", "line 2: not YAML: the key 'a' occurs twice"),
        ("x.yaml", "!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("x.yaml", "a: [1, 2\nb: 3", "line 2: not YAML"),
        ("x.yml", "a: 2020-99-99", "not YAML"),
        ("x.json", '{"a": 1,}', "line 1: not JSON"),
    ],
)
def test_documents_that_are_refused(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(PromptError) as caught:
        document(tmp_path / name)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_merge_key_is_no_repetition(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("base: &base {a: 1}\nx:\n  <<: *base\n  b: 2\n")
    assert document(tmp_path / "x.yaml")["x"] == {"a": 1, "b": 2}
