"""MuJoCo bodies as simple shapes, seen by the camera of their scenario.

Capsules become thick segments, spheres discs, boxes polygons. `BodyArtist` draws one simulation,
`fleet_frame` several that do not meet, each in a cell that moves along with it.

Axes: N agents, P points, U actuators; the last axis of a place has 3 world coordinates or 2 of
the screen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import mujoco
import numpy as np
import numpy.typing as npt

from envs.base import BoolArray
from envs.frames import (
    FAINT,
    GROUND,
    INK,
    MUTED,
    TARGET,
    WALL,
    Caption,
    Circle,
    Frame,
    Point,
    Polygon,
    Segment,
    Shape,
    agent_colour,
    moved,
    shifted,
)
from envs.mujoco.scenarios import Source

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SceneCamera:
    """A parallel projection; everything keeps its size, however far it is."""

    axes: Array
    """(3, 3) world directions that point right, up, and at the viewer."""
    floor: Literal["line", "grid"]
    """How the plane z = 0 is drawn: from the side, or as a grid."""
    follows: bool = True
    """Whether it moves with the bodies."""

    def project(self, points: Array) -> Array:
        """Return (P, 3) points as (P, 3): right, up, and nearness to the viewer."""
        projected: Array = points @ self.axes.T
        return projected


def _camera_from(azimuth: float, elevation: float) -> Array:
    """Return the axes of a viewer at these angles in degrees; azimuth 0 is in front, at +x."""
    a, e = np.radians([azimuth, elevation])
    right = [-np.sin(a), np.cos(a), 0.0]
    up = [-np.sin(e) * np.cos(a), -np.sin(e) * np.sin(a), np.cos(e)]
    towards = [np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)]
    return np.array([right, up, towards]).round(12)


SIDE = SceneCamera(axes=_camera_from(-90, 0), floor="line")
TOP = SceneCamera(axes=_camera_from(-90, 90), floor="grid")
FIXED_TOP = SceneCamera(axes=TOP.axes, floor="grid", follows=False)
OBLIQUE = SceneCamera(axes=_camera_from(-60, 28), floor="grid")
CAMERAS = {
    "HalfCheetah": SIDE,
    "Hopper": SIDE,
    "Walker2d": SIDE,
    "Swimmer": TOP,
    "ManySegmentSwimmer": TOP,
    "Reacher": FIXED_TOP,
    "Pusher": FIXED_TOP,
    "Ant": OBLIQUE,
    "ManySegmentAnt": OBLIQUE,
    "Humanoid": OBLIQUE,
    "HumanoidStandup": OBLIQUE,
    "CoupledHalfCheetah": OBLIQUE,
}
"""The camera of every scenario."""
_PLANE = int(mujoco.mjtGeom.mjGEOM_PLANE)
_BOX = int(mujoco.mjtGeom.mjGEOM_BOX)
_LONG = (int(mujoco.mjtGeom.mjGEOM_CAPSULE), int(mujoco.mjtGeom.mjGEOM_CYLINDER))
_GROUND_SHARE = 0.14
"""Share of a side view's height that lies below the ground."""
_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
_THING_COLOURS = {"target": TARGET, "goal": TARGET, "object": MUTED}


