"""The commands ``marl export``, ``marl fit-reward`` and ``marl imitate``."""

import re
import shlex
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

import tyro
from rich.console import Console
from rich.table import Table

from marl.config.validation import Range, settings
from marl.utils.files import free_folder
from marl.utils.stop_signal import StopSignal
from marl.utils.text import LiteralConsole, printable

if TYPE_CHECKING:
    from marl.config import Config
    from marl.rewards.fit import FitReport, Measured
    from marl.rewards.fit_policy import PolicyReport


@settings("--")
class Export:
    """Write a run's episodes and answers as a preference dataset."""

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(name="run", metavar="RUN")]
    """Folder of the run; its newest checkpoint is read."""
    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """The dataset; a new folder."""
    episodes: Annotated[int, Range(1, 1e9)] | None = None
    """Newest episodes; all that are kept if not given."""
    pairs: Annotated[int, Range(0, 1e9)] = 1000
    """Random pairs to label where the run has kept no answers because its labeller is free, or
    with --labeller."""
    labeller: str = ""
    """Who labels random pairs, as in preferences.labeller, instead of what the run kept."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of the pairs."""
    demonstrations: bool = False
    """Mark the episodes as demonstrations: they show how the task is done."""

    trust: bool = False
    """Import the code that the run names, though it is not one that you trained on this machine."""

    def run(self) -> int:
        """Write the dataset and say what is in it."""
        from marl.preferences.dataset.export import export_run

        made = export_run(
            self.run_dir,
            self.folder,
            episodes=self.episodes,
            pairs=self.pairs,
            labeller=self.labeller,
            seed=self.seed,
            demonstrations=self.demonstrations,
        )
        newest = f" (the newest of {made.ended:,})" if made.episodes < made.ended else ""
        print(
            f"{made.folder}: {made.episodes:,} episodes{newest}, {made.answers:,} answers by "
            f"{made.source}"
            + (f", {made.unanswered:,} pairs without one" if made.unanswered else "")
        )
        if newest and self.episodes is None:
            print("preferences.replay_steps and preferences.replay_episodes limit what a run keeps")
        if made.answers:
            print(f"learn from it with: marl fit-reward {made.folder}")
        return 0


@settings("--")
class FitReward:
    """Fit a reward model, or a policy, to a preference dataset; held-out accuracy, calibration."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """The preference dataset."""
    model: str = "slf"
    """An algorithm that learns a reward, e.g. slf or imap, or the import path of your own model. Or
    a policy that is played without one: dpo, fitted to the preferences itself, and omapl, cloned
    from the episodes by what imap's reward thinks of each action."""
    reference: str = ""
    """Dpo: the policy that it starts from and is fitted against: "uniform" (if not given), "cloned"
    from the episodes, or the folder of a run or of a fitted policy."""
    demonstrations: bool = False
    """Fit the reward to what tells the dataset's demonstrations from its other episodes, and to no
    answers."""
    steps: Annotated[int, Range(1, 1e9)] = 1000
    """Gradient steps."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of weights and batches."""
    out: Path | None = None
    """A new folder; one under runs/ if not given."""
    config: Path | None = None
    """TOML file whose sections [reward] and, for a policy, [network] have other settings."""
    source: str = "*"
    """Whose answers count, e.g. "person:*"; all if not given."""
    holdout_every: Annotated[int, Range(2, 1e6)] = 8
    """Every so many-th episode, with all its pairs, only measures."""
    skip_damaged: bool = False
    """Leave damaged files and answers out instead of stopping."""

    trust: bool = False
    """Import the code that the run of --reference names, though it is not one that you trained on
    this machine."""

    def run(self) -> int:
        """Fit the model and show how good it is."""
        from marl.preferences.dataset import PreferenceDataset
        from marl.rewards.fit import fit_reward
        from marl.utils.devices import single_threaded_operations

        single_threaded_operations()
        console = LiteralConsole()
        dataset = PreferenceDataset(self.folder, skip_damaged=self.skip_damaged)
        settings = settings_of_fit(self.config)
        folder = nullcontext(self.out) if self.out else self._new_folder()
        with folder as out, FitStop() as stop:
            report = fit_reward(
                dataset,
                model=self.model,
                steps=self.steps,
                seed=self.seed,
                out=out,
                reward=settings.reward,
                network=settings.network,
                source=self.source,
                holdout_every=self.holdout_every,
                console=console,
                reference=self.reference,
                demonstrations=self.demonstrations,
                stop=stop,
            )
        show(report, console)
        return stop.status(console)

    def _new_folder(self) -> AbstractContextManager[Path]:
        """Return a new folder under runs/, named after what is fitted and when."""
        return new_fit_folder("fit", self.folder, self.model, self.seed)


