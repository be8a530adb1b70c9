"""What a run measured: one row per iteration in ``metrics.csv``, and the same for TensorBoard.

The CSV is exact: numbers are written so that reading them back gives the same bits. Resuming from
a checkpoint first drops the rows after it, so the file of a resumed run equals that of one never
killed.
"""

import csv
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from marl.utils.files import atomic_write

TIME_PARTS = ("physics", "inference", "reward", "policy")
"""What an iteration's seconds are divided into, as ``time/physics`` and so on."""

_FILE = "metrics.csv"
_Row = dict[str, str]


class MetricWriter:
    """Appends metrics to a run's folder; a folder that holds some already is continued."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / _FILE
        self._columns, self._last_step = ["step"], -1
        if self._path.exists():
            self._keep_rows(_read_rows(self._path))
        else:
            _replace(self._path, self._columns, [])
        self._file = self._path.open("a", newline="", encoding="utf-8")
        self._events = EventFileWriter(str(folder / "tensorboard"))

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append one row and flush it. `step` counts environment steps and must grow.

        A metric not seen before becomes a new last column, empty in the rows above.
        """
        if step <= self._last_step:
            raise ValueError(
                f"metrics of step {step} come after step {self._last_step} in {self._path}; "
                "call truncate(step of the checkpoint) before continuing a run"
            )
        if "step" in metrics:
            raise ValueError("'step' is the row's own column; name the metric group/name")
        if new := [name for name in metrics if name not in self._columns]:
            self._file.close()
            self._columns += new
            _replace(self._path, self._columns, _read_rows(self._path)[1])
            self._file = self._path.open("a", newline="", encoding="utf-8")
        cells = {"step": str(step)} | {name: repr(float(v)) for name, v in metrics.items()}
        self._file.write(_line(cells.get(name, "") for name in self._columns))
        self._file.flush()
        self._last_step = step
        self._write_events(step, metrics)

    def truncate(self, step: int) -> None:
        """Forget every row after `step`, and every column that only those rows filled."""
        self._file.close()
        columns, rows = _read_rows(self._path)
        kept = [row for row in rows if int(row["step"]) <= step]
        filled = [name for name in columns if name == "step" or any(row[name] for row in kept)]
        self._keep_rows((filled, kept))
        self._file = self._path.open("a", newline="", encoding="utf-8")
        # TensorBoard hides the events of an earlier session from this step on.
        restart = SessionLog(status=SessionLog.START)
        self._events.add_event(Event(step=step + 1, session_log=restart))

    def close(self) -> None:
        """Flush and close both files."""
        self._file.close()
        self._events.close()

    def _keep_rows(self, content: tuple[list[str], list[_Row]]) -> None:
        self._columns, rows = content
        self._last_step = int(rows[-1]["step"]) if rows else -1
        _replace(self._path, self._columns, rows)

    def _write_events(self, step: int, metrics: dict[str, float]) -> None:
        values = [
            Summary.Value(tag=name, simple_value=float(value))
            for name, value in metrics.items()
            if math.isfinite(value)
        ]
        self._events.add_event(Event(step=step, summary=Summary(value=values)))
        self._events.flush()


def read_metrics(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """Return one array per column: ``step`` as int64, the rest as float64, NaN where empty."""
    columns, rows = _read_rows(folder / _FILE)
    metrics: dict[str, npt.NDArray[Any]] = {
        name: np.array([float(row[name] or "nan") for row in rows], np.float64)
        for name in columns[1:]
    }
    return {"step": np.array([int(row["step"]) for row in rows], np.int64)} | metrics


def _read_rows(path: Path) -> tuple[list[str], list[_Row]]:
    """Return the columns and rows as text; a last line that a kill left unfinished is dropped."""
    text = path.read_text(encoding="utf-8")
    whole_lines = text[: text.rfind("\n") + 1]
    reader = csv.DictReader(io.StringIO(whole_lines))
    columns = list(reader.fieldnames or ())
    if columns[:1] != ["step"]:
        raise ValueError(
            f"{path} begins with {columns[:3]}; expected the columns of a run, 'step' first"
        )
    return columns, list(reader)


def _replace(path: Path, columns: list[str], rows: list[_Row]) -> None:
    """Write the whole file atomically."""
    lines = [_line(columns), *(_line(row.get(name, "") for name in columns) for row in rows)]
    atomic_write(path, "".join(lines).encode())


def _line(cells: Iterable[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()
