"""A sweep's folder: what was tried, and how its runs stand. All that is known is read from it.

sweep.json                  the sweep, so that it goes on as it began
trials/0003/trial.json      what trial 3 tries, and whether it was ended early
trials/TASK/VARIANT/        in its place, of a trial of a named task and variant
trials/0003/settings.toml   all its settings, for `marl train --config`
trials/0003/seed_0/         one run of it
trials/0003/seed_0.log      what that run's process said
evaluation/0003/seed_100/   a run of the best trial with an evaluation seed
trials.csv, trials.md       the table
optuna.log                  the journal of `method = "optuna"`

Elsewhere, with ``--keep``, outcomes of finished runs, which count as the runs do.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tomli_w
from filelock import FileLock

from marl import UserError
from marl.config import ConfigError
from marl.config.io import flat, to_dict
from marl.reports.comparison import BESIDE
from marl.reports.estimates import iqm
from marl.reports.kept import KeptRun, keep, kept_path, outcome_of, read_kept
from marl.reports.recorded import (
    ERROR,
    NAME,
    RecordedRun,
    RunName,
    late_mean,
    read_run,
    smoothed,
)
from marl.sweeps.plan import Choice, Parameter, Plan, Settings
from marl.utils.files import atomic_write, check_own_file, check_writable, make_folder, output
from marl.utils.origin import commit
from marl.utils.text import one_line

SWEEP = "sweep.json"
"""The file by which a folder is known as a sweep's."""

LOCK = ".lock"
_PATIENCE = 60.0
"""Seconds in which another process has read the sweep."""
_MAY_CHANGE = {
    "grid": ("seeds", "evaluation_seeds"),
    "random": ("seeds", "evaluation_seeds", "trials"),
    "optuna": ("evaluation_seeds", "trials"),
}
"""What a file may say otherwise when a sweep goes on: more runs, none of them another."""
_COLUMNS = ("return/episodes",)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a sweep: a trial with a seed."""

    trial: int
    seed: int
    folder: Path
    """The run's own."""

    @property
    def log(self) -> Path:
        """What its process said."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def settings(self) -> Path:
        """All settings but the seed."""
        return self.folder.with_name("settings.toml")


@dataclass(frozen=True, kw_only=True)
class JobState:
    """How a run stands."""

    state: Literal["waiting", "running", "stopped", "failed", "finished"]
    steps: int = 0
    total_steps: int = 0
    seconds: float = 0.0
    final: float = math.nan
    """Mean of the metric over the last tenth, once finished; NaN where no episode ended there."""
    last: float = math.nan
    """End of the smoothed curve."""
    reason: str = ""
    """Why it failed."""


WAITING = JobState(state="waiting")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one trial tries and how its runs stand."""

    number: int
    tried: Settings | None
    """None: not chosen yet."""
    jobs: dict[int, JobState]
    """By seed."""
    ended: str = ""
    """Why no further seed is run: ``pruned``, or what is wrong with its settings."""

    @property
    def finals(self) -> list[float]:
        """Numbers of the seeds that are finished and have one."""
        return [job.final for job in self.jobs.values() if math.isfinite(job.final)]

    @property
    def is_whole(self) -> bool:
        """Whether all seeds are finished, each with a number."""
        return len(self.finals) == len(self.jobs)

    @property
    def value(self) -> float:
        """Interquartile mean over the seeds that are finished; NaN without any."""
        return float(iqm(np.array(self.finals))) if self.finals else math.nan

    @property
    def state(self) -> str:
        """How it stands, in a word."""
        states = [job.state for job in self.jobs.values()]
        if self.ended:
            return "pruned" if self.ended == "pruned" else "refused"
        for state in ("running", "failed"):
            if state in states:
                return state
        if all(state == "finished" for state in states):
            return "finished" if self.is_whole else "failed"
        return "waiting" if all(state == "waiting" for state in states) else "open"


