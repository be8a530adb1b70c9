"""What a sweep has found so far: its table in files, and as it is shown while it runs.

The files hold no times and no order of events, so that a sweep that was killed and went on ends
with the same bytes as one that was not.
"""

import csv
import io
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from marl.reports.comparison import markdown, measured, text
from marl.reports.estimates import LEAST_SEEDS, REPETITIONS, estimate, number, shown
from marl.sweeps.folder import Job, JobState, SweepFolder, Trial
from marl.utils.files import atomic_write
from marl.utils.progress import duration
from marl.utils.text import LiteralConsole, one_line

_SECONDS_PER_FRAME = 1.0
_MOST_ROWS = 20


def write_table(folder: SweepFolder) -> str:
    """Write ``trials.csv`` and ``trials.md``, and return the page."""
    trials = folder.trials()
    names = folder.plan.names
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["trial", *names, "state", "value", "low", "high", "seeds", "finals"])
    for trial in trials:
        found = estimate(trial.finals) if trial.finals else None
        numbers = (found.value, found.low, found.high) if found else (math.nan,) * 3
        writer.writerow(
            [
                trial.number,
                *(_value(trial, name) for name in names),
                trial.state,
                *("" if math.isnan(n) else repr(n) for n in numbers),
                " ".join(str(s) for s, job in trial.jobs.items() if math.isfinite(job.final)),
                " ".join(map(repr, trial.finals)),
            ]
        )
    page = _page(folder, trials)
    atomic_write(folder.path / "trials.csv", table.getvalue().encode())
    atomic_write(folder.path / "trials.md", page.encode())
    return page


def _page(folder: SweepFolder, trials: Sequence[Trial]) -> str:
    """Return the table as Markdown, the best trial first."""
    config = folder.plan.config
    names = folder.plan.names
    tasks = folder.plan.tasks
    place = {trial.number: tasks.index(folder.plan.task_of(trial.number)) for trial in trials}

    def rank(trial: Trial) -> tuple[float, ...]:
        return place[trial.number], not trial.finals, -trial.value, trial.number

    ranked = sorted(trials, key=rank)
    rows = [
        [
            str(trial.number),
            *(text(_value(trial, name)) for name in names),
            trial.state,
            shown(estimate(trial.finals)) if trial.finals else "",
            "; ".join(
                f"{s}: {number(j.final)}" for s, j in trial.jobs.items() if j.final == j.final
            ),
        ]
        for trial in ranked
    ]
    parts = [
        f"# Sweep: {config.method}, {len(trials)} trials",
        "Over the last tenth of each run: interquartile mean over finished seeds and, from "
        f"{LEAST_SEEDS} on, its 95 % bootstrap interval ({REPETITIONS} samples).",
    ]
    for number_of_task, task in enumerate(tasks):
        columns = ["trial", *map(text, names), "state", text(measured(task.metric)), "each seed"]
        own = [
            row for t, row in zip(ranked, rows, strict=True) if place[t.number] == number_of_task
        ]
        if len(tasks) > 1:
            parts.append(f"## {text(task.name)}")
        parts.append(markdown(columns, own))
    if best := folder.best(trials):
        jobs = {s: folder.evaluation(best.number, s) for s in config.evaluation_seeds}
        states = {seed: folder.state_of(job) for seed, job in jobs.items()}
        finals = {s: state.final for s, state in states.items() if math.isfinite(state.final)}
        if finals:
            parts.append(
                f"Trial {best.number} with evaluation seeds, by which it was not chosen: "
                f"{shown(estimate(list(finals.values())))} ({_by_seed(finals)})."
            )
        elif len(trials) > 1:
            parts.append(
                f"Trial {best.number} is the best of {len(trials)} on the seeds it was chosen by, "
                "so that some of its lead is luck; evaluation_seeds measure it on others."
            )
    if failed := [
        f"- trial {trial.number}{f', seed {seed}' if job else ''}: {text(reason)}"
        for trial in trials
        for seed, job, reason in _failures(trial)
    ]:
        parts.append("\n".join(failed))
    return "\n\n".join(parts) + "\n"


def _by_seed(finals: Mapping[int, float]) -> str:
    """Return the numbers of the seeds that have one."""
    return "; ".join(f"{s}: {number(final)}" for s, final in finals.items() if math.isfinite(final))


def _failures(trial: Trial) -> list[tuple[int, bool, str]]:
    """Return (seed, whether one run failed, reason) of what ended badly in a trial."""
    if trial.state == "refused":
        return [(0, False, trial.ended)]
    return [(seed, True, job.reason) for seed, job in trial.jobs.items() if job.reason]


def _value(trial: Trial, name: str) -> str:
    """Return what a trial tries of a setting; empty where that is not chosen yet."""
    if trial.tried is None:
        return ""
    value = trial.tried[name]
    return value if isinstance(value, str) else json.dumps(value)


