"""Runs: train, and record in a folder what is needed to look at a run and to continue it."""

import os
import secrets
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs import EnvSpec, Replays, unwrapped
from marl.callbacks import Callback, Callbacks, Film, RunInfo, TensorBoard, check_callbacks
from marl.config import Config, ConfigError
from marl.config.io import fixed_differences, save_config
from marl.evaluation import Evaluator
from marl.policy import check_same_spec, config_in, spec_in
from marl.preferences.factory import with_given_labeller
from marl.preferences.resharding import losses, resharded
from marl.recorder import RunRecorder, described
from marl.reports.recorded import CONFIG, LOCK
from marl.trainer import Trainer
from marl.utils.checkpoint import (
    checkpoint_name,
    list_checkpoints,
    load_together,
    num_processes,
    read_all,
    restoring,
)
from marl.utils.encoding import decode, encode
from marl.utils.files import atomic_write, held, make_folder, output
from marl.utils.launch import LAUNCH, launch_id
from marl.utils.plugins import IDENTITY, grant, identity_of, remember
from marl.utils.ranks import SINGLE, Ranks, together
from marl.utils.text import printable

if TYPE_CHECKING:
    from marl.policy import Policy
    from marl.rewards import RewardLearner

_POLL = 0.25
"""Seconds between two looks at whether people have answered."""
_SHARED = 15.0
"""Seconds in which all processes must see the run's folder."""


def train(
    config: Config,
    run_dir: Path | str | None = None,
    *,
    init: Path | str = "",
    labeller: Callable[..., Any] | None = None,
    resume: bool = False,
    cut_open_episodes: bool = False,
    reshard: bool = False,
    stop: Callable[[], bool] | None = None,
    begun: Callable[[EnvSpec], None] | None = None,
    tell: Callable[[str], None] = print,
    callbacks: Sequence[Callback] = (),
    ranks: Ranks = SINGLE,
) -> Generator[dict[str, float], None, None]:
    """Yield one metrics dict per iteration; with `run_dir`, also write it, and checkpoints.

    Closing the generator, an error in the run and the last iteration all save the state: a
    checkpoint, or a folder ``crash`` where the error left half an iteration. Training ends after
    the iteration in which `stop` says so, in one process or another; while it waits for people
    (``preferences.people.wait``), at once.
    `init`, a run or a fit to start from, takes the place of the setting of that name; what is taken
    from it is told by `tell`, line by line.
    `labeller`, a callable from episode pairs to labels or a class of such, takes the place of the
    one that the settings name; the run is recorded with ``preferences.labeller = "python"``, and
    goes on only where it is given again.
    With `resume` a run goes on; of its settings those of `marl.config.io.MAY_CHANGE` may be
    others. A schedule that runs over `total_steps`, the step size's for one, is then that of a run
    of the new length.
    With `cut_open_episodes` a third-party environment that cannot repeat its open episodes goes on
    without them: they are truncated in the first step. With `reshard` a run goes on with another
    number of processes than have saved it (`marl.preferences.resharding`); what is lost is told.
    `begun` is told of the environment once a run with a folder is there and nothing refused it.
    `callbacks` are told of the training (`marl.callbacks`); one may end it.
    `ranks` are the processes that train the run together (`marl.utils.distributed.joined`): all of
    them call this with the same arguments and take every item. The first writes the metrics, and
    its callbacks are told.
    """
    check_callbacks(callbacks)
    if init:
        config = replace(config, init=str(init))
    if run_dir is None:
        with closing(Trainer(config, labeller=labeller, ranks=ranks)) as trainer:
            yield from _train_unrecorded(trainer, callbacks, tell)
        return
    folder = Path(run_dir)
    config = with_given_labeller(config, labeller)
    with ExitStack() as stack:
        with together(ranks):
            if ranks.rank == 0:
                if not resume:
                    refuse_a_run_in(folder)  # before a labeller is asked what it is paid for
                stack.enter_context(_sole_writer(folder))
                if not resume:
                    refuse_a_run_in(folder)  # another process made one meanwhile
            identity = identity_of(folder) or secrets.token_hex(8)
            restored = resume and bool(list_checkpoints(folder / "checkpoints"))
        identity, restored = ranks.gather([identity, restored])[0]
        given: dict[str, Any] = {"labeller": labeller, "run": identity, "restored": restored}
        trainer = stack.enter_context(closing(Trainer(config, folder, ranks=ranks, **given)))
        _tell_of_init(trainer, tell)
        if resume:
            _restore(trainer, folder, cut_open_episodes, tell if reshard else None)
        with together(ranks):
            if ranks.rank == 0:
                _begin(folder, config, identity, resume)
        with together(ranks):
            _check_is_shared(folder, identity, ranks)
            if ranks.local_rank == 0:
                remember(identity, config)
        if begun is not None:
            begun(trainer.env.spec)
        own = [TensorBoard(folder / "tensorboard"), *callbacks]
        if config.eval.film_every:
            own.append(Film(config.eval.film_every))
        calls = Callbacks(own if ranks.rank == 0 else ())
        with calls.told_of(_info(trainer, folder, resume)):
            yield from _train_in(folder, trainer, resume, stop, calls, tell)


