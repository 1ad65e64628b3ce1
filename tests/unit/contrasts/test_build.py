"""Templates times values: files of every kind, agreement, and every mistake that a file can hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairprune_framework.contrasts.build import Template, Value, build_files, cross, write_jsonl
from fairprune_framework.contrasts.readers import read
from fairprune_framework.errors import PromptError, UserError

MAN = Value(category="gender", attribute="man", forms={"a": "a", "them": "him"})
WOMAN = Value(category="gender", attribute="woman", forms={"a": "a", "them": "her"})


def template(text: str, **fields: object) -> Template:
    return Template(**{"category": "gender", "template_id": "T1", "text": text, **fields})  # type: ignore[arg-type]


def texts(text: str, *values: Value) -> list[str]:
    (contrast,) = cross([template(text)], values or (MAN, WOMAN))
    return [variant.text for variant in contrast.variants]


def test_one_contrast_holds_all_values_of_its_category() -> None:
    other = Value(category="age", attribute="old")
    (contrast,) = cross(
        [template("The {attribute} left", context="social", split="heldout", control=True)], [MAN, other, WOMAN], prefix="xx/"
    )
    assert contrast.id == "xx/gender/T1"
    assert (contrast.context, contrast.split, contrast.control) == ("social", "heldout", True)
    assert [(variant.attribute, variant.text) for variant in contrast.variants] == [
        ("man", "The man left"),
        ("woman", "The woman left"),
    ]


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        ("They saw {a} {attribute} and asked {them} to wait", "They saw a man and asked him to wait", "woman and asked her"),
        ("{a} {attribute} came", "A man came", "A woman came"),
        ("{attribute} {a}", "Man a", "Woman a"),
        ("It rained. {Them} nobody saw", "It rained. Him nobody saw", "It rained. Her nobody saw"),
        ("in lower case the {attribute}", "in lower case the man", "in lower case the woman"),
        ("braces {{stay}} with the {attribute}", "braces {stay} with the man", "{stay}"),
    ],
)
def test_forms_and_capitals(text: str, first: str, second: str) -> None:
    one, two = texts(text)
    assert one == first
    assert second in two


def test_a_form_with_a_capital_of_its_own_wins() -> None:
    german = [
        Value(category="gender", attribute="Mann", forms={"der": "der", "Der": "DER"}),
        Value(category="gender", attribute="Frau", forms={"der": "die", "Der": "DIE"}),
    ]
    assert texts("Dort geht {der} {attribute}. {Der} {attribute} lacht", *german)[1] == "Dort geht die Frau. DIE Frau lacht"


def test_any_language_agrees_through_forms(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "category,template_id,context,text\ncuerpo,T1,trabajo,Una persona {f} solicitó el puesto\n", "utf-8"
    )
    (tmp_path / "v.csv").write_text("category,attribute,f\ncuerpo,gordo,gorda\ncuerpo,flaco,flaca\n", "utf-8")
    (contrast,) = build_files(tmp_path / "t.csv", tmp_path / "v.csv")
    assert [v.text for v in contrast.variants] == [
        "Una persona gorda solicitó el puesto",
        "Una persona flaca solicitó el puesto",
    ]
    assert [v.attribute for v in contrast.variants] == ["gordo", "flaco"]


ROWS = [
    {
        "category": "gender",
        "template_id": "T1",
        "context": "work",
        "text": "{a} {attribute} came",
        "control": True,
        "split": "select",
    },
    {
        "category": "gender",
        "template_id": "T2",
        "context": "home",
        "text": "I saw the {attribute}",
        "control": False,
        "split": "heldout",
    },
]
VALUES = [{"category": "gender", "attribute": "man", "a": "a"}, {"category": "gender", "attribute": "aunt", "a": "an"}]


def written(folder: Path, stem: str, kind: str, rows: list[dict[str, object]]) -> Path:
    path = folder / f"{stem}.{kind.split('-')[-1]}"
    if kind in ("csv", "tsv"):
        delimiter = "," if kind == "csv" else "\t"
        lines = [delimiter.join(rows[0]), *(delimiter.join(str(cell) for cell in row.values()) for row in rows)]
        path.write_text("\n".join(lines) + "\n", "utf-8")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    elif kind == "mapping-yaml":
        bare = {"gender": [{key: value for key, value in row.items() if key != "category"} for row in rows]}
        path.write_text(json.dumps(bare), "utf-8")  # JSON is YAML
    else:
        path.write_text(json.dumps(rows), "utf-8")
    return path


@pytest.mark.parametrize("values_kind", ["csv", "yaml", "mapping-yaml"])
@pytest.mark.parametrize("templates_kind", ["csv", "tsv", "jsonl", "json", "yaml", "yml", "mapping-yaml"])
def test_every_file_type_says_the_same(tmp_path: Path, templates_kind: str, values_kind: str) -> None:
    built = build_files(written(tmp_path, "t", templates_kind, ROWS), written(tmp_path, "v", values_kind, VALUES))
    assert [contrast.id for contrast in built] == ["gender/T1", "gender/T2"]
    assert [contrast.control for contrast in built] == [True, False]
    assert [contrast.split for contrast in built] == ["select", "heldout"]
    assert [variant.text for variant in built[0].variants] == ["A man came", "An aunt came"]


def test_bare_texts_in_a_mapping(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("age:\n  - {template_id: T1, text: 'a {attribute} cat'}\n", "utf-8")
    (tmp_path / "v.yaml").write_text("age: [young, old]\nunused: [x]\n", "utf-8")
    (contrast,) = build_files(tmp_path / "t.yaml", tmp_path / "v.yaml")
    assert [variant.text for variant in contrast.variants] == ["a young cat", "a old cat"]
    assert (contrast.split, contrast.control, contrast.context) == (None, False, "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no place for it", r"template 'T1' of category 'gender' has no placeholder"),
        (
            "the {atribute}",
            r"uses {atribute}, which no value of category 'gender' has; there are: attribute, a, them\. Did you mean",
        ),
        ("the {attribute", r"template 'T1' .*; a literal brace is doubled"),
        ("the } {attribute}", r"a literal brace is doubled"),
        ("the {}", r"malformed placeholder {}"),
        ("the {0}", r"malformed placeholder {0}"),
        ("the {attribute!r}", r"malformed placeholder {attribute!r}"),
        ("the {attribute:>9}", r"malformed placeholder {attribute:>9}"),
        ("the {attribute.upper}", r"malformed placeholder"),
        ("the {a} cat", r"template 'T1' .*equal variants: 'the a cat'"),
    ],
)
def test_bad_placeholders(text: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        texts(text)


def test_a_form_that_one_value_lacks() -> None:
    bare = Value(category="gender", attribute="boy", where="values.csv, line 4")
    message = r"uses {them}, value 'boy' of category 'gender' has no form 'them' \(values.csv, line 4\)"
    with pytest.raises(PromptError, match=message):
        texts("the {attribute} and {them}", MAN, bare)


@pytest.mark.parametrize(
    ("templates", "values", "message"),
    [
        ([], [MAN, WOMAN], "no templates"),
        ([template("{attribute} x")], [], "at least two values. Got 0 instead; there are values for: no category"),
        ([template("{attribute} x")], [MAN], "at least two values. Got 1 instead"),
        ([template("{attribute} x", category="gendre")], [MAN, WOMAN], "Did you mean 'gender'"),
        ([template("{attribute} x")], [MAN, WOMAN, MAN], "value 'man' of category 'gender' occurs twice"),
        (
            [template("{attribute} x", where="t.csv, line 2"), template("{attribute} y")],
            [MAN, WOMAN],
            "occurs twice; first in t.csv, line 2",
        ),
        ([template("{attribute} x"), template("{attribute} x", template_id="T2")], [MAN, WOMAN], "same text as template 'T1'"),
        (
            [template("{attribute} x", split="train")],
            [MAN, WOMAN],
            "must be 'select', 'heldout', 'heldout-words' or null. Got 'train'",
        ),
    ],
)
def test_bad_sets(templates: list[Template], values: list[Value], message: str) -> None:
    with pytest.raises(PromptError, match=re.escape(message)):
        cross(templates, values)


def test_right_words_make_a_template_legitimate_and_choose_its_values() -> None:
    (contrast,) = cross(
        [template("{a} {attribute} met", right={"woman": ("her",), "man": ("him", "his")})],
        [MAN, Value(category="gender", attribute="boy"), WOMAN],
    )
    assert contrast.role == "legitimate"
    assert [(variant.text, variant.right) for variant in contrast.variants] == [
        ("A woman met", ("her",)),
        ("A man met", ("him", "his")),
    ]
    (unlisted,) = cross([template("{attribute} barks", category="facts", right={"dog": ("loudly",), "cow": ("no",)})], [MAN])
    assert [variant.attribute for variant in unlisted.variants] == ["dog", "cow"]


def test_a_crossed_control_fills_the_text_of_its_template() -> None:
    neutral = [Value(category="hand", attribute=word, forms={"a": "a"}) for word in ("left-hander", "right-hander")]
    original = template("{a} {attribute} sat down", context="social", split="heldout")
    crossed = template("", category="hand", template_id="gender/T1", neutral_of="gender/T1")
    _, contrast = cross([original, crossed], [MAN, WOMAN, *neutral])
    assert (contrast.role, contrast.neutral_of, contrast.origin) == ("control", "gender/T1", ("gender", "T1"))
    assert (contrast.id, contrast.context, contrast.split) == ("hand/gender/T1", "social", "heldout")
    assert [variant.text for variant in contrast.variants] == ["A left-hander sat down", "A right-hander sat down"]


def test_values_of_heldout_words_fill_held_out_templates_once_more() -> None:
    unseen = [Value(category="gender", attribute=word, forms={"a": "a"}, split="heldout-words") for word in ("boy", "girl")]
    given = [
        template("{a} {attribute} ran", template_id="A", split="heldout"),
        template("{a} {attribute} sang", template_id="B", split="select"),
        template("{a} {attribute} swam", template_id="C", split="heldout-words"),
    ]
    found = cross(given, [MAN, *unseen, WOMAN])
    assert [(one.id, one.template_id, one.split, [variant.attribute for variant in one.variants]) for one in found] == [
        ("gender/A", "A", "heldout", ["man", "woman"]),
        ("gender/B", "B", "select", ["man", "woman"]),
        ("gender/C", "C", "heldout-words", ["boy", "girl"]),
        ("gender/A/words", "A", "heldout-words", ["boy", "girl"]),
    ]


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ([template("{attribute} x", right={"men": ("he",), "woman": ("she",)})], "right words for 'men', which is no value"),
        ([template("{attribute} x", right={"man": ("he",)})], "at least two values. Got 1 instead"),
        ([template("", neutral_of="age/T7")], "is neutral of 'age/T7', which is no demographic template here."),
        ([template("{attribute} x"), template("", template_id="T2", neutral_of="gender/t1")], "Did you mean 'gender/T1'?"),
    ],
)
def test_bad_roles(templates: list[Template], message: str) -> None:
    with pytest.raises(PromptError, match=re.escape(message)):
        cross(templates, [MAN, WOMAN])


def test_roles_in_files(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(
        """
