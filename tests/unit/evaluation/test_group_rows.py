"""Rows by group against pandas, and a group that gets worse than others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.multitest import multipletests

from fairprune_framework.evaluation.group_rows import group_rows
from fairprune_framework.evaluation.rows import ResultRow

GROUPS = ("woman", "man", "nonbinary")


def items(
    rise: tuple[float, ...] = (0.0, 0.0, 0.0), shift: float = 0.0, n: int = 40, after: bool = True
) -> list[dict[str, Any]]:
    """Two contrasts a template; the last ones lack `nonbinary`, two have no shared token. `rise`: nats a token of each group."""
    rng = np.random.default_rng(1)
    found = []
    for i in range(n):
        names = GROUPS if i < n - 6 else GROUPS[:2]
        tokens = 0 if i in (3, 4) else 3 + i % 5
        nats = -rng.gamma(20, 0.2, len(names)) * tokens
        then = nats - np.array(rise[: len(names)]) * tokens + rng.normal(0, 0.05, len(names)) * tokens
        valence = rng.normal(0, 0.1, len(names)) + np.array([0.3, 0.0, 0.0])[: len(names)]
        later = valence + np.array([shift, 0.0, 0.0])[: len(names)] + rng.normal(0, 0.01, len(names))
        found.append(
            {
                "category": "gender",
                "template_id": f"t{i // 2}",
                "split": "heldout",
                "control": False,
                "role": "demographic",
                "attributes": list(names),
                "valence_before": valence.tolist(),
                "valence_after": later.tolist() if after else None,
                "shared_tokens": tokens,
                "shared_log_probabilities_before": nats.tolist(),
                "shared_log_probabilities_after": then.tolist() if after else None,
            }
        )
    return found


def by_name(rows: list[ResultRow]) -> dict[tuple[str, str | None], ResultRow]:
    return {(row.metric, row.category): row for row in rows}


def table(given: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "group": name,
            "tokens": item["shared_tokens"],
            "before": item["shared_log_probabilities_before"][place],
            "after": item["shared_log_probabilities_after"][place],
            "e": item["valence_before"][place] - np.mean(item["valence_before"]),
            "e_after": item["valence_after"][place] - np.mean(item["valence_after"]),
        }
        for item in given
        for place, name in enumerate(item["attributes"])
    )


def test_every_row_is_that_of_a_table() -> None:
    given = items((0.0, 0.1, 0.4), shift=-0.2)
    rows, frame = by_name(group_rows(given, 0)), table(given)
    sums = frame[frame.tokens > 0].groupby("group")[["tokens", "before", "after"]].sum()
    means = frame.groupby("group")[["e", "e_after"]].mean()
    for name in GROUPS:
        row = rows["perplexity-of-group", f"gender: {name}"]
        before, after = (float(np.exp(-sums.loc[name, when] / sums.loc[name, "tokens"])) for when in ("before", "after"))
        assert (row.before, row.after, row.change) == pytest.approx((before, after, after / before - 1))
        valence = rows["valence-of-group", f"gender: {name}"]
        assert (valence.before, valence.after) == pytest.approx((means.loc[name, "e"], means.loc[name, "e_after"]))
        assert valence.change is None
        assert valence.difference_low is not None
    rise = -(sums.after - sums.before) / sums.tokens
    gap = rows["perplexity-gap", "gender"]
    assert (gap.before, gap.after) == (0.0, pytest.approx(rise.max() - rise.mean()))


def test_a_group_that_reads_worse_is_told_and_equal_cost_is_not_a_gap() -> None:
    worse = by_name(group_rows(items((0.0, 0.0, 0.4)), 0))
    gap = worse["perplexity-gap", "gender"]
    assert gap.difference_low is not None
    assert gap.difference_low > 0.15
    assert gap.p_value is not None
    assert gap.p_value < 0.01
    harmed, spared = (worse["perplexity-of-group", f"gender: {name}"] for name in ("nonbinary", "woman"))
    assert harmed.ci_low is not None
    assert harmed.ci_low > 0.3
    assert harmed.p_adjusted is None  # harm is not made harder to show
    assert spared.ci_low is not None
    assert spared.ci_low < 0.05
    alike = by_name(group_rows(items((0.4, 0.4, 0.4)), 0))["perplexity-gap", "gender"]
    assert alike.difference_high is not None
    assert alike.difference_high < 0.08


def test_a_group_whose_words_become_less_friendly() -> None:
    rows = by_name(group_rows(items(shift=-0.3), 0))
    found = [rows["valence-of-group", f"gender: {name}"] for name in GROUPS]
    assert found[0].before == pytest.approx(0.2, abs=0.06)
    assert found[0].difference == pytest.approx(-0.2, abs=0.01)
    assert found[0].difference_high is not None
    assert found[0].difference_high < -0.15
    expected = multipletests([row.p_value for row in found], method="holm")[1]
    assert [row.p_adjusted for row in found] == pytest.approx(list(expected))


def test_one_model_alone_and_few_templates() -> None:
    alone = by_name(group_rows(items(after=False), 0))
    assert ("perplexity-gap", "gender") not in alone
    assert alone["perplexity-of-group", "gender: man"].after is None
    few = by_name(group_rows(items(n=12), 0))["perplexity-gap", "gender"]
    assert few.difference_low is None
    assert "6 templates are too few" in str(few.note)


def test_texts_that_end_with_the_difference_have_no_perplexity() -> None:
    given = [{**item, "shared_tokens": 0} for item in items()]
    assert {row.metric for row in group_rows(given, 0)} == {"valence-of-group"}