class BodyArtist:
    """Draws one simulation of a scenario as seen by its camera."""

    def __init__(self, source: Source, parts: Sequence[Sequence[int]]) -> None:
        """`parts` lists the actuators of each agent, whose bodies get the agent's colour."""
        self.camera = CAMERAS[source.scenario]
        self.seconds_per_step = float(source.env.dt)
        self._model = source.model
        self._data = mujoco.MjData(self._model)
        self._geoms = np.flatnonzero(self._model.geom_type != _PLANE)
        welds = self._model.body_weldid[self._model.geom_bodyid[self._geoms]]
        self._owners = body_owners(self._model, parts)[welds]
        self._colours = [
            self._colour(int(geom), int(owner))
            for geom, owner in zip(self._geoms, self._owners, strict=True)
        ]
        self._moving = np.flatnonzero(welds > 0)
        self._agents = [np.flatnonzero(self._owners == agent) for agent in range(len(parts))]
        self._pose(source.env.init_qpos)
        ends = np.concatenate([self._ends(i) for i in range(len(self._geoms))])
        spread = self.camera.project(ends - self.focus())[:, :2]
        self.size = 1.4 * float(np.ptp(spread, axis=0).max()) + 0.1
        """Width and height of the view, from the pose at the start."""
        self._middle = (spread.min(axis=0) + spread.max(axis=0)) / 2.0
        self._half_width, self._half_height = (np.ptp(spread, axis=0) / 2.0).tolist()

    def draw(self, qpos: npt.NDArray[np.float64], colour: str | None = None) -> list[Shape]:
        """Return the geoms back to front; with `colour`, what an agent drives has that one."""
        self._pose(qpos)
        nearness = self.camera.project(self._positions)[:, 2].round(6)
        shapes = []
        for i in np.argsort(nearness, kind="stable"):
            own = self._colours[i] if self._owners[i] < 0 else colour or self._colours[i]
            shapes.append(self._shape(int(i), own))
        return shapes

    def shadows(self) -> list[Shape]:
        """Return the shadows that the bodies of the latest `draw` cast on a grid floor."""
        if self.camera.floor == "line" or not self.camera.follows:
            return []
        shadows = []
        for i in self._moving:
            ends = self._ends(int(i)) * (1.0, 1.0, 0.0)
            first, second = map(point, self.camera.project(ends))
            width = 2.0 * float(self._model.geom_size[self._geoms[i], 0])
            shadows.append(Segment(start=first, end=second, width=width, colour=FAINT))
        return list(shadows)

    def frame(self, qpos: npt.NDArray[np.float64]) -> Frame:
        """Return one simulation as a frame of its own."""
        bodies = self.draw(qpos)
        ground = self.floor(reach=2.0 * self.size, depth=self.size)
        return Frame(
            shapes=(*ground, *self.shadows(), *bodies),
            view=self.view(),
            anchors=self.anchors(),
            reward_places=self.reward_places(),
            seconds_per_step=self.seconds_per_step,
        )

    def floor(self, reach: float, depth: float) -> list[Shape]:
        """Return the floor around the bodies of the latest `draw`."""
        return floor(self.camera, self.focus(), size=self.size, reach=reach, depth=depth)

    def focus(self) -> Array:
        """Return the (3,) place on the floor that the camera looks at, after `draw`."""
        if not self.camera.follows:
            return np.zeros(3)
        focus: Array = self._positions[self._moving].mean(axis=0) * (1.0, 1.0, 0.0)
        return focus

    def view(self) -> tuple[float, float, float, float]:
        """Return what must be visible around the bodies of the latest `draw`."""
        focus = self.camera.project(self.focus())[:2]
        x, y = point(focus + self._middle)
        half = self.size / 2.0
        low = -_GROUND_SHARE * self.size if self.camera.floor == "line" else y - half
        return x - half, low, x + half, low + self.size

    def anchors(self) -> tuple[Point, ...]:
        """Return the middle of each agent's geoms after `draw`; the focus if it has none."""
        focus = self.focus()
        middles = [
            self._positions[mine].mean(axis=0) if len(mine) else focus for mine in self._agents
        ]
        return tuple(map(point, self.camera.project(np.array(middles))))

    def reward_places(self) -> tuple[Point, ...]:
        """Return free spots: above a long body, to the right of a tall one; none in an arena."""
        if not self.camera.follows:
            return ()
        middle = self.camera.project(self.focus())[:2] + self._middle
        x, y = point(np.add(middle, (0.6 * self._half_width, self._half_height)))
        if self._half_width > self._half_height:
            return tuple((at, y + 0.15 * self.size) for at, _ in self.anchors())
        return tuple((x + 0.15 * self.size, at) for _, at in self.anchors())

    def _pose(self, qpos: npt.NDArray[np.float64]) -> None:
        self._data.qpos[:] = qpos
        mujoco.mj_kinematics(self._model, self._data)
        self._positions = self._data.geom_xpos[self._geoms]

    def _colour(self, geom: int, owner: int) -> str:
        """Return the colour of an agent's geom, of a thing by its body's name, or of the rest."""
        body = self._model.geom_bodyid[geom]
        if owner >= 0:
            return agent_colour(owner)
        static = self._model.body_weldid[body] == 0
        return _THING_COLOURS.get(self._model.body(body).name, WALL if static else INK)

    def _ends(self, i: int) -> Array:
        """Return the (2, 3) ends of a geom's axis; of a round geom, its centre twice."""
        geom, position = self._geoms[i], self._positions[i]
        if self._model.geom_type[geom] not in _LONG:
            return np.array([position, position])
        axis = self._data.geom_xmat[geom].reshape(3, 3)[:, 2] * self._model.geom_size[geom, 1]
        return np.array([position - axis, position + axis])

    def _shape(self, i: int, colour: str) -> Shape:
        """Return one geom as the camera sees it."""
        geom = self._geoms[i]
        size = self._model.geom_size[geom]
        if self._model.geom_type[geom] == _BOX:
            turn = self._data.geom_xmat[geom].reshape(3, 3)
            corners = self.camera.project(self._positions[i] + (_CORNERS * size) @ turn.T)
            return Polygon(points=hull([point(corner) for corner in corners]), colour=colour)
        first, second = map(point, self.camera.project(self._ends(i)))
        if first == second:
            return Circle(centre=first, radius=float(size[0]), colour=colour)
        return Segment(start=first, end=second, width=2.0 * float(size[0]), colour=colour)


