"""Prompt sets from every source, and every way in which one can be wrong."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fairprune_framework.contrasts import formats
from fairprune_framework.contrasts.readers import content_hash, read
from fairprune_framework.contrasts.records import differing_texts, truth
from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.contrasts.splits import apply_split, assign, without_overlap
from fairprune_framework.errors import PromptError, UnknownName, UserError

OURS = {
    "id": "c1",
    "category": "gender",
    "template_id": "T1",
    "context": "work",
    "control": True,
    "split": "heldout",
    "variants": [{"attribute": "man", "text": "A man came"}, {"attribute": "woman", "text": "A woman came"}],
}
PAIR = {"id": "p1", "category": "age", "template_id": "T2", "prompt_1": "An old cat", "prompt_2": "An odd cat"}


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The public data sets, which are not part of this repository."""
    named = os.environ.get("FAIRPRUNE_SHARED_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[4] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no public data sets at {folder}; name their folder in FAIRPRUNE_SHARED_DATA")
    return folder


def jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def texts(contrast: Contrast) -> list[str]:
    return [variant.text for variant in contrast.variants]


def attributes(contrast: Contrast) -> list[str]:
    return [variant.attribute for variant in contrast.variants]


# Sources


def test_builtin() -> None:
    result = read("builtin:en")
    assert len(result.contrasts) >= 160
    assert result.source == "builtin:en"
    assert result.sha256 == content_hash(result.contrasts)


def test_roles_in_a_table(tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    path.write_text(
        "category,template_id,control,neutral_of,prompt_1,prompt_2,right_1,right_2\n"
        "hand,h,true,age/t,a left one,a right one,,\n"
        "age,t,,,a young one,an old one,,\n"
        "legit-sofa,s,,,the Scot on the,the Texan on the,sofa | settee,couch\n"
    )
    hand, age, sofa = read(path).contrasts
    assert [one.role for one in (hand, age, sofa)] == ["control", "demographic", "legitimate"]
    assert hand.neutral_of == "age/t"
    assert [variant.right for variant in sofa.variants] == [("sofa", "settee"), ("couch",)]


def test_our_schema_in_jsonl_and_its_hash(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "set.jsonl", OURS)
    result = read(str(path))
    assert result.contrasts == (Contrast.from_json(OURS),)
    assert result.contrasts[0].to_json() == OURS
    assert result.skipped == ()
    assert result.source == str(path)
    assert result.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_blank_lines_and_a_byte_order_mark_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(OURS).encode() + b"\r\n\r\n" + json.dumps(PAIR).encode())
    assert [contrast.id for contrast in read(path).contrasts] == ["c1", "p1"]


def test_jsonl_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    path.write_text(json.dumps(PAIR) + "\n{broken", "utf-8")
    rows = formats.rows(path)
    assert next(rows).data["id"] == "p1"
    assert next(rows).problem is not None


def test_a_json_array(tmp_path: Path) -> None:
    path = tmp_path / "set.json"
    path.write_text(json.dumps([OURS, PAIR]), "utf-8")
    assert [contrast.id for contrast in read(path).contrasts] == ["c1", "p1"]


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".tsv", "\t")])
def test_tables(tmp_path: Path, suffix: str, delimiter: str) -> None:
    path = tmp_path / f"set{suffix}"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(["category", "template_id", "control", "split", "prompt_1", "prompt_2", "prompt_3"])
        writer.writerow(["age", "T1", "True", "select", 'one "quoted", old', "one new", "one\nnewer"])
        writer.writerow([])
        writer.writerow(["", "", "", "", "old", "new", ""])
    first, second = read(path).contrasts
    assert texts(first) == ['one "quoted", old', "one new", "one\nnewer"]
    assert (first.id, first.template_id, first.category, first.control, first.split) == ("row-1", "T1", "age", True, "select")
    assert texts(second) == ["old", "new"]
    assert (second.id, second.template_id, second.category, second.control, second.split) == (
        "row-2",
        "row-2",
        "all",
        False,
        None,
    )


