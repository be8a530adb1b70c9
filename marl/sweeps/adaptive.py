"""Trials chosen by what earlier ones have reached: Optuna's TPE, and its median rule to end some.

The journal ``optuna.log`` in the sweep's folder is the memory; several processes may share it. With
one process at a time (``--jobs 1``) the choices are functions of the file and of the trials before,
so that a sweep that was killed goes on to the same table: every trial has a sampler of its own,
seeded by its number.
"""

import json
import math
import os
import warnings
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from marl import UserError
from marl.config import ConfigError
from marl.reports.estimates import estimate
from marl.sweeps.folder import Job, SweepFolder
from marl.sweeps.plan import Choice, Parameter, Settings
from marl.utils.files import check_own_file
from marl.utils.text import error_text

if TYPE_CHECKING:
    import optuna


_JOURNAL_FAULTS = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    RecursionError,
)


class Adaptive:
    """The schedule of ``method = "optuna"``: the seeds of a trial one after the other."""

    def __init__(self, folder: SweepFolder, only: int | None = None) -> None:
        """`only` is the one trial that this process runs, if not all."""
        self._folder, self._only = folder, only
        self._seeds = folder.plan.config.seeds
        self._optuna = _imported()
        self._lock = FileLock(folder.path / "optuna.lock")
        self._journal = folder.path / "optuna.log"
        self._running: set[int] = set()
        self._failed: set[int] = set()
        with self._lock:
            study = self._study(0)
            if only is None:
                self._give_up_half_chosen(study)

    def next(self) -> tuple[Job, Settings] | None:
        """Return the next seed of an open trial, else the first seed of a new one."""
        numbers = range(self._folder.plan.num_trials) if self._only is None else [self._only]
        for number in numbers:
            if number in self._running | self._failed:
                continue
            noted = self._folder.noted(number) or self._choose(number)
            if noted.get("ended"):
                continue
            job = self._next_seed(number, noted)
            if job is not None:
                self._running.add(number)
                return job, noted["tried"]
        return None

    def ended(self, job: Job, failed: bool) -> None:
        """Take note that a trial's run has ended; one that failed is tried again by a new sweep."""
        self._running.discard(job.trial)
        if failed:
            self._failed.add(job.trial)

    def _next_seed(self, number: int, noted: dict[str, Any]) -> Job | None:
        """Return the first run of a trial that is not finished; None where the trial has ended.

        What the finished ones have reached is reported, once.
        """
        with self._lock:
            study = self._study(number)
            if noted["optuna"] >= len(study.trials):
                raise ConfigError(f"{self._journal} is damaged: it lacks trial {number}")
            trial = study.trials[noted["optuna"]]
            if trial.state.is_finished():
                return None
            live = self._optuna.trial.Trial(study, trial._trial_id)
            finals: list[float] = []
            for index, seed in enumerate(self._seeds):
                job = self._folder.job(number, seed)
                state = self._folder.state_of(job)
                if state.state != "finished":
                    pruned = index and not job.folder.exists() and self._is_pruned(live)
                    if not pruned:
                        return job
                    self._end(study, number, noted, "pruned", "PRUNED")
                    return None
                if not math.isfinite(state.final):
                    self._end(study, number, noted, state.reason, "FAIL")
                    return None
                finals.append(state.final)
                if index not in trial.intermediate_values:
                    live.report(estimate(finals).value, index)
            study.tell(trial.number, estimate(finals).value)
        return None

    def _is_pruned(self, live: "optuna.trial.Trial") -> bool:
        return self._folder.plan.config.prune and live.should_prune()

    def _end(
        self, study: "optuna.Study", number: int, noted: dict[str, Any], why: str, state: str
    ) -> None:
        """End a trial before all of its seeds were run."""
        study.tell(noted["optuna"], state=self._optuna.trial.TrialState[state])
        self._folder.note(number, noted["tried"], why, optuna=noted["optuna"])

    def _choose(self, number: int) -> dict[str, Any]:
        """Return what a new trial tries; one whose settings contradict each other ends at once."""
        with self._lock:
            if noted := self._folder.noted(number):  # another process was faster
                return noted
            study = self._study(number)
            space = {p.name: _distribution(p) for p in self._folder.plan.parameters}
            trial = study.ask(space)
            choices = [p.name for p in self._folder.plan.parameters if isinstance(p, Choice)]
            tried = {k: json.loads(v) if k in choices else v for k, v in trial.params.items()}
            self._folder.note(number, tried, optuna=trial.number)
            noted = self._folder.noted(number)
            try:
                self._folder.plan.config_of(tried, 0, f"trial {number}")
            except ConfigError as error:
                self._end(study, number, noted, str(error), "FAIL")
            return self._folder.noted(number)

    def _study(self, number: int) -> "optuna.Study":
        """Return the study with a sampler of the trial's own.

        Raises `ConfigError` for a journal that is none: Optuna tells that by whatever it meets.
        """
        from optuna.storages.journal import JournalFileBackend, JournalStorage

        optuna = self._optuna
        seed = (self._folder.plan.config.search_seed * 100_003 + number) % 2**32
        check_own_file(self._journal)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that parts of Optuna are new
                return optuna.create_study(
                    study_name="sweep",
                    storage=JournalStorage(JournalFileBackend(str(self._journal))),
                    sampler=optuna.samplers.TPESampler(seed=seed),
                    pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
                    direction="maximize",
                    load_if_exists=True,
                )
        except _JOURNAL_FAULTS as error:
            raise ConfigError(f"{self._journal} is damaged: {error_text(error, 200)}") from None

    def _give_up_half_chosen(self, study: "optuna.Study") -> None:
        """Forget the trial that a killed sweep had not chosen wholly; it is chosen anew."""
        count = self._folder.plan.num_trials
        known = {self._folder.noted(number).get("optuna") for number in range(count)}
        for trial in study.get_trials(states=[self._optuna.trial.TrialState.RUNNING]):
            if trial.number not in known:
                study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)


def _distribution(parameter: Parameter) -> "optuna.distributions.BaseDistribution":
    """Return a parameter in Optuna's terms; values that are chosen stand there as JSON."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(parameter, Choice):
        return CategoricalDistribution([json.dumps(value) for value in parameter.values])
    if parameter.whole:
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log)


def _imported() -> Any:
    """Return the package optuna, or raise `UserError` with how to install it."""
    os.environ.setdefault("OPTUNA_LOGGING_LEVEL", "WARNING")
    try:
        import optuna
    except ModuleNotFoundError:
        raise UserError(
            'method = "optuna" needs the extra sweep: pip install -c constraints.txt '
            "'.[sweep]'; or set method = \"random\""
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
