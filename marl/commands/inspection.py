"""Commands that look at a run: ``marl evaluate``, ``marl watch`` and ``marl labels``."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from marl.commands.steering import check_options, evaluate_steered, steering, to_json
from marl.config import ConfigError
from marl.config.io import load_run_config
from marl.config.validation import Range, settings
from marl.utils.files import atomic_write, output
from marl.utils.launch import processes
from marl.utils.ranks import Ranks
from marl.utils.text import LiteralConsole

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from marl.policy import Policy
    from marl.reports.video import WrittenFilm


@settings("--")
class Evaluate:
    """Play whole episodes with a trained team, greedy and sampled.

    With --contrast or --guide the team is steered while it acts, with each --strength in turn.
    """

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(name="run", metavar="RUN")]
    """Folder of the run."""
    episodes: Annotated[int, Range(1, 1e9)] = 64
    """Whole episodes."""
    num_envs: Annotated[int, Range(1, 1e6)] = 16
    """Environments in a batch."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of the episodes."""
    best: bool = False
    """Play the checkpoint that was best in the evaluations while training (eval.every)."""
    contrast: str = ""
    """Run, fit or checkpoint of another policy: act by (1 + strength) log pi - strength log of that
    one. Or "uniform", which sharpens."""
    guide: Path | None = None
    """Run or fit of a factored reward (imap, slf): act by log pi + strength w_i (q_i - v_i) / sd,
    what it says that an agent's action is worth, in deviations over random actions."""
    strength: tuple[float, ...] | None = None
    """Strengths; 0 0.5 1 2 if not given. 0 is the team itself, -1 the base of a contrast."""
    out: Path | None = None
    """File for every return; RUN/evaluation.json if not given, of a steered team RUN/contrast.json
    or RUN/guidance.json, beside which a picture is drawn."""

    trust: bool = False
    """Import the code that the run names, though it is not one that you trained on this machine."""

    def run(self) -> int:
        """Print a table of both ways to act, and write every return to a file."""
        check_plays(self.run_dir)  # what is wrong with the folder is told at once
        is_steered = check_options(self.contrast, self.guide, self.strength)
        from marl.utils.devices import single_threaded_operations

        single_threaded_operations()
        with processes() as ranks:
            if not is_steered:
                return self._evaluate(ranks)
            if ranks.size > 1:
                raise ConfigError(
                    "--contrast and --guide: several processes play the team as it is only; start "
                    "marl evaluate without torchrun"
                )
        from marl.policy import load

        evaluate_steered(
            load(self.run_dir, best=self.best),
            self.out or self.run_dir / ("guidance.json" if self.guide else "contrast.json"),
            contrast=self.contrast,
            guide=self.guide,
            strengths=self.strength,
            episodes=self.episodes,
            seed=self.seed,
            num_envs=self.num_envs,
        )
        return 0

    def _evaluate(self, ranks: Ranks) -> int:
        """Play the team as it is."""
        from rich.progress import Progress
        from rich.table import Table

        from marl.evaluation import evaluate
        from marl.policy import load

        policy = load(self.run_dir, best=self.best)
        table = Table(title=f"{policy.config.env.name} {policy.trained}")
        headings = ("acting", "mean return", "95 % interval", "episodes", *policy.spec.successes)
        for heading in headings:
            table.add_column(heading, justify="left" if heading == "acting" else "right")
        report = {}
        console = LiteralConsole(stderr=True)
        is_quiet = not console.is_terminal or ranks.rank > 0
        for name in ("greedy", "sampled"):
            with Progress(console=console, transient=True, disable=is_quiet) as bar:
                task = bar.add_task(f"{self.episodes} episodes, {name}", total=1.0)
                result = evaluate(
                    policy,
                    greedy=name == "greedy",
                    episodes=self.episodes,
                    seed=self.seed,
                    num_envs=self.num_envs,
                    progress=partial(_advance, bar, task),
                    ranks=ranks,
                )
            interval = f"{result.low:.2f} to {result.high:.2f}"
            rates = [f"{result.facts[success]:.0%}" for success in policy.spec.successes]
            table.add_row(name, f"{result.mean:.2f}", interval, str(len(result.returns)), *rates)
            report[name] = to_json(result)
        if ranks.rank:
            return 0
        LiteralConsole().print(table)
        path = self.out or self.run_dir / "evaluation.json"
        text = json.dumps({"steps": policy.steps, "seed": self.seed} | report, indent=1)
        with output(path, "name a file by --out in a folder that is there"):
            atomic_write(path, text.encode())
        print(f"written to {path}")
        return 0


def check_plays(folder: Path) -> None:
    """Raise `ConfigError` where a folder is neither that of a run nor that of a fitted policy."""
    if not (folder / "checkpoints").is_dir():
        load_run_config(folder)


def _advance(bar: "Progress", task: "TaskID", share: float) -> None:
    """Show which share of the episodes has ended."""
    bar.update(task, completed=share)


