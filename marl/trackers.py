"""Callbacks that report a run to Weights & Biases or to MLflow.

    marl train --track wandb mlflow

Both read where to report to, and their keys, from their own environment variables and files;
neither passes through this package. With ``WANDB_MODE=offline`` the first writes to the run's
folder, and without ``MLFLOW_TRACKING_URI`` the second to a database in the current folder. A server
that fails at the start is an error; one that fails later is told once, and training goes on.
"""

import math
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from marl.callbacks import Callback, RunInfo
from marl.config import ConfigError
from marl.config.io import flat, to_dict
from marl.utils.plugins import identity_of

_URL_USER = re.compile(r"//[^/@\s]+@")
"""A user and a password in an address."""
_BATCH = 100
"""Settings that MLflow takes at a time."""
_LONGEST = 500
"""Characters of a setting that MLflow takes."""


class TrackerError(ConfigError):
    """A service to which runs are reported does not take this one."""


class _Tracker(Callback):
    """What the trackers have in common: they fail at the start, or go silent with a warning."""

    service: str
    faults: tuple[type[Exception], ...] = ()
    """What the service's package raises; known once it is imported."""

    @contextmanager
    def _starting(self) -> Iterator[None]:
        try:
            yield
        except self.faults as error:
            raise TrackerError(
                f"{self.service} does not take this run: {_message(error)}; {self.remedy}"
            ) from None  # what it says may hold an address with a password

    def _report(self, call: Callable[[], Any]) -> bool:
        """Return whether a call worked; if not, say so."""
        try:
            call()
        except self.faults as error:
            warnings.warn(
                f"{self.service} takes no more of this run, which goes on: {_message(error)}",
                stacklevel=4,
            )
            return False
        return True

    @property
    def remedy(self) -> str:
        """What to do where it fails at the start."""
        raise NotImplementedError


class WeightsAndBiases(_Tracker):
    """Reports metrics, settings and the end of a run to Weights & Biases (extra ``wandb``).

    Neither console output nor code, Git remotes or the command line are sent. `init` are further
    arguments of `wandb.init`, such as `entity` or `group`. A run that goes on is the same one
    there; iterations that it takes again after a kill are there twice.
    """

    service = "Weights & Biases"

    def __init__(self, project: str | None = None, **init: Any) -> None:
        self._init = {"project": project} | init
        self._run: Any = None

    @property
    def remedy(self) -> str:
        """What to do where it fails at the start."""
        return "log in by `wandb login`, or record it on this machine by WANDB_MODE=offline"

    def on_start(self, run: RunInfo) -> None:
        """Begin a run, or continue it."""
        wandb = _imported("wandb", "wandb")
        self.faults = (wandb.Error, OSError)
        options: dict[str, Any] = {
            "config": _settings(run),
            "settings": wandb.Settings(
                console="off",
                disable_git=True,
                save_code=False,
                x_disable_meta=True,
                silent=True,
            ),
        }
        if run.folder is not None:
            options |= {"dir": str(run.folder), "name": run.folder.resolve().name}
            options |= {"id": identity_of(run.folder) or None, "resume": "allow"}
        options |= {name: value for name, value in self._init.items() if value is not None}
        with self._starting():
            self._run = wandb.init(**options)
            self._run.define_metric("steps")
            self._run.define_metric("*", step_metric="steps")

    def on_iteration(self, metrics: dict[str, float]) -> None:
        """Report all metrics that are finite numbers."""
        if self._run is not None and not self._report(lambda: self._run.log(_finite(metrics))):
            self._run = None

    def on_end(self, error: BaseException | None) -> None:
        """End the run; one that an error ended has failed."""
        if self._run is not None:
            self._report(lambda: self._run.finish(exit_code=0 if error is None else 1))
            self._run = None


