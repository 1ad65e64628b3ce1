"""`fairprune report`: the page of a run or an ablation, or of several runs compared, and figures as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fairprune_framework.errors import RunFolderError, UserError
from fairprune_framework.reporting.run_data import Source, read_source
from fairprune_framework.utilities import lock
from fairprune_framework.utilities.files import refuse_part_of_run, sweep

NAME = "report.html"


def make_report(
    folders: Sequence[Path], output: Path | None = None, figures: Path | None = None, format: str = "svg"
) -> tuple[list[Source], list[Path]]:
    """Write the page and, with `figures`, each chart as a file in that folder.

    Args:
        folders: run folders or ablation folders; several are compared with the first.
        output: the HTML file; None: `report.html` in the folder.

    Returns:
        The content of the folders, and the written files, the page first.

    Raises:
        UserError: several folders without `output`, or an unknown format.
        RunFolderError: a folder is neither a run nor an ablation.
    """
    from fairprune_framework.reporting import static
    from fairprune_framework.reporting.comparison import compare
    from fairprune_framework.reporting.page import charts_of, write_page

    if not folders:
        raise UserError("name a run folder: fairprune report RUN")
    if format not in static.FORMATS:
        raise UserError(f"--format must be one of {', '.join(static.FORMATS)}. Got {format!r} instead.")
    if output is None:
        if len(folders) > 1:
            raise UserError("a comparison of several runs needs its own file: name it with --output FILE.html")
        output = folders[0] / NAME
    elif output.is_dir():
        raise UserError(f"--output {output} is a folder: name a file, such as {output / NAME}")
    elif not output.parent.is_dir():
        raise UserError(f"there is no folder {output.parent}")
    elif output.exists() and not _is_page(output):
        raise UserError(f"--output {output} is there, and no page: it would be lost; name another file")
    for place, option in ((output, "--output"), (figures, "--figures")):
        if place is not None:
            refuse_part_of_run(place, option)
    sources = [read_source(folder) for folder in folders]
    if output.parent in folders:
        _sweep(output)
    write_page(sources, output)
    written = [output]
    if figures is not None:
        charts = charts_of(sources[0]) if len(sources) == 1 else list(compare(sources).charts)
        written += static.save(charts, figures, format)
    return sources, written


def _is_page(path: Path) -> bool:
    """An HTML file, which an earlier report may have left, or an empty one; a device takes anything."""
    if not path.is_file():
        return True
    with path.open("rb") as file:
        return file.read(9).lower() in (b"<!doctype", b"")


def _sweep(output: Path) -> None:
    """Remove what killed reports left beside a page, unless a process writes the folder."""
    try:
        taken = lock.acquire(output.parent)
    except (RunFolderError, OSError):  # somebody writes, or nobody may
        return
    sweep(output.parent, output.name)
    if taken:
        lock.release(output.parent)
