"""What a run writes into its folder while it trains: metrics, checkpoints, best team, errors."""

import hashlib
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from marl import UserError, __version__
from marl.callbacks import Callbacks
from marl.config import Config
from marl.config.io import to_dict
from marl.nn.layers import NonFiniteError
from marl.policy import saved_spec
from marl.reports.recorded import ERROR
from marl.trainer import Trainer
from marl.utils.checkpoint import (
    BEST,
    CheckpointError,
    list_checkpoints,
    read_checkpoint,
    save_checkpoint,
    save_together,
)
from marl.utils.files import OutputError, atomic_write
from marl.utils.launch import command_to_go_on
from marl.utils.metrics import MetricWriter
from marl.utils.ranks import LostError, PeerError, Ranks, is_shared, together


class RunRecorder:
    """Records a run in its folder; of several processes, the first writes metrics and the best.

    All processes call the same methods in the same order.
    """

    def __init__(
        self, trainer: Trainer, folder: Path, callbacks: Callbacks, *, resumed: bool
    ) -> None:
        """`callbacks` are told of checkpoints. A resumed run's metrics are continued."""
        self.trainer = trainer
        self.folder = folder
        self.callbacks = callbacks
        self.ranks = trainer.ranks
        self._saved_at = trainer.steps if resumed else -1
        """Steps at the newest checkpoint; -1 without one."""
        self._written = trainer.steps
        """Steps at the newest row of the metrics."""
        self._unrecorded: Exception | None = None
        """What could not be written."""
        self._writer: MetricWriter | None = None
        with together(self.ranks):
            if self.ranks.rank == 0:
                (folder / ERROR).unlink(missing_ok=True)
                self._writer = MetricWriter(folder, after=trainer.steps if resumed else None)
                trainer.seconds = self._writer.kept("time/total")

    def write(self, metrics: dict[str, float]) -> None:
        """Write the metrics of a finished iteration."""
        with self._recording(), together(self.ranks):
            if self._writer is not None:
                self._writer.write(self.trainer.steps, metrics)
        self._written = self.trainer.steps

    def keep_best(self, metrics: dict[str, float]) -> None:
        """Keep the team if it was evaluated and is the best so far."""
        if "evaluation/greedy" in metrics:
            with self._recording(), together(self.ranks):
                if self.ranks.rank == 0:
                    _write_best(self.trainer, self.folder, metrics["evaluation/greedy"])

    def save_if_due(self) -> None:
        """Write a checkpoint where the steps have passed a multiple of the interval."""
        every = checkpoint_interval(self.trainer.config)
        if self.trainer.steps // every > max(self._saved_at, 0) // every:
            self.save()

    def save(self) -> None:
        """Write a checkpoint of the state as it is, unless there is one."""
        if self._saved_at == self.trainer.steps:
            return
        with self._recording():
            with together(self.ranks):
                if self._writer is not None:
                    self._writer.sync()  # on the disk before the checkpoint that counts its rows
            path = save_trainer(self.trainer, self.folder / "checkpoints")
        self._saved_at = self.trainer.steps
        with together(self.ranks):
            self.callbacks.saved(path)

    def failed(self, error: Exception) -> None:
        """Save what can be saved after an error, note on it what that is, and write it down."""
        if error is not self._unrecorded and not isinstance(error, LostError):
            note = self._saved_after(error)
            if not isinstance(error, PeerError):
                error.add_note(note)
        _write_error(self.folder, error)

    def close(self) -> None:
        """Close the metrics and draw them."""
        if self._writer is not None:
            _finish(self.folder, self.trainer, self._writer)

    def _saved_after(self, error: Exception) -> str:
        """Save the state after an error: as a checkpoint, if it can be gone on from; say where."""
        if (
            (self.ranks.size == 1 or is_shared(error))
            and self.trainer.safe_to_checkpoint
            and self.trainer.steps == self._written
            and not _has_diverged(self.trainer, error)
        ):
            self.save()
            return (
                f"the run is saved as it was after {self.trainer.steps:,} steps, its last finished "
                f"iteration; {_command(self.folder, self.ranks)} goes on from there"
            )
        own = f"process{self.ranks.rank}" if self.ranks.rank else ""
        return _crash_saved(self.trainer, self.folder / "crash" / own)

    @contextmanager
    def _recording(self) -> Iterator[None]:
        """Note on what cannot be written, to a full disk for one, where the run goes on."""
        try:
            yield
        except (CheckpointError, OutputError, PeerError) as error:
            at = self._saved_at
            where = f"goes on from step {at:,}" if at > 0 else "begins the run again"
            if not isinstance(error, PeerError):
                error.add_note(f"once that is mended, {_command(self.folder, self.ranks)} {where}")
            self._unrecorded = error
            raise