class SweepView:
    """Shows a sweep while it runs: a live table, or a line for every run that ends."""

    def __init__(self, folder: SweepFolder, jobs: int, console: Console | None = None) -> None:
        self._folder, self._jobs = folder, jobs
        self._console = console or LiteralConsole()
        self._live = (
            Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        )
        self._shown_at = -math.inf

    def __enter__(self) -> "SweepView":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._show()
            self._live.stop()

    def changed(self, job: Job | None, failure: str) -> None:
        """Take note of a run that has ended, and why it failed, or only of the time that passes."""
        if job is not None and self._live is None:
            self._console.print(Text(self._line(job, failure)), soft_wrap=True)
        if self._live is not None and time.monotonic() - self._shown_at >= _SECONDS_PER_FRAME:
            self._show()

    def _line(self, job: Job, failure: str) -> str:
        trials = self._folder.trials()
        states = [state.state for trial in trials for state in trial.jobs.values()]
        state = self._folder.state_of(job)
        ended = f"{state.state}, {state.reason or number(state.final)}"
        ended = f"failed: {failure}" if failure else ended
        done = f"{states.count('finished')} of {len(states)} runs finished"
        plan = self._folder.plan
        name = plan.place_of(job.trial) if plan.is_named else f"trial {job.trial}"
        return f"{name}, seed {job.seed} {ended}; {done}"

    def _show(self) -> None:
        assert self._live is not None
        self._live.update(self._table(), refresh=True)
        self._shown_at = time.monotonic()

    def _table(self) -> RenderableType:
        """Return the trials that run or failed and the best others, and what is left."""
        trials = self._folder.trials()
        order = {"running": 0, "failed": 1, "open": 2, "waiting": 4}
        ranked = sorted(
            trials,
            key=lambda t: (order.get(t.state, 3), -t.value if t.finals else 0.0, t.number),
        )
        table = Table(box=None, pad_edge=False)
        for name in (
            "trial",
            *self._folder.plan.names,
            "state",
            "seeds",
            "steps",
            "return",
            "left",
        ):
            table.add_column(one_line(name), no_wrap=True)
        room = max(3, min(_MOST_ROWS, self._console.height - 5))
        usual = Pace.of(job for trial in trials for job in trial.jobs.values())
        for trial in ranked[:room]:
            left = seconds_left(trial, usual)
            table.add_row(*(Text(one_line(cell, 40)) for cell in self._row(trial, left)))
        states = [trial.state for trial in trials]
        counted = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
        rest = f" ({len(trials) - room} not shown)" if len(trials) > room else ""
        left = sum(seconds_left(trial, usual) for trial in trials) / self._jobs
        return Group(table, Text(f"{counted}{rest}; {duration(left)} left at this speed", "dim"))

    def _row(self, trial: Trial, left: float) -> list[str]:
        jobs = list(trial.jobs.values())
        finished = sum(job.state == "finished" for job in jobs)
        total = max((job.total_steps for job in jobs), default=0) * len(jobs)
        steps = sum(job.steps for job in jobs)
        known = [job.last for job in jobs if math.isfinite(job.last)]
        value = trial.value if trial.finals else known[-1] if known else math.nan
        return [
            str(trial.number),
            *(_value(trial, name) for name in self._folder.plan.names),
            trial.state,
            f"{finished} of {len(jobs)}",
            f"{steps:,} / {total:,}" if total else "",
            number(value) if math.isfinite(value) else "",
            duration(left) if 0 < left < math.inf else "",
        ]


@dataclass(frozen=True)
class Pace:
    """How fast runs are: seconds a step, and steps of a run; NaN where none has begun."""

    seconds: float
    steps: float

    @staticmethod
    def of(jobs: Iterable[JobState]) -> "Pace":
        """Return the mean of the runs that have begun."""
        begun = [job for job in jobs if job.steps and job.seconds > 0]
        if not begun:
            return Pace(math.nan, math.nan)
        taken = sum(job.seconds for job in begun) / sum(job.steps for job in begun)
        return Pace(taken, max(job.total_steps for job in begun))


def seconds_left(trial: Trial, usual: Pace) -> float:
    """Return the seconds that a trial's runs would still take, one after the other.

    They are as fast as those of the trial that have begun, else as usual.
    """
    if trial.state in ("finished", "pruned", "refused"):
        return 0.0
    jobs = list(trial.jobs.values())
    own = Pace.of(jobs)
    pace = usual if math.isnan(own.seconds) else own
    return pace.seconds * sum(max(0.0, pace.steps - job.steps) for job in jobs)


def whole_sweep_failed(trials: Sequence[Trial]) -> str:
    """Return what to say where runs have failed; empty if none has."""
    failed = [trial for trial in trials if trial.state == "failed"]
    if not failed:
        return ""
    return (
        f"{len(failed)} of {len(trials)} trials have failed runs, see trials.md and the .log files "
        "beside them; the same command tries those again"
    )
