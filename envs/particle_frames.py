"""Particles as frames: agents are discs, landmarks rings.

Axes: N agents (and landmarks), 2 plane coordinates.
"""

import numpy as np

from envs.base import FloatArray
from envs.frames import FAINT, TARGET, Circle, Frame, Point, Segment, agent_colour

_SQUARE = ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0))
"""Where agents and landmarks start."""
_MARGIN = 0.15


def particle_frame(
    positions: FloatArray,
    landmarks: FloatArray,
    radius: float,
    seconds_per_step: float,
    *,
    own_landmarks: bool,
) -> Frame:
    """Return (N, 2) agents and (N, 2) landmarks, each agent tied to its own if it has one.

    The view is the square they start in with a margin, and grows with whoever leaves it.
    """
    places, goals = _points(positions), _points(landmarks)
    colours = [agent_colour(agent) for agent in range(len(places))]
    of_goals = colours if own_landmarks else [TARGET] * len(goals)
    corners = zip(_SQUARE, (*_SQUARE[1:], _SQUARE[0]), strict=True)
    border = [Segment(start=start, end=end, colour=FAINT) for start, end in corners]
    pairs = zip(places, goals, colours, strict=True)
    ways = [Segment(start=place, end=goal, colour=colour) for place, goal, colour in pairs]
    rings = [
        Circle(centre=goal, radius=radius, colour=colour, filled=False)
        for goal, colour in zip(goals, of_goals, strict=True)
    ]
    agents = [
        Circle(centre=place, radius=radius, colour=colour)
        for place, colour in zip(places, colours, strict=True)
    ]
    half = max(1.0, float(np.abs(positions).max())) + _MARGIN
    return Frame(
        shapes=(*border, *(ways if own_landmarks else ()), *rings, *agents),
        view=(-half, -half, half, half),
        anchors=tuple(places),
        seconds_per_step=seconds_per_step,
    )


def _points(array: FloatArray) -> list[Point]:
    """Return the rows of an (N, 2) array as points."""
    return [(float(x), float(y)) for x, y in array]
