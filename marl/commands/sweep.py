"""The command ``marl sweep``."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from marl.config import ConfigError
from marl.config.validation import Range, settings
from marl.utils.files import held
from marl.utils.plugins import check_trusted, endpoint_settings, import_paths
from marl.utils.stop_signal import StopSignal

if TYPE_CHECKING:
    from marl.sweeps.folder import Job, SweepFolder
    from marl.sweeps.on_ray import RayRuns
    from marl.sweeps.plan import Plan

_PAGES_SHARE = 20.0
"""The comparison of what is kept is written after a run once this many times as many seconds have
passed as it took last."""


@settings("--")
class Sweep:
    """Train with many settings and seeds, and tell which are best.

    The same command goes on with a sweep that was stopped or killed: finished runs are kept, open
    ones continue exactly, failed ones are tried again.
    """

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """TOML file of the sweep: what runs share, what is tried, the seeds."""
    out: Path | None = None
    """Folder of the sweep; sweeps/ and the name of FILE if not given."""
    jobs: Annotated[int, Range(1, 1024)] | None = None
    """Runs at a time, each a process with as many threads as the setting threads says: 1 if the
    file does not say. If not given, 1, or with --ray as many as the cluster has processors."""
    ray: bool = False
    """Give the runs to the Ray cluster at RAY_ADDRESS, whose nodes must all see the folder, or to
    one that is started on this machine (extra cluster)."""
    keep: Path | None = None
    """Folder in which the outcome of every finished run is kept as a file of a few kilobytes, with
    their comparison: for a repository. Runs whose outcomes lie there are not trained again."""
    drop_checkpoints: bool = False
    """Delete the checkpoints of runs whose outcomes are kept."""
    only: tuple[str, ...] = ()
    """Of a sweep with named tasks, only these, each a TASK or a TASK/VARIANT."""
    quick: bool = False
    """Train every trial for one iteration with its first seed, in a folder of its own, to see that
    all of them run."""
    trial: Annotated[int, Range(0, 10_000)] | None = None
    """Run the seeds of this trial only, from 0, e.g. one of an array of Slurm jobs; afterwards the
    command without it makes the table."""
    trust: bool = False
    """Import code that FILE names, ask a language model that it names, and import whatever the runs
    in the sweep's folder name."""

    def run(self) -> int:
        """Run what is missing, say how it goes, and write the table."""
        from marl.sweeps.folder import SweepFolder
        from marl.sweeps.plan import load_plan
        from marl.sweeps.table import whole_sweep_failed, write_table

        plan = load_plan(self.file)
        if not self.trust:
            _check_trust_in(plan, self.file)
        if self.trial is not None and self.trial >= plan.num_trials:
            raise ConfigError(
                f"--trial: got {self.trial}, but the sweep has {plan.num_trials:,} trials, from 0"
            )
        if self.drop_checkpoints and self.keep is None:
            raise ConfigError("--drop-checkpoints: too little would be left; give --keep, too")
        if self.quick and self.keep is not None:
            raise ConfigError("--quick: runs of one iteration are no outcomes; leave out --keep")
        places = [plan.place_of(trial) for trial in range(plan.num_trials) if plan.is_named]
        if unknown := [name for name in self.only if not any(_is_of(p, name) for p in places)]:
            raise ConfigError(
                f"--only: {self.file} has no task {', '.join(unknown)}; it has "
                + (", ".join(dict.fromkeys(p.split("/")[0] for p in places)) or "none with a name")
                + "; TASK/VARIANT is one variant of a task"
            )
        if self.only and self.trial is not None:
            raise ConfigError("--trial: names one trial, and --only some; leave out one of them")
        path = self.out or Path("sweeps") / f"{self.file.stem}{'-quick' if self.quick else ''}"
        plan = plan.quickened() if self.quick else plan
        with ExitStack() as stack:
            start, jobs = None, self.jobs or 1
            if self.ray:
                from marl.sweeps.on_ray import RayRuns
                from marl.utils.cluster import joined_cluster

                threads = plan.config_of({}, 0).threads
                at_once = threads * self.jobs if self.jobs else max(threads, os.cpu_count() or 1)
                cluster = stack.enter_context(joined_cluster("--ray", at_once))
                start, jobs = RayRuns(cluster), self.jobs or max(1, cluster.num_cpus)
                path = path.absolute()
            folder = SweepFolder(path, plan, self.keep)
            stop = StopSignal("letting the runs finish their iterations and save")
            if self.trial is not None:
                self._search(folder, stop, jobs, start)
                return self._stopped(stop) or self._trial_ended(folder, self.trial)
            taken = f"{folder.path} is being worked on by another `marl sweep`; wait, or stop it"
            with held(folder.path / ".writer", taken):
                self._search(folder, stop, jobs, start)
                print(write_table(folder))
                if self.keep is not None:
                    self._compare_kept(self.keep, plan.config.against)
                if not stop.received:
                    self._compare(folder)
        trials = folder.trials()
        failure = "" if self.quick else whole_sweep_failed(trials)
        if self.quick:
            states = [job.state for trial in trials for job in trial.jobs.values()]
            failure = f"{states.count('failed')} runs failed" if "failed" in states else ""
        if failure:
            print(failure)
        return self._stopped(stop) or int(bool(failure))

    def _stopped(self, stop: StopSignal) -> int:
        """Return the status of a sweep that a signal has stopped, having told how it goes on."""
        if not stop.received:
            return 0
        again = f" --out {self.out}" if self.out else ""
        print(f"stopped and saved; the same command goes on: marl sweep {self.file}{again} ...")
        return 128 + stop.received

    def _trial_ended(self, folder: "SweepFolder", number: int) -> int:
        """Return the status of a sweep of one trial, having told how it went."""
        trial = folder.trial(number)
        reasons = [job.reason for job in trial.jobs.values() if job.reason]
        print("\n".join([f"trial {number} {trial.state}", *reasons]))
        return int(trial.state == "failed")

    def _search(
        self,
        folder: "SweepFolder",
        stop: StopSignal,
        jobs: int,
        start: "RayRuns | None",
    ) -> None:
        """Run the trials, and the best one with the evaluation seeds."""
        from marl.sweeps.adaptive import Adaptive
        from marl.sweeps.runner import InOrder, grid_jobs, run_jobs
        from marl.sweeps.table import SweepView

        config = folder.plan.config
        schedule: Adaptive | InOrder
        if config.method == "optuna":
            schedule = Adaptive(folder, self.trial)
        else:
            jobs_of_all = grid_jobs(folder, self.trial)
            for job in jobs_of_all:
                folder.kept(job)  # what does not belong to this sweep is told before training
            wanted = [
                job
                for job in jobs_of_all
                if not self.only
                or any(_is_of(folder.plan.place_of(job.trial), name) for name in self.only)
            ]
            for job in wanted:
                folder.keep_outcome(job, self.drop_checkpoints)
            schedule = InOrder(folder, wanted)
        page_took, page_at = 0.0, -math.inf

        def changed(job: "Job | None", failure: str) -> None:
            nonlocal page_took, page_at
            view.changed(job, failure)
            if job is None or self.keep is None:
                return
            folder.keep_outcome(job, self.drop_checkpoints)
            begin = time.monotonic()
            if begin - page_at > _PAGES_SHARE * page_took:
                self._compare_kept(self.keep, config.against)
                page_at = time.monotonic()
                page_took = page_at - begin

        with SweepView(folder, jobs) as view:

            def run(schedule: "Adaptive | InOrder") -> None:
                run_jobs(
                    folder,
                    schedule,
                    jobs,
                    stop=lambda: stop.received > 0,
                    changed=changed,
                    trust=self.trust,
                    start=start,
                )

            run(schedule)
            trials = folder.trials()
            best = folder.best(trials)
            are_over = all(t.state in ("finished", "pruned", "refused", "failed") for t in trials)
            if best is not None and are_over and self.trial is None and not stop.received:
                seeds = config.evaluation_seeds
                run(InOrder(folder, [folder.evaluation(best.number, seed) for seed in seeds]))

    def _compare_kept(self, keep: Path, against: str) -> None:
        """Write the comparison of the outcomes that are kept, where there are any."""
        from marl.reports.comparison import ComparisonError
        from marl.reports.comparison_files import write_comparison
        from marl.reports.kept import find_kept, kept_runs

        runs, damaged = kept_runs(find_kept(keep))
        with suppress(ComparisonError):
            write_comparison(runs, keep, against=against, notes=damaged)

    def _compare(self, folder: "SweepFolder") -> None:
        """Write the comparison of the trials beside the table, where there is anything in it."""
        from marl.reports.comparison import MEASURED_TOO, ComparisonError
        from marl.reports.comparison_files import write_comparison
        from marl.reports.recorded import find_runs, read_run

        config = folder.plan.config
        columns = (config.metric, "return/episodes", *MEASURED_TOO)
        try:
            runs = [read_run(path, columns) for path in find_runs(folder.path / "trials")]
            metric = None if folder.plan.is_named else config.metric
            write_comparison(runs, folder.path, metric=metric, against=config.against)
        except ComparisonError as error:
            print(error)
        else:
            print(f"learning curves are in {folder.path / 'comparison.png'}")


def _is_of(place: str, name: str) -> bool:
    """Return whether the trial with the folder TASK/VARIANT belongs to what `name` names."""
    return f"{place}/".startswith(f"{name}/")


def _check_trust_in(plan: "Plan", file: Path) -> None:
    """Raise `ConfigError` unless the code that any trial would import, and the language model that
    it would ask, are trusted."""
    from marl.sweeps.plan import tried_values

    configs, named = [plan.config_of({}, 0)], {}
    for trial in range(plan.num_trials) if plan.is_named else ():
        configs.append(plan.config_of(plan.settings_of(trial), 0))
    for parameter in plan.parameters:
        for value in tried_values(parameter):
            try:
                configs.append(plan.config_of({parameter.name: value}, 0))
            except ConfigError:  # it takes other values of the search
                for text in filter(lambda text: ":" in text, _texts(value)):
                    named[parameter.name] = text
    endpoint: dict[str, str] = {}
    for config in configs:
        named |= import_paths(config)
        endpoint |= endpoint_settings(config.preferences)
    check_trusted(named, file, endpoint=endpoint)


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
