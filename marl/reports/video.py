"""`marl watch`: one episode of a trained team as a film, beside it the rewards it has learned.

GIFs need nothing more than what is installed anyway, MP4s the extra ``video``.

Axes: T steps of the episode, N agents.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track

from envs import EnvError, EnvSpec, EnvStep, Frame, HasHiddenRewards, VecEnv
from envs.frames import INK, HasPictures, agent_colour, frame_of
from envs.sparse import unwrapped
from marl.config import ConfigError
from marl.data.rollout import Collector
from marl.policy import Policy, restored
from marl.reports.drawing import Canvas, paint_scene, text_width
from marl.reports.movies import movie_format, write_movie
from marl.rewards import RewardLearner
from marl.rewards.io import restored_reward
from marl.utils.checkpoint import load_saved
from marl.utils.files import atomic_path, check_writable, make_folder, output
from marl.utils.seeding import Seeds
from marl.utils.text import LiteralConsole

Array = npt.NDArray[np.float64]

_REMEDY = "choose another --out"

PANEL_WIDTH = 190
_WINDOW = 100
"""Steps a trace shows; longer episodes move through."""
_MARGIN, _TOP, _BOTTOM = 14, 92, 12
_ROW_HEIGHT, _MOST_ROW_HEIGHT = 17, 58
_PAPER, _RULE, _QUIET = "#f3f1ec", "#d3cfc5", "#7d8087"

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
    best: bool = False
    """Whether the run's best checkpoint plays, not the newest."""
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
class WrittenFilm:
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


@dataclass(frozen=True, kw_only=True)
class Play:
    """An episode as it is shown."""

    frames: tuple[Frame, ...]
    """(T,) each the state in which the agents take that step."""
    rewards: Array
    """(T,) what the environment paid: its dense reward, where a sparse task hides one."""
    team: Array | None
    """(T,) learned global rewards in running deviations; None: nothing was learned."""
    local: Array | None
    """(T, N) learned local rewards in running deviations; None: the model has none."""
    agents: tuple[str, ...]
    """(N,) what they are called."""
    pictures: tuple[bytes | None, ...]
    """(T,) the environment's own pictures (PNG) of the frames; None: it draws none."""


def film_run(
    run: Path,
    path: Path,
    options: FilmOptions,
    console: Console | None = None,
    steer: Callable[[Policy], Policy] | None = None,
) -> WrittenFilm:
    """Play one episode with a run's newest checkpoint and write it to a .gif or .mp4 file.

    `steer` returns the policy that plays in its stead, such as its contrast to another.
    """
    check_film(path)  # told before the episode is played
    policy, reward = load_team(run, best=options.best)
    policy = policy if steer is None else steer(policy)
    return film_team(policy, reward, path, options, console or LiteralConsole(stderr=True))


def check_film(path: Path) -> None:
    """Raise `UserError` unless a film can be written there, in a format that its suffix names."""
    movie_format(path)
    with output(path, _REMEDY):
        make_folder(path.parent)
        check_writable(path)


