"""The ablation: one audit on one part of `select`; every cell is judged on the other part by masking, without held-out contrasts.

Folder: `grid.yaml`, `base/` (the calibration text), `search/` (a run folder: the audit), `cells/<id>.json`, `results.parquet`,
`ablation.json`, `confirmed/<id>/` (run folders). A stopped grid resumes: a cell is finished when its file exists.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairprune_framework.ablation import board
from fairprune_framework.ablation.grid import Cell, Grid
from fairprune_framework.errors import RunFolderError, UserError
from fairprune_framework.evaluation.draws import draws, item_of
from fairprune_framework.functional.paired_bootstrap import MIN_CLUSTERS
from fairprune_framework.models.loaded import LoadedModel
from fairprune_framework.recipes.loading import with_options
from fairprune_framework.runs.folder import is_begun
from fairprune_framework.runs.run import Run
from fairprune_framework.utilities import lock
from fairprune_framework.utilities.files import refuse_part_of_run, refuse_unwritable, sweep, write_json, write_text
from fairprune_framework.utilities.progress import Notify, silent
from fairprune_framework.utilities.schemas import AblationFile, CellFile, JudgedOnFile, KeyFile, read_checked
from fairprune_framework.utilities.wording import number_of

FIT_SHARE = "template:0.5"
"""Share of the templates of `select` that feed scores; the others judge the cells."""


class Ablation:
    """The folder of an ablation.

    Args:
        grid: the cells.
        folder: created with the first file.
        model, tokenizer, prompts: in memory, instead of those of the grid.
    """

    def __init__(
        self,
        grid: Grid,
        folder: Path,
        *,
        model: Any = None,
        tokenizer: Any = None,
        prompts: Sequence[Any] | None = None,
        overwrite: bool = False,
        notify: Notify = silent,
    ) -> None:
        self.grid, self.folder, self.notify, self.overwrite = grid, folder, notify, overwrite
        self._base: Run | None = None
        self._given: dict[str, Any] = {"model": model, "tokenizer": tokenizer, "contrasts": prompts}
        refuse_part_of_run(folder)
        refuse_unwritable(folder)
        known = folder / "ablation.json"
        if folder.exists() and not is_begun(folder) and not (folder / "grid.yaml").is_file():
            raise RunFolderError(f"{folder} exists and is not an ablation (it contains no grid.yaml): choose another --output")
        self.record: dict[str, Any] = read_checked(known, AblationFile) if known.is_file() else {}
        self._refuse_other_inputs()

    def _refuse_other_inputs(self) -> None:
        path = self.folder / "key.json"
        if not path.is_file():
            return
        if read_checked(path, KeyFile)["key"] != self.grid.key and not self.overwrite:
            raise RunFolderError(
                f"{self.folder} contains cells of a grid with other shared options (model, prompts, seed, ...): use --overwrite to "
                "replace them, or another --output"
            )

    # -- the two runs ---------------------------------------------------------------------------------------------------

    def base_run(self) -> Run:
        """The run with the real splits of the prompts and the calibration text."""
        if self._base is None:
            recipe = self.grid.recipe
            model = self._given["model"]
            loaded = (
                None
                if model is None
                else LoadedModel(recipe, model=model, tokenizer=self._given["tokenizer"], notify=self.notify)
            )
            self._base = Run(
                recipe,
                self.folder / "base",
                overwrite=self.overwrite,
                loaded=loaded,
                contrasts=self._given["contrasts"],
                notify=self.notify,
            )
        return self._base

    def search_run(self) -> Run:
        """The run of all cells: only `select`, with its templates split again; half of the scoring text judges.

        The real held-out contrasts are not part of it.
        """
        from fairprune_framework.calibration.text import Calibration
        from fairprune_framework.contrasts.splits import assign, without_overlap

        base = self.base_run()
        selecting = [contrast for contrast in base.prompts.contrasts if contrast.split in (None, "select")]
        divided, dropped = without_overlap(assign(selecting, FIT_SHARE, self.grid.recipe.seed + 1))
        if dropped:
            self.notify(f"{number_of(len(dropped), 'contrast')} skipped, whose text the judging part has too")
        if not any(contrast.split == "heldout" and not contrast.control for contrast in divided):
            raise UserError("select has too few templates to judge cells: at least one category needs two")
        recipe = with_options(self.grid.recipe, {"split": "keep", "columns": None, "prompts": None})
        text = base.calibration
        return Run(
            recipe,
            self.folder / "search",
            overwrite=self.overwrite,
            loaded=base.loaded,
            contrasts=divided,
            calibration=Calibration(documents=text.scoring, source=f"scoring half of {text.source}"),
            also=self.grid.plugins,
            notify=self.notify,
        )

    # -- the cells ------------------------------------------------------------------------------------------------------

    def result(self, cell: Cell) -> dict[str, Any] | None:
        """The stored result of a cell; None if it is not finished."""
        path = self.folder / "cells" / f"{cell.id}.json"
        return read_checked(path, CellFile) if path.is_file() else None

    def left(self, part: tuple[int, int] = (0, 1)) -> list[Cell]:
        """Unfinished cells of a part; cell i belongs to part i mod n."""
        mine = [cell for index, cell in enumerate(self.grid.cells) if index % part[1] == part[0]]
        return [cell for cell in mine if self.result(cell) is None]

    def audit(self) -> Run:
        """Run the shared audit of all cells, unless it is done."""
        from fairprune_framework.pipeline import run_stages

        return run_stages(self.search_run(), "read", "audit")

    def run_cells(self, part: tuple[int, int] = (0, 1)) -> None:
        """Run the unfinished cells of a part."""
        from fairprune_framework.ablation.cell import PlanEvaluator, Scorekeeper, evaluate_cell

        left = self.left(part)
        if not left:
            return
        run = self.audit() if part[0] == 0 else self.search_run()
        if not run.folder.has("audit"):
            raise UserError(f"the audit in {run.folder} is not finished: part 0 runs it; start the others afterwards")
        evaluator, keeper = PlanEvaluator(run, self.grid.judge), Scorekeeper(run)
        templates = set(draws([item_of(one, run.prompts.sentences) for one in evaluator.contrasts if not one.control]))
        if len(templates) < MIN_CLUSTERS:
            self.notify(
                f"{len(templates)} judging templates are too few for an interval ({MIN_CLUSTERS} are needed): none is given"
            )
        self.judged_on(evaluator.contrasts)  # before the cells: who goes on after a kill may find all of them done
        order = sorted(left, key=lambda cell: (repr(cell.recipe.bias), repr(cell.recipe.importance), cell.recipe.seed))
        began = time.perf_counter()
        for done, cell in enumerate(order, 1):
            columns = evaluate_cell(run, cell, keeper, evaluator)
            (self.folder / "cells").mkdir(exist_ok=True)
            write_json(self.folder / "cells" / f"{cell.id}.json", columns)
            spent = time.perf_counter() - began
            self.notify(f"cell {done} of {len(order)}: {spent:.0f} s, about {spent / done * (len(order) - done):.0f} s left")

    def _sweep(self) -> None:
        """Remove what killed writers left, in the runs inside too: where their part was done, nobody opens them again."""
        for folder in (self.folder, self.folder / "cells"):
            sweep(folder)
        for run in (self.folder / "base", self.folder / "search", *self.folder.glob("confirmed/*")):
            if run.is_dir() and not (run.is_symlink() or run.parent.is_symlink()):
                sweep(run)
                if lock.acquire(run):
                    lock.release(run)

    def judged_on(self, contrasts: Sequence[Any]) -> None:
        """Record the number of judging contrasts and templates."""
        bias = [contrast for contrast in contrasts if not contrast.control]
        facts = {
            "contrasts": len(bias),
            "templates": len({(contrast.category, contrast.template_id) for contrast in bias}),
            "controls": len(contrasts) - len(bias),
        }
        write_json(self.folder / "judged_on.json", facts)

    def assemble(self) -> dict[str, Any] | None:
        """Write the table once every cell is finished; None otherwise."""
        results = [self.result(cell) for cell in self.grid.cells]
        rows = [row for row in results if row is not None]
        if len(rows) < len(results):
            self.notify(f"{len(rows)} of {len(results)} cells are done")
            return None
        looked = {path.stem for path in (self.folder / "cells").glob("*.json")}
        self.record = {
            "recipe": self.grid.recipe.to_file(),
            "judged_by": self.grid.judge,
            "judged_on": read_checked(self.folder / "judged_on.json", JudgedOnFile),
            "cells_looked_at": len(looked) + self._earlier,
            "earlier_cells": self._earlier,
            "confirmed": self.record.get("confirmed"),
            "cells": board.completed(rows),
        }
        self.save()
        return self.record

    def save(self) -> None:
        """Write `results.parquet` and `ablation.json`."""
        rest = {name: value for name, value in self.record.items() if name not in ("cells", "format")}
        board.save(self.folder, self.record["cells"], rest)

    @property
    def _earlier(self) -> int:
        path = self.folder / "key.json"
        return int(read_checked(path, KeyFile)["earlier_cells"]) if path.is_file() else 0

    def begin(self, source: str, *, shared: bool = False) -> None:
        """Write the grid; `overwrite` removes the cells but keeps their number.

        Args:
            shared: parts of the work are done by other processes, who write their own cells.

        Raises:
            RunFolderError: another process writes the folder.
        """
        import shutil

        self.folder.mkdir(parents=True, exist_ok=True)
        if lock.acquire(self.folder, shared=shared and not self.overwrite) and not shared:
            self._sweep()
        earlier = self._earlier
        if self.overwrite:
            earlier += len(list((self.folder / "cells").glob("*.json")))
            for name in ("cells", "search", "base", "confirmed"):
                shutil.rmtree(self.folder / name, ignore_errors=True)
            for name in ("results.parquet", "ablation.json", "judged_on.json"):
                (self.folder / name).unlink(missing_ok=True)
            self.record, self.overwrite = {}, False
        write_text(self.folder / "grid.yaml", source)
        write_json(self.folder / "key.json", {"key": self.grid.key, "earlier_cells": earlier})
        if shared:
            lock.share(self.folder)