@settings("--")
class Watch:
    """Film an episode of a trained team, its learned rewards beside the agents.

    Beside each agent stands a bar of its learned local reward, up for good and down for bad; the
    column at the right traces them and the team's. Each kind of reward is on one scale: the 98th
    percentile of its size over the episode is a full bar.
    """

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(name="run", metavar="RUN")]
    """Folder of the run; its newest checkpoint plays."""
    best: bool = False
    """Play the checkpoint that was best in the evaluations while training (eval.every)."""
    out: Path | None = None
    """File to write, .gif or .mp4; RUN/episode.gif if not given."""
    format: Literal["gif", "mp4"] | None = None
    """Mp4 is smaller and needs the extra video; gif if not given."""
    sampled: bool = False
    """Sample actions instead of taking the likeliest."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of the episodes."""
    episode: Annotated[int, Range(0, 1000)] = 0
    """Which episode of that seed, from 0."""
    fps: Annotated[float, Range(1, 50)] = 25.0
    """Most frames a second; steps in between are not drawn."""
    speed: Annotated[float, Range(0.01, 1000)] = 1.0
    """Times the environment's own speed."""
    max_frames: Annotated[int, Range(1, 100_000)] = 1000
    """The film ends there, whatever is left of the episode."""
    width: Annotated[int, Range(320, 1920)] = 640
    """Pixels, the column of rewards included."""
    contrast: str = ""
    """Run, fit or checkpoint of another policy, or "uniform": what plays is the team's contrast to
    it, as in `marl evaluate`."""
    guide: Path | None = None
    """Run or fit of a factored reward that guides the team, as in `marl evaluate`."""
    strength: float | None = None
    """Of the contrast or the guidance; 1 if not given."""

    trust: bool = False
    """Import the code that the run names, though it is not one that you trained on this machine."""

    def run(self) -> int:
        """Write the film and say where it is."""
        check_plays(self.run_dir)  # what is wrong with the folder is told at once
        is_steered = check_options(self.contrast, self.guide, self.strength)
        from marl.reports.video import FilmOptions, film_run
        from marl.utils.devices import single_threaded_operations

        single_threaded_operations()
        path = self.out or self.run_dir / f"episode.{self.format or 'gif'}"
        if self.format is not None and path.suffix.lower() != f".{self.format}":
            raise ConfigError(
                f"--out {path} does not end in .{self.format}; leave out --format, or make "
                "them agree"
            )
        film = film_run(
            self.run_dir,
            path,
            FilmOptions(
                greedy=not self.sampled,
                best=self.best,
                seed=self.seed,
                episode=self.episode,
                fps=self.fps,
                speed=self.speed,
                max_frames=self.max_frames,
                width=self.width,
            ),
            steer=self._steered if is_steered else None,
        )
        print(summary(film))
        return 0

    def _steered(self, policy: "Policy") -> "Policy":
        """Return the team that is to be filmed."""
        steer, _ = steering(policy, self.contrast, self.guide)
        return steer(1.0 if self.strength is None else self.strength)


def summary(film: "WrittenFilm") -> str:
    """Return what a film shows, in words."""
    lines = [
        f"{film.path}: {film.frames} frames of an episode of {film.episode_steps:,} steps, "
        f"return {film.episode_return:,.1f}"
    ]
    if film.cut:
        lines.append(f"it ends at step {film.steps:,}; --max-frames or --speed let it show more")
    if not film.learned:
        lines.append("this run has learned no reward so far; the task's own is shown")
    return "\n".join(lines)


@settings("--")
class Labels:
    """Audit what the labeller of a run answered: how often, how biased, how right, at what cost.

    Shares stand with their 95 % intervals. Nothing is asked of a language model, and its answer
    cache is only read, also while the run goes on.
    """

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(name="run", metavar="RUN")]
    """Folder of the run."""
    json: bool = False
    """Print JSON, and write no page unless --out is given."""
    out: Path | None = None
    """The page to write; RUN/labels.html if not given."""
    cache: Path | None = None
    """The language model's answers, if not where the settings say."""
    most: Annotated[int, Range(0, 10_000)] = 8
    """Surprising pairs of each kind."""
    ask_again: bool = False
    """Ask a labeller of your own, which leaves no answers, about the kept episodes."""
    skip_damaged: bool = False
    """Leave damaged answers and episodes of people out."""

    trust: bool = False
    """Import the code that the run names, though it is not one that you trained on this machine."""

    def run(self) -> int:
        """Print the audit and write its page."""
        load_run_config(self.run_dir)  # what is wrong with the folder is told at once
        from marl.reports.audit import audit, show, to_json
        from marl.reports.audit_html import page
        from marl.utils.devices import single_threaded_operations

        single_threaded_operations()
        report = audit(
            self.run_dir,
            cache=self.cache,
            ask_again=self.ask_again,
            skip_damaged=self.skip_damaged,
        )
        path = self.out
        if self.json:
            print(json.dumps(to_json(report, self.most), indent=1, allow_nan=False))
        else:
            show(report, LiteralConsole())
            path = path or self.run_dir / "labels.html"
        if path is not None:
            with output(path, "name a file by --out in a folder that is there"):
                atomic_write(path, page(report, self.most).encode())
        if path is not None and not self.json:
            print(f"the most surprising pairs are in {path}")
        return 0
