"""Fleets as frames: bodies that do not meet, each in a cell that moves along with it.

Axes: N agents (one body each).
"""

import math

import numpy as np
import numpy.typing as npt

from envs.base import BoolArray
from envs.frames import MUTED, Frame, Point, Shape, agent_colour, moved, shifted
from envs.mujoco.frames import BodyArtist


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