gender:
  - {template_id: T1, split: select, text: "{a} {attribute} came"}
  - {template_id: T2, split: heldout, text: "{a} {attribute} went"}
hand: [{neutral_of: gender/T1}]
legit-pronoun: [{template_id: L1, split: heldout, text: "The {attribute} took", right: {king: his, queen: [her, hers]}}]
"""
    )
    (tmp_path / "v.csv").write_text(
        "category,attribute,a,split\ngender,man,a,\ngender,woman,a,\nhand,left-hander,a,\nhand,right-hander,a,\n"
        "gender,girl,a,heldout-words\ngender,boy,a,heldout-words\n"
    )
    built = build_files(tmp_path / "t.yaml", tmp_path / "v.csv")
    assert [(one.id, one.role, one.split) for one in built] == [
        ("gender/T1", "demographic", "select"),
        ("gender/T2", "demographic", "heldout"),
        ("hand/gender/T1", "control", "select"),
        ("legit-pronoun/L1", "legitimate", "heldout"),
        ("gender/T2/words", "demographic", "heldout-words"),
    ]
    assert [variant.right for variant in built[3].variants] == [("his",), ("her", "hers")]
    write_jsonl(built, tmp_path / "set.jsonl")
    assert list(read(tmp_path / "set.jsonl").contrasts) == built


GOOD_TEMPLATES = "category,template_id,context,text\ng,T1,c,the {attribute} x\n"
GOOD_VALUES = "category,attribute\ng,man\ng,woman\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t.csv",
            "category,template_id,context,text,right\ng,T1,c,the {attribute} x,man=his\n",
            "t.csv, line 2: the field 'right' must be a mapping of values to next words, which a table cannot hold",
        ),
        (
            "t.csv",
            "category,template_id,context\ng,T1,c\n",
            "t.csv, line 2: missing field 'text': found 'category', 'template_id'",
        ),
        ("t.csv", "category,template_id,text,ctrl\ng,T1,x {attribute},1\n", "a template has no field 'ctrl'"),
        ("t.csv", GOOD_TEMPLATES + "g,T2,c,\n", "line 3: missing field 'text'"),
        ("t.csv", GOOD_TEMPLATES + "g,T2\n", "line 3: has 2 cell(s) where the header names 4 column(s)"),
        (
            "t.csv",
            "category,template_id,text,control\ng,T1,x {attribute},maybe\n",
            "line 2: the field 'control' must be true or false",
        ),
        ("t.csv", "category,template_id,text\n", "t.csv holds no templates"),
        ("t.csv", "", "t.csv is empty"),
        ("t.jsonl", '{"category": "g"\n', "t.jsonl, line 1: not JSON"),
        ("t.json", '[\n{"category": "g",}\n]', "t.json, line 2: not JSON"),
        ("t.json", "3", "t.json must hold a list"),
        ("t.json", "[3]", "t.json, item 1: must be a mapping"),
        ("t.json", '{"g": 3}', "category 'g' must hold a list"),
        ("t.yaml", "g:\n  - {template_id: T1, text: 'x {attribute}\n", "not YAML"),
        ("t.yaml", "g:\n  - {template_id: T1, text: no}\n", "t.yaml, g 1: the field 'text' must be a text. Got False instead"),
        ("t.yaml", "g:\n  - bare text\n", "t.yaml, g 1: missing field 'template_id'"),
        ("t.yaml", "g: []\ng: []\n", "the key 'g' occurs twice"),
        ("t.yaml", "!!python/object/apply:os.getcwd []\n", "not YAML"),
        ("t.yaml", "g: 2024-13-45\n", "t.yaml: not YAML: month must be in 1..12"),
        ("t.json", "[" * 100_000, "t.json: not JSON"),
        ("folder.csv/", None, "cannot read"),
        ("t.txt", "x", "read from .csv, .tsv, .jsonl, .json, .yaml or .yml files"),
        ("absent.yaml", None, "no such file"),
        ("absent.csv", None, "no such file"),
    ],
)
def test_bad_template_files(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if name.endswith("/"):
        (tmp_path / name).mkdir()
    if content is not None:
        (tmp_path / name).write_text(content, "utf-8")
    (tmp_path / "v.csv").write_text(GOOD_VALUES, "utf-8")
    with pytest.raises(PromptError, match=re.escape(message)):
        build_files(tmp_path / name, tmp_path / "v.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("category,word\ng,man\n", "v.csv, line 2: missing field 'attribute': found 'category', 'word'"),
        ("category,attribute\n", "v.csv holds no values"),
        ("category,attribute,split\ng,man,heldout\n", "v.csv, line 2: The 'split' of a value must be 'heldout-words' or empty"),
        ("category,attribute\ng,man\ng,man\n", "v.csv, line 3: value 'man' of category 'g' occurs twice"),
        (
            "category,attribute\nh,man\nh,woman\n",
            "t.csv, line 2: template 'T1' of category 'g': a category needs at least two values",
        ),
    ],
)
def test_bad_values_files(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(GOOD_TEMPLATES, "utf-8")
    (tmp_path / "v.csv").write_text(content, "utf-8")
    with pytest.raises(PromptError, match=re.escape(message)):
        build_files(tmp_path / "t.csv", tmp_path / "v.csv")


def test_an_empty_cell_is_an_absent_form(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("category,template_id,text\ng,T1,the {attribute} and {them}\n", "utf-8")
    (tmp_path / "v.csv").write_text("category,attribute,them\ng,man,\ng,woman,her\n", "utf-8")
    with pytest.raises(PromptError, match=r"value 'man' of category 'g' has no form 'them'"):
        build_files(tmp_path / "t.csv", tmp_path / "v.csv")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    built = cross(
        [template("naïve {attribute}", split="select"), template("« {attribute} »\nx", template_id="T2")], [MAN, WOMAN]
    )
    write_jsonl(built, tmp_path / "set.jsonl")
    assert list(read(tmp_path / "set.jsonl").contrasts) == built
    assert [path.name for path in tmp_path.iterdir()] == ["set.jsonl"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "set.jsonl"
    target.write_text("old", "utf-8")

    def broken():  # type: ignore[no-untyped-def]
        yield from cross([template("{attribute} x")], [MAN, WOMAN])
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_jsonl(broken(), target)
    assert target.read_text("utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["set.jsonl"]


def test_writing_into_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        write_jsonl([], tmp_path / "none" / "set.jsonl")


words = st.text(st.characters(exclude_characters="{}", exclude_categories=("Cs",)), max_size=12)


@given(before=words.filter(bool), after=words, values=st.lists(words, min_size=2, max_size=5, unique=True))
def test_filling_is_putting_between(before: str, after: str, values: list[str]) -> None:
    before = "x" + before
    made = cross([template(before + "{attribute}" + after)], [Value(category="gender", attribute=value) for value in values])
    assert [variant.text for variant in made[0].variants] == [before + value + after for value in values]
