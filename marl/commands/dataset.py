"""The commands ``marl export`` and ``marl fit-reward``."""

import re
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table

from marl.config.validation import Range, settings
from marl.utils.files import free_folder
from marl.utils.text import LiteralConsole

if TYPE_CHECKING:
    from marl.rewards.fit import FitReport, Measured


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
        )
        print(
            f"{made.folder}: {made.episodes:,} episodes, {made.answers:,} answers by {made.source}"
            + (f", {made.unanswered:,} pairs without one" if made.unanswered else "")
        )
        if made.answers:
            print(f"learn from it with: marl fit-reward {made.folder}")
        return 0


@settings("--")
class FitReward:
    """Fit a reward model to a preference dataset; held-out accuracy and calibration."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """The preference dataset."""
    model: str = "imap"
    """An algorithm that learns a reward, e.g. imap or sl, or the import path of your own model."""
    steps: Annotated[int, Range(1, 1e9)] = 1000
    """Gradient steps."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of weights and batches."""
    out: Path | None = None
    """A new folder; one under runs/ if not given."""
    config: Path | None = None
    """TOML file whose section [reward] has other settings."""
    source: str = "*"
    """Whose answers count, e.g. "person:*"; all if not given."""
    holdout_every: Annotated[int, Range(2, 1e6)] = 8
    """Every so many-th episode, with all its pairs, only measures."""
    skip_damaged: bool = False
    """Leave damaged files and answers out instead of stopping."""

    def run(self) -> int:
        """Fit the model and show how good it is."""
        from marl.config.io import load_config
        from marl.preferences.dataset import PreferenceDataset
        from marl.rewards.fit import fit_reward
        from marl.utils.devices import single_threaded_operations

        single_threaded_operations()
        console = LiteralConsole()
        dataset = PreferenceDataset(self.folder, skip_damaged=self.skip_damaged)
        reward = load_config(self.config).reward
        with nullcontext(self.out) if self.out else self._new_folder() as out:
            report = fit_reward(
                dataset,
                model=self.model,
                steps=self.steps,
                seed=self.seed,
                out=out,
                reward=reward,
                source=self.source,
                holdout_every=self.holdout_every,
                console=console,
            )
        show(report, console)
        return 0

    def _new_folder(self) -> AbstractContextManager[Path]:
        """Return a new folder under runs/, named after what is fitted and when."""
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        name = f"{self.folder.resolve().name}-{self.model}-seed{self.seed}"
        plain = re.sub(r"[^\w.-]+", "_", name)[:120]
        return free_folder(Path("runs"), f"fit-{plain}-{stamp}", "choose a place by --out")


def show(report: "FitReport", console: Console) -> None:
    """Print what a fit has come to."""
    sources = ", ".join(f"{count:,} by {name}" for name, count in report.sources.items())
    console.print(
        f"{report.model} on {report.environment}: {report.episodes:,} episodes, answers {sources}",
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
    if report.folder is not None:
        console.print(
            f"written to {report.folder}: report.json, calibration.png and the model; label a new "
            f"run with it:\n  marl train --env.name {report.environment} "
            f"--preferences.labeller model --preferences.model.run {report.folder}",
            soft_wrap=True,
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
