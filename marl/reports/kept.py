"""The outcome of a run as one small file, from which tables and pictures are made without the run.

    FOLDER/TASK/GROUP/seed_0.json

holds what the run is called, the settings that its sweep gives it, its seed, what it is measured
by, where it ended, its curve at about a hundred points, all other metrics at its end, the seconds
it took, and the commit and the machine. Such a folder can be kept in a repository.

Axes: G points of a curve.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from marl.reports.recorded import (
    FINAL_SHARE,
    FloatArray,
    RecordedRun,
    RunFolderError,
    RunName,
    episodes_of,
    late_mean,
)
from marl.utils.files import atomic_write, make_folder, output
from marl.utils.metrics import TIME_PARTS, read_metrics
from marl.utils.origin import machine
from marl.utils.text import one_line

POINTS = 100
"""Of a curve; more are merged, each tenth of the steps for itself."""
_VERSION = 1
_MOST_BYTES = 1_000_000
_LONGEST_NAME = 80
"""Characters of a folder's name."""
_FAULTS = (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError)
"""What a file raises that holds something else."""
SUMMED = ("preference/asked", "preference/answered")
"""Metrics that are counts of an iteration, and count over the whole run."""
_AT_THE_END = ("evaluation/", "preference/kept_answers", "labeller/")
"""Metrics whose newest number counts, not their mean."""


@dataclass(frozen=True, kw_only=True)
class KeptRun:
    """A run as its kept file tells it."""

    folder: Path
    """The file."""
    named: RunName
    order: int
    """Place of its trial in the sweep's file."""
    seed: int
    settings: Mapping[str, Any]
    """Those that its sweep gave it, by dotted name; empty where they were not kept."""
    steps: int
    total_steps: int
    final: float
    """The measure over the last tenth of its steps; NaN where no episode ended there."""
    metrics: dict[str, npt.NDArray[Any]]
    """``step``, the measure, and ``return/episodes`` where they are known, (G,) each."""
    numbers: Mapping[str, float]
    """All metrics: means over the last tenth, the newest numbers, or sums of counts."""
    seconds: Mapping[str, float]
    """That its iterations took: ``total`` and its parts."""
    commit: str
    machine: str

    def curve(self, name: str = "return/mean") -> tuple[npt.NDArray[np.int64], FloatArray]:
        """Return the steps at which a metric is known, and the metric there."""
        steps = self.metrics["step"]
        return steps, self.metrics.get(name, np.full(len(steps), np.nan))


def kept_path(folder: Path, named: RunName, seed: int) -> Path:
    """Return where a run's outcome is kept."""
    return folder / _folder_name(named.task) / _folder_name(named.group) / f"seed_{seed}.json"


def _folder_name(name: str) -> str:
    """Return a name as that of a folder; long ones differ, also where only their ends do."""
    plain = re.sub(r"[^\w.=+-]+", "_", name).strip("._") or "_"
    if len(plain) > _LONGEST_NAME:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        plain = f"{plain[: _LONGEST_NAME - 9]}-{digest}"
    return plain


def outcome_of(
    run: RecordedRun, named: RunName, settings: Mapping[str, Any], commit: str, order: int = 0
) -> dict[str, Any]:
    """Return what is kept of a finished run, as plain values.

    `order` is the place of its trial in the sweep's file.
    """
    columns = read_metrics(run.folder)
    steps = columns.pop("step")
    late = steps > (1.0 - FINAL_SHARE) * run.steps
    episodes = episodes_of(columns, named.metric, len(steps))
    numbers = {}
    for name, values in columns.items():
        known = np.isfinite(values)
        if name.startswith(("time/", "memory/")) or name == "steps" or not known.any():
            continue
        if name in SUMMED:
            numbers[name] = values[known].sum()
        elif name.startswith(_AT_THE_END):
            numbers[name] = values[known][-1]
        elif (known & late).any():
            numbers[name] = values[known & late].mean()
    seconds = {"total": round(run.seconds, 1)}
    for part in TIME_PARTS:
        seconds[part] = round(float(np.nansum(columns.get(f"time/{part}", [0.0]))), 1)
    return {
        "kept": _VERSION,
        "task": named.task,
        "group": named.group,
        "order": order,
        "seed": run.seed,
        "metric": named.metric,
        "final": _short(late_mean(run, named.metric, run.steps)),
        "steps": run.steps,
        "total_steps": run.total_steps,
        "commit": commit,
        "machine": machine(),
        "seconds": seconds,
        "settings": dict(settings),
        "numbers": {name: _short(value) for name, value in sorted(numbers.items())},
        "curve": thinned(steps, columns.get(named.metric), episodes, run.steps),
    }