def body_owners(model: mujoco.MjModel, parts: Sequence[Sequence[int]]) -> npt.NDArray[np.int64]:
    """Return the agent that drives a joint of each body, -1 where none does; the first wins."""
    owners = np.full(model.nbody, -1, np.int64)
    for agent in reversed(range(len(parts))):
        joints = model.actuator_trnid[list(parts[agent]), 0]
        owners[model.jnt_bodyid[joints]] = agent
    return owners


def fleet_frame(artist: BodyArtist, qpos: npt.NDArray[np.float64], alive: BoolArray) -> Frame:
    """Return (N, nq) positions as a grid of cells, the first at its top left; the dead are grey."""
    size = artist.size
    columns = math.ceil(math.sqrt(len(qpos)))
    rows = math.ceil(len(qpos) / columns)
    shapes: list[Shape] = []
    anchors: list[Point | None] = []
    places: list[Point] = []
    for agent, row in enumerate(qpos):
        colour = agent_colour(agent) if alive[agent] else MUTED
        body = artist.draw(row, colour)
        ground = artist.floor(reach=0.47 * size, depth=0.13 * size)
        left, bottom, _, _ = artist.view()
        x, y = (agent % columns) * size, (rows - 1 - agent // columns) * size
        by = x - left, y - bottom
        shapes += [moved(shape, by) for shape in (*ground, *artist.shadows(), *body)]
        anchors += [shifted(at, by) if alive[agent] else None for at in artist.anchors()]
        places += [shifted(at, by) for at in artist.reward_places()]
    return Frame(
        shapes=tuple(shapes),
        view=(0.0, 0.0, columns * size, rows * size),
        anchors=tuple(anchors),
        reward_places=tuple(places),
        seconds_per_step=artist.seconds_per_step,
    )


def floor(
    camera: SceneCamera, focus: Array, *, size: float, reach: float, depth: float
) -> list[Shape]:
    """Return the floor around the (3,) focus as far as `reach`, with marks that stay in place.

    The marks fit a view of the given size. From the side, the ground is `depth` thick.
    """
    if camera.floor == "line":
        return _floor_line(float(focus[0]), size, reach, depth)
    spacing = _round_length(size / 2.5)
    low = np.ceil((focus[:2] - reach) / spacing).astype(int)
    high = np.floor((focus[:2] + reach) / spacing).astype(int)
    corners = [(low[0], low[1]), (high[0], high[1])]
    ends = [
        *((x, corners[0][1], x, corners[1][1]) for x in range(low[0], high[0] + 1)),
        *((corners[0][0], y, corners[1][0], y) for y in range(low[1], high[1] + 1)),
    ]
    points = np.array(ends, np.float64).reshape(-1, 2) * spacing
    flat = camera.project(np.column_stack((points, np.zeros(len(points)))))
    return [
        Segment(start=point(flat[i]), end=point(flat[i + 1]), colour=FAINT)
        for i in range(0, len(flat), 2)
    ]


def _floor_line(x: float, size: float, reach: float, depth: float) -> list[Shape]:
    """Return the ground seen from the side, with its distance marks."""
    left, right, spacing = x - reach, x + reach, _round_length(size / 1.5)
    corners = ((left, 0.0), (right, 0.0), (right, -depth), (left, -depth))
    shapes: list[Shape] = [
        Polygon(points=corners, colour=GROUND),
        Segment(start=corners[0], end=corners[1], colour=MUTED),
    ]
    for mark in range(int(np.ceil(left / spacing)), int(np.floor(right / spacing)) + 1):
        at = mark * spacing
        shapes.append(Segment(start=(at, 0.0), end=(at, -0.02 * size), colour=MUTED))
        if abs(at - x) < 0.85 * reach:  # the whole label fits on the ground
            shapes.append(Caption(position=(at, -0.07 * size), text=f"{at:g} m"))
    return shapes


def _round_length(length: float) -> float:
    """Return the largest of 1, 2, 5, 10 ... (or .5, .2, .1 ...) that is not above `length`."""
    power = 10.0 ** np.floor(np.log10(length))
    return float(power * max(step for step in (1.0, 2.0, 5.0) if step * power <= length))


def point(projected: Array) -> Point:
    """Return the screen part of a projected point."""
    return float(projected[0]), float(projected[1])


def hull(points: Sequence[Point]) -> tuple[Point, ...]:
    """Return the convex hull, counter-clockwise (Andrew's monotone chain)."""
    ordered = sorted(set(points))
    lower, upper = _chain(ordered), _chain(ordered[::-1])
    return tuple(lower[:-1] + upper[:-1])


def _chain(points: Sequence[Point]) -> list[Point]:
    """Return the points at which a walk along `points` turns left."""
    chain: list[Point] = []
    for x, y in points:
        while len(chain) >= 2:
            (ax, ay), (bx, by) = chain[-2:]
            if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 1e-12:
                break
            chain.pop()
        chain.append((x, y))
    return chain