class MLflow(_Tracker):
    """Reports metrics, settings and the end of a run to MLflow (extra ``mlflow``).

    Where to is what ``MLFLOW_TRACKING_URI`` says, and the `experiment`
    ``MLFLOW_EXPERIMENT_NAME``, without which it is ``prefmarl``. A run that goes on is the same one
    there.
    """

    service = "MLflow"

    def __init__(self, experiment: str | None = None, tracking_uri: str | None = None) -> None:
        self._experiment, self._uri = experiment, tracking_uri
        self._client: Any = None
        self._run = ""

    @property
    def remedy(self) -> str:
        """What to do where it fails at the start."""
        return "MLFLOW_TRACKING_URI says where it is, e.g. sqlite:///mlflow.db"

    def on_start(self, run: RunInfo) -> None:
        """Begin a run, or continue it."""
        mlflow = _imported("mlflow", "mlflow")
        entities, faults = _imported("mlflow.entities", "mlflow"), mlflow.exceptions
        self.faults = (faults.MlflowException, OSError)  # the latter from requests
        with self._starting():
            client = mlflow.MlflowClient(tracking_uri=self._uri)
            name = self._experiment or mlflow.environment_variables.MLFLOW_EXPERIMENT_NAME.get()
            experiment = _experiment(client, name or "prefmarl")
            identity = "" if run.folder is None else identity_of(run.folder)
            found = []
            if run.resumed and identity:
                wanted = f"tags.`prefmarl.run` = '{identity}'"
                found = client.search_runs([experiment], wanted, max_results=1)
            if found:
                self._run = found[0].info.run_id
                client.update_run(self._run, status="RUNNING")
            else:
                title = None if run.folder is None else run.folder.resolve().name
                tags = {"prefmarl.run": identity}
                made = client.create_run(experiment, run_name=title, tags=tags)
                self._run = made.info.run_id
                settings = [
                    entities.Param(key, str(value)[:_LONGEST])
                    for key, value in _settings(run).items()
                ]
                for begin in range(0, len(settings), _BATCH):
                    client.log_batch(self._run, params=settings[begin : begin + _BATCH])
        self._client, self._metric = client, entities.Metric

    def on_iteration(self, metrics: dict[str, float]) -> None:
        """Report all metrics that are finite numbers."""
        if self._client is None:
            return
        now, step = int(time.time() * 1000), int(metrics["steps"])
        values = [
            self._metric(re.sub(r"[^\w./ -]", "_", name), value, now, step)
            for name, value in _finite(metrics).items()
        ]
        if not self._report(lambda: self._client.log_batch(self._run, metrics=values)):
            self._client = None

    def on_end(self, error: BaseException | None) -> None:
        """End the run; one that an error ended has failed."""
        if self._client is not None:
            status = "FINISHED" if error is None else "FAILED"
            self._report(lambda: self._client.set_terminated(self._run, status))
            self._client = None


def trackers(names: Sequence[str]) -> list[Callback]:
    """Return the callbacks of these names; raise `ConfigError` where a package is missing."""
    made: list[Callback] = []
    for name in dict.fromkeys(names):
        _imported(name, name)
        made.append(WeightsAndBiases("prefmarl") if name == "wandb" else MLflow())
    return made


def _imported(module: str, extra: str) -> Any:
    """Return a module of an extra, or say how to get it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"--track {extra} needs the extra {extra}: pip install -c constraints.txt '.[{extra}]'"
        ) from error


def _experiment(client: Any, name: str) -> str:
    """Return the id of an experiment, made if there is none."""
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found is not None else client.create_experiment(name))


def _settings(run: RunInfo) -> dict[str, Any]:
    """Return the settings by their dotted names, without what a password could stand in."""
    values = flat(to_dict(run.config)) | {"environment": run.spec.name}
    return {
        name: _URL_USER.sub("//", value) if isinstance(value, str) else value
        for name, value in values.items()
    }


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    """Return the metrics that are numbers."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _message(error: Exception) -> str:
    """Return what an error says, on one line and without passwords of addresses."""
    return _URL_USER.sub("//", " ".join(str(error).split()))[:300]