def thinned(
    steps: npt.NDArray[Any], values: FloatArray | None, episodes: FloatArray, until: int
) -> list[list[float | None]]:
    """Return points [step, mean, episodes], at most `POINTS`: means of equal parts of the steps."""
    if values is None:
        return []
    known = np.isfinite(values) & (episodes > 0)
    steps, values, episodes = steps[known], values[known], episodes[known]
    part = np.arange(len(steps))
    if len(steps) > POINTS:
        part = -(-steps * POINTS // until)
    points: list[list[float | None]] = []
    for number in np.unique(part):
        inside = part == number
        mean = np.average(values[inside], weights=episodes[inside])
        points.append([int(steps[inside][-1]), _short(mean), int(episodes[inside].sum())])
    return points


def keep(content: Mapping[str, Any], path: Path) -> None:
    """Write a run's outcome atomically."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    # One line for each part, so that a difference of two files can be read.
    parts = re.sub(r',"(?=(final|commit|seconds|settings|numbers|curve)":)', ',\n"', text)
    with output(path, "choose another --keep"):
        make_folder(path.parent)
        atomic_write(path, f"{parts}\n".encode())


def find_kept(place: Path) -> list[Path]:
    """Return the files of kept runs in a folder, of a task's or of a group's, or the one named."""
    if place.is_file() and place.suffix == ".json":
        return [place]
    patterns = ("seed_*.json", "*/seed_*.json", "*/*/seed_*.json")
    return sorted(path for pattern in patterns for path in place.glob(pattern) if path.is_file())


def kept_runs(paths: Iterable[Path]) -> tuple[list[KeptRun], list[str]]:
    """Return kept runs in the order of their sweep's file, and what was left out and why."""
    runs, damaged = [], []
    for path in paths:
        try:
            runs.append(read_kept(path))
        except RunFolderError as error:
            damaged.append(f"left out: {one_line(str(error), 300)}")
    return sorted(runs, key=lambda run: run.order), damaged


def read_kept(path: Path) -> KeptRun:
    """Return a kept run; `RunFolderError` if the file is none."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError("it is too long")
        if not path.is_file():  # a named pipe would be waited for without end
            raise ValueError("it is no file")
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["kept"] != _VERSION:
            raise ValueError("it is of another version")
        named = RunName(**{key: _text(content[key]) for key in ("task", "group", "metric")})
        steps = _whole(content["steps"])
        points = [[_finite(value) for value in point] for point in content["curve"]]
        reached = [-1.0, *(point[0] for point in points)]
        if any(after <= before for before, after in pairwise(reached)) or reached[-1] > steps:
            raise ValueError("its curve is not one of rising steps up to its last")
        columns = list(zip(*points, strict=True)) or [(), ()]
        metrics = {
            "step": np.array(columns[0], np.int64),
            named.metric: np.array(columns[1], np.float64),
        }
        if len(columns) > 2:
            metrics["return/episodes"] = np.array(columns[2], np.float64)
        final = content["final"]
        if not isinstance(content["settings"], dict):
            raise TypeError("its settings are no table")
        return KeptRun(
            folder=path,
            named=named,
            order=_whole(content.get("order", 0)),
            seed=_whole(content["seed"]),
            settings=content["settings"],
            steps=steps,
            total_steps=_whole(content["total_steps"]),
            final=math.nan if final is None else _finite(final),
            metrics=metrics,
            numbers={k: _finite(v) for k, v in content["numbers"].items()},
            seconds={k: _finite(v) for k, v in content["seconds"].items()},
            commit=one_line(_text(content["commit"])),
            machine=one_line(_text(content["machine"]), 200),
        )
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read: {error.strerror or error}") from error
    except _FAULTS as error:
        told = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise RunFolderError(f"{path} holds no kept run: {one_line(told, 200)}") from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"got {value!r}, expected a text")
    value.encode()  # raises ValueError for half a character, which no page can hold
    return value


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"got {value!r}, expected a whole number from 0")
    return value


def _finite(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"got {value!r}, expected a number")
    return float(value)


def _short(value: float) -> float | None:
    """Return a number with six digits; None for none, which JSON has not."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
