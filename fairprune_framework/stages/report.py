"""The stage `report`: what the stages before left -> `report.html`, and the card in `model/`. Reads files alone."""

from __future__ import annotations

from fairprune_framework.reporting.card import write_card
from fairprune_framework.reporting.report import NAME, make_report
from fairprune_framework.runs.run import Run


def check(run: Run) -> None:
    """Nothing: a report shows what is there and names what is missing."""


def run(run: Run) -> list[str]:
    """Do the stage; returns the files that it left."""
    run.folder.begin("report")
    make_report([run.folder.path])
    return [NAME, *write_card(run.folder.path)]