def test_parquet_holds_pairs_or_our_schema(tmp_path: Path) -> None:
    assert read(parquet(tmp_path / "pairs.parquet", [PAIR])).contrasts[0].id == "p1"
    assert read(parquet(tmp_path / "ours.parquet", [OURS])).contrasts == (Contrast.from_json(OURS),)


def test_lists_in_memory() -> None:
    contrast = Contrast.from_json(OURS)
    result = read([contrast, PAIR])
    assert [made.id for made in result.contrasts] == ["c1", "p1"]
    assert result.source == "list"
    assert result.sha256 == content_hash(result.contrasts)
    assert read([contrast]).sha256 != result.sha256


def test_a_value_column_mapping(tmp_path: Path) -> None:
    columns = {"prompt_1": "a", "prompt_2": "b", "category": "kind", "attribute_1": "x", "attribute_2": "y"}
    rows = [{"a": "old cat", "b": "new cat", "kind": "age", "x": "O", "y": "N", "category": "ignored"}]
    sources = [jsonl(tmp_path / "s.jsonl", *rows), parquet(tmp_path / "s.parquet", rows)]
    (tmp_path / "s.csv").write_text("a,b,kind,x,y,category\nold cat,new cat,age,O,N,ignored\n", "utf-8")
    for source in [*sources, tmp_path / "s.csv", rows]:
        (contrast,) = read(source, columns=columns).contrasts
        assert texts(contrast) == ["old cat", "new cat"]
        assert attributes(contrast) == ["O", "N"]
        assert contrast.category == "age"


@pytest.mark.parametrize(
    "name", ["absent.jsonl", "./absent", "/absent/set", "a/b/c", "no such", "other:en", "x" * 5000, "a\0b", ""]
)
def test_no_such_source(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.chdir(tmp_path)

    def load(name: str, configuration: str | None = None) -> Any:
        raise FileNotFoundError("nothing there")

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets, "get_dataset_config_names", load)
    with pytest.raises(PromptError, match=r"no such|cannot load"):
        read(name)


def test_unknown_builtin() -> None:
    with pytest.raises(UnknownName, match="there are: en"):
        read("builtin:xx")


# Names of variants


def test_variants_without_attributes_are_named_by_their_differing_text() -> None:
    rows = [
        {"prompt_1": "The old man came", "prompt_2": "The older man came"},
        {"prompt_1": "A good man", "prompt_2": "A man"},
        {"variants": [{"text": "red car"}, {"text": "blue car"}]},
        {"prompt_1": "a  b", "prompt_2": "a b"},
    ]
    named = [attributes(contrast) for contrast in read(rows).contrasts]
    assert named[0] == ["old", "older"]
    assert named[1] == ["good", "(none)"]
    assert named[2] == ["red", "blue"]
    assert len(set(named[3])) == 2


def test_differing_texts_stand_between_what_is_common() -> None:
    for group in (["The man.", "The woman."], ["aa", "aaa"], ["x", "y", "xy"], ["the end", "the end!"]):
        parts = differing_texts(group)
        assert len(set(parts)) == len(group)
        assert len({text.replace(part, "", 1) if part else text for text, part in zip(group, parts, strict=True)}) == 1


@pytest.mark.parametrize(
    ("value", "expected"), [(True, True), ("TRUE", True), (1, True), (0, False), ("", False), ("no", False)]
)
def test_truth(value: object, expected: bool) -> None:
    assert truth(value, "control") is expected


# Bad rows: an error by default, listed with `bad="skip"`

