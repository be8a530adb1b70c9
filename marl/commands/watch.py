"""The command ``marl watch``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from marl.config import ConfigError
from marl.config.io import load_run_config
from marl.config.validation import Range, settings

if TYPE_CHECKING:
    from marl.reports.video import Film


@settings("--")
class Watch:
    """Film an episode of a trained team, its learned rewards beside the agents.

    Beside each agent stands a bar of its learned local reward, up for good and down for bad; the
    column at the right traces them and the team's. Each kind of reward is on one scale: the 98th
    percentile of its size over the episode is a full bar.
    """

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(name="run", metavar="RUN")]
    """Folder of the run; its newest checkpoint plays."""
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

    trust: bool = False
    """Import the code that the run names, though it is not one that you trained on this machine."""

    def run(self) -> int:
        """Write the film and say where it is."""
        load_run_config(self.run_dir)  # what is wrong with the folder is told at once
        from marl.reports.video import FilmOptions, film_run

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
                seed=self.seed,
                episode=self.episode,
                fps=self.fps,
                speed=self.speed,
                max_frames=self.max_frames,
                width=self.width,
            ),
        )
        print(summary(film))
        return 0


def summary(film: "Film") -> str:
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