@settings("--")
class Imitate:
    """Fit a policy to demonstrations: those of a dataset, or the episodes that a run keeps."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DATA|RUN")]
    """A preference dataset, whose demonstrations are imitated, or all its episodes if it marks
    none; or the folder of a run."""
    objective: Literal["nll", "chi2", "hellinger"] = "nll"
    """Nll: behaviour cloning. Chi2 and hellinger count a step less the likelier it already is
    than under the reference."""
    reference: str = "uniform"
    """The policy that it starts from and is measured against: "uniform", or the folder of a run or
    of a fitted policy."""
    steps: Annotated[int, Range(1, 1e9)] = 1000
    """Gradient steps; the policy of the lowest held-out loss is kept, if any episode is held
    out."""
    learning_rate: Annotated[float, Range(1e-9, 1)] = 1e-4
    """Adam step size. A small one keeps more of the reference."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of weights and batches."""
    out: Path | None = None
    """A new folder; one under runs/ if not given."""
    config: Path | None = None
    """TOML file whose sections [network] and [reward] have other settings."""
    holdout_every: Annotated[int, Range(2, 1e6)] = 8
    """Every so many-th episode only measures."""
    skip_damaged: bool = False
    """Leave damaged files out instead of stopping."""

    trust: bool = False
    """Import the code that a run names, though it is not one that you trained on this machine."""

    def run(self) -> int:
        """Fit the policy and say how it went."""
        from marl.preferences.dataset import PreferenceDataset
        from marl.rewards.imitate import imitate
        from marl.utils.devices import single_threaded_operations

        single_threaded_operations()
        console = LiteralConsole()
        data: PreferenceDataset | Path = self.folder
        if not (self.folder / "checkpoints").is_dir():
            data = PreferenceDataset(self.folder, skip_damaged=self.skip_damaged)
        settings = settings_of_fit(self.config)
        folder = nullcontext(self.out) if self.out else self._new_folder()
        with folder as out, FitStop() as stop:
            report = imitate(
                data,
                objective=self.objective,
                reference=self.reference,
                steps=self.steps,
                learning_rate=self.learning_rate,
                seed=self.seed,
                out=out,
                reward=settings.reward,
                network=settings.network,
                holdout_every=self.holdout_every,
                console=console,
                stop=stop,
            )
        what = "demonstrations" if report.are_marked else "episodes (none is a demonstration)"
        console.print(
            f"{report.objective} on {report.environment}: {report.episodes:,} {what}, of which "
            f"{report.held_out:,} only measure",
            soft_wrap=True,
        )
        show_policy(report.policy, console)
        if report.folder is not None:
            console.print(where(report.folder), soft_wrap=True)
        return stop.status(console)

    def _new_folder(self) -> AbstractContextManager[Path]:
        """Return a new folder under runs/, named after what is imitated and when."""
        return new_fit_folder("imitate", self.folder, self.objective, self.seed)


class FitStop:
    """Whether a fit is to end early: Ctrl-C and its like, from the first gradient step on.

    Before that there is nothing to keep, and they end the command at once.
    """

    def __init__(self) -> None:
        self._signal: StopSignal | None = None

    def __call__(self) -> bool:
        """Return whether a signal has come; a fit asks before every step."""
        if self._signal is None:
            self._signal = StopSignal("measuring and saving what is fitted")
        return self._signal.received > 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let signals do again what they did before."""
        if self._signal is not None:
            self._signal.end()

    def status(self, console: Console) -> int:
        """Return the exit status, and say so if the fit was stopped."""
        received = 0 if self._signal is None else self._signal.received
        if not received:
            return 0
        console.print("stopped early; what was fitted is saved")
        return 128 + received


def settings_of_fit(path: Path | None) -> "Config":
    """Return the settings of a file, the defaults without one; the code that it names must be
    trusted."""
    from marl.config.io import load_config
    from marl.utils.plugins import check_trusted, fit_paths

    settings = load_config(path)
    if path is not None:
        check_trusted(fit_paths(settings), path)
    return settings


def new_fit_folder(kind: str, data: Path, how: str, seed: int) -> AbstractContextManager[Path]:
    """Return a new folder under runs/, named after what is fitted, how, and when."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    plain = re.sub(r"[^\w.-]+", "_", f"{data.resolve().name}-{how}-seed{seed}")[:120]
    return free_folder(Path("runs"), f"{kind}-{plain}-{stamp}", "choose a place by --out")


