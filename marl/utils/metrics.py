"""What a run measured: one row per iteration in ``metrics.csv``.

The CSV is exact: numbers are written so that reading them back gives the same bits. Continuing from
a checkpoint first drops the rows after it, so the file of a resumed run equals that of one never
killed.
"""

import csv
import io
import os
import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from marl import UserError
from marl.utils.files import atomic_write, make_folder, output

TIME_PARTS = ("physics", "inference", "reward", "policy")
"""What an iteration's seconds are divided into, as ``time/physics`` and so on."""

_FILE = "metrics.csv"
_REMEDY = "free some space or let it be written"
_Row = dict[str, str]


class MetricsError(UserError, ValueError):
    """The metrics of a run cannot be read."""


class MetricWriter:
    """Appends metrics to a run's folder."""

    def __init__(self, folder: Path, *, after: int | None = None) -> None:
        """Begin new files or, where `after` is the step of a checkpoint, continue from there.

        Rows after that step are forgotten, and so is every column that only those rows filled. A
        file that is damaged is set aside, and rows that are missing are told. Raises `OutputError`
        where the file cannot be written.
        """
        make_folder(folder)
        self._path = folder / _FILE
        columns, rows = (["step"], []) if after is None else _rows_until(self._path, after)
        self._columns = columns
        self._last_step = int(rows[-1]["step"]) if rows else -1
        self._last_row = rows[-1] if rows else {}
        self._rewrite(rows)

    def kept(self, name: str) -> float:
        """Return a metric in the newest row that was kept; 0 where there is no number."""
        with suppress(ValueError):
            return float(self._last_row.get(name, ""))
        return 0.0

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append one row and flush it. `step` counts environment steps and must grow.

        A metric not seen before becomes a new last column, empty in the rows above.
        """
        if step <= self._last_step:
            raise ValueError(
                f"metrics of step {step} come after step {self._last_step} in {self._path}; "
                "continue a run with after= the step of its checkpoint"
            )
        if "step" in metrics:
            raise ValueError("'step' is the row's own column; name the metric group/name")
        if new := [name for name in metrics if name not in self._columns]:
            self._file.close()
            self._columns += new
            self._rewrite(_read_rows(self._path)[1])
        cells = {"step": str(step)} | {name: repr(float(v)) for name, v in metrics.items()}
        with output(self._path, _REMEDY):
            self._file.write(_line(cells.get(name, "") for name in self._columns).encode())
            self._file.flush()
        self._last_step = step

    def sync(self) -> None:
        """Wait until the disk has every row, as a checkpoint that counts them needs."""
        with output(self._path, _REMEDY):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        with suppress(OSError):  # of a row that could not be written, which was told
            self._file.close()

    def _rewrite(self, rows: list[_Row]) -> None:
        """Rewrite the file atomically, with the current columns, and open it for further rows."""
        lines = [_line(row.get(name, "") for name in self._columns) for row in rows]
        with output(self._path, _REMEDY):
            atomic_write(self._path, "".join([_line(self._columns), *lines]).encode())
            self._file = self._path.open("ab")


def read_metrics(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """Return one array per column: ``step`` as int64, the rest as float64, NaN where empty."""
    columns, rows = _read_rows(folder / _FILE)
    metrics: dict[str, npt.NDArray[Any]] = {
        name: np.array([float(row[name] or "nan") for row in rows], np.float64)
        for name in columns[1:]
    }
    return {"step": np.array([int(row["step"]) for row in rows], np.int64)} | metrics


def read_columns(folder: Path, names: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Return ``step`` and those of the named columns that there are, as `read_metrics` does.

    Only they are parsed, which takes a small part of the time.
    """
    columns, lines = _header_and_lines(folder / _FILE)
    wanted = {name: columns.index(name) for name in names if name in columns}
    rows = [line.split(",") for line in lines]
    if any(len(row) != len(columns) for row in rows):
        raise MetricsError(f"{folder / _FILE} is damaged: its rows have unequal lengths")
    try:
        metrics: dict[str, npt.NDArray[Any]] = {
            name: np.array([float(row[index] or "nan") for row in rows], np.float64)
            for name, index in wanted.items()
        }
        return {"step": np.array([int(row[0]) for row in rows], np.int64)} | metrics
    except (ValueError, OverflowError):
        raise MetricsError(f"{folder / _FILE} is damaged: it holds what is no number") from None


def _rows_until(path: Path, step: int) -> tuple[list[str], list[_Row]]:
    """Return the columns and rows of a run up to a step, and warn of what is not there."""
    try:
        columns, rows = _read_rows(path)
    except FileNotFoundError:
        columns, rows = ["step"], []
    except (MetricsError, OSError) as error:
        aside = _free_name(path.with_name(f"{path.name}.damaged"))
        path.rename(aside)
        warnings.warn(f"{error}; it is now {aside}, and a new one begins", stacklevel=4)
        columns, rows = ["step"], []
    kept = [row for row in rows if int(row["step"]) <= step]
    last = int(kept[-1]["step"]) if kept else 0
    if last < step:
        warnings.warn(
            f"{path} lacks the rows between the steps {last:,} and {step:,}, where the checkpoint "
            "stands; the curve has a gap there",
            stacklevel=4,
        )
    filled = [name for name in columns if name == "step" or any(row[name] for row in kept)]
    return filled, kept


def _free_name(path: Path) -> Path:
    """Return the path, or the next one with a number that does not exist."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _read_rows(path: Path) -> tuple[list[str], list[_Row]]:
    """Return the columns and rows as text."""
    reader = csv.DictReader(io.StringIO(_whole_lines(path)), restkey="", restval=None)
    columns = _checked_columns(list(reader.fieldnames or ()), path)
    rows = []
    for number, row in enumerate(_parsed(reader, path), start=2):
        if set(row) != set(columns) or None in row.values() or not _is_number(row):
            raise MetricsError(f"{path}, line {number}, is damaged: it is no row of numbers")
        rows.append(row)
    return columns, rows


def _header_and_lines(path: Path) -> tuple[list[str], list[str]]:
    """Return the columns and the lines of rows as they stand."""
    text = _whole_lines(path)
    reader = csv.reader(io.StringIO(text))
    try:
        columns = _checked_columns(next(reader, []), path)
    except csv.Error as error:
        raise MetricsError(f"{path} is damaged: {error}") from None
    return columns, text.splitlines()[reader.line_num :]


def _whole_lines(path: Path) -> str:
    """Return the lines of a file; a last one that a kill left unfinished is dropped."""
    if path.exists() and not path.is_file():  # a named pipe would be waited for without end
        raise MetricsError(f"{path} is not a file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise MetricsError(f"{path} is damaged: it is no text") from None
    return text[: text.rfind("\n") + 1]


def _checked_columns(columns: list[str], path: Path) -> list[str]:
    if columns[:1] != ["step"]:
        raise MetricsError(
            f"{path} begins with {columns[:3]}; expected the columns of a run, 'step' first"
        )
    return columns


def _parsed(reader: "csv.DictReader[str]", path: Path) -> Iterable[dict[Any, Any]]:
    """Yield the rows that the csv module can read."""
    try:
        yield from reader
    except csv.Error as error:
        raise MetricsError(f"{path} is damaged: {error}") from None


def _is_number(row: _Row) -> bool:
    """Return whether every cell that is not empty is a number, the step a whole one."""
    try:
        int(row["step"])
        for value in row.values():
            float(value or "nan")
    except ValueError:
        return False
    return True


def _line(cells: Iterable[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()
