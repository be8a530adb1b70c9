"""The commands ``marl export`` and ``marl fit-reward``."""

import argparse
import re
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from marl.config.io import load_config
from marl.preferences.dataset import PreferenceDataset
from marl.preferences.dataset.export import export_run
from marl.rewards.fit import MODELS, FitReport, Measured, fit_reward


def export(arguments: list[str], description: str | None) -> int:
    """Write the dataset that the arguments of ``marl export`` ask for and say what is in it."""
    parser = argparse.ArgumentParser(prog="marl export", description=description)
    parser.add_argument("run", type=Path, help="folder of the run; its newest checkpoint is read")
    parser.add_argument("folder", metavar="DIR", type=Path, help="the dataset; a new folder")
    parser.add_argument("--episodes", type=int, help="newest episodes (default: all that are kept)")
    parser.add_argument(
        "--pairs",
        type=int,
        default=1000,
        help="random pairs to label where the run has kept no answers because its labeller is "
        "free, or with --labeller (default 1000)",
    )
    parser.add_argument(
        "--labeller",
        default="",
        help="who labels random pairs, as in preferences.labeller, instead of what the run kept",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the pairs (default 0)")
    options = parser.parse_args(arguments)
    if (options.episodes is not None and options.episodes < 1) or options.pairs < 0:
        parser.error("--episodes must be at least 1 and --pairs at least 0")
    made = export_run(
        options.run,
        options.folder,
        episodes=options.episodes,
        pairs=options.pairs,
        labeller=options.labeller,
        seed=options.seed,
    )
    print(
        f"{made.folder}: {made.episodes:,} episodes, {made.answers:,} answers by {made.source}"
        + (f", {made.unanswered:,} pairs without one" if made.unanswered else "")
    )
    if made.answers:
        print(f"learn from it with: marl fit-reward {made.folder}")
    return 0


def fit(arguments: list[str], description: str | None) -> int:
    """Fit the model that the arguments of ``marl fit-reward`` ask for and show how good it is."""
    options = _fit_parser(description).parse_args(arguments)
    config = load_config(options.config)
    preferences = PreferenceDataset(options.folder, skip_damaged=options.skip_damaged)
    console = Console()
    report = fit_reward(
        preferences,
        model=options.model,
        steps=options.steps,
        seed=options.seed,
        out=options.out or _new_folder(options.folder, options.model, options.seed),
        reward=config.reward,
        source=options.source,
        holdout_every=options.holdout_every,
        console=console,
    )
    show(report, console)
    return 0


def show(report: FitReport, console: Console) -> None:
    """Print what a fit has come to."""
    sources = ", ".join(f"{count:,} by {name}" for name, count in report.sources.items())
    console.print(
        f"{report.model} on {report.environment}: {report.episodes:,} episodes, answers {sources}",
        highlight=False,
        soft_wrap=True,
    )
    for count, what in (
        (report.skipped, "answers prefer nothing"),
        (report.orphaned, "answers are about episodes that are not there"),
    ):
        if count:
            console.print(f"left out: {count:,} {what}", highlight=False)
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
            highlight=False,
            soft_wrap=True,
        )


def _cells(part: Measured) -> tuple[str, ...]:
    right = "?" if part.pairs == part.ties else f"{part.accuracy:.1%}"
    loss = f"{part.loss:.3f}" if part.pairs else "?"
    error = "?" if part.pairs == part.ties else f"{part.calibration.error:.3f}"
    return f"{part.pairs:,}", f"{part.ties:,}", right, loss, error


def _reliability(part: Measured) -> Table:
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


def _new_folder(folder: Path, model: str, seed: int) -> Path:
    """Return a folder under runs/ that does not exist yet."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    name = re.sub(r"[^\w.-]+", "_", f"{folder.resolve().name}-{model}-seed{seed}")
    return Path("runs") / f"fit-{name}-{stamp}"


def _fit_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="marl fit-reward", description=description)
    parser.add_argument("folder", metavar="DIR", type=Path, help="the preference dataset")
    parser.add_argument(
        "--model",
        default="imap",
        help=f"one of {', '.join(MODELS)}, or the import path of your own (default imap)",
    )
    parser.add_argument("--steps", type=int, default=1000, help="gradient steps (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and batches")
    parser.add_argument("--out", type=Path, help="a new folder (default: one under runs/)")
    parser.add_argument(
        "--config", type=Path, help="TOML file whose section [reward] has other settings"
    )
    parser.add_argument(
        "--source", default="*", help='whose answers count, e.g. "person:*" (default: everybody\'s)'
    )
    parser.add_argument(
        "--holdout-every",
        type=int,
        default=8,
        help="every so many-th episode, with all its pairs, only measures (default 8)",
    )
    parser.add_argument(
        "--skip-damaged", action="store_true", help="leave damaged answers out instead of stopping"
    )
    return parser
