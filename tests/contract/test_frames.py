"""Every environment that ships can be seen, alive or dead, and steps no differently for it."""

import json
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from envs import EnvError, EnvSpec, EnvStep, Frame, HasFrames, env_names, make_env
from envs.frames import Polygon, frame_of, observation_frame
from envs.registry import FAMILIES
from envs.rng import random_actions


def some_actions(spec: EnvSpec, step: EnvStep) -> npt.NDArray[Any]:
    """Return legal actions: choice 1, or what the mask allows first, or half of each range.

    Composite ones are random.
    """
    if spec.action_kind == "composite":
        return random_actions(spec, np.random.default_rng(0), step.action_mask)
    if spec.action_kind == "continuous":
        return np.full((spec.num_envs, spec.num_agents, spec.action_size), 0.5)
    if step.action_mask is None:
        return np.ones((spec.num_envs, spec.num_agents), np.int64)
    return step.action_mask.argmax(axis=2)


SHIPPED = [name for name in env_names() if not FAMILIES[name.partition("/")[0]].needs]
"""Environments that need no optional package."""


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_environment_yields_frames(name: str) -> None:
    env = make_env(name, 2)
    step = env.reset(0)
    frames = []
    for _ in range(3):
        actions = some_actions(env.spec, step)
        frames.append(frame_of(env, 1, step, actions))
        step = env.step(actions)
    for frame in frames:
        text = json.dumps(frame.to_json(), allow_nan=False)
        assert Frame.from_json(json.loads(text)) == frame
        assert frame.shapes
        assert len(frame.anchors) == env.spec.num_agents
        assert all(re.fullmatch("#[0-9a-f]{6}", shape.colour) for shape in frame.shapes)
    assert any(frame != frames[0] for frame in frames)


@pytest.mark.parametrize("name", ["mamujoco/ant_2x4", "fleet/hopper_4", "particles/spread_3"])
def test_looking_changes_nothing(name: str) -> None:
    watched, unwatched = make_env(name, 2), make_env(name, 2)
    assert isinstance(watched, HasFrames)
    first, second = watched.reset(3), unwatched.reset(3)
    for _ in range(4):
        watched.frame(0)
        first = watched.step(some_actions(watched.spec, first))
        second = unwatched.step(some_actions(unwatched.spec, second))
        np.testing.assert_array_equal(first.obs, second.obs)


def test_environments_differ() -> None:
    env = make_env("mamujoco/halfcheetah_2x3", 2)
    assert isinstance(env, HasFrames)
    env.reset(0)
    assert env.frame(0) != env.frame(1)


def test_a_fallen_body_of_a_fleet_has_no_anchor() -> None:
    env = make_env("fleet/hopper_4", 1)
    step = env.reset(0)
    frame = frame_of(env, 0, step, some_actions(env.spec, step))
    while step.alive is not None and step.alive.all():
        step = env.step(some_actions(env.spec, step))
        frame = frame_of(env, 0, step, some_actions(env.spec, step))
    assert step.alive is not None
    assert [anchor is not None for anchor in frame.anchors] == step.alive[0].tolist()


def test_a_plot_shows_observations_and_the_chosen_action() -> None:
    # Agent 0 sees (1, -3): bars .42 * 1/2 up and .42 * 3/4 down; it chooses the second of two.
    spec = make_env("probe/local_credit", 1, num_agents=2).spec
    obs = np.array([[1.0, -3.0], [0.0, 0.0]], np.float32)
    frame = observation_frame(spec, obs, np.array([1, 0]), np.array([True, False]))
    polygons = [shape for shape in frame.shapes if isinstance(shape, Polygon)]
    heights = [shape.points[2][1] for shape in polygons[:2]]
    assert heights == pytest.approx([0.21, -0.315])
    assert polygons[2].colour != polygons[3].colour == polygons[0].colour
    assert frame.anchors[1] is None


class OneAnchor:
    """Two agents, of which the frames show one."""

    spec = make_env("probe/local_credit", 1, num_agents=2).spec

    def frame(self, copy: int) -> Frame:
        """Return a frame without shapes."""
        return Frame(shapes=(), view=(0.0, 0.0, 1.0, 1.0), anchors=((0.5, 0.5),))


def test_a_frame_that_lacks_an_agent_is_refused() -> None:
    env: Any = OneAnchor()
    step: Any = None
    with pytest.raises(EnvError, match=r"frame\(0\) has 1 anchors .* each of the 2 agents"):
        frame_of(env, 0, step, np.zeros((1, 2), np.int64))
