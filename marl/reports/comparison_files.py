"""A comparison's files: the page, its table, and the picture."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from marl.reports.comparison import CSV_COLUMNS, ComparisonError, csv_rows, page, tasks_of
from marl.reports.comparison_plot import draw_tasks
from marl.reports.recorded import RecordedRun
from marl.utils.files import atomic_write, output


def write_comparison(
    runs: Sequence[RecordedRun],
    folder: Path,
    *,
    metric: str = "return/mean",
    until: int | None = None,
    level: float | None = None,
    notes: Sequence[str] = (),
) -> str:
    """Write ``comparison.md``, ``.csv`` and ``.png`` of some runs, and return the page."""
    tasks, left_out = tasks_of(runs, metric, until)
    notes = [*notes, *left_out]
    if not tasks:
        raise ComparisonError("\n".join(["there is nothing to compare", *notes]))
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([CSV_COLUMNS, *csv_rows(tasks, level)])
    with output(folder, "choose another --out"):
        folder.mkdir(parents=True, exist_ok=True)
        draw_tasks(tasks, folder / "comparison.png")
        atomic_write(folder / "comparison.csv", table.getvalue().encode())
        text = page(tasks, level, notes, "comparison.png")
        atomic_write(folder / "comparison.md", text.encode())
    return text