def show(report: "FitReport", console: Console) -> None:
    """Print what a fit has come to."""
    sources = ", ".join(f"{count:,} by {name}" for name, count in report.sources.items())
    fitted_to = f"answers {sources}"
    if report.demonstrations:
        fitted_to = f"{report.demonstrations:,} of them demonstrations"
    console.print(
        f"{report.model} on {report.environment}: {report.episodes:,} episodes, {fitted_to}",
        soft_wrap=True,
    )
    for count, what in (
        (report.skipped, "answers prefer nothing"),
        (report.orphaned, "answers are about episodes that are not there"),
    ):
        if count:
            console.print(f"left out: {count:,} {what}")
    table = Table(title=f"after {report.steps:,} gradient steps")
    for heading in ("pairs", "number", "ties", "right", "loss", "calibration error"):
        table.add_column(heading, justify="left" if heading == "pairs" else "right")
    table.add_row("trained on", *_cells(report.train))
    table.add_row("held out", *_cells(report.held_out))
    console.print(table)
    held_out = report.held_out
    if held_out.pairs > held_out.ties:
        console.print(_reliability(held_out))
    else:
        console.print("no decided pair was held out; a smaller --holdout-every holds out more")
    if report.policy is not None:
        show_policy(report.policy, console)
    if report.folder is not None and report.policy is not None:
        console.print(where(report.folder), soft_wrap=True)
    elif report.folder is not None:
        console.print(
            f"written to {report.folder}: report.json, calibration.png and the model; label a new "
            f"run with it:\n  marl train --env.name {_shown(report.environment)} "
            f"--preferences.labeller model --preferences.model.run {report.folder}",
            soft_wrap=True,
        )


def _shown(environment: str) -> str:
    """Return how an environment is named in a command that is suggested.

    The dataset may be a stranger's: what is copied into a terminal is no command of theirs, nor an
    import path, which is trusted where it stands on the command line.
    """
    return "ENVIRONMENT" if ":" in environment else shlex.quote(printable(environment))


def show_policy(policy: "PolicyReport", console: Console) -> None:
    """Print how the fit of a policy went."""
    held_out = "nothing was held out"
    if policy.loss == policy.loss:
        held_out = f"held-out loss {policy.first_loss:.3f} at first, {policy.loss:.3f} then"
    if policy.kept == 0 < policy.steps:
        console.print(
            "the held-out loss rose at once, so that this is the policy it started from; more "
            "episodes, a smaller step size (for imitate --learning-rate, else reward.learning_rate "
            "in --config) or fewer held-out ones (--holdout-every) may help",
            soft_wrap=True,
        )
    console.print(
        f"policy, from {policy.reference}: the one after {policy.kept:,} of {policy.steps:,} "
        f"gradient steps is kept ({held_out}); entropy {policy.entropy:.2f} nats an agent",
        soft_wrap=True,
    )


def where(folder: Path) -> str:
    """Return where a fitted policy is, and what can be done with it."""
    return (
        f"written to {folder}; play it, where its environment is, or train on from it:\n"
        f"  marl evaluate {folder}\n  marl watch {folder}\n  marl train --init {folder}"
    )


def _cells(part: "Measured") -> tuple[str, ...]:
    right = "?" if part.pairs == part.ties else f"{part.accuracy:.1%}"
    loss = f"{part.loss:.3f}" if part.pairs else "?"
    error = "?" if part.pairs == part.ties else f"{part.calibration.error:.3f}"
    return f"{part.pairs:,}", f"{part.ties:,}", right, loss, error


def _reliability(part: "Measured") -> Table:
    table = Table(title="reliability on held-out pairs")
    for heading in ("confidence", "pairs", "mean confidence", "right"):
        table.add_column(heading, justify="right")
    for row in part.calibration.rows():
        if row["pairs"]:
            table.add_row(
                f"{row['from']:.0%} to {row['to']:.0%}",
                f"{row['pairs']:,}",
                f"{row['confidence']:.1%}",
                f"{row['agreement']:.1%}",
            )
    return table
