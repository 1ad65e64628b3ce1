"""Tasks that are ours: questions as texts, answered by log-probabilities alone, in the same form of result as lm-eval's tasks.

A task turns its file into questions and the answers to these into items; the forward, the drawing of items and the rows are common.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fairprune_framework.errors import UserError
from fairprune_framework.evaluation.metrics.continuations import Request, score
from fairprune_framework.evaluation.metrics.sentences import start_token
from fairprune_framework.evaluation.tasks.data import TaskSettings, drawn
from fairprune_framework.evaluation.tasks.result import TaskResult
from fairprune_framework.models.encoder import Encoder
from fairprune_framework.utilities.files import digest


@dataclass(frozen=True, kw_only=True)
class Question:
    """Continuations of texts whose log-probabilities answer one item, or several of one cluster."""

    cluster: str
    """Questions of one cluster are drawn together and resampled together."""
    requests: tuple[tuple[str, str], ...]
    """(context, continuation); an empty context is BOS or EOS, as in lm-eval."""
    facts: Mapping[str, Any]
    """What the items need to know of it."""


@dataclass(frozen=True, kw_only=True)
class Read:
    """What a task reads from its file."""

    questions: tuple[Question, ...]
    left_out: str | None = None
    """How many questions cannot be asked, and why."""


Items = list[dict[str, Any]]
"""As in `TaskResult.items`."""


@dataclass(frozen=True, kw_only=True)
class OwnTask:
    """One task of ours."""

    version: int
    read: Callable[[Path | None], Read]
    """From the place of its data; None: what is built in."""
    items: Callable[[Sequence[Question], Sequence[Sequence[float]]], Items]
    """(questions, log p of their requests in nats) -> items."""
    metrics: Callable[[Items], Mapping[str, Mapping[str, Any]]]
    """As in `TaskResult.metrics`."""
    per_token: bool = False
    """`items` gets the mean of log p over the tokens of a continuation, in place of the sum."""


def run_own(name: str, task: OwnTask, read: Read, model: nn.Module, encoder: Encoder, settings: TaskSettings) -> TaskResult:
    """Ask a model, as it is now.

    Raises:
        UserError: the data hold no question.
    """
    clusters = list(dict.fromkeys(question.cluster for question in read.questions))
    kept = {clusters[index] for index in drawn([""] * len(clusters), settings.limit, name)}
    questions = [question for question in read.questions if question.cluster in kept]
    if not questions:
        raise UserError(f"{settings.data} holds no question of the task {name!r}")
    asked = [_request(encoder, *request) for question in questions for request in question.requests]
    scored = score(model, asked, settings.micro_batch_tokens)
    lengths = [len(continuation) if task.per_token else 1 for _, continuation in asked]
    answers = (answer[0] / length for answer, length in zip(scored, lengths, strict=True))
    log_p = [[next(answers) for _ in question.requests] for question in questions]
    items = task.items(questions, log_p)
    facts = {
        metric: {"value": None, **each, "note": _joined(each.get("note"), read.left_out)}
        for metric, each in task.metrics(items).items()
    }
    return TaskResult(
        task=name,
        version=f"{task.version} of fairprune_framework",
        items=tuple(items),
        metrics=facts,
        hash=questions_hash(questions),
    )


def questions_hash(questions: Sequence[Question]) -> str:
    """Of all that is asked, and of what is known of it."""
    return digest(
        [[question.cluster, [list(each) for each in question.requests], dict(question.facts)] for question in questions]
    )


def _joined(*notes: str | None) -> str | None:
    return ". ".join(note for note in notes if note) or None


def _request(encoder: Encoder, context: str, continuation: str) -> Request:
    """Tokens of both, split where the context's own tokens end; a blank between them belongs to the continuation, as in lm-eval."""
    if not context:
        ids, start = encoder.document(continuation), start_token(encoder.tokenizer)
        if start is None:
            return (ids[0],), tuple(ids[1:])
        return (start,), tuple(ids[1:] if ids[0] == start else ids)
    opened = encoder.wrapped(context)
    continuation = continuation if opened == context else continuation.lstrip()  # after a chat template an answer begins
    before, whole = (encoder.encode([text])[0][0] for text in (opened, opened + continuation))
    return tuple(whole[: len(before)]), tuple(whole[len(before) :])
