"""What can be shown of any environment: observations and actions as bars.

Axes: N agents, O observation features, A actions.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from envs.base import BoolArray, EnvError, EnvSpec, EnvStep, FloatArray, VecEnv
from envs.frames import (
    FAINT,
    MUTED,
    Frame,
    HasFrames,
    Label,
    Point,
    Polygon,
    Segment,
    Shape,
    agent_colour,
)

_OBS_WIDTH, _ACTION_START, _ACTION_WIDTH, _WIDTH = 6.0, 6.6, 2.4, 10.0
_MOST_BARS = 60  # more would be thinner than a pixel; the others are left out


def frame_of(env: VecEnv, copy: int, step: EnvStep, actions: npt.NDArray[Any]) -> Frame:
    """Return what a copy looks like now, or else what its agents observe and are about to do.

    `step` is what the environment returned last, (E, N) or (E, N, A) `actions` what comes next.
    """
    frame = env.frame(copy) if isinstance(env, HasFrames) else None
    if frame is None:
        alive = None if step.alive is None else step.alive[copy]
        return observation_frame(env.spec, step.obs[copy], actions[copy], alive)
    agents = env.spec.num_agents
    if len(frame.anchors) != agents or len(frame.reward_places) not in (0, agents):
        raise EnvError(
            f"{env.spec.name}: frame({copy}) has {len(frame.anchors)} anchors and "
            f"{len(frame.reward_places)} reward_places; expected one anchor for each of the "
            f"{agents} agents (None for those that are nowhere), and as many places or none"
        )
    return frame


def observation_frame(
    spec: EnvSpec, obs: FloatArray, actions: npt.NDArray[Any], alive: BoolArray | None = None
) -> Frame:
    """Return one row per agent: bars of its (N, O) observations and of its action.

    A bar of value v is v / (1 + |v|) high, so that any unit fits. Discrete actions are boxes, of
    which the chosen one is filled. The dead have empty rows.
    """
    shapes: list[Shape] = [
        Label(position=(_OBS_WIDTH / 2, 0.75), text="observations"),
        Label(position=(_ACTION_START + _ACTION_WIDTH / 2, 0.75), text="actions"),
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