BAD_ROWS: list[tuple[Any, str]] = [
    ("{broken", "not JSON: Expecting property name enclosed in double quotes at column 2"),
    ("[1, 2]", "must be a JSON object. Got an array instead"),
    ("null", "must be a JSON object. Got nothing instead"),
    ("[" * 100_000, "not JSON"),
    (b'{"id": "\xe9"}', "not UTF-8 text (byte 0xe9 at column 9); save the file as UTF-8"),
    ({"id": "x"}, "missing column 'prompt_1': found 'id'"),
    ({"promt_1": "a", "prompt_2": "b"}, "Did you mean 'promt_1'"),
    ({"prompt_1": "alone"}, "has 1 variant(s)"),
    ({"prompt_1": "alone", "prompt_2": ""}, "has 1 variant(s)"),
    ({"prompt_1": "", "prompt_2": ""}, "has 0 variant(s)"),
    ({"prompt_1": "a", "prompt_2": None, "prompt_3": "c"}, "'prompt_2' is empty or missing, but 'prompt_3' is there"),
    ({"prompt_1": "a", "prompt_3": "c"}, "'prompt_2' is empty or missing"),
    ({"prompt_1": "same", "prompt_2": "same"}, "equal variants: 'same' occurs 2 times"),
    ({"prompt_1": 1, "prompt_2": "b"}, "the field 'prompt_1' must be a text. Got 1 instead"),
    ({"prompt_1": "a", "prompt_2": "b", "attribute_1": "x"}, "variant 2 has no attribute, but others have"),
    ({"prompt_1": "a", "prompt_2": "b", "control": "maybe"}, "'control' must be true or false. Got 'maybe'"),
    ({"prompt_1": "a", "prompt_2": "b", "split": "train"}, "must be 'select', 'heldout', 'heldout-words' or null. Got 'train'"),
    ({"prompt_1": "a", "prompt_2": "b", "category": ["x"]}, "the field 'category' must be a text"),
    ({"prompt_1": "a", "prompt_2": "b\ud800"}, "half of a surrogate pair"),
    ({"prompt_1": "a", "prompt_2": "b", "id": "good"}, "the id 'good' is taken already by"),
    ({"variants": []}, "has 0 variant(s)"),
    ({"variants": [{"attribute": "x", "text": "a"}]}, "has 1 variant(s)"),
    ({"variants": "a b"}, "the field 'variants' must be an array"),
    ({"variants": ["a", "b"]}, "the field 'variants' must be an array of objects"),
    ({"variants": [{"attribute": "x"}, {"attribute": "y", "text": "b"}]}, "with 'attribute' and 'text'"),
    ({"variants": [{"attribute": "x", "text": " "}, {"attribute": "y", "text": "b"}]}, "has an empty text"),
    ({"variants": [{"attribute": "x", "text": None}, {"attribute": "y", "text": "b"}]}, "the field 'text' must be a text"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS)
def test_bad_rows(tmp_path: Path, row: Any, message: str) -> None:
    line = row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode()
    good = {"id": "good", "prompt_1": "a", "prompt_2": "b"}
    path = tmp_path / "set.jsonl"
    path.write_bytes(json.dumps(good).encode() + b"\n\n" + line + b"\n" + json.dumps({**good, "id": "also"}).encode() + b"\n")
    with pytest.raises(PromptError, match=re.escape(f"{path}, line 3: ") + ".*" + re.escape(message)):
        read(path)
    result = read(path, bad="skip")
    assert [contrast.id for contrast in result.contrasts] == ["good", "also"]
    ((where, reason),) = result.skipped
    assert where == f"{path}, line 3"
    assert message in reason


def test_bad_rows_of_a_list_and_a_json_array(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match=r"list, item 2: must be a Contrast or a mapping\. Got int instead"):
        read([PAIR, 3])  # type: ignore[list-item]
    with pytest.raises(PromptError, match="the id 'c1' is taken already by list, item 1"):
        read([Contrast.from_json(OURS)] * 2)
    path = tmp_path / "set.json"
    path.write_text(json.dumps([PAIR, []]), "utf-8")
    with pytest.raises(PromptError, match=r"set.json, item 2: must be a JSON object. Got an array"):
        read(path)


def test_bad_rows_of_a_table_name_the_line_where_the_record_starts(tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    path.write_text('prompt_1,prompt_2\n"a\nb",c\nsame,same\nonly\n1,2,3\nd,e\n', "utf-8")
    result = read(path, bad="skip")
    assert [where.rpartition(" ")[2] for where, _ in result.skipped] == ["4", "5", "6"]
    assert [reason.partition(":")[0] for _, reason in result.skipped] == [
        "contrast 'row-2' has equal variants",
        "has 1 cell(s) where the header names 2 column(s)",
        "has 3 cell(s) where the header names 2 column(s)",
    ]
    assert [contrast.id for contrast in result.contrasts] == ["row-1", "row-5"]


# Sources that are wrong as a whole: an error even with `bad="skip"`


@pytest.mark.parametrize("bad", ["error", "skip"])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl is an empty prompt set"),
        ("a.jsonl", b"\n \n", "is an empty prompt set"),
        ("a.json", b"[]", "is an empty prompt set"),
        ("a.json", b"{}", "must hold a JSON array of objects. Got an object instead"),
        ("a.json", b"[\n1,\n]", "a.json, line 3: not JSON"),
        ("a.json", b"", "a.json, line 1: not JSON"),
        ("a.json", b"[\n\xff]", "a.json, line 2: not UTF-8 text"),
        ("a.csv", b"", "a.csv is empty: its first line must name the columns"),
        ("a.csv", b"prompt_1,prompt_2\n", "is an empty prompt set"),
        ("a.csv", b"prompt_1,b,b\n", "a.csv, line 1: the column 'b' occurs 2 times"),
        ("a.csv", b"promt_1,other\nx,y\n", "missing column 'prompt_1': found 'promt_1', 'other'. Did you mean 'promt_1'?"),
        ("a.csv", b"sent_more,b\nx,y\n", "missing column 'prompt_1': found 'sent_more', 'b'"),
        ("a.csv", b"prompt_1,prompt_2\nx,y\nv,caf\xe9\n", "a.csv, line 3: not UTF-8 text (byte 0xe9 at column 6)"),
        ("a.csv", b'prompt_1,prompt_2\nx,"y\n', "a.csv, line 2: a broken table"),
        ("a.csv", "prompt_1,prompt_2\nx,y\n".encode("utf-16"), "not UTF-8 text"),
        ("a.parquet", b"no parquet", "a.parquet: not a Parquet file"),
        ("a.xlsx", b"x", "unknown file type '.xlsx'; known are .jsonl, .json, .csv, .tsv, .parquet"),
        ("a.jsonll", b"x", "Did you mean '.jsonl'?"),
        ("a", b"x", "unknown file type ''"),
    ],
)
def test_bad_sources(tmp_path: Path, name: str, content: bytes, message: str, bad: Any) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptError, match=re.escape(message)):
        read(tmp_path / name, bad=bad)