class SweepFolder:
    """Where a sweep is kept."""

    def __init__(self, path: Path, plan: Plan, keep: Path | None = None) -> None:
        """Open a sweep's folder, made where there is none, for a plan that it has begun with.

        `keep` is the folder of the outcomes that are kept.
        """
        self.path, self.plan, self.keep = path, plan, keep
        self._finished: dict[Path, JobState] = {}
        self._names: dict[int, RunName] = {}
        self._commits: dict[Path, str] = {}
        """Of the code that runs were last started with."""
        self.failed: dict[Path, str] = {}
        """Runs whose processes have failed since the folder was opened, and why."""
        is_new = not os.path.lexists(path / SWEEP)
        if is_new and path.exists() and (not path.is_dir() or set(os.listdir(path)) - {LOCK}):
            raise ConfigError(f"{path} holds something else than a sweep; choose another --out")
        if keep is not None:  # told before anything is trained
            with output(keep, "choose another --keep"):
                make_folder(keep)
                check_writable(keep / "comparison.md")
        with output(path, "choose another --out"):
            make_folder(path)
            with FileLock(path / LOCK, timeout=_PATIENCE):  # an array of jobs begins at once
                content = json.dumps(plan.to_dict(), indent=1)
                if os.path.lexists(path / SWEEP):
                    self._check_same(json.loads(content))
                atomic_write(path / SWEEP, content.encode())

    def _check_same(self, wanted: dict[str, Any]) -> None:
        """Raise `ConfigError` naming in what the folder's sweep is another one."""
        before, now = flat(_read_json(self.path / SWEEP)), flat(wanted)
        allowed = _MAY_CHANGE[self.plan.config.method]
        changed = [k for k in sorted(before | now) if before.get(k) != now.get(k)]
        if self.plan.is_named:  # others may come and go, since trials are known by names
            allowed = ("seeds", "trials", "tasks", "variants")
            changed = [k for k in changed if _stays(k, before) and _stays(k, now)]
        if told := [k for k in changed if k not in allowed]:
            raise ConfigError(
                f"{self.path} holds a sweep that began otherwise: "
                + ", ".join(f"{k} ({before.get(k)!r} there, {now.get(k)!r} now)" for k in told)
                + f"; only {', '.join(allowed)} may change; choose another --out"
            )

    def trial_folder(self, trial: int) -> Path:
        """Return where a trial's runs are."""
        return self.path / "trials" / self.plan.place_of(trial)

    def job(self, trial: int, seed: int) -> Job:
        """Return a run of the search."""
        return Job(trial=trial, seed=seed, folder=self.trial_folder(trial) / f"seed_{seed}")

    def evaluation(self, trial: int, seed: int) -> Job:
        """Return a run of a trial with an evaluation seed."""
        folder = self.path / "evaluation" / f"{trial:04d}" / f"seed_{seed}"
        return Job(trial=trial, seed=seed, folder=folder)

    def prepare(self, job: Job, tried: Settings) -> None:
        """Write what a run's process reads, unless it is there.

        Settings that somebody else has left there are replaced.
        """
        content = tomli_w.dumps(to_dict(self.plan.config_of(tried, 0))).encode()
        with output(job.folder.parent, "make room for it there"):
            make_folder(job.folder.parent)
            if not (job.settings.is_file() and job.settings.read_bytes() == content):
                atomic_write(job.settings, content)
            if self.plan.is_named:
                named = json.dumps(vars(self.plan.name_of(job.trial, tried)))
                atomic_write(job.folder.with_name(NAME), named.encode())
        check_own_file(job.log)
        if self.keep:
            self._commits[job.folder] = commit()

    def note(self, trial: int, tried: Settings, ended: str = "", **more: Any) -> None:
        """Write what a trial tries, and why it ends early."""
        folder = self.trial_folder(trial)
        with output(folder, "make room for it there"):
            make_folder(folder)
            content = {"tried": tried, "ended": ended, **more}
            atomic_write(folder / "trial.json", json.dumps(content, indent=1).encode())

    def noted(self, trial: int) -> dict[str, Any]:
        """Return what `note` wrote of a trial; empty if nothing.

        Raises `ConfigError` where it tries what this sweep does not.
        """
        path = self.trial_folder(trial) / "trial.json"
        if self.plan.config.method != "optuna" or not os.path.lexists(path):
            return {}
        content = _read_json(path)
        tried, ended, number = (content.get(key) for key in ("tried", "ended", "optuna"))
        if not (
            isinstance(tried, dict)
            and sorted(tried) == sorted(self.plan.names)
            and all(_may_be_tried(p, tried[p.name]) for p in self.plan.parameters)
            and isinstance(ended, str)
            and type(number) is int
            and number >= 0
        ):
            raise ConfigError(f"{path} is damaged: it holds no trial of this sweep")
        return content | {"ended": one_line(ended, 1_000)}

    def settings_of(self, trial: int) -> Settings | None:
        """Return what a trial tries; None where that is not chosen yet."""
        if self.plan.config.method != "optuna":
            return self.plan.settings_of(trial)
        return self.noted(trial).get("tried")

    def trials(self) -> list[Trial]:
        """Return all trials as they stand."""
        return [self.trial(number) for number in range(self.plan.num_trials)]

    def trial(self, number: int) -> Trial:
        """Return a trial as it stands."""
        return Trial(
            number=number,
            tried=self.settings_of(number),
            jobs={s: self.state_of(self.job(number, s)) for s in self.plan.task_of(number).seeds},
            ended=self.noted(number).get("ended", ""),
        )

    def best(self, trials: Sequence[Trial]) -> Trial | None:
        """Return the trial of the highest number over all seeds, the first of equals.

        None of trials that learn several tasks.
        """
        if len(self.plan.tasks) > 1:
            return None
        whole = [trial for trial in trials if trial.state == "finished"]
        return max(whole, key=lambda trial: trial.value, default=None)

    def state_of(self, job: Job) -> JobState:
        """Return how a run stands."""
        if job.folder in self._finished:
            return self._finished[job.folder]
        if (kept := self.kept(job)) is not None:
            self._finished[job.folder] = self._end_of(kept, kept.final)
            return self._finished[job.folder]
        reason = self.failed.get(job.folder, "")
        if not (job.folder / "config.toml").exists():
            return JobState(state="failed", reason=reason) if reason else WAITING
        metric = self.plan.task_of(job.trial).metric
        try:
            run = read_run(job.folder, (metric, *_COLUMNS))
        except UserError as error:
            return JobState(state="failed", reason=one_line(str(error), 300))
        if run.has_ended:
            self._finished[job.folder] = self._end_of(run, late_mean(run, metric, run.steps))
            return self._finished[job.folder]
        if run.state == "running":
            state: Literal["running", "failed", "stopped"] = "running"
        else:
            reason = reason or _error_of(job.folder)
            state = "failed" if reason else "stopped"
        _, values = run.curve(metric)
        return JobState(
            state=state,
            steps=run.steps,
            total_steps=run.config.total_steps,
            seconds=run.seconds,
            last=float(smoothed(values)[-1]) if len(values) else math.nan,
            reason=reason,
        )

    def _end_of(self, run: RecordedRun | KeptRun, final: float) -> JobState:
        seconds = run.seconds if isinstance(run, RecordedRun) else run.seconds.get("total", 0.0)
        metric = run.named.metric if run.named else self.plan.config.metric
        none = f"no episode with {one_line(metric)} ended in the last tenth of its steps"
        return JobState(
            state="finished",
            steps=run.steps,
            total_steps=min(run.steps, run.total_steps),
            seconds=seconds,
            final=final,
            last=final,
            reason=none if math.isnan(final) else "",
        )

    def kept_path(self, job: Job) -> Path | None:
        """Return where the outcome of a run of the search is kept; None where nothing is."""
        tried = None if self.keep is None else self.settings_of(job.trial)
        if self.keep is None or tried is None or self.path / "trials" not in job.folder.parents:
            return None
        if job.trial not in self._names:  # asked for again and again, of many runs
            self._names[job.trial] = self.plan.name_of(job.trial, tried)
        return kept_path(self.keep, self._names[job.trial], job.seed)

    def kept(self, job: Job) -> KeptRun | None:
        """Return the outcome of a run, if it is kept.

        Raises `ConfigError` if that is of a run with other settings, or damaged.
        """
        path = self.kept_path(job)
        if path is None or not path.exists():
            return None
        try:
            run, tried = read_kept(path), self.settings_of(job.trial)
        except UserError as error:
            raise ConfigError(f"{error}; remove it, or choose another --keep") from None
        assert tried is not None  # by `kept_path`
        also = {"seed": job.seed, "metric": self.plan.task_of(job.trial).metric}
        given = _telling(self.plan.given(tried)) | also
        had = _telling(run.settings) | {"seed": run.seed, "metric": run.named.metric}
        if told := [k for k in sorted(given | had) if given.get(k) != had.get(k)]:
            raise ConfigError(
                f"{path} keeps a run that had other settings: "
                + one_line(
                    ", ".join(f"{k} ({had.get(k)!r} there, {given.get(k)!r} now)" for k in told),
                    1_000,
                )
                + "; remove it to train again, or choose another --keep"
            )
        return run

    def keep_outcome(self, job: Job, drop_checkpoints: bool = False) -> None:
        """Keep what a run has reached, if it is finished and that is not kept yet.

        With `drop_checkpoints` a run whose outcome is kept loses its checkpoints, but the newest
        of one that ended on a plateau, which is all that tells it from a run that was killed.
        """
        path, tried = self.kept_path(job), self.settings_of(job.trial)
        if path is None or tried is None or self.state_of(job).state != "finished":
            return
        if not path.exists():
            named = self.plan.name_of(job.trial, tried)
            run = read_run(job.folder, (named.metric, *_COLUMNS))
            given = _telling(self.plan.given(tried))
            code = self._commits.get(job.folder) or commit()
            keep(outcome_of(run, named, given, code, job.trial), path)
        if drop_checkpoints:
            from marl.utils.checkpoint import BEST, list_checkpoints  # imports PyTorch

            folder, steps = job.folder / "checkpoints", self.state_of(job).steps
            if steps >= self.plan.config_of(tried, 0).total_steps:
                shutil.rmtree(folder, ignore_errors=True)
                return
            shutil.rmtree(folder / BEST, ignore_errors=True)
            for path in list_checkpoints(folder)[1:]:
                path.unlink()