def checkpoint_interval(config: Config) -> int:
    """Return the environment steps between checkpoints, as set or as the run's length asks for.

    A short run has four: its steps may take hours, where each is slow or asks for a slow answer.
    """
    return config.checkpoint_every or min(200_000, -(-config.total_steps // 4))


def save_trainer(trainer: Trainer, folder: Path) -> Path:
    """Write a checkpoint of a trainer, with the settings and the environment it belongs to.

    All processes of a run do so together.
    """
    keep, ranks = trainer.config.keep_checkpoints, trainer.ranks
    weights = _weights_of(trainer) if ranks.size > 1 else ""
    return save_together(folder, trainer.steps, _state_of(trainer), keep, ranks, weights)


def _state_of(trainer: Trainer) -> dict[str, Any]:
    """Return what a checkpoint holds."""
    return described(trainer) | {"trainer": trainer.state_dict()}


def _weights_of(trainer: Trainer) -> str:
    """Return a digest of the policy's weights."""
    weights = trainer.learner.actor.state_dict().values()
    content = b"".join(x.detach().cpu().numpy().tobytes() for x in weights if isinstance(x, Tensor))
    return hashlib.sha256(content).hexdigest()


def _write_best(trainer: Trainer, folder: Path, value: float) -> None:
    """Write what plays in place of the run's best checkpoint, if that did not play as well."""
    place = folder / "checkpoints" / BEST
    before = list_checkpoints(place)
    with suppress(CheckpointError):  # one that is damaged is no rival
        if before and read_checkpoint(before[0])[1]["evaluation"] >= value:
            return
    state = described(trainer) | {"trainer": trainer.playing_state(), "evaluation": value}
    path = save_checkpoint(place, trainer.steps, state, keep=1)
    for other in before:
        if other != path:
            other.unlink(missing_ok=True)


def described(trainer: Trainer) -> dict[str, Any]:
    """Return what a checkpoint says of the run that it belongs to."""
    return {
        "version": __version__,
        "run": trainer.run,
        "config": to_dict(trainer.config),
        "spec": saved_spec(trainer.env.spec),
    }


def _crash_saved(trainer: Trainer, folder: Path) -> str:
    """Save the state within an iteration, for debugging; return what to say about it."""
    try:
        keep = trainer.config.keep_checkpoints
        crash = save_checkpoint(folder, trainer.steps, _state_of(trainer), keep)
    except CheckpointError as error:
        with suppress(OSError):
            folder.rmdir()
        return f"the state at the error is lost: {error}"
    return f"the state at the error is in {crash}; checkpoints/ is as it was before"


def _command(folder: Path, ranks: Ranks) -> str:
    return command_to_go_on(folder, ranks.size)


def _write_error(folder: Path, error: Exception) -> None:
    """Write the error that ended a run to its folder, where `marl runs` finds it.

    That of another process is written by that one.
    """
    if isinstance(error, PeerError):
        return
    text = "".join(traceback.format_exception(error))
    with suppress(OSError):  # a full disk, perhaps, and then that is the error
        atomic_write(folder / ERROR, text.encode(errors="backslashreplace"))


def _has_diverged(trainer: Trainer, error: Exception) -> bool:
    """Return whether an error is the policy's fault, so that nothing can go on from its state."""
    state = trainer.learner.actor.state_dict().values()
    sound = all(bool(x.isfinite().all()) for x in state if isinstance(x, Tensor))
    return isinstance(error, NonFiniteError) or not sound


def _finish(folder: Path, trainer: Trainer, writer: MetricWriter) -> None:
    """Close the metrics and draw them; a failure here is a warning and hides no other error."""
    from marl.reports.comparison_files import known_ends  # a second of imports, which can wait
    from marl.reports.plots import plot_run  # as above

    try:
        writer.close()
        if trainer.iteration:
            config = trainer.config
            heading = f"{config.env.name}, {config.algorithm}, seed {config.seed}"
            ends = known_ends(folder.parent, config.env.name)
            plot_run(folder, trainer.env.spec.successes, heading, ends)
    except (OSError, UserError) as error:
        warnings.warn(f"the run is recorded, but its curve is not drawn: {error}", stacklevel=2)
