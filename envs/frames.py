"""What an environment looks like, as simple shapes: plain data that anything can draw.

A frame is drawn by `marl watch` and, being JSON, by a browser as well. Coordinates are the
world's, in any unit, x to the right and y up; colours are ``#rrggbb``. An environment that shows
no frame of its own is drawn as its observations and actions, in bars (`observation_frame`).

Axes are those of `envs.base`.
"""

import base64
import io
import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydantic import StringConstraints, TypeAdapter, ValidationError

from envs.base import BoolArray, EnvError, EnvSpec, EnvStep, FloatArray, VecEnv

T = TypeVar("T")
Point = tuple[float, float]
AGENT_COLOURS = (
    "#3f7fbf",
    "#e07b39",
    "#4aa36b",
    "#a8559b",
    "#d2a01e",
    "#c64d4d",
    "#35a0a6",
    "#7a67c7",
    "#8a6d4b",
    "#7a8f2f",
    "#d56fa0",
    "#5b7083",
)
INK, MUTED, WALL, FAINT, GROUND = "#50565e", "#8d9096", "#c2beb4", "#d9d5cc", "#ebe8e1"
"""Colours of what belongs to no agent, from dark to light."""
TARGET = "#2f9e62"
"""Colour of a place to reach."""


def agent_colour(agent: int) -> str:
    """Return the colour of an agent; it repeats after twelve."""
    return AGENT_COLOURS[agent % len(AGENT_COLOURS)]


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A line with round ends."""

    start: Point
    end: Point
    colour: str
    width: float = 0.0
    """In world units; 0 is a hairline at any scale."""


@dataclass(frozen=True, kw_only=True)
class Circle:
    """A disc, or a ring."""

    centre: Point
    radius: float
    colour: str
    filled: bool = True


@dataclass(frozen=True, kw_only=True)
class Polygon:
    """A filled polygon."""

    points: tuple[Point, ...]
    colour: str


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A short text of a fixed size on the screen, centred on a point."""

    position: Point
    text: str
    colour: str = MUTED


