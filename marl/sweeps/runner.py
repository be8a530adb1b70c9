"""The processes of a sweep: each trains one run with its own few threads, and can be killed.

What has to be done is decided from the folder alone: runs that are finished are kept, those that
were begun go on from their checkpoints, bit for bit.
"""

import os
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from marl import UserError
from marl.config import Config, ConfigError
from marl.config.io import load_run_config
from marl.reports.recorded import CONFIG
from marl.sweeps.folder import Job, SweepFolder
from marl.sweeps.plan import Settings
from marl.utils.child import child_command, python_flags
from marl.utils.files import is_held
from marl.utils.plugins import named_for_trust
from marl.utils.text import one_line

_POLL = 0.2
"""Seconds between two looks at the processes."""
_ORPHAN = 120.0
"""Seconds in which a run's process of a killed sweep has finished its iteration and gone."""
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Schedule(Protocol):
    """Decides which run is next."""

    def next(self) -> tuple[Job, Settings] | None:
        """Return a run to start and what it tries; None if there is none at this moment."""
        ...

    def ended(self, job: Job, failed: bool) -> None:
        """Take note that the process of a run has ended."""
        ...


class InOrder:
    """A schedule of runs that do not depend on each other."""

    def __init__(self, folder: SweepFolder, jobs: Iterable[Job]) -> None:
        self._folder = folder
        self._waiting = deque(jobs)

    def next(self) -> tuple[Job, Settings] | None:
        """Return the first run that is not finished."""
        while self._waiting:
            job = self._waiting.popleft()
            tried = self._folder.settings_of(job.trial)
            if tried is not None and self._folder.state_of(job).state != "finished":
                return job, tried
        return None

    def ended(self, job: Job, failed: bool) -> None:
        """Nothing follows from it."""


def grid_jobs(folder: SweepFolder, only: int | None = None) -> list[Job]:
    """Return the runs of a grid or a random search, seed by seed, or those of one trial.

    A sweep that is stopped early has tried everything with the first seeds.
    """
    trials = range(folder.plan.num_trials) if only is None else [only]
    seeds = {trial: folder.plan.task_of(trial).seeds for trial in trials}
    return [
        folder.job(trial, seeds[trial][turn])
        for turn in range(max(map(len, seeds.values())))
        for trial in trials
        if turn < len(seeds[trial])
    ]


class Training(Protocol):
    """One run that is being trained."""

    job: Job

    def status(self) -> int | None:
        """Return the exit status, None while it runs."""
        ...

    def stop(self) -> None:
        """Let the run finish its iteration and save; `wait` until it has."""
        ...

    def wait(self) -> None:
        """Wait until it has ended."""
        ...

    def reason(self) -> str:
        """Return why it failed, in a line."""
        ...


class Worker:
    """The process of one run, on this machine.

    The code that the sweep's file names may be imported there, but not what else a run in the
    sweep's folder may name, unless with `trust`.
    """

    def __init__(
        self,
        job: Job,
        config: Config,
        trust: bool = False,
        cwd: str | None = None,
        flags: Sequence[str] | None = None,
    ) -> None:
        """`config` are the settings that the sweep's file has for the run.

        On another machine than the sweep's, `cwd` and `flags` are the sweep's working directory and
        `python_flags`.
        """
        self.job = job
        _wait_until_free(job.folder)
        granted = str(job.settings)
        if (job.folder / CONFIG).exists():
            command = ["resume", str(job.folder)]
            granted = str(job.folder) if _needs_same_trust(job.folder, config) else ""
        else:
            command = ["train", "--config", str(job.settings), "--seed", str(job.seed)]
            command += ["--run-dir", str(job.folder)]
        if trust:
            command.append("--trust")
        threads = config.threads
        with job.log.open("ab") as log:
            self._process = subprocess.Popen(
                child_command(python_flags() if flags is None else flags, granted, command),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=os.environ | dict.fromkeys(_THREADS, str(threads)),
                cwd=cwd,
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which stops its runs
            )

    def status(self) -> int | None:
        """Return the exit status, None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Let the run finish its iteration and save; `wait` until it has."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def wait(self) -> None:
        """Wait for the process to end."""
        self._process.wait()

    def reason(self) -> str:
        """Return the last line that the process said, of an error where there is one."""
        lines = self.job.log.read_text(errors="replace").strip().splitlines() or ["nothing said"]
        errors = [line for line in lines if line.startswith("error: ")]
        return one_line((errors or lines)[-1].removeprefix("error: "), 300)


def run_jobs(
    folder: SweepFolder,
    schedule: Schedule,
    jobs: int,
    *,
    stop: Callable[[], bool],
    changed: Callable[[Job | None, str], None],
    start: Callable[[Job, Config, bool], Training] | None = None,
    trust: bool = False,
) -> None:
    """Run what a schedule asks for, `jobs` processes at a time, until nothing is left.

    `start` begins a run with its settings, on this machine if it is not given.
    `changed` is told of every run that ended and why it failed, and now and then of nothing. Once
    `stop` says so, the runs save and no other begins; so they do on an error. With `trust`, runs
    import whatever they name.
    """
    start = start or Worker
    workers: list[Training] = []
    try:
        while not stop():
            while len(workers) < jobs and (chosen := schedule.next()) is not None:
                job, tried = chosen
                folder.prepare(job, tried)
                folder.failed.pop(job.folder, None)
                workers.append(start(job, folder.plan.config_of(tried, 0), trust))
            if not workers:
                return
            changed(None, "")
            time.sleep(_POLL)
            for worker in [worker for worker in workers if worker.status() is not None]:
                workers.remove(worker)
                failure = worker.reason() if worker.status() else ""
                if failure:
                    folder.failed[worker.job.folder] = failure
                schedule.ended(worker.job, bool(failure))
                changed(worker.job, failure)
    finally:
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.wait()


def _needs_same_trust(folder: Path, config: Config) -> bool:
    """Return whether a run's settings name what others do, which is trusted, and no more."""
    try:
        return named_for_trust(load_run_config(folder)) == named_for_trust(config)
    except ConfigError:  # the run's process will say so
        return False


def _wait_until_free(folder: Path) -> None:
    """Wait for the process of a sweep that was killed, which saves its run and goes."""
    until = time.monotonic() + _ORPHAN
    while is_held(folder / ".lock"):
        if time.monotonic() > until:
            raise UserError(f"{folder} is being trained in by another process; stop that first")
        time.sleep(_POLL)
