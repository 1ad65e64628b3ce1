"""Data sets as their authors publish them, read as contrasts: told by the files of a folder, the shape of a file, or its columns.

| data set | told by | a contrast |
|---|---|---|
| CrowS-Pairs | columns `sent_more`, `sent_less` | the two sentences |
| StereoSet | columns `target`, `bias_type`, `context` and `sentences`, or one for each sentence | the stereotype, the anti-stereotype |
| BBQ | columns `answer_info`, `context_condition`, `question_polarity`, `ans0`, `ans1`, `ans2` | an ambiguous question, the two groups |
| Winogender | columns `sentid`, `sentence` | the three pronouns |
| discrim-eval | columns `filled_template`, `decision_question_id`, `age`, `gender`, `race` | all people of a question |
| BOLD | a `.json` object: group -> person -> prompts | prompts of several groups with one wording |
| HolisticBias | a folder with `descriptors.json`, `nouns.json`, `sentence_templates.json` | all descriptors of an axis |
| WinoBias | files `pro_stereotyped_type1.txt.dev` and the like | line i of both sides |

What a data set holds beside contrasts (unrelated sentences, answered questions) is left out; where that is a record, it is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from fairprune_framework.contrasts import formats, winobias
from fairprune_framework.contrasts.formats import Row
from fairprune_framework.contrasts.published import bbq, bold, crows_pairs, discrim_eval, holistic_bias, stereoset, winogender
from fairprune_framework.contrasts.published.arranging import Item
from fairprune_framework.contrasts.schema import Contrast
from fairprune_framework.errors import PromptError

_BY_COLUMNS: tuple[tuple[frozenset[str], Callable[[Iterable[Item]], Iterator[Item]]], ...] = (
    (crows_pairs.COLUMNS, crows_pairs.rows),
    (stereoset.COLUMNS, stereoset.rows),
    (stereoset.FLAT_COLUMNS, stereoset.rows),
    (bbq.COLUMNS, bbq.rows),
    (winogender.COLUMNS, winogender.rows),
    (discrim_eval.COLUMNS, discrim_eval.rows),
)


def recognised(path: Path) -> bool:
    """A file or folder that is one of these by its name or by the files that it holds."""
    return winobias.recognised(path) or holistic_bias.recognised(path)


def of_files(path: Path, chosen: str | None = None) -> Iterator[Row]:
    """The contrasts of a recognised path, as rows.

    Args:
        chosen: an axis of HolisticBias; the others have no parts to choose.

    Raises:
        PromptError: the files are not of the published form, or have no such part.
    """
    if holistic_bias.recognised(path):
        return holistic_bias.rows(path, chosen)
    if chosen is not None:
        raise PromptError(f"{path} is WinoBias, which has no part {chosen!r} to choose: name one of its files")
    return winobias.rows(path)


def of_file(path: Path) -> Iterator[Item]:
    """The rows of a file, in our layout where it is one of the published ones, and otherwise as they are.

    Raises:
        PromptError: as `formats.rows`.
    """
    if path.suffix.lower() != ".json":
        return arranged(formats.rows(path))
    content = formats.document(path)
    if bold.recognised(content):
        return bold.rows(path, content)
    examples = stereoset.records(content)
    return arranged(formats.items(path, content if examples is None else examples))


def arranged(rows: Iterable[Item]) -> Iterator[Item]:
    """Records whose columns are those of a published data set, as rows in our layout; the first readable one tells."""
    remaining, opening = iter(rows), []
    for item in remaining:
        opening.append(item)
        if isinstance(item, Contrast):
            break
        if item.problem is None:
            for columns, arrange in _BY_COLUMNS:
                if columns <= item.data.keys():
                    yield from arrange(chain(opening, remaining))
                    return
            break
    yield from chain(opening, remaining)
