"""What the folder of a run tells, read without PyTorch: settings, state, and the curve.

Axes: G iterations.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from marl import UserError
from marl.config import Config
from marl.config.io import load_run_config
from marl.utils.files import is_held
from marl.utils.metrics import read_columns

State = Literal["running", "finished", "stopped", "crashed"]
FloatArray = npt.NDArray[np.floating[Any]]

CONFIG, LOCK, ERROR = "config.toml", ".lock", "error.txt"
"""Files of a run's folder: its settings, what its writer holds, and the error that ended it."""
NAME = "name.json"
"""Beside the folders of a named trial's runs: what they are called in comparisons."""
FINAL_SHARE = 0.1
"""The last tenth of the steps says where a run ends."""
_EVALUATION = "evaluation/greedy"
_DEPTH = 6
"""Folders within one another in which runs are looked for."""
_MOST_BYTES = 1_000_000
"""Of a file of settings; a run's has a few thousand."""


class RunFolderError(UserError):
    """A folder holds no run that can be read."""


@dataclass(frozen=True, kw_only=True)
class RunName:
    """What a run is called in comparisons, and what it is measured by."""

    task: str
    group: str
    metric: str = "return/mean"


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """A run as its files tell it."""

    folder: Path
    config: Config
    metrics: dict[str, npt.NDArray[Any]]
    """Columns of metrics.csv that were asked for, (G,) each; ``step`` among them."""
    named: RunName | None = None
    """Of a run that has one: that of a sweep with named tasks."""

    @property
    def seed(self) -> int:
        """The run's one seed."""
        return self.config.seed

    @property
    def total_steps(self) -> int:
        """Environment steps that it is to take."""
        return self.config.total_steps

    @property
    def steps(self) -> int:
        """Environment steps that are recorded."""
        return int(self.metrics["step"][-1]) if len(self.metrics["step"]) else 0

    @property
    def seconds(self) -> float:
        """Seconds that the iterations took, without the time between them."""
        rates = self.metrics.get("time/steps_per_second", np.empty(0))
        taken = np.diff(self.metrics["step"], prepend=0)
        known = np.isfinite(rates) & (rates > 0)
        return float((taken[known] / rates[known]).sum()) if len(rates) else 0.0

    @cached_property
    def has_ended(self) -> bool:
        """Whether it took all its steps, or ended on a plateau (``eval.patience``)."""
        if self.steps >= self.config.total_steps:
            return True
        returns = dict(zip(*(array.tolist() for array in self.curve(_EVALUATION)), strict=True))
        is_plateau = self.config.eval.is_plateau(returns, self.config.batch_steps)
        return is_plateau and self.steps <= _last_checkpoint(self.folder)

    @cached_property
    def state(self) -> State:
        """How it stands. Crashed: an error ended it, or a kill between two checkpoints."""
        if is_held(self.folder / LOCK):
            return "running"
        if self.has_ended:
            return "finished"
        if (self.folder / ERROR).exists() or self.steps > _last_checkpoint(self.folder):
            return "crashed"
        return "stopped"

    def curve(self, name: str = "return/mean") -> tuple[npt.NDArray[np.int64], FloatArray]:
        """Return the steps at which a metric is known, and the metric there."""
        values = self.metrics.get(name, np.full(len(self.metrics["step"]), np.nan))
        known = np.isfinite(values)
        return self.metrics["step"][known], values[known]


def find_runs(folder: Path) -> list[Path]:
    """Return the folders of runs at or under a folder, in the order of their names.

    A link counts where it leads to a run, and is not searched otherwise. Of a sweep only the
    trials count, not the runs with evaluation seeds.
    """
    if (folder / "sweep.json").is_file():
        folder = folder / "trials"
    return list(_runs_in(folder, _DEPTH))


def _runs_in(folder: Path, depth: int) -> Iterator[Path]:
    if os.path.lexists(folder / CONFIG):
        yield folder
        return
    if depth == 0:
        return
    try:
        with os.scandir(folder) as entries:
            inner = sorted((e.name, e.is_symlink()) for e in entries if e.is_dir())
    except OSError:
        return
    for name, is_link in inner:
        yield from _runs_in(folder / name, 0 if is_link else depth - 1)


def read_run(folder: Path, columns: tuple[str, ...] = ("return/mean",)) -> RecordedRun:
    """Return a run with these columns of its metrics, and the one that its name says.

    Raises `UserError` if it is damaged.
    """
    path = folder / CONFIG
    try:
        if path.is_file() and path.stat().st_size > _MOST_BYTES:
            raise RunFolderError(f"{path} is damaged: no run's settings are that long")
        config = load_run_config(folder)
        named = read_name(folder.parent / NAME)
        columns += (named.metric,) if named else ()
        metrics: dict[str, npt.NDArray[Any]] = {"step": np.empty(0, np.int64)}
        if os.path.lexists(folder / "metrics.csv"):
            metrics = read_columns(folder, (*columns, "time/steps_per_second", _EVALUATION))
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be read: {error.strerror or error}") from error
    return RecordedRun(folder=folder, config=config, metrics=metrics, named=named)


def read_name(path: Path) -> RunName | None:
    """Return what a file calls a run; None where there is no file."""
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError
        content = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(value, str) for value in content.values()):
            raise ValueError
        for value in content.values():
            value.encode()  # raises ValueError for half a character, which no page can hold
        return RunName(**content)
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise RunFolderError(f"{path} is damaged: it names no run") from None


class HasCurves(Protocol):
    """Metrics by step."""

    @property
    def metrics(self) -> Mapping[str, npt.NDArray[Any]]:
        """Columns, (G,) each; ``step`` among them."""
        ...

    def curve(self, name: str) -> tuple[npt.NDArray[np.int64], FloatArray]:
        """Return the steps at which a metric is known, and the metric there."""
        ...


def late_mean(run: HasCurves, metric: str, until: int) -> float:
    """Return a metric over the last tenth of some steps, each iteration weighed by its episodes.

    NaN if no episode ended there.
    """
    steps, values = run.curve(metric)
    episodes = episodes_of(run.metrics, metric, len(run.metrics["step"]))
    weights = episodes[np.isin(run.metrics["step"], steps)]
    late = (steps <= until) & (steps > (1.0 - FINAL_SHARE) * until) & (weights > 0)
    return float(np.average(values[late], weights=weights[late])) if late.any() else math.nan


def episodes_of(metrics: Mapping[str, npt.NDArray[Any]], metric: str, rows: int) -> FloatArray:
    """Return of how many episodes a metric is the mean in each of (G,) iterations."""
    ones = np.ones(rows)
    if metric.startswith("evaluation/"):  # each of which plays as many
        return ones
    return metrics.get("return/episodes", ones)


def running_mean(values: FloatArray, window: int) -> FloatArray:
    """Return the mean of each value and the `window - 1` before it, skipping NaN; NaN if none."""
    known = np.isfinite(values)
    sums = np.cumsum(np.where(known, values, 0.0))
    counts = np.cumsum(known)
    sums[window:] -= sums[:-window].copy()
    counts[window:] -= counts[:-window].copy()
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def smoothed(values: FloatArray) -> FloatArray:
    """Return the running mean over a twentieth of the run, as ``curve.png`` draws it."""
    return running_mean(values, max(1, len(values) // 20))


def _last_checkpoint(folder: Path) -> int:
    """Return the step of a run's newest checkpoint, 0 without one."""
    names = [path.stem.removeprefix("step_") for path in folder.glob("checkpoints/step_*.ckpt")]
    return max((int(name) for name in names if name.isdecimal()), default=0)