def _tell_of_init(trainer: Trainer, tell: Callable[[str], None]) -> None:
    """Tell what was taken from the run that a new one starts from."""
    if trainer.ranks.rank == 0:
        for line in trainer.init_notes:
            tell(line)


def _train_unrecorded(
    trainer: Trainer, callbacks: Sequence[Callback], tell: Callable[[str], None]
) -> Generator[dict[str, float], None, None]:
    """Yield the metrics of a run without a folder."""
    ranks = trainer.ranks
    _tell_of_init(trainer, tell)
    calls = Callbacks(callbacks if ranks.rank == 0 else ())
    with closing(Evaluator(trainer)) as evaluator, calls.told_of(_info(trainer)):
        is_over = False
        while trainer.iteration < trainer.config.num_iterations and not is_over:
            metrics = trainer.iterate()
            metrics |= evaluator.after_iteration()
            is_over = _told(calls, metrics, ranks) | _has_plateaued(trainer, metrics, tell)
            yield metrics


def _train_in(
    folder: Path,
    trainer: Trainer,
    resume: bool,
    stop: Callable[[], bool] | None,
    calls: Callbacks,
    tell: Callable[[str], None],
) -> Generator[dict[str, float], None, None]:
    """Yield the metrics of a run that is recorded in `folder`."""
    config, ranks = trainer.config, trainer.ranks
    recorder = RunRecorder(trainer, folder, calls, resumed=resume)
    evaluator = Evaluator(trainer)
    is_over = _has_plateaued(trainer, {}, tell)
    try:
        while trainer.iteration < config.num_iterations and not is_over:
            if not _is_answered(trainer, stop):
                break
            with trainer.restoring():
                metrics = trainer.iterate()
            try:
                metrics |= evaluator.after_iteration()
            finally:  # the iteration is finished, whatever an evaluation meets
                recorder.write(metrics)
            recorder.keep_best(metrics)
            is_over = _told(calls, metrics, ranks) | _has_plateaued(trainer, metrics, tell)
            recorder.save_if_due()
            yield metrics
            is_over |= ranks.any(stop is not None and stop())
        recorder.save()
    except GeneratorExit:
        recorder.save()
        raise
    except Exception as error:
        recorder.failed(error)
        raise
    finally:
        evaluator.close()
        recorder.close()


def _is_answered(trainer: Trainer, stop: Callable[[], bool] | None) -> bool:
    """Return True once no people are waited for, or False as soon as `stop` says so.

    All processes of a run return the same.
    """
    while trainer.ranks.any(trainer.is_waiting):
        if trainer.ranks.any(stop is not None and stop()):
            return False
        time.sleep(_POLL)
    return True


def _begin(folder: Path, config: Config, identity: str, resume: bool) -> None:
    """Write what makes a folder that of a run."""
    if not resume:
        with output(folder / "checkpoints", "choose another --run-dir"):
            (folder / "checkpoints").mkdir(exist_ok=True)
        with output(folder / CONFIG, "choose another --run-dir"):
            save_config(config, folder / CONFIG)
    with output(folder / IDENTITY, "free some space or let it be written"):
        if launch := launch_id():
            atomic_write(folder / LAUNCH, f"{launch}\n".encode())
        atomic_write(folder / IDENTITY, f"{identity}\n".encode())


def _check_is_shared(folder: Path, identity: str, ranks: Ranks) -> None:
    """Raise `ConfigError` unless this process sees the folder of process 0."""
    until = time.monotonic() + _SHARED
    while identity_of(folder) != identity:
        if time.monotonic() > until:
            raise ConfigError(
                f"{folder}: process {ranks.rank} does not find there the run that process 0 has "
                "made; give all machines one folder, by --run-dir on a disk that they share"
            )
        time.sleep(_POLL)  # file systems of a network show new files late


def _told(calls: Callbacks, metrics: dict[str, float], ranks: Ranks) -> bool:
    """Return whether a callback of process 0 wants the training to end."""
    with together(ranks):
        is_over = calls.iterated(metrics)
    return ranks.any(is_over)


def _has_plateaued(
    trainer: Trainer, metrics: dict[str, float], tell: Callable[[str], None]
) -> bool:
    """Take note of an evaluation; return whether training ends, which is told, since it no longer
    improves the team."""
    if "evaluation/greedy" in metrics:
        trainer.evaluations[trainer.steps] = metrics["evaluation/greedy"]
    if not trainer.is_on_plateau or trainer.iteration >= trainer.config.num_iterations:
        return False
    setting = trainer.config.eval
    if trainer.ranks.rank == 0:
        tell(
            f"ended after {trainer.steps:,} of {trainer.config.total_steps:,} steps: the last "
            f"{setting.patience} evaluations were at most {setting.min_delta:g} above the best one "
            "before them (eval.patience); checkpoints/best holds that one"
        )
    return True


