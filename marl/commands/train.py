"""The commands ``marl train`` and ``marl resume``."""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from dataclasses import field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from envs.registry import check_family
from marl.config import Config, Option
from marl.config.io import changed, load_run_config
from marl.config.validation import Range, settings
from marl.utils.files import free_folder
from marl.utils.launch import (
    LAUNCH,
    before_joining,
    command_to_go_on,
    launch_id,
    num_restarts,
    processes,
)
from marl.utils.plugins import check_trusted, endpoint_settings, import_paths
from marl.utils.ranks import SINGLE, Ranks, together
from marl.utils.stop_signal import StopSignal

if TYPE_CHECKING:
    from envs import EnvSpec

Tracker = Literal["wandb", "mlflow"]


@settings("--")
class Train:
    """Train a team. Flags override the file given by --config, which overrides the defaults."""

    config: Path | None = None
    """TOML file of differences from the defaults, e.g. configs/nav_6.toml."""
    run_dir: Path | None = None
    """Where the run is recorded; a new folder under runs/ if not given."""
    trust: bool = False
    """Import code, and ask a language model, that --config names, and not only what stands on the
    command line; also import what a run names that labels for this one."""
    track: tuple[Tracker, ...] = ()
    """Also report to wandb (Weights & Biases), mlflow, or both; each needs the extra so named."""
    ray_workers: Annotated[int, Range(1, 10_000)] | None = None
    """Train in so many processes of the Ray cluster at RAY_ADDRESS, or of one that is started on
    this machine (extra cluster)."""
    settings: Annotated[Config, tyro.conf.arg(name="")] = field(default_factory=Config)

    def run(self) -> int:
        """Train, and say how it goes."""
        from marl.reports.recorded import CONFIG

        if self.ray_workers is not None:
            return self._on_cluster(self.ray_workers)
        with processes(self.settings) as ranks, ExitStack() as stack:
            check_family(self.settings.env.name)  # what is wrong with the name is told at once
            folder, begun = "", False
            with together(ranks):
                if ranks.rank == 0:
                    path = self._folder(stack)
                    folder, begun = str(path), num_restarts() > 0 and (path / CONFIG).exists()
            folder, begun = ranks.gather([folder, begun])[0]
            return train_shown(
                self.settings, Path(folder), resume=begun, track=self.track, ranks=ranks
            )

    def _on_cluster(self, workers: int) -> int:
        """Train in processes of a Ray cluster."""
        from marl.commands.ray_workers import train_on_cluster
        from marl.runs import refuse_a_run_in

        check_family(self.settings.env.name)
        with ExitStack() as stack:
            folder = self._folder(stack).absolute()
            refuse_a_run_in(folder)
            arguments = ["train", "--config", "SETTINGS", "--run-dir", str(folder)]
            arguments += ["--trust"] * self.trust + _tracking(self.track)
            return train_on_cluster(arguments, self.settings, folder, workers)

    def _folder(self, stack: ExitStack) -> Path:
        """Return where the run is recorded; where torchrun starts its processes again, as before.

        A new folder is removed when the `stack` is closed, if it is empty.
        """
        if self.run_dir is not None:
            return self.run_dir
        if num_restarts():
            earlier = [f.parent for f in Path("runs").glob(f"*/{LAUNCH}") if _says(f, launch_id())]
            if earlier:
                return max(earlier, key=lambda folder: (folder / LAUNCH).stat().st_mtime)
        return stack.enter_context(new_run_folder(self.settings))