def film_team(
    policy: Policy,
    reward: RewardLearner | None,
    path: Path,
    options: FilmOptions,
    console: Console,
) -> WrittenFilm:
    """Play one episode with a policy and write it, beside it what `reward` says, to a file."""
    check_film(path)
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
    detail = detail if policy.steps else policy.trained
    pictures = paint(shown, steps, policy.config.env.name, detail, options.width)
    drawing = track(
        pictures,
        "drawing",
        total=len(steps),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # else it ends with an empty line
    )
    with output(path, _REMEDY), atomic_path(path) as temporary:
        write_movie(temporary, movie_format(path), iter(drawing), frame_ms)
    return WrittenFilm(
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
    rows = reward_traces(shown)
    panel = Panel(shown, rows, title, detail)
    local = None if shown.local is None else scaled(shown.local)
    height = max(round(width * 0.56), panel_height(len(rows)))
    scene_width = width - PANEL_WIDTH
    for step in steps:
        bars = None if local is None else local[step].tolist()
        picture = Image.new("RGB", (width, height))
        own, size = shown.pictures[step], (scene_width, height)
        if own is None:
            scene = paint_scene(shown.frames[step], bars, *size)
        else:
            scene = ImageOps.pad(Image.open(io.BytesIO(own)), size, color=_PAPER)
        picture.paste(scene)
        picture.paste(panel.paint(step, height), (scene_width, 0))
        yield picture


def load_team(run: Path, *, best: bool = False) -> tuple[Policy, RewardLearner | None]:
    """Return the policy in a run's newest or best checkpoint, and the reward it is trained on.

    None stands for the reward of a run that learns none, or none yet. Both come from one reading,
    since a run that goes on may write its next checkpoint at any moment.
    """
    return team_in(load_saved(run, best=best)[1], run)


def team_in(saved: dict[str, Any], run: Path) -> tuple[Policy, RewardLearner | None]:
    """Return what `load_team` does, of what a checkpoint of `run` holds."""
    policy = restored(saved, run)
    return policy, restored_reward(saved, policy.config, policy.spec, run)


def play(
    policy: Policy, reward: RewardLearner | None, *, greedy: bool, seed: int, episode: int = 0
) -> Play:
    """Return the `episode`-th (from 0) episode of one environment; equal for equal arguments."""
    seeds = Seeds(seed)
    with policy.open_env(1) as env:
        recorder = Recorder(env, episode)
        collector = Collector(
            recorder,
            recorder.spec.max_steps * (episode + 1),
            seed=seeds.integer("evaluation environment"),
            generator=seeds.torch("evaluation actions"),
            device=torch.device("cpu"),
        )
        rollout = collector.collect(policy.actor, greedy=greedy)[0]
    ends = rollout.done.squeeze(-1).nonzero().squeeze(-1) + 1
    if len(ends) <= episode:
        raise EnvError(
            f"{recorder.spec.name} ended {len(ends)} episodes in {len(rollout.done)} steps; its "
            f"max_steps of {recorder.spec.max_steps} promises {episode + 1}. `marl check` tests it"
        )
    chosen = slice(int(ends[episode - 1]) if episode else 0, int(ends[episode]))
    team = local = None
    if reward is not None:
        learned = reward.rewards(rollout.transitions, rollout.done)
        team = learned.team.squeeze(-1)[chosen].double().numpy()
        local = None if learned.local is None else learned.local.squeeze(-2)[chosen]
    return Play(
        frames=tuple(recorder.frames),
        rewards=np.array(recorder.rewards[chosen], np.float64),
        team=team,
        local=None if local is None else local.double().numpy(),
        agents=tuple(policy.spec.agent_name(agent) for agent in range(policy.spec.num_agents)),
        pictures=tuple(recorder.pictures),
    )


class Recorder:
    """A `VecEnv` of one environment that keeps the frames of one episode, and all that was paid."""

    def __init__(self, env: VecEnv, episode: int) -> None:
        self.frames: list[Frame] = []
        self.pictures: list[bytes | None] = []
        """Of every frame, the environment's own picture as PNG; they would be large as arrays."""
        inner = unwrapped(env)
        self._drawn = inner if isinstance(inner, HasPictures) else None
        if self._drawn is not None:
            self._drawn.show_pictures()
        self.rewards: list[float] = []
        """The dense rewards where the environment hides some, otherwise the task's."""
        self.hidden = env if isinstance(env, HasHiddenRewards) else None
        self._env = env
        self._left = episode
        self._step: EnvStep | None = None

    @property
    def spec(self) -> EnvSpec:
        """The constants of the environment."""
        return self._env.spec

    def reset(self, seed: int) -> EnvStep:
        """Reset the environment."""
        self._step = self._env.reset(seed)
        return self._step

    def step(self, actions: npt.NDArray[Any]) -> EnvStep:
        """Keep the frame in which the agents act, if it is one of the episode, and step."""
        assert self._step is not None, "step before reset"
        if self._left == 0:
            self.frames.append(frame_of(self._env, 0, self._step, actions))
            own = None if self._drawn is None else self._drawn.picture(0)
            self.pictures.append(None if own is None else _png(own))
        self._step = self._env.step(actions)
        source = self._step.rewards if self.hidden is None else self.hidden.hidden_rewards()
        self.rewards.append(float(source[0]))
        self._left -= int(self._step.terminated[0] | self._step.truncated[0])
        return self._step

    def state_dict(self) -> dict[str, Any]:
        """Return the environment's state."""
        return self._env.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the environment from its state."""
        self._env.load_state_dict(state)


def _png(picture: npt.NDArray[np.uint8]) -> bytes:
    """Return an (H, W, 3) picture as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class Trace:
    """One trace."""

    name: str
    colour: str
    values: Array
    """(T,) in [-1, 1]."""


def reward_traces(play: Play) -> tuple[Trace, ...]:
    """Return the learned rewards, each kind on one scale; where there are none, the task's own."""
    if play.team is None:
        return (Trace(name="task", colour=INK, values=scaled(play.rewards)),)
    team = Trace(name="team", colour=INK, values=scaled(play.team))
    if play.local is None:
        return (team,)
    local = scaled(play.local)
    agents = (
        Trace(name=name, colour=agent_colour(i), values=local[:, i])
        for i, name in enumerate(play.agents)
    )
    return (team, *agents)


def scaled(values: Array) -> Array:
    """Return values so that the 98th percentile of their size is 1, cut to [-1, 1]."""
    most = float(np.quantile(np.abs(values), 0.98)) or float(np.abs(values).max()) or 1.0
    clipped: Array = np.clip(values / most, -1.0, 1.0)
    return clipped


class Panel:
    """Draws the column of a play."""

    def __init__(self, play: Play, rows: tuple[Trace, ...], title: str, detail: str) -> None:
        self._play, self._rows = play, rows
        self._title, self._detail = title, detail
        self._returns = play.rewards.cumsum()
        self._kind = "task rewards" if play.team is None else "learned rewards"

    def paint(self, step: int, height: int) -> Image.Image:
        """Return the column at a step, from 0."""
        canvas = Canvas(PANEL_WIDTH, height, _PAPER)
        canvas.line([(0, 0), (0, height)], _RULE)
        room = PANEL_WIDTH - 2 * _MARGIN
        canvas.text(
            (_MARGIN, 12), self._title, INK, fitting(self._title, 11, room, True), bold=True
        )
        canvas.text((_MARGIN, 28), self._detail, _QUIET, fitting(self._detail, 9, room))
        seconds = step * self._play.frames[0].seconds_per_step
        right = PANEL_WIDTH - _MARGIN
        for y, name, value in (
            (46, "time", f"{seconds:.1f} s   step {step + 1}"),
            (60, "return so far", f"{self._returns[step]:,.1f}"),
        ):
            canvas.text((_MARGIN, y), name, _QUIET, 10)
            canvas.text((right, y), value, INK, 10, "ra")
        canvas.text((_MARGIN, 78), self._kind, _QUIET, 9)
        pitch = min((height - _TOP - _BOTTOM) / len(self._rows), _MOST_ROW_HEIGHT)
        for i, row in enumerate(self._rows):
            self._paint_row(canvas, row, step, _TOP + i * pitch, pitch)
        return canvas.image()

    def _paint_row(self, canvas: Canvas, row: Trace, step: int, top: float, pitch: float) -> None:
        """Draw one trace up to a step, with its name at the left."""
        left, right = _MARGIN + 56.0, PANEL_WIDTH - _MARGIN
        middle, half = top + pitch / 2.0, pitch / 2.0 - 2.0
        canvas.disc((_MARGIN + 4.0, middle), 4.0, row.colour)
        canvas.text((_MARGIN + 13.0, middle), row.name, INK, fitting(row.name, 9, 42), "lm")
        canvas.line([(left, middle), (right, middle)], _RULE)
        length = min(_WINDOW, len(row.values))
        first = max(0, step + 1 - length)
        shown = row.values[first : step + 1].tolist()
        pixels = (right - left) / length
        line = [(left + (i + 0.5) * pixels, middle - half * v) for i, v in enumerate(shown)]
        area = [(line[0][0], middle), *line, (line[-1][0], middle)]
        canvas.polygon(area, tint(row.colour))
        if len(line) > 1:
            canvas.line(line, row.colour, 1.5)
        canvas.disc(line[-1], 2.5, row.colour)


def panel_height(num_rows: int) -> int:
    """Return the pixels that a panel of so many rows needs at least."""
    return _TOP + _BOTTOM + num_rows * _ROW_HEIGHT


def fitting(text: str, size: int, room: float, bold: bool = False) -> int:
    """Return the largest size, at most the given one and at least 5, at which a text fits."""
    while size > 5 and text_width(text, size, bold) > room:
        size -= 1
    return size


def tint(colour: str) -> str:
    """Return a colour mixed with three parts of the panel's paper."""
    parts = [(int(colour[i : i + 2], 16) + 3 * int(_PAPER[i : i + 2], 16)) // 4 for i in (1, 3, 5)]
    return "#" + "".join(f"{part:02x}" for part in parts)
