"""The command ``marl runs``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from marl.config.validation import settings

if TYPE_CHECKING:
    from marl.reports.recorded import RecordedRun

_HEADINGS = ("run", "environment", "algorithm", "seed", "steps", "state", "best", "last", "time")


@settings("--")
class Runs:
    """List runs: what is trained, how far, in which state, and the return.

    Best and last return are those of the curve, i.e. of a running mean over a twentieth of the
    run. Crashed are runs that an error ended (RUN/error.txt) or a kill; `marl resume` continues
    those and the stopped ones. The time is that of the iterations.
    """

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")] = Path("runs")
    """Where to look, also in folders within."""

    def run(self) -> int:
        """Print the table."""
        from rich.table import Table
        from rich.text import Text

        from marl import UserError
        from marl.reports.recorded import RunFolderError, find_runs, read_run
        from marl.utils.text import LiteralConsole, one_line

        folders = find_runs(self.folder)
        if not folders:
            there = "" if self.folder.is_dir() else f": {self.folder} is no folder"
            raise RunFolderError(f"no run in {self.folder}{there}; name a folder that holds runs")
        table = Table(box=None, pad_edge=False)
        for name in _HEADINGS:
            numeric = name in ("seed", "steps", "best", "last", "time")
            table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
        damaged = []
        for folder in folders:
            try:
                row = _row(read_run(folder))
            except UserError as error:
                damaged.append(one_line(str(error), 300))
                continue
            table.add_row(*(Text(cell) for cell in (one_line(str(folder), 300), *row)))
        console = LiteralConsole()
        if not console.is_terminal:
            console.width = 10_000  # each run on one line, whole
        if table.rows:
            console.print(table)
        for line in damaged:
            console.print(Text(f"damaged: {line}"), soft_wrap=True)
        return 0


def _row(run: "RecordedRun") -> tuple[str, ...]:
    """Return what stands beside a run's folder."""
    from marl.reports.recorded import smoothed
    from marl.utils.progress import duration
    from marl.utils.text import one_line

    config = run.config
    _, returns = run.curve()
    best, last = "", ""
    if len(returns):
        curve = smoothed(returns)
        best, last = f"{curve.max():,.4g}", f"{curve[-1]:,.4g}"
    return (
        one_line(config.env.name),
        config.algorithm,
        str(config.seed),
        f"{run.steps:,} / {config.total_steps:,}",
        run.state,
        best,
        last,
        duration(run.seconds),
    )