@settings("--")
class Resume:
    """Continue a stopped or killed run exactly where its newest checkpoint stands.

    --total-steps makes a finished run longer. What is annealed over the run, the step size for
    one, is then what it would be in a run of the new length: it rises where the old end had
    brought it low, and falls to zero at the new one.
    """

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(name="run", metavar="RUN")]
    """Folder of the run."""
    total_steps: Annotated[int, Range(1, 1e12)] | None = None
    """Train for so many environment steps in all."""
    changes: Annotated[dict[str, Option], tyro.conf.arg(name="set")] = field(default_factory=dict)
    """Settings that change from here on, e.g. --set preferences.max_labels 500: lengths, budgets,
    threads. An unknown one tells which there are."""
    trust: bool = False
    """Import the code that the run names, though it is not one that you trained on this machine."""
    cut_open_episodes: bool = False
    """Truncate the open episodes of an environment that cannot repeat them, and go on."""
    reshard: bool = False
    """Go on with another number of processes than have saved the run: what it keeps of episodes and
    answers is dealt out anew, and open episodes are cut."""
    ray_workers: Annotated[int, Range(1, 10_000)] | None = None
    """Train in so many processes of a Ray cluster, as marl train does."""

    track: tuple[Tracker, ...] = ()
    """As in `marl train`; what the run was before is continued there."""

    def run(self) -> int:
        """Train on, and say how it goes."""
        with before_joining():
            config = load_run_config(self.run_dir)
        if self.ray_workers is not None:
            return self._on_cluster(config, self.ray_workers)
        with processes(config) as ranks:
            config = self._changed(config)
            cut, reshard = self.cut_open_episodes, self.reshard
            return train_shown(
                config,
                self.run_dir,
                resume=True,
                cut=cut,
                reshard=reshard,
                track=self.track,
                ranks=ranks,
            )

    def _on_cluster(self, config: Config, workers: int) -> int:
        """Train on in processes of a Ray cluster."""
        from marl.commands.ray_workers import train_on_cluster

        config = self._changed(config)
        folder = self.run_dir.absolute()
        arguments = ["resume", str(folder), *_tracking(self.track)]
        arguments += ["--trust"] * self.trust
        arguments += ["--cut-open-episodes"] * self.cut_open_episodes
        arguments += ["--reshard"] * self.reshard
        if changes := self._changes():
            arguments += ["--set", *(str(word) for pair in changes.items() for word in pair)]
        return train_on_cluster(arguments, config, folder, workers)

    def _changes(self) -> dict[str, Option]:
        longer = {} if self.total_steps is None else {"total_steps": self.total_steps}
        return self.changes | longer

    def _changed(self, config: Config) -> Config:
        """Return the settings that the run goes on with, whose code may run."""
        endpoint = endpoint_settings(config.preferences)
        check_trusted(import_paths(config), self.run_dir, config, endpoint)
        changes = self._changes()
        return changed(config, changes, "marl resume") if changes else config


def _tracking(track: Sequence[Tracker]) -> list[str]:
    return ["--track", *track] if track else []


def new_run_folder(config: Config) -> AbstractContextManager[Path]:
    """Return a new folder under runs/, named after what is trained and when."""
    env = re.sub(r"[^\w.-]+", "_", config.env.name)[:80]
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = f"{env}-{config.algorithm}-seed{config.seed}-{stamp}"
    return free_folder(Path("runs"), name, "choose a place by --run-dir")


def _says(path: Path, text: str) -> bool:
    """Return whether a file holds a line, and nothing else."""
    with suppress(OSError, UnicodeDecodeError):
        return path.is_file() and path.read_text(encoding="utf-8").strip() == text
    return False


def train_shown(
    config: Config,
    folder: Path,
    *,
    resume: bool,
    cut: bool = False,
    reshard: bool = False,
    track: Sequence[Tracker] = (),
    ranks: Ranks = SINGLE,
) -> int:
    """Train with progress shown; return 0, or 128 plus the number of the signal that stopped it."""
    from marl.runs import train
    from marl.trackers import trackers
    from marl.utils.checkpoint import BEST, list_checkpoints
    from marl.utils.devices import single_threaded_operations
    from marl.utils.progress import Progress

    single_threaded_operations()
    with together(ranks):
        callbacks = trackers(track) if ranks.rank == 0 else []
    stop = StopSignal(tells=ranks.rank == 0)
    title = f"{config.algorithm} on {config.env.name}, seed {config.seed} -> {folder}"
    if ranks.size > 1:
        title += f", {ranks.size} processes"
    with Progress(config.total_steps, title) as progress:

        def begun(spec: "EnvSpec") -> None:
            if config.asks_people:
                print(
                    f"you are the labeller: run `marl label {folder}` in another terminal",
                    flush=True,
                )
            progress.begin(spec)

        iterations = train(
            config,
            folder,
            resume=resume,
            cut_open_episodes=cut,
            reshard=reshard,
            stop=lambda: stop.received > 0,
            begun=begun,
            callbacks=callbacks,
            ranks=ranks,
        )
        with closing(iterations):
            for metrics in iterations:
                progress.update(metrics, at_once=config.preferences.people.wait)
    stop.end()
    if signal_number := max(ranks.gather(stop.received)):
        again = command_to_go_on(folder, ranks.size).replace("`", "")
        print(f"stopped and saved; continue with: {again}")
        return 128 + int(signal_number)
    if progress.no_episode and not resume:
        steps = config.total_steps // config.env.num_envs
        print(f"{progress.no_episode}, and this run took {steps:,}; raise --total-steps")
    best = " --best" if list_checkpoints(folder / "checkpoints" / BEST) else ""
    print(
        f"done; look at {folder / 'curve.png'}, or play episodes with: marl evaluate {folder}{best}"
    )
    if not resume and config == Config():  # a first look
        print(
            f"then try: marl watch {folder}, a film; marl envs, what else there is to train in; "
            "marl new my_env, an environment of your own"
        )
    if config.asks_people:
        print(f"learn from all that was answered with: marl fit-reward {folder / 'people'}")
    return 0
