"""The commands ``marl runs`` and ``marl compare``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.text import Text

from marl import UserError
from marl.config.validation import Range, settings
from marl.utils.text import LiteralConsole, one_line

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

        from marl.reports.recorded import RunFolderError, find_runs, read_run

        folders = find_runs(self.folder)
        if not folders:
            there = "" if self.folder.is_dir() else f": {self.folder} is no folder"
            begin = "; marl train makes one there" if self.folder == Path("runs") else ""
            raise RunFolderError(
                f"no run in {self.folder}{there}; name a folder that holds runs{begin}"
            )
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


@settings("--")
class Compare:
    """Compare runs: learning curves, returns at the end, steps needed, who is above whom.

    Runs that differ in nothing but the seed are a group; those of a sweep with named tasks and
    variants are named by these. Numbers are interquartile means over seeds with 95 % stratified
    bootstrap intervals.
    """

    places: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(name="runs", metavar="RUN...")
    ]
    """Runs, sweeps, folders that hold runs, or what `marl sweep --keep` has kept of them."""
    metric: str | None = None
    """What is compared, a column of metrics.csv, e.g. episode/won; larger is better. What each task
    of a sweep names, or the mean return, if not given."""
    steps: Annotated[int, Range(1, 1e12)] | None = None
    """Compare up to so many environment steps, without runs that have fewer; as far as all have
    come if not given."""
    level: float | None = None
    """How many steps it takes to get there; 80 % of the way from the first returns to the best
    group's last if not given."""
    against: str = ""
    """The group that the others are said to be above or below of."""
    out: Path | None = None
    """Folder of comparison.md, .csv and .png; that of the runs or the sweep, where one is named,
    else comparison/."""

    def run(self) -> int:
        """Print the comparison and write its files."""
        from marl.reports.comparison import MEASURED_TOO, ComparisonError, Run
        from marl.reports.comparison_files import write_comparison
        from marl.reports.kept import find_kept, kept_runs
        from marl.reports.recorded import find_runs, read_run

        folders: list[Path] = []
        files: list[Path] = []
        for place in self.places:
            found, kept = find_runs(place), find_kept(place)
            if not found and not kept:
                raise ComparisonError(f"no run in {place}; name runs, or folders that hold runs")
            folders += found
            files += kept
        columns = (self.metric or "return/mean", "return/episodes", *MEASURED_TOO)
        kept_ones, damaged = kept_runs(dict.fromkeys(files))
        runs: list[Run] = [*kept_ones]
        for path in dict.fromkeys(folders):
            try:
                runs.append(read_run(path, columns))
            except UserError as error:
                damaged.append(f"left out: {one_line(str(error), 300)}")
        alone = len(self.places) == 1 and [*folders, *files] != list(self.places)
        out = self.out or (self.places[0] if alone else Path("comparison"))
        page = write_comparison(
            runs,
            out,
            metric=self.metric,
            until=self.steps,
            level=self.level,
            against=self.against,
            notes=damaged,
        )
        LiteralConsole().print(Text(page), soft_wrap=True)
        print(f"written to {out / 'comparison.md'}, .csv and .png")
        return 0


def _row(run: "RecordedRun") -> tuple[str, ...]:
    """Return what stands beside a run's folder."""
    from marl.reports.recorded import smoothed
    from marl.utils.progress import duration

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
