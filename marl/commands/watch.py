"""The command ``marl watch``."""

import argparse
from pathlib import Path

from marl.config import ConfigError
from marl.reports.video import FORMATS, Film, FilmOptions, film_run

_DEFAULTS = FilmOptions()


def watch(arguments: list[str], description: str | None) -> int:
    """Write the film that the arguments of ``marl watch`` ask for and say where it is."""
    options = _parser(description).parse_args(arguments)
    if not (options.run / "config.toml").exists():
        raise ConfigError(f"{options.run} is not a run folder: it has no config.toml")
    path: Path = options.output or options.run / f"episode.{options.format or 'gif'}"
    if options.format is not None and path.suffix.lower() != f".{options.format}":
        raise ConfigError(
            f"--output {path} does not end in .{options.format}; leave out --format, or make them "
            "agree"
        )
    film = film_run(
        options.run,
        path,
        FilmOptions(
            greedy=not options.sampled,
            seed=options.seed,
            episode=options.episode,
            fps=options.fps,
            speed=options.speed,
            max_frames=options.max_frames,
            width=options.width,
        ),
    )
    print(summary(film))
    return 0


def summary(film: Film) -> str:
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


def _parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="marl watch",
        description=description,
        epilog="Beside each agent stands a bar of its learned local reward, up for good and down "
        "for bad; the column at the right traces them and the team's. Each kind of reward is on "
        "one scale: the 98th percentile of its size over the episode is a full bar.",
    )
    parser.add_argument("run", type=Path, help="folder of the run; its newest checkpoint plays")
    parser.add_argument(
        "--output", type=Path, help="file to write, .gif or .mp4 (default RUN/episode.gif)"
    )
    parser.add_argument(
        "--format", choices=FORMATS, help="mp4 is smaller and needs the extra video (default gif)"
    )
    parser.add_argument(
        "--sampled", action="store_true", help="sample actions instead of taking the likeliest"
    )
    numbers: tuple[tuple[str, type, str], ...] = (
        ("seed", int, "seed of the episodes"),
        ("episode", int, "which episode of that seed, from 0"),
        ("fps", float, "most frames a second; steps in between are not drawn"),
        ("speed", float, "times the environment's own speed"),
        ("max-frames", int, "the film ends there, whatever is left of the episode"),
        ("width", int, "pixels"),
    )
    for name, kind, meaning in numbers:
        default = getattr(_DEFAULTS, name.replace("-", "_"))
        parser.add_argument(
            f"--{name}", type=kind, default=default, help=f"{meaning} (default {default:g})"
        )
    return parser
