"""StereoSet: a stereotype and an anti-stereotype for each target. Source: Nadeem et al. 2021, arXiv 2004.09456.

Read from `dev.json` as its authors publish it, from the hub, and in a flat form with one column for each sentence. The variants are named
`stereotype` and `anti-stereotype`; the unrelated sentence, which asks whether a model understands the text at all, is no variant. A
sentence that follows a context (`intersentence`) is read with it. `bias_type` is the category. All examples of a target share a template:
the authors average over targets too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fairprune_framework.contrasts.formats import Row
from fairprune_framework.contrasts.published.arranging import Item, each, text_of, word_of
from fairprune_framework.errors import PromptError

_OF_ALL = frozenset({"target", "bias_type", "context"})
COLUMNS = _OF_ALL | {"sentences"}
NAMES = ("stereotype", "anti-stereotype")
FLAT_COLUMNS = _OF_ALL | frozenset(NAMES)
LABELS = ("anti-stereotype", "stereotype", "unrelated")
"""Of the hub, where a label is a number."""
KINDS = ("intersentence", "intrasentence")
BLANK = "BLANK"


def records(content: Any) -> list[Any] | None:
    """The examples of `dev.json`, both kinds; None: the content is something else."""
    data = content.get("data") if isinstance(content, Mapping) else None
    if (
        not isinstance(data, Mapping)
        or not all(isinstance(data.get(kind, []), list) for kind in KINDS)
        or not set(data) & set(KINDS)
    ):
        return None
    return [example for kind in KINDS for example in data.get(kind, [])]


def rows(records: Iterable[Item]) -> Iterator[Item]:
    """One contrast for each example."""
    return each(records, _made)


def within(data: Mapping[str, Any]) -> bool:
    """The sentences fill a gap of the context (`intrasentence`); False: they follow it.

    Raises:
        PromptError: there is no context.
    """
    return BLANK in text_of(data, "context")


def sentences(data: Mapping[str, Any], names: Sequence[str] = NAMES) -> Mapping[str, str]:
    """Label -> sentence of an example, of either form.

    Raises:
        PromptError: a label without a sentence, or an unknown label.
    """
    found = dict(_labelled(data["sentences"])) if "sentences" in data else {name: text_of(data, name) for name in names}
    if missing := [name for name in names if name not in found]:
        raise PromptError(f"an example of StereoSet needs a sentence for each label. Got none for {missing[0]!r}.")
    return found


def _made(row: Row) -> Mapping[str, Any]:
    data = row.data
    inside, found = within(data), sentences(data)
    opening = "" if inside else f"{data['context'].rstrip()} "
    return {
        "id": word_of(data, "id") or f"stereoset/{row.number}",
        "category": text_of(data, "bias_type"),
        "template_id": text_of(data, "target"),
        "context": KINDS[inside],
        "variants": [{"attribute": name, "text": opening + found[name]} for name in NAMES],
    }


def _labelled(sentences: Any) -> Iterator[tuple[str, str]]:
    """(label, sentence) of a list of objects, or of an object of lists, as `datasets` gives it."""
    if isinstance(sentences, Mapping):
        columns = [sentences.get("gold_label"), sentences.get("sentence")]
        if not all(isinstance(column, Sequence) for column in columns):
            raise PromptError("the field 'sentences' must hold 'sentence' and 'gold_label'")
        sentences = [{"gold_label": label, "sentence": text} for label, text in zip(*columns, strict=True)]
    if not isinstance(sentences, Sequence) or not all(isinstance(one, Mapping) for one in sentences):
        raise PromptError(f"the field 'sentences' must be an array of objects. Got {sentences!r:.60} instead.")
    for one in sentences:
        label = one.get("gold_label")
        if isinstance(label, int) and 0 <= label < len(LABELS):
            label = LABELS[label]
        if label not in LABELS:
            raise PromptError(f"the 'gold_label' of a sentence must be one of {', '.join(LABELS)}. Got {label!r} instead.")
        yield label, text_of(one, "sentence")
