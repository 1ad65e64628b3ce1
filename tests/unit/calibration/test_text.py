"""Calibration text: what ships, what a file gives, and which of its tokens are rare."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors

from fairprune_framework.calibration.builtin import text_file
from fairprune_framework.calibration.text import Calibration, from_file, padded, sample
from fairprune_framework.contrasts.builtin import builtin
from fairprune_framework.errors import UnknownName, UserError
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.recipes.recipe import Recipe
from fairprune_framework.testing.tiny import tiny_model, tiny_tokenizer


def test_the_text_that_ships_is_read() -> None:
    found = from_file("builtin:en", Encoder(tiny_tokenizer()), 4096, 100)
    assert found.source == "builtin:en"
    assert len(found.documents) == 64
    assert len(found.scoring) == len(found.judging) == 32
    few = from_file("builtin:en", Encoder(tiny_tokenizer()), 16, 8)
    assert few.documents == tuple(ids[:16] for ids in found.documents[:8])


def test_the_text_that_ships_names_no_attribute_of_the_prompts_that_ship() -> None:
    text = text_file("builtin:en").read_text(encoding="utf-8").lower()
    words = {
        variant.attribute.lower()
        for contrast in builtin("en")
        if contrast.role == "demographic"
        for variant in contrast.variants
    }
    named = {word for word in words if re.search(rf"\b{re.escape(word)}\b", text)}
    assert len(words) > 10
    assert not named


@pytest.mark.parametrize(("name", "words"), [("builtin:de", "there are: en"), ("builtin:eng", "Did you mean 'en'?")])
def test_an_unknown_text_is_refused(name: str, words: str) -> None:
    with pytest.raises(UnknownName, match=re.escape(words)):
        from_file(name, Encoder(tiny_tokenizer()), 64, 8)


def test_sampled_is_the_same_as_none() -> None:
    assert Recipe(calibration="sampled") == Recipe(calibration=None)


def test_rare_tokens_by_hand() -> None:
    scoring = [(1, 2, 9), (1, 3, 9), (1, 4, 9), (1, 5, 2), (1, 6, 2, 6), (1, 7), (1, 8), (1, 10)]
    documents = tuple(ids for one in scoring for ids in (one, (99, 100)))  # the judging half does not count
    for ids, contrast in zip(scoring, Calibration(documents=documents, source="test").as_contrasts(), strict=True):
        held = [sum(token in other for other in scoring) for token in ids]
        assert contrast.variants[0].rare == tuple(place for place, count in enumerate(held) if count <= 2)


# -- files -------------------------------------------------------------------------------------------------------------------


def test_a_text_is_cut_nothing_is_lost_and_each_document_begins_alike(tmp_path: Path) -> None:
    text = "The nurse walked home . " * 11
    (tmp_path / "x.txt").write_text(text, encoding="utf-8")
    begin, *ids = tiny_tokenizer()(text)["input_ids"]
    found = from_file(str(tmp_path / "x.txt"), Encoder(tiny_tokenizer()), 10, 1)
    assert {document[0] for document in found.documents} == {begin} == {1}
    assert [i for document in found.documents for i in document[1:]] == ids
    assert {len(document) for document in found.documents[:-1]} == {10}
    assert found.source == "x.txt"
    limited = from_file(str(tmp_path / "x.txt"), Encoder(tiny_tokenizer(), limit=7), 10, 1)
    assert max(map(len, limited.documents)) == 7


def test_with_a_chat_template_documents_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("The nurse walked home . " * 11, encoding="utf-8")
    chatting = tiny_tokenizer()
    chatting.chat_template = "{{ messages[0].content }}"
    for name in (str(tmp_path / "x.txt"), "builtin:en"):
        plain = from_file(name, Encoder(tiny_tokenizer()), 10, 4)
        assert from_file(name, Encoder(chatting, chat_template=True), 10, 4) == plain


def test_a_tokenizer_that_puts_nothing_before_a_text(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    encoder = Encoder(tokenizer)
    text = next(text for count in range(30, 60) if len(encoder.ids(text := " home" * count)) % 8 == 1)
    (tmp_path / "x.txt").write_text(text, encoding="utf-8")
    found = from_file(str(tmp_path / "x.txt"), encoder, 8, 1)
    assert [i for document in found.documents for i in document] == encoder.ids(text)[:-1]  # one token predicts nothing


def test_lines_of_json_are_documents_of_their_own(tmp_path: Path) -> None:
    texts = ["The nurse", "A man\u2028walked", "They are old", "", "She asked for help ."]
    (tmp_path / "x.jsonl").write_text("\n\n".join(json.dumps({"text": t}, ensure_ascii=False) for t in texts), encoding="utf-8")
    found = from_file(str(tmp_path / "x.jsonl"), Encoder(tiny_tokenizer()), 64, 1)
    assert found.documents == tuple(tuple(tiny_tokenizer()(text)["input_ids"]) for text in texts if text)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.txt", None, "there is no calibration file"),
        ("x.txt", b"\xff\xfe", "is not UTF-8"),
        ("x.txt", b"too short", "yields 1 documents of 64 tokens; at least 4 are needed"),
        ("x.jsonl", b'{"text": "a"}\n{"texts": "b"}', "line 2: expected an object with the field 'text'"),
        ("x.jsonl", b"{", "line 1: expected an object"),
        ("x.jsonl", b'["text"]', "line 1: expected an object"),
        ("x.jsonl", b'{"text": 3}', "line 1: the field 'text' must be a string. Got 3 instead"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        from_file(str(tmp_path / name), Encoder(tiny_tokenizer()), 64, 8)
    assert words in str(caught.value)


# -- sampling ----------------------------------------------------------------------------------------------------------------


def test_sampled_text_is_the_models_own_whatever_its_defaults() -> None:
    model: Any = tiny_model("llama")
    tokenizer, encoder = tiny_tokenizer(), Encoder(tiny_tokenizer())
    model.generation_config.top_k = 1
    state, config = torch.random.get_rng_state(), model.generation_config
    found = sample(model, encoder, 6, 12, seed=3)
    assert found == sample(model, encoder, 6, 12, seed=3) != sample(model, encoder, 6, 12, seed=4)
    assert len(found.documents) == 6
    assert {len(document) for document in found.documents} == {12}
    assert {document[0] for document in found.documents} == {tokenizer.bos_token_id}
    assert len(set(found.documents)) == 6  # top-k of 1 would give one text
    assert model.generation_config is config
    assert torch.random.get_rng_state().equal(state)


def test_the_first_token_follows_the_models_distribution() -> None:
    """Frequencies of the first sampled token against the softmax of the untouched forward: within four standard errors."""
    model: Any = tiny_model("llama")
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        p = model(input_ids=torch.tensor([[tokenizer.bos_token_id]])).logits[0, -1].double()
    p = p[: len(tokenizer)].softmax(-1)  # rows of the padded embedding are no tokens
    draws = 4000
    found = sample(model, Encoder(tokenizer), draws, 2, seed=0)
    counts = torch.bincount(torch.tensor([document[1] for document in found.documents]), minlength=len(p)).double()
    likely = p.topk(20).indices
    error = (p * (1 - p) / draws).sqrt()
    assert ((counts / draws - p).abs() / error)[likely].max() < 4


def test_sampled_text_of_a_tokenizer_that_puts_nothing_before_a_text() -> None:
    """It begins after BOS, which is no part of it; rows beyond the tokenizer's are never drawn."""
    model: Any = tiny_model("llama")
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    found = sample(model, Encoder(tokenizer), 200, 12, seed=0)
    assert {len(document) for document in found.documents} == {12}
    assert len({document[0] for document in found.documents}) > 20
    assert max(map(max, found.documents)) < len(tokenizer) < model.get_input_embeddings().weight.shape[0]


def test_a_tokenizer_with_nothing_to_begin_with() -> None:
    model: Any = tiny_model("llama", bos_token_id=None, eos_token_id=None)
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    with pytest.raises(UserError, match="no BOS or EOS token to sample from"):
        sample(model, Encoder(tokenizer), 4, 8, seed=0)


# -- storage -----------------------------------------------------------------------------------------------------------------


def test_there_and_back(tmp_path: Path) -> None:
    text = Calibration(documents=((1, 40, 41), (1, 50), (1, 60, 61, 62)), source="x.txt")
    text.save(tmp_path / "calibration.jsonl", tiny_tokenizer())
    found = Calibration.load(tmp_path / "calibration.jsonl")
    assert found == text
    assert found.hash == text.hash != Calibration(documents=text.documents[:2], source="x.txt").hash
    rows = [json.loads(line) for line in (tmp_path / "calibration.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["half"] for row in rows] == ["score", "judge", "score"]
    assert [row["text"] for row in rows] == [tiny_tokenizer().decode(ids) for ids in text.documents]
    assert (text.scoring, text.judging) == (text.documents[::2], text.documents[1::2])


def test_padding_is_on_the_right() -> None:
    ids, mask = padded([(5, 6, 7), (8,)])
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
