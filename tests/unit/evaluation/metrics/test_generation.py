"""Where two continuations part: by tokens, in characters, whatever the tokens are."""

from __future__ import annotations

from typing import Any

import pytest

from fairprune_framework.evaluation.metrics.generation import Continuation, _continuation, continue_prompts, first_difference
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.models.work import Ledger
from fairprune_framework.testing.tiny import tiny_model, tiny_tokenizer


class Bytes:
    """A tokenizer of single bytes: a token may hold a part of a character. 0 is special."""

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return bytes(value for value in ids if value).decode("utf-8", errors="replace")


def written(text: str) -> Continuation:
    return _continuation(Bytes(), [*text.encode(), 0])


def test_tokens_of_parts_of_characters_add_up_to_the_text() -> None:
    found = written("né 男")
    assert found.text == "né 男"
    assert "".join(found.tokens) == "né 男"
    assert found.tokens == ["n", "", "é", " ", "", "", "男", ""]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("same", "same", None),
        ("abc", "abd", {"token": 2, "before": [2, 3], "after": [2, 3]}),
        ("abc", "ab", {"token": 2, "before": [2, 3], "after": [2, 2]}),
        ("", "a", {"token": 0, "before": [0, 0], "after": [0, 1]}),
        ("aé", "aè", {"token": 2, "before": [1, 2], "after": [1, 2]}),
    ],
)
def test_first_difference(before: str, after: str, expected: dict[str, object] | None) -> None:
    assert first_difference(written(before), written(after)) == expected


class Ending:
    """A tokenizer of which some token that the model soon writes ends a text; what fills the rest of a row is an ordinary token."""

    def __init__(self, eos: int | None) -> None:
        self.tokenizer: Any = tiny_tokenizer()
        self.eos_token_id, self.pad_token_id = eos, 5

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(f"<{token}>" for token in ids)


PROMPTS = ["the nurse", "the doctor walked home", "the child", "the man"]


def test_prompts_of_one_length_share_their_steps_and_end_as_each_alone() -> None:
    model: Any = tiny_model("llama")
    encoder = Encoder(tiny_tokenizer())
    assert len({len(encoder.ids(text)) for text in PROMPTS}) == 2
    ledger = Ledger()
    with ledger.watching(model, "tiny"):
        whole = continue_prompts(model, Ending(None), encoder, PROMPTS)
    assert ledger.forwards == 2 * 50  # two lengths, fifty tokens
    written = {int(token) for one in whole for token in one.text.strip("<>").split("><")}
    for eos in (None, *sorted(written)):
        alone = [continue_prompts(model, Ending(eos), encoder, [text])[0] for text in PROMPTS]
        assert continue_prompts(model, Ending(eos), encoder, PROMPTS) == alone
        if len({len(one.ends) for one in alone}) > 1:
            return
    pytest.fail("no text ended before another")
