"""The tokenizer's wrapper against the tokenizer itself."""

from __future__ import annotations

from typing import Any

import pytest

from fairprune_framework.errors import UserError
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.testing.tiny import tiny_tokenizer

TEXTS = ["The nurse walked home .", "né 男", "  two  blanks", ""]
CHAT = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}{% endfor %}{% if add_generation_prompt %} now:{% endif %}"


def chatting() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT
    return tokenizer


def test_ids_are_the_tokenizers_with_its_special_tokens() -> None:
    tokenizer, encoder = tiny_tokenizer(), Encoder(tiny_tokenizer())
    for text, (ids, _) in zip(TEXTS, encoder.encode(TEXTS), strict=True):
        assert ids == tokenizer(text)["input_ids"] == encoder.ids(text)
        assert ids[0] == tokenizer.bos_token_id


def test_offsets_point_at_the_text_of_each_token() -> None:
    tokenizer = tiny_tokenizer()
    text = "The nurse walked home ."
    ((ids, spans),) = Encoder(tokenizer).encode([text])
    assert spans is not None
    assert spans[0] == (0, 0)  # special
    assert [text[start:end] for start, end in spans[1:]] == [tokenizer.decode([i]).strip() for i in ids[1:]]


class Slow:
    """A tokenizer of characters that knows no offsets and cannot decode."""

    is_fast = False

    def __call__(self, texts: list[str], *, add_special_tokens: bool, return_offsets_mapping: bool) -> dict[str, Any]:
        assert not return_offsets_mapping
        return {"input_ids": [[1, *map(ord, text)] if add_special_tokens else list(map(ord, text)) for text in texts]}


def test_a_tokenizer_that_cannot_decode_has_no_offsets() -> None:
    assert Encoder(Slow()).encode(["ab"]) == [([1, 97, 98], None)]


class SlowBytes:
    """The tiny tokenizer without what a fast one offers."""

    is_fast = False
    all_special_ids = (0, 1, 2)

    def __init__(self) -> None:
        self.fast = tiny_tokenizer()

    def __call__(self, texts: list[str], *, add_special_tokens: bool, return_offsets_mapping: bool) -> dict[str, Any]:
        return {"input_ids": self.fast(texts, add_special_tokens=add_special_tokens)["input_ids"]}

    def decode(self, ids: list[int], **options: Any) -> str:
        return str(self.fast.decode(ids, **options))


@pytest.mark.parametrize("text", [*TEXTS[:2], "黑人护士说", "👩🏽‍⚕️ said"])
def test_offsets_of_a_slow_tokenizer_are_told_by_decoding(text: str) -> None:
    """As the fast one gives them, but for blanks that lead a token."""
    fast, slow = Encoder(tiny_tokenizer()).encode([text])[0], Encoder(SlowBytes()).encode([text])[0]
    assert slow[0] == fast[0]
    assert slow[1] is not None
    assert fast[1] is not None
    for (start, end), (wanted_start, wanted_end) in zip(slow[1], fast[1], strict=True):
        assert end == wanted_end
        assert text[start:end].strip() == text[wanted_start:wanted_end].strip()


def with_end() -> Any:
    from tokenizers import processors

    tokenizer = tiny_tokenizer()
    ends = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), ends])
    return tokenizer


def test_what_the_tokenizer_appends_is_left_off_and_said() -> None:
    encoder, plain = Encoder(with_end()), Encoder(tiny_tokenizer())
    assert with_end()("The nurse").input_ids[-1] == 2
    assert (encoder.opening, encoder.closing) == ((1,), (2,))
    assert encoder.encode(TEXTS[:3]) == plain.encode(TEXTS[:3])
    assert encoder.document(TEXTS[0]) == plain.document(TEXTS[0])
    assert encoder.notes == [
        "the tokenizer appends '</s>' to every text: it is left off, so that the last token is the text's own"
    ]
    assert plain.notes == []
    assert encoder.ids("The nurse said</s>")[-1] == 2  # the text's own


def test_a_document_begins_as_every_text_with_a_chat_template_too() -> None:
    encoder = Encoder(chatting(), chat_template=True)
    assert encoder.document("The nurse") == tiny_tokenizer()("The nurse").input_ids


def test_a_token_beyond_the_embedding_is_named() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<new>"])
    encoder = Encoder(tokenizer, rows=len(tokenizer) - 1)
    assert encoder.ids("The nurse")
    for encode in (encoder.ids, encoder.document):
        with pytest.raises(UserError, match=rf"token {len(tokenizer) - 1} \('<new>'\), but the model's embedding holds"):
            encode("The <new> nurse")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% if %}", "fails: TemplateSyntaxError"),
        ("{{ raise_exception('roles must alternate') }}", "fails: TemplateError: 'roles must alternate'"),
        ("{{ messages[7].content }}", "fails: UndefinedError"),
        ("{{ 1 / 0 }}", "fails: ZeroDivisionError"),
        ("a fixed prompt", "leaves out or changes the text"),
        ("{{ messages[0].content | upper }}", "leaves out or changes the text"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "fails: TimeoutError: 'not done after 0.2 s'",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails: RecursionError"),
        ("{{ messages[0].content }}{{ 'x' * 200000 }}", "it adds 200,000 characters to a text"),
        ("\ud800{{ messages[0].content }}", "fails: UnicodeEncodeError"),
        (5, "fails: TypeError"),
        ({"tool": "x"}, "fails: ValueError"),
    ],
)
def test_a_chat_template_that_cannot_be_used(template: object, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairprune_framework.models.encoder.PATIENCE", 0.2 if "TimeoutError" in words else 60)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=words):
        Encoder(tokenizer, chat_template=True).ids("A man")


def test_a_chat_template_is_applied_once() -> None:
    """The template brings the special tokens: the tokenizer must not add them a second time."""
    encoder, plain = Encoder(chatting(), chat_template=True), Encoder(chatting())
    assert plain.wrapped("A man") == "A man"
    assert encoder.wrapped("A man") == "<s>user: A man now:"
    expected = chatting().apply_chat_template(
        [{"role": "user", "content": "A man"}], add_generation_prompt=True, return_dict=False
    )
    assert encoder.ids("A man") == list(expected)
    assert encoder.ids("A man").count(chatting().bos_token_id) == 1


def test_a_chat_template_that_is_not_there() -> None:
    with pytest.raises(UserError, match="has no chat template"):
        Encoder(tiny_tokenizer(), chat_template=True)
