"""What an environment looks like, as simple shapes: plain data that anything can draw.

A frame is drawn by `marl watch` and, being JSON, by a browser as well. Coordinates are the
world's, in any unit, x to the right and y up; colours are ``#rrggbb``.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from envs.base import EnvError

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
class Label:
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


Shape = Segment | Circle | Polygon | Label | HealthBar

_KINDS: dict[str, type[Shape]] = {
    "segment": Segment,
    "circle": Circle,
    "polygon": Polygon,
    "label": Label,
    "health_bar": HealthBar,
}
_KIND_OF = {cls: kind for kind, cls in _KINDS.items()}


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One moment of one copy."""

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
        """Return the frame that `to_json` was called on, also after a trip through a file."""
        values = {key: _tuples(value) for key, value in data.items() if key != "shapes"}
        return Frame(shapes=tuple(map(_shape, data["shapes"])), **values)


@runtime_checkable
class HasFrames(Protocol):
    """An environment that can be seen."""

    def frame(self, copy: int) -> Frame | None:
        """Return what a copy looks like now; None: only its observations can be shown.

        A copy that ended shows the start of its next episode already. To film an episode, ask
        before each step: every frame is then the state in which the agents act, and the film
        ends with the one before the last step.
        """
        ...


def moved(shape: Shape, by: Point) -> Shape:
    """Return a shape at another place."""
    match shape:
        case Segment():
            return replace(shape, start=shifted(shape.start, by), end=shifted(shape.end, by))
        case Circle():
            return replace(shape, centre=shifted(shape.centre, by))
        case Polygon():
            return replace(shape, points=tuple(shifted(point, by) for point in shape.points))
        case Label() | HealthBar():
            return replace(shape, position=shifted(shape.position, by))


def shifted(point: Point, by: Point) -> Point:
    """Return a point at another place."""
    return point[0] + by[0], point[1] + by[1]


def _shape(data: dict[str, Any]) -> Shape:
    """Return one shape from its JSON form."""
    values = {key: _tuples(value) for key, value in data.items() if key != "kind"}
    if data.get("kind") not in _KINDS:
        raise EnvError(
            f"a frame has a shape of kind {data.get('kind')!r}; expected one of {list(_KINDS)}"
        )
    return _KINDS[data["kind"]](**values)


def _tuples(value: Any) -> Any:
    """Return nested lists as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value
