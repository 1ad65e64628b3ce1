"""What a report writes, and what it refuses before it reads or writes anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from fairprune_framework.errors import RunFolderError, UserError
from fairprune_framework.reporting.page import charts_of
from fairprune_framework.reporting.report import NAME, make_report


def test_one_page_and_a_file_for_each_chart(full: Path, tmp_path: Path) -> None:
    sources, written = make_report([full], tmp_path / "x.html", tmp_path / "figures", "svg")
    assert written == [tmp_path / "x.html", *(tmp_path / "figures" / f"{chart.name}.svg" for chart in charts_of(sources[0]))]
    assert all(path.stat().st_size > 0 for path in written)
    assert len(written) > 5


def test_several_runs_are_compared(full: Path, finished: Path, tmp_path: Path) -> None:
    sources, written = make_report([full, finished], tmp_path / "x.html", tmp_path / "figures", "svg")
    assert [source.folder for source in sources] == [full, finished]
    assert written[1:] == [tmp_path / "figures" / "change-by-run.svg"]
    text = written[0].read_text(encoding="utf-8")
    assert all(source.name in text for source in sources)


def test_no_other_file_than_a_page_is_replaced(full: Path, tmp_path: Path) -> None:
    """A slip, `--output run/plan.json`, would cost a result."""
    taken = tmp_path / "plan.json"
    taken.write_text("{}")
    with pytest.raises(UserError, match=r"plan\.json is there, and no page: it would be lost; name another file"):
        make_report([full], taken)
    assert taken.read_text() == "{}"
    taken.write_text("<!doctype html>\n")
    assert make_report([full], taken)[1] == [taken]


def test_what_is_refused(full: Path, tmp_path: Path) -> None:
    for folders, output, format, words in (
        ([], None, "svg", "name a run folder"),
        ([full], None, "gif", "--format must be one of svg, png, pdf. Got 'gif'"),
        ([full, full], None, "svg", "needs its own file"),
        ([full], tmp_path, "svg", f"is a folder: name a file, such as {tmp_path / NAME}"),
        ([full], tmp_path / "absent" / "x.html", "svg", "there is no folder"),
    ):
        with pytest.raises(UserError) as caught:
            make_report(folders, output, None, format)
        assert words in str(caught.value)
    with pytest.raises(RunFolderError):
        make_report([tmp_path / "absent"], tmp_path / "x.html")
    assert not list(tmp_path.iterdir())