@dataclass(frozen=True, kw_only=True)
class HealthBar:
    """A bar whose left share is filled, centred on a point."""

    position: Point
    width: float
    share: float
    """From 0 (empty) to 1 (full)."""
    colour: str


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture in pixels that fills a rectangle."""

    corner: Point
    """Left and bottom."""
    width: float
    height: float
    jpeg: Annotated[str, StringConstraints(pattern=r"^/9j/[A-Za-z0-9+/]+=*$")]
    """A JPEG in base64."""


Shape = Segment | Circle | Polygon | Caption | HealthBar | Picture
_KINDS: dict[str, type[Shape]] = {
    "segment": Segment,
    "circle": Circle,
    "polygon": Polygon,
    "caption": Caption,
    "health_bar": HealthBar,
    "picture": Picture,
}
_KIND_OF = {cls: kind for kind, cls in _KINDS.items()}


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One moment of one environment."""

    shapes: tuple[Shape, ...]
    """Back to front."""
    view: tuple[float, float, float, float]
    """Left, bottom, right, top of what must be visible; it may move, to follow the team."""
    anchors: tuple[Point | None, ...]
    """Per agent, where it is and, beside it, its rewards are drawn; None: nowhere, e.g. dead."""
    reward_places: tuple[Point, ...] = ()
    """Per agent, a free spot for its rewards if there is a better one than beside the anchor."""
    seconds_per_step: float = 0.1
    """How long a step lasts, for a player that runs in real time."""

    def __post_init__(self) -> None:
        left, bottom, right, top = self.view
        if not (all(map(math.isfinite, self.view)) and left < right and bottom < top):
            raise EnvError(
                f"a frame's view is {self.view}; expected finite left < right, bottom < top"
            )
        if not self.seconds_per_step > 0:
            raise EnvError(
                f"a frame's seconds_per_step is {self.seconds_per_step}; expected more than 0"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the frame as dicts, lists, numbers and strings; a shape's ``kind`` is its name."""
        shapes = [{"kind": _KIND_OF[type(shape)], **vars(shape)} for shape in self.shapes]
        return {**vars(self), "shapes": shapes}

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Frame":
        """Return the frame that `to_json` was called on, also after a trip through a file.

        Raises `EnvError` where the data are no frame's.
        """
        if not isinstance(data, dict) or not isinstance(data.get("shapes"), list | tuple):
            raise EnvError("a frame is no object with a list of shapes")
        return _of_type(Frame, data | {"shapes": tuple(map(_shape, data["shapes"]))})


@runtime_checkable
class HasFrames(Protocol):
    """An environment that can be seen."""

    def frame(self, index: int) -> Frame | None:
        """Return what an environment looks like now; None: only its observations can be shown.

        One whose episode ended shows the start of the next episode already. To film an episode,
        ask before each step: every frame is then the state in which the agents act, and the film
        ends with the one before the last step.
        """
        ...


@runtime_checkable
class HasPictures(Protocol):
    """An environment that draws itself, in pixels."""

    def show_pictures(self) -> None:
        """Draw from the next reset on."""
        ...

    def picture(self, index: int) -> npt.NDArray[np.uint8] | None:
        """Return an environment's own (H, W, 3) picture of its state; None if it draws none."""
        ...


def frame_of(env: VecEnv, index: int, step: EnvStep, actions: npt.NDArray[Any]) -> Frame:
    """Return what an environment looks like now, or else its observations and coming actions.

    `step` is what the environment returned last, (E, N) or (E, N, A) `actions` what comes next.
    """
    frame = env.frame(index) if isinstance(env, HasFrames) else None
    if frame is None:
        alive = None if step.alive is None else step.alive[index]
        return observation_frame(env.spec, step.obs[index], actions[index], alive)
    agents = env.spec.num_agents
    if len(frame.anchors) != agents or len(frame.reward_places) not in (0, agents):
        raise EnvError(
            f"{env.spec.name}: frame({index}) has {len(frame.anchors)} anchors and "
            f"{len(frame.reward_places)} reward_places; expected one anchor for each of the "
            f"{agents} agents (None for those that are nowhere), and as many places or none"
        )
    return frame


def moved(shape: Shape, by: Point) -> Shape:
    """Return a shape at another place."""
    match shape:
        case Segment():
            return replace(shape, start=shifted(shape.start, by), end=shifted(shape.end, by))
        case Circle():
            return replace(shape, centre=shifted(shape.centre, by))
        case Polygon():
            return replace(shape, points=tuple(shifted(point, by) for point in shape.points))
        case Caption() | HealthBar():
            return replace(shape, position=shifted(shape.position, by))
        case Picture():
            return replace(shape, corner=shifted(shape.corner, by))


def shifted(point: Point, by: Point) -> Point:
    """Return a point at another place."""
    return point[0] + by[0], point[1] + by[1]


def _shape(data: dict[str, Any]) -> Shape:
    """Return one shape from its JSON form."""
    kind = data.get("kind") if isinstance(data, dict) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        raise EnvError(f"a frame has a shape of kind {kind!r}; expected one of {list(_KINDS)}")
    return _of_type(_KINDS[kind], data)


def _of_type(cls: type[T], data: dict[str, Any]) -> T:
    """Return a dataclass with values of the annotated types, or raise `EnvError`."""
    try:
        made: T = _adapter(cast(Any, cls)).validate_python(data)
        return made
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        place = ".".join(map(str, fault["loc"]))
        raise EnvError(f"a {cls.__name__.lower()} in a frame: {place}: {fault['msg']}") from None


@cache
def _adapter(cls: Any) -> Any:
    return TypeAdapter(cls)


_PICTURE_SIDE = 320
"""Pixels of the longer side of a picture in a frame; larger ones are shrunk."""


def picture_frame(spec: EnvSpec, picture: npt.NDArray[np.uint8]) -> Frame:
    """Return an environment's own (H, W, 3) picture as a frame; its agents have no places there."""
    image, buffer = Image.fromarray(picture), io.BytesIO()
    image.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    image.save(buffer, "JPEG", quality=80)
    (width, height), jpeg = image.size, base64.b64encode(buffer.getvalue()).decode()
    shown = Picture(corner=(0.0, 0.0), width=float(width), height=float(height), jpeg=jpeg)
    view = (0.0, 0.0, float(width), float(height))
    return Frame(shapes=(shown,), view=view, anchors=(None,) * spec.num_agents)


_OBS_WIDTH, _ACTION_START, _ACTION_WIDTH, _WIDTH = 6.0, 6.6, 2.4, 10.0
_MOST_BARS = 60  # more would be thinner than a pixel; the others are left out


def observation_frame(
    spec: EnvSpec, obs: FloatArray, actions: npt.NDArray[Any], alive: BoolArray | None = None
) -> Frame:
    """Return one row per agent: bars of its (N, O) observations and of its action.

    A bar of value v is v / (1 + |v|) high, so that any unit fits. Discrete actions are boxes, of
    which the chosen one is filled. The dead have empty rows.
    """
    shapes: list[Shape] = [
        Caption(position=(_OBS_WIDTH / 2, 0.75), text="observations"),
        Caption(position=(_ACTION_START + _ACTION_WIDTH / 2, 0.75), text="actions"),
    ]
    anchors: list[Point | None] = []
    places: list[Point] = []
    for agent in range(spec.num_agents):
        lives = alive is None or bool(alive[agent])
        colour = agent_colour(agent) if lives else FAINT
        features = obs[agent, : spec.obs_sizes[agent]] if lives else np.zeros(0)
        shapes += _bars(features, (0.0, -float(agent)), _OBS_WIDTH, colour)
        size = spec.action_sizes[agent]
        corner = (_ACTION_START, -float(agent))
        if spec.action_kind == "discrete":
            shapes += _boxes(size, int(actions[agent]) if lives else -1, corner, colour)
        else:
            shapes += _bars(actions[agent, :size] if lives else np.zeros(0), corner, 2.4, colour)
        places.append((_WIDTH - 0.6, -float(agent)))
        anchors.append(places[-1] if lives else None)
    return Frame(
        shapes=tuple(shapes),
        view=(-0.2, 0.4 - spec.num_agents, _WIDTH, 1.0),
        anchors=tuple(anchors),
        reward_places=tuple(places),
    )


def _bars(values: FloatArray, corner: Point, width: float, colour: str) -> list[Shape]:
    """Return a base line whose left end is `corner`, and a bar up or down for each value."""
    x, y = corner
    shapes: list[Shape] = [Segment(start=corner, end=(x + width, y), colour=MUTED)]
    shown = values[:_MOST_BARS]
    pitch = min(width / max(len(shown), 1), 0.5)
    for i, value in enumerate(np.asarray(shown, np.float64).tolist()):
        top = y + 0.42 * value / (1.0 + abs(value))
        left, right = x + (i + 0.1) * pitch, x + (i + 0.9) * pitch
        points = ((left, y), (right, y), (right, top), (left, top))
        shapes.append(Polygon(points=points, colour=colour))
    return shapes


def _boxes(size: int, chosen: int, corner: Point, colour: str) -> list[Shape]:
    """Return a box for each choice, from `corner` to the right; the chosen one has the colour."""
    x, y = corner
    pitch = min(_ACTION_WIDTH / size, 0.5)
    half = 0.4 * pitch
    shapes: list[Shape] = []
    for i in range(size):
        left, right = x + i * pitch, x + i * pitch + 2 * half
        points = ((left, y - half), (right, y - half), (right, y + half), (left, y + half))
        shapes.append(Polygon(points=points, colour=colour if i == chosen else FAINT))
    return shapes