def _stays(key: str, content: Mapping[str, Any]) -> bool:
    """Return whether a key of a sweep's content is no part of a task or a variant that is new."""
    kind, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    if kind not in ("tasks", "variants") or not name:
        return True
    return any(one == f"{kind}.{name}" or one.startswith(f"{kind}.{name}.") for one in content)


def _telling(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that may change a result."""
    return {key: value for key, value in settings.items() if key not in BESIDE}


def _error_of(folder: Path) -> str:
    """Return the last line of the error that ended a run; empty if none did."""
    path = folder / ERROR
    try:
        if not path.is_file():  # a named pipe would be waited for without end
            return ""
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return one_line(lines[-1], 300) if lines else ""


def _may_be_tried(parameter: Parameter, value: object) -> bool:
    """Return whether a value is one of a parameter's."""
    if isinstance(parameter, Choice):
        return value in parameter.values
    if isinstance(value, bool) or not isinstance(value, int if parameter.whole else int | float):
        return False
    rounding = 1e-9 * abs(value) if isinstance(value, float) else 0.0
    return parameter.low - rounding <= value <= parameter.high + rounding


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():  # a named pipe would be waited for without end
            raise ConfigError(f"{path} is damaged: it is no file")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: {one_line(str(error), 200)}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is damaged: it is no table")
    return content
