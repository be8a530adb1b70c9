"""Callbacks: what is told of a run while it trains, and three that are shipped.

    marl.train(config, "runs/mine", callbacks=[MyCallback()])

A run in a folder has `TensorBoard` without being asked; its ``metrics.csv`` is written apart, since
a checkpoint counts its rows.
"""

import math
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs import EnvError, EnvSpec
from marl import UserError
from marl.config import Config, ConfigError
from marl.config.io import flat, to_dict
from marl.utils.files import make_folder
from marl.utils.metrics import MetricWriter
from marl.utils.plugins import PluginError

if TYPE_CHECKING:
    from tensorboard.summary.writer.record_writer import RecordWriter

    from marl.policy import Policy
    from marl.rewards import RewardLearner


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """The run that a callback is told of."""

    config: Config
    spec: EnvSpec
    """Of the environment."""
    folder: Path | None
    """Where it is recorded; None where it is not."""
    steps: int
    """Environment steps it has taken before; 0 of one that begins."""
    resumed: bool
    """Whether it goes on, perhaps from its very beginning."""
    team: "Callable[[], tuple[Policy, RewardLearner | None]]"
    """Returns copies of the policy and of the reward model as they are then; None: it has none, or
    none yet. To be called between iterations, and not by several processes."""


class Callback:
    """Told of a run between its iterations; override what is needed.

    What one raises ends the run after the iteration, its state saved.
    """

    def on_start(self, run: RunInfo) -> None:
        """Called before the first iteration, also of a run that goes on."""

    def on_iteration(self, metrics: dict[str, float]) -> bool | None:
        """Called after each iteration, which is recorded; return True to end the training."""

    def on_checkpoint(self, path: Path) -> None:
        """Called after a checkpoint was written."""

    def on_end(self, error: BaseException | None) -> None:
        """Called at the end: of the training, by a stop (both None), or by an error."""


def check_callbacks(callbacks: Sequence[object]) -> None:
    """Raise `PluginError` for what is no `Callback`."""
    for callback in callbacks:
        if not isinstance(callback, Callback):
            raise PluginError(
                f"callbacks: got {type(callback).__name__}, expected an object of a class derived "
                "from marl.Callback, whose methods do nothing unless overridden"
            )