def _info(trainer: Trainer, folder: Path | None = None, resumed: bool = False) -> RunInfo:
    """Return what callbacks are told of a run."""
    return RunInfo(
        config=trainer.config,
        spec=trainer.env.spec,
        folder=folder,
        steps=trainer.steps,
        resumed=resumed,
        team=partial(_team, trainer, folder or Path("a run without a folder")),
    )


def _team(trainer: Trainer, folder: Path) -> "tuple[Policy, RewardLearner | None]":
    """Return copies of the policy and the reward model of a trainer."""
    from marl.reports.video import team_in

    grant(folder)  # what it names runs already
    state = described(trainer) | {"trainer": trainer.playing_state()}
    return team_in(decode(encode(state)), folder)  # as if it was written and read again


@contextmanager
def _sole_writer(folder: Path) -> Iterator[None]:
    """Lock a run's folder, created if it is missing; it is removed again if no run starts."""
    missing = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    if printable(str(folder)) != str(folder):
        raise ConfigError(
            f"{printable(str(folder))} has characters that cannot be written; choose another "
            "--run-dir"
        )
    with output(folder, "choose another --run-dir"):
        make_folder(folder)
    with held(
        folder / LOCK,
        f"{folder} is being trained in by another process, which alone may write there; nothing "
        "was changed",
    ):
        try:
            yield
        finally:
            if not (folder / CONFIG).exists():
                with suppress(OSError):
                    (folder / LOCK).unlink()
                with suppress(OSError):
                    (folder / "checkpoints").rmdir()
                with suppress(OSError):
                    for made in missing:
                        made.rmdir()


def _restore(
    trainer: Trainer,
    folder: Path,
    cut_open_episodes: bool,
    tell: Callable[[str], None] | None,
) -> None:
    """Let a trainer continue from a run's newest checkpoint.

    Another number of processes may have saved it where there is someone to `tell` what is lost.
    """
    ranks = trainer.ranks
    if not ranks.any(bool(list_checkpoints(folder / "checkpoints"))):
        if ranks.rank == 0:
            warnings.warn(
                f"{folder} was killed before its first checkpoint; starting over", stacklevel=3
            )
        return
    path, saved = load_together(folder / "checkpoints", ranks)
    found = ranks.gather(num_processes(saved))[0]
    others: list[dict[str, Any]] = []
    if found != ranks.size:
        if tell is None:
            torchrun = f"torchrun --standalone --nproc-per-node {found} -m "
            raise ConfigError(
                f"{path} was saved by {found} process{'es' * (found > 1)}, and here train "
                f"{ranks.size}; go on with `{torchrun * (found > 1)}marl resume {folder}`, or deal "
                "its episodes out anew by --reshard"
            )
        with together(ranks):
            others = read_all(path)
        saved = others[0]
    check_same_config(trainer.config, config_in(saved, str(folder)), folder)
    check_same_spec(spec_in(saved, str(folder)), trainer.env.spec, f"{folder} was saved")
    replays = unwrapped(trainer.env)
    if cut_open_episodes and isinstance(replays, Replays):
        replays.cut_open_episodes()
    with restoring(folder):
        if others and tell is not None:
            states = [other["trainer"] for other in others]
            lost = losses(states, trainer.config, ranks.size)
            trainer.load_resharded(resharded(states, trainer.config, ranks.rank, ranks.size))
            if ranks.rank == 0:
                tell(f"saved by {found}, now trained by {ranks.size} processes: {lost}")
        else:
            trainer.load_state_dict(saved["trainer"])
            if checkpoint_name(trainer.steps) != path.name:
                raise ValueError(f"iteration {trainer.iteration} is none of its step")
    if trainer.iteration > trainer.config.num_iterations:
        raise ConfigError(
            f"total_steps: got {trainer.config.total_steps:,}, but {folder} has already taken "
            f"{trainer.steps:,} steps"
        )
    with together(ranks):
        if ranks.rank == 0:
            save_config(trainer.config, folder / CONFIG)  # some settings may change


def refuse_a_run_in(folder: Path) -> None:
    """Raise `ConfigError` if a folder holds a run already."""
    if os.path.exists(folder / CONFIG):  # False where the name is no possible one
        raise ConfigError(
            f"{folder} already holds a run; continue it with `marl resume {folder}` or choose "
            "another --run-dir"
        )


def check_same_config(config: Config, saved: Config, folder: Path) -> None:
    """Raise `ConfigError` naming the settings in which a checkpoint differs from a run."""
    if differences := fixed_differences(saved, config):
        raise ConfigError(
            f"{folder}: the checkpoint belongs to another configuration; it differs in "
            + ", ".join(differences)
        )
