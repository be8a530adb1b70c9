"""From a run's folder to an animated file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.progress import track

from marl.config import ConfigError
from marl.watch.movies import movie_format, write_movie
from marl.watch.panel import WIDTH as PANEL_WIDTH
from marl.watch.panel import Panel, panel_height, reward_rows, scaled
from marl.watch.play import Play, load_team, play
from marl.watch.scene import paint_scene

_RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "episode": (0, 1000),
    "fps": (1, 50),  # browsers slow down GIFs that ask for more
    "speed": (0.01, 1000),
    "max_frames": (1, 100_000),
    "width": (320, 1920),
}


@dataclass(frozen=True, kw_only=True)
class FilmOptions:
    """What is filmed, and how."""

    greedy: bool = True
    """Whether agents take their likeliest actions, or sample."""
    seed: int = 0
    episode: int = 0
    """Which episode of that seed, from 0."""
    fps: float = 25.0
    """Most frames a second; a step that lasts longer than one frame is one frame."""
    speed: float = 1.0
    """How many times faster than the environment's own time."""
    max_frames: int = 1000
    """The film is cut there."""
    width: int = 640
    """Pixels, the column of rewards included."""

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(
                    f"{name} is {value:g}; expected a number from {low:g} to {high:g}"
                )


@dataclass(frozen=True, kw_only=True)
class Film:
    """What was written."""

    path: Path
    frames: int
    steps: int
    """Steps that the film covers."""
    episode_steps: int
    episode_return: float
    cut: bool
    """Whether `max_frames` ended it before the episode's end."""
    learned: bool
    """Whether learned rewards are shown."""


def film_run(run: Path, path: Path, options: FilmOptions, console: Console | None = None) -> Film:
    """Play one episode with a run's newest checkpoint and write it to a .gif or .mp4 file."""
    movie_format(path)
    console = console or Console(stderr=True)
    policy, reward = load_team(run)
    with console.status("playing"):
        shown = play(
            policy,
            reward,
            greedy=options.greedy,
            seed=options.seed,
            episode=options.episode,
        )
    stride, frame_ms = pace(shown.frames[0].seconds_per_step, options)
    every = range(0, len(shown.frames), stride)
    steps = every[: options.max_frames]
    detail = f"{policy.config.algorithm}, {policy.steps:,} steps of training"
    pictures = paint(shown, steps, policy.config.env.name, detail, options.width)
    drawing = track(
        pictures,
        "drawing",
        total=len(steps),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # else it ends with an empty line
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_movie(path, iter(drawing), frame_ms)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error}; choose another --output") from error
    return Film(
        path=path,
        frames=len(steps),
        steps=steps[-1] + 1,
        episode_steps=len(shown.frames),
        episode_return=float(shown.rewards.sum()),
        cut=len(steps) < len(every),
        learned=shown.team is not None,
    )


def pace(seconds_per_step: float, options: FilmOptions) -> tuple[int, int]:
    """Return after how many steps each frame comes, and the milliseconds that it shows.

    A GIF counts in hundredths of a second.
    """
    seconds = seconds_per_step / options.speed
    stride = max(1, round(1.0 / (options.fps * seconds)))
    return stride, max(10, 10 * round(100.0 * stride * seconds))


def paint(
    shown: Play, steps: Sequence[int], title: str, detail: str, width: int
) -> Iterator[Image.Image]:
    """Yield the picture of each of the given steps: the scene, and beside it the panel."""
    rows = reward_rows(shown)
    panel = Panel(shown, rows, title, detail)
    local = None if shown.local is None else scaled(shown.local)
    height = max(round(width * 0.56), panel_height(len(rows)))
    scene_width = width - PANEL_WIDTH
    for step in steps:
        bars = None if local is None else local[step].tolist()
        picture = Image.new("RGB", (width, height))
        picture.paste(paint_scene(shown.frames[step], bars, scene_width, height))
        picture.paste(panel.paint(step, height), (scene_width, 0))
        yield picture
