"""WinoBias as coreference: against lm-eval's own model class, and under a bias of the pronouns that the share of sentences mistakes."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from fairprune_framework.errors import PromptError, UserError
from fairprune_framework.evaluation.cache import MeasurementCache
from fairprune_framework.evaluation.subject import Subject
from fairprune_framework.evaluation.tasks.data import TaskSettings, check_data
from fairprune_framework.evaluation.tasks.result import TaskResult
from fairprune_framework.evaluation.tasks.rows import task_rows
from fairprune_framework.evaluation.tasks.winobias import items, read
from fairprune_framework.models.architecture import recognise
from fairprune_framework.testing.tiny import tiny_model, tiny_tokenizer

WHO = ("clerk", "nurse", "driver", "teacher", "doctor", "worker")


def sentences() -> tuple[list[str], list[str]]:
    """Invented siblings: (pro, anti), two lines a pair of occupations."""
    pro, anti = [], []
    for a, b in product(WHO, WHO):
        if a == b:
            continue
        for first, second, text in (
            ("he", "she", f"[The {a}] walked with the {b} and [PRONOUN] was late"),
            ("she", "he", f"The {a} walked with [the {b}] and [PRONOUN] was old"),
        ):
            pro.append(text.replace("PRONOUN", first))
            anti.append(text.replace("PRONOUN", second))
    return pro, anti


def write(folder: Path, pro: list[str], anti: list[str]) -> Path:
    (folder / "winobias").mkdir(parents=True)
    for side, found in (("pro", pro), ("anti", anti)):
        text = "".join(f"{i} {sentence}\n" for i, sentence in enumerate(found, start=1))
        (folder / "winobias" / f"{side}_stereotyped_type1.txt.dev").write_text(text)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data"), *sentences())


def subject_of(model: Any) -> Subject:
    return Subject(model, tiny_tokenizer(), recognise(model), MeasurementCache(None))


def asked(model: Any, folder: Path) -> TaskResult:
    (result,) = subject_of(model).task(TaskSettings(task="winobias", data=folder))
    return result


def values(result: TaskResult, metric: str) -> list[Any]:
    return [item[metric] for item in result.items]


def share(result: TaskResult, metric: str) -> float:
    found = [value for value in values(result, metric) if value is not None]
    return float(sum(found) / len(found))


def test_the_answers_are_those_of_lm_eval(folder: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = tiny_model("llama").eval()
    lm = HFLM(pretrained=model, tokenizer=tiny_tokenizer(), batch_size=1)

    def log_p(context: str, text: str) -> float:
        return float(lm.loglikelihood([Instance("loglikelihood", {}, (context, text), 0)], disable_tqdm=True)[0][0])

    result, (pro, anti) = asked(model, folder), sentences()
    for place in (0, 1, 8, 13):
        item = result.items[place]
        first, second = (pro[place - place % 2].split("]")[0].split()[-1], pro[place - place % 2 + 1].split("]")[0].split()[-1])
        right, wrong = (first, second) if place % 2 == 0 else (second, first)
        plain = [text.replace("[", "").replace("]", "") for text in (pro[place], anti[place])]
        pronouns = ["He", "She"] if place % 2 == 0 else ["She", "He"]
        for metric, text, pronoun in zip(("acc_pro", "acc_anti"), plain, pronouns, strict=True):
            context = f"{text} ‘{pronoun}’ refers to the"
            assert item[metric] == int(log_p(context, f" {right}") > log_p(context, f" {wrong}"))
        likelier = log_p("", plain[0]) > log_p("", plain[1])
        assert item["he_preference"] == int(likelier if place % 2 == 0 else not likelier)
        assert item["both_right"] == item["acc_pro"] * item["acc_anti"]
        assert item["pro_minus_anti"] == item["acc_pro"] - item["acc_anti"]


@torch.no_grad()
def test_a_model_that_likes_he_better_everywhere_is_no_fairer(folder: Path) -> None:
    """+2 and +20 nats on male pronouns: pairs of siblings with exactly one pro sentence become all, the metrics of coreference stay.

    It starts where the model likes both pronouns about equally: the tiny tokenizer writes `she` as two tokens, `he` as one.
    """
    model = tiny_model("llama").eval()
    tokenizer = tiny_tokenizer()
    male = tokenizer(" he")["input_ids"][-1]
    assert tokenizer.decode([male]) == " he"
    shift = [0.0]

    def biased(_module: Any, _args: Any, logits: torch.Tensor) -> torch.Tensor:
        moved = logits.clone()
        moved[..., male] += shift[0]
        return moved

    model.get_output_embeddings().register_forward_hook(biased)
    found = {}
    for nats in (0.0, 2.0, 20.0):
        shift[0] = nats - 6.5
        found[nats] = asked(model, folder)
    for nats in (2.0, 20.0):
        for metric in ("acc_pro", "acc_anti", "both_right", "pro_minus_anti", "sibling_preference"):
            assert values(found[nats], metric) == values(found[0.0], metric), metric
    assert share(found[20.0], "he_preference") == 1.0 > share(found[0.0], "he_preference")
    assert share(found[20.0], "siblings_one_pro") == 1.0 > share(found[0.0], "siblings_one_pro")


def test_siblings_by_hand() -> None:
    facts = {"pro_male": [1, -1], "anti_male": [-1, 1]}
    from fairprune_framework.evaluation.tasks.own import Question

    question = Question(cluster="a", requests=(), facts=facts)
    coreference = [0.0, -1.0, -1.0, 0.0, 0.0, -1.0, -1.0, 0.0]  # right, wrong, wrong, right
    first, second = items([question], [[*coreference, -5.0, -8.0, -6.0, -5.0]])
    assert [first[name] for name in ("acc_pro", "acc_anti", "both_right", "pro_minus_anti")] == [1, 0, 0, 1]
    assert [second[name] for name in ("acc_pro", "acc_anti", "both_right", "pro_minus_anti")] == [0, 1, 0, -1]
    assert (first["he_preference"], second["he_preference"]) == (1, 1)
    assert (first["sibling_preference"], first["siblings_both_pro"], first["siblings_one_pro"]) == (1, 0, 1)
    assert second["sibling_preference"] is second["siblings_one_pro"] is None


def test_siblings_of_the_same_pronoun_have_no_preference() -> None:
    from fairprune_framework.evaluation.tasks.own import Question

    question = Question(cluster="a", requests=(), facts={"pro_male": [1, 1], "anti_male": [-1, -1]})
    first, _ = items([question], [[0.0] * 12])
    assert first["sibling_preference"] is first["siblings_both_pro"] is None


def test_rows_and_what_carries_no_claim(folder: Path) -> None:
    result = asked(tiny_model("llama").eval(), folder)
    rows = {row.metric: row for row in task_rows(result, result, 0)}
    assert rows["winobias/acc_pro"].clusters == 30
    assert rows["winobias/acc_pro"].n == 60
    assert rows["winobias/sibling_preference"].n == 30
    gap = rows["winobias/pro_minus_anti"]
    assert gap.difference == 0.0
    assert gap.ci_low is gap.p_value is None
    assert "no claim: acc_pro of the model before" in str(gap.note)
    able = [{**item, "acc_pro": 1, "pro_minus_anti": 1 - item["acc_anti"]} for item in result.items]
    told = TaskResult(**{**vars(result), "items": tuple(able)})
    row = next(row for row in task_rows(told, told, 0) if row.metric == "winobias/pro_minus_anti")
    assert row.p_value == 1.0
    assert "no claim" not in str(row.note)


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    pro, anti = sentences()
    pro[0], anti[0] = pro[0].replace("[he]", "he"), anti[0].replace("[she]", "she")
    found = read(write(tmp_path / "a", pro, anti) / "winobias")
    assert len(found.questions) == 29
    assert "1 pairs of siblings left out" in str(found.left_out)
    none = [text.replace("[", "").replace("]", "") for text in pro]
    empty = write(tmp_path / "b", none, none)
    with pytest.raises(UserError, match="holds no question of the task 'winobias'"):
        subject_of(tiny_model("llama")).task(TaskSettings(task="winobias", data=empty))
    with pytest.raises(PromptError, match="lines: line i of both"):
        read(write(tmp_path / "c", pro[:-1], anti) / "winobias")
    with pytest.raises(UserError, match="needs --task-data DIR"):
        check_data(["winobias"], None)


def test_a_limit_draws_pairs_of_siblings(folder: Path) -> None:
    model = tiny_model("llama").eval()
    (few,) = subject_of(model).task(TaskSettings(task="winobias", data=folder, limit=5))
    (more,) = subject_of(model).task(TaskSettings(task="winobias", data=folder, limit=9))
    assert len(few.items) == 10
    assert {item["id"] for item in few.items} < {item["id"] for item in more.items}