def test_a_mapped_column_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("first,second\nx,y\n", "utf-8")
    with pytest.raises(
        PromptError, match=r"missing column 'frist' \(for 'prompt_1'\): found 'first', 'second'. Did you mean 'first'"
    ):
        read(tmp_path / "s.csv", columns={"prompt_1": "frist", "prompt_2": "second"}, bad="skip")


def test_an_empty_parquet_and_an_empty_list(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"prompt_1": pyarrow.array([], pyarrow.string())})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    for source in (tmp_path / "a.parquet", []):
        with pytest.raises(PromptError, match="is an empty prompt set"):
            read(source)


def test_nothing_left_after_skipping() -> None:
    with pytest.raises(
        PromptError, match=r"list has no contrast that can be used: all 2 were skipped. The first: list, item 1: contrast"
    ):
        read([{"prompt_1": "x"}, {"prompt_1": "y"}], bad="skip")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"promt_1": "a"}, "unknown field 'promt_1' in the column mapping .* Did you mean 'prompt_1'"),
        ({"prompt_0": "a"}, "unknown field 'prompt_0'"),
        ({"prompt_1": "a", "prompt_2": "a"}, "names the column 'a' 2 times"),
    ],
)
def test_bad_mappings(columns: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read([PAIR], columns=columns)


def test_bad_must_be_known() -> None:
    with pytest.raises(UserError, match=r"must be 'error' or 'skip'\. Got 'drop'"):
        read([PAIR], bad="drop")  # type: ignore[arg-type]


# Public sets as their authors publish them


@pytest.mark.parametrize(("language", "pairs", "selected"), [("en", 75, 45), ("es", 100, 60)])
def test_the_published_pairs(shared_data: Path, language: str, pairs: int, selected: int) -> None:
    path = shared_data / "fairness_pruning_pairs" / f"prompt_pairs_{language}.json"
    published = json.loads(path.read_text("utf-8"))
    contrasts = read(path).contrasts
    assert len(contrasts) == pairs
    for row, contrast in zip(published, contrasts, strict=True):
        assert (contrast.id, contrast.category, contrast.template_id, contrast.context, contrast.split) == (
            row["id"],
            row["category"],
            row["template_id"],
            row["context"],
            None,
        )
        assert attributes(contrast) == [row["attribute_1"], row["attribute_2"]]
        assert texts(contrast) == [row["prompt_1"], row["prompt_2"]]
    split = apply_split(contrasts, "templates:T1,T2,T3", 0)
    assert Counter(contrast.split for contrast in split) == {"select": selected, "heldout": pairs - selected}
    drawn = apply_split(contrasts, "template:0.5", 0)
    assert Counter(contrast.split for contrast in drawn) == {"select": selected, "heldout": pairs - selected}


def test_crows_pairs(shared_data: Path) -> None:
    path = shared_data / "crows_pairs" / "crows_pairs_anonymized.csv"
    with path.open(encoding="utf-8", newline="") as file:
        published = list(csv.DictReader(file))
    contrasts = read(path).contrasts
    assert len(contrasts) == 1508
    for row, contrast in zip(published, contrasts, strict=True):
        assert contrast.id == contrast.template_id == f"crows-pairs/{row['']}"
        assert contrast.category == row["bias_type"]
        assert attributes(contrast) == ["more", "less"]
        assert texts(contrast) == [row["sent_more"], row["sent_less"]]


def test_crows_pairs_rows_odd_and_even(shared_data: Path) -> None:
    """Two of its rows are equal and lie on both sides: refused, or with `skip` taken out of what selects."""
    contrasts = read(shared_data / "crows_pairs" / "crows_pairs_anonymized.csv").contrasts
    with pytest.raises(PromptError, match=r"'crows-pairs/1502' \(select\) and in 'crows-pairs/1459' \(heldout\)"):
        apply_split(contrasts, "row:odd-even", 0)
    kept, skipped = without_overlap(assign(contrasts, "row:odd-even", 0))
    assert [where for where, _ in skipped] == ["crows-pairs/1502"]
    assert Counter(contrast.split for contrast in kept) == {"select": 753, "heldout": 754}


@pytest.mark.parametrize(
    ("name", "contrasts", "count", "templates", "left_out"),
    [
        ("bbq/Age.jsonl", 1840, 3680, 25, 1840),
        ("bbq/Religion.jsonl", 600, 1200, 25, 600),
        ("bold/gender_prompt.json", 357, 714, 83, 2488),
        ("formats/stereoset_20.jsonl", 20, 40, 12, 0),
        ("formats/winogender_12.tsv", 4, 12, 1, 0),
        ("holistic_bias:sexual_orientation", 849, 16460, 26, 0),
        ("winobias", 1584, 3168, 792, 0),
    ],
)
def test_published_sets(shared_data: Path, name: str, contrasts: int, count: int, templates: int, left_out: int) -> None:
    """All of each file is read; every contrast of BBQ says which answer the stereotype expects."""
    found = read(f"{shared_data}/{name}")
    assert len(found.contrasts) == contrasts
    assert sum(len(one.variants) for one in found.contrasts) == count
    assert len({one.cluster for one in found.contrasts}) == templates
    assert sum(found.left_out.values()) == left_out
    if name.startswith("bbq"):
        assert {tuple(attributes(one)) for one in found.contrasts} == {("stereotype", "anti-stereotype")}


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from fairprune_framework.contrasts import readers, build, splits; readers.read('builtin:en'); "
        "print([name for name in ('torch', 'transformers', 'datasets', 'pyarrow', 'pandas', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