class Callbacks:
    """Several callbacks as one."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = list(callbacks)

    @contextmanager
    def told_of(self, run: RunInfo) -> Iterator[None]:
        """Tell the callbacks of the start, and at the end of the block of the end and its error."""
        begun: list[Callback] = []
        ended: BaseException | None = None
        try:
            for callback in self._callbacks:
                begun.append(callback)
                callback.on_start(run)
            yield
        except GeneratorExit:  # the caller has stopped iterating
            raise
        except BaseException as error:
            ended = error
            raise
        finally:
            for callback in begun:
                callback.on_end(ended)

    def iterated(self, metrics: dict[str, float]) -> bool:
        """Return whether any callback wants the training to end."""
        wishes = [callback.on_iteration(dict(metrics)) for callback in self._callbacks]
        return any(wish is True for wish in wishes)

    def saved(self, path: Path) -> None:
        """Tell of a checkpoint."""
        for callback in self._callbacks:
            callback.on_checkpoint(path)


class Csv(Callback):
    """Writes ``metrics.csv`` of a run that has no folder of its own into one."""

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder)
        self._writer: MetricWriter | None = None

    def on_start(self, run: RunInfo) -> None:
        """Begin the file, or continue it."""
        self._writer = MetricWriter(self._folder, after=run.steps if run.resumed else None)

    def on_iteration(self, metrics: dict[str, float]) -> None:
        """Write a row."""
        assert self._writer is not None
        self._writer.write(int(metrics["steps"]), metrics)

    def on_end(self, error: BaseException | None) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


class TensorBoard(Callback):
    """Writes scalars, and the settings as hyper-parameters, for TensorBoard.

    TensorBoard's own writer has a thread, in which a full disk ends in a traceback. Here what
    cannot be written is told once, and no more is written.
    """

    def __init__(self, folder: Path | str) -> None:
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._path = Path(folder) / name
        self._records: RecordWriter | None = None

    def on_start(self, run: RunInfo) -> None:
        """Begin a file; the events of earlier sessions after the run's steps are hidden."""
        from tensorboard.compat.proto.event_pb2 import SessionLog  # half a second, which help
        from tensorboard.summary.writer.record_writer import RecordWriter  # need not take

        try:
            make_folder(self._path.parent)
            self._records = RecordWriter(self._path.open("ab"))
        except OSError as error:
            self._give_up(error)
        first = run.steps + 1 if run.resumed else None
        self._add(file_version="brain.Event:2", step=first)
        if run.resumed:
            self._add(session_log=SessionLog(status=SessionLog.START), step=first)
        self._add(summary=_hyper_parameters(run.config), step=first)

    def on_iteration(self, metrics: dict[str, float]) -> None:
        """Write all metrics that are finite numbers."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        shown = {name: value for name, value in metrics.items() if math.isfinite(value)}
        values = [Summary.Value(tag=name, simple_value=value) for name, value in shown.items()]
        self._add(summary=Summary(value=values), step=int(metrics["steps"]))

    def on_end(self, error: BaseException | None) -> None:
        """Close the file."""
        if self._records is not None:
            with suppress(OSError):
                self._records.close()

    def _add(self, **content: Any) -> None:
        """Write an event, with the time of day."""
        from tensorboard.compat.proto.event_pb2 import Event

        if self._records is None:
            return
        try:
            self._records.write(Event(wall_time=time.time(), **content).SerializeToString())
            self._records.flush()
        except OSError as error:
            self.on_end(None)
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Say why no more is written."""
        self._records = None
        reason = error.strerror or error
        warnings.warn(
            f"{self._path} cannot be written: {reason}; TensorBoard will not show what follows",
            stacklevel=4,
        )


class Film(Callback):
    """Films an episode at every `every`-th evaluation (``eval.every``), as `marl watch` does.

    The films are ``films/step_000000050000.gif`` in the run's folder, or in `folder`. The episode
    is always the same one, played greedily; training does not notice. What cannot be filmed is
    told, and training goes on. ``eval.film_every`` adds this to a run without being asked.
    """

    def __init__(self, every: int = 1, folder: Path | str | None = None) -> None:
        if every < 1:
            raise ConfigError(f"every: got {every}, expected at least 1 evaluation")
        self._every, self._folder = every, None if folder is None else Path(folder)
        self._run: RunInfo | None = None

    def on_start(self, run: RunInfo) -> None:
        """Take note of the run; raise `ConfigError` where there is nothing to film, or no place."""
        self._run = run
        if not run.config.eval.every:
            raise ConfigError("films are made at evaluations, and eval.every is 0; set it")
        if self._folder is None:
            if run.folder is None:
                raise ConfigError("films need a folder; give Film(folder=), or the run a folder")
            self._folder = run.folder / "films"

    def on_iteration(self, metrics: dict[str, float]) -> None:
        """Film an episode where one is due."""
        assert self._run is not None
        assert self._folder is not None
        config, steps = self._run.config, int(metrics["steps"])
        if not replace(config.eval, every=config.eval.every * self._every).is_due(
            steps, config.batch_steps
        ):
            return
        from marl.reports.video import FilmOptions, film_team
        from marl.utils.text import LiteralConsole

        path = self._folder / f"step_{steps:012d}.gif"
        try:
            film_team(*self._run.team(), path, FilmOptions(), LiteralConsole(quiet=True))
        except (EnvError, UserError) as error:
            warnings.warn(f"no film after {steps:,} steps: {error}", stacklevel=3)


def _hyper_parameters(config: Config) -> Any:
    """Return the settings as TensorBoard's page of hyper-parameters reads them."""
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb

    plain = (bool, int, float, str)
    values = flat(to_dict(config))
    return hparams_pb({k: v if isinstance(v, plain) else str(v) for k, v in values.items()})
