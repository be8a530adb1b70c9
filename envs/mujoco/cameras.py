"""From which side each MuJoCo scenario is looked at, and the floor that shows it moving.

Axes: P points, 3 world coordinates, 2 coordinates on the screen.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from envs.frames import FAINT, GROUND, MUTED, Label, Point, Polygon, Segment, Shape

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Camera:
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


SIDE = Camera(axes=_camera_from(-90, 0), floor="line")
TOP = Camera(axes=_camera_from(-90, 90), floor="grid")
FIXED_TOP = Camera(axes=TOP.axes, floor="grid", follows=False)
OBLIQUE = Camera(axes=_camera_from(-60, 28), floor="grid")

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


def floor(camera: Camera, focus: Array, *, size: float, reach: float, depth: float) -> list[Shape]:
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
            shapes.append(Label(position=(at, -0.07 * size), text=f"{at:g} m"))
    return shapes


def _round_length(length: float) -> float:
    """Return the largest of 1, 2, 5, 10 ... (or .5, .2, .1 ...) that is not above `length`."""
    power = 10.0 ** np.floor(np.log10(length))
    return float(power * max(step for step in (1.0, 2.0, 5.0) if step * power <= length))


def point(projected: Array) -> Point:
    """Return the screen part of a projected point."""
    return float(projected[0]), float(projected[1])
