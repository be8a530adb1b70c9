"""Rewards, ranges, starts, controls and episode ends of MuJoCo tasks, with numbers by hand."""

import numpy as np
import pytest

from envs.base import EnvError
from envs.catalogue import MAMUJOCO_NAMES
from envs.mujoco.mamujoco import TimeLimit, scenario_from_name
from envs.mujoco.obs import FeatureMatrix
from envs.mujoco.physics import Controls, make_start
from envs.mujoco.rewards import Distances, Locomotion, make_dense_reward, make_healthy_box
from envs.mujoco.scenarios import make_source
from envs.rng import env_seeds


def test_locomotion_pays_speed_and_health_less_control() -> None:
    task = Locomotion(
        fields=("qpos",),
        locate=lambda fields: fields["qpos"][:, :1],
        dt=0.05,
        forward_weight=2.0,
        ctrl_weight=0.1,
        healthy_reward=5.0,
    )
    rewards = task.rewards(
        {}, np.array([[0.1], [0.0]]), np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([True, False])
    )
    # 2 * 0.1 / 0.05 + 5 - 0.1 * (1 + 4) = 4 + 5 - 0.5; the second stands still, unhealthy: 0
    np.testing.assert_allclose(rewards, [8.5, 0.0])


def test_coupled_bodies_are_paid_on_average() -> None:
    task = Locomotion(
        fields=("qpos",), locate=lambda f: f["qpos"], dt=0.5, forward_weight=1.0, ctrl_weight=1.0
    )
    rewards = task.rewards({}, np.array([[1.0, 2.0]]), np.array([[1.0, 3.0]]), np.array([True]))
    # speeds 2 and 4, mean 3; control costs 1 and 9, mean 5
    np.testing.assert_allclose(rewards, [-2.0])


def test_distances_are_weighted_and_negative() -> None:
    task = Distances(pairs=((0, 1, 2.0), (1, 2, 1.0)), ctrl_weight=0.5)
    xpos = np.array([[0, 0, 0, 3, 4, 0, 3, 4, 1]], np.float64)
    rewards = task.rewards({"xpos": xpos}, np.zeros((1, 1)), np.array([[2.0]]), np.array([True]))
    # -(2 * 5 + 1 * 1) - 0.5 * 4
    np.testing.assert_allclose(rewards, [-13.0])


def test_contact_costs_clip_each_force_or_their_sum() -> None:
    ant, humanoid = (
        make_dense_reward(make_source("Ant")),
        make_dense_reward(make_source("Humanoid")),
    )
    assert isinstance(ant, Locomotion)
    assert isinstance(humanoid, Locomotion)
    assert ant.contact_cost is not None
    assert humanoid.contact_cost is not None
    # Ant: 5e-4 * (1 + 0.25), the 30 clipped to 1
    np.testing.assert_allclose(ant.contact_cost(np.array([[30.0, 0.5]])), [6.25e-4])
    # Humanoid: 5e-7 * 1e6 = 0.5; 5e-7 * 1e8 = 50, clipped to 10
    np.testing.assert_allclose(humanoid.contact_cost(np.array([[1e3], [1e4]])), [0.5, 10.0])


def test_healthy_ranges() -> None:
    ant = make_healthy_box(make_source("Ant"))
    hopper = make_healthy_box(make_source("Hopper"))
    assert ant is not None
    assert hopper is not None
    state = np.zeros((4, 29))
    state[:, 2] = [0.2, 1.0, 0.19, 1.01]  # Ant's range [0.2, 1] is inclusive
    np.testing.assert_array_equal(ant.contains(state), [True, True, False, False])
    state = np.tile([0.0, 1.25, *[0.0] * 10], (5, 1))
    state[1, 1] = 0.7  # z > 0.7
    state[2, 2] = -0.2  # |angle| < 0.2
    state[3, 11] = 100.0  # every other number within 100
    state[4, 0] = 500.0  # how far it got does not matter
    np.testing.assert_array_equal(hopper.contains(state), [True, False, False, False, True])
    assert make_healthy_box(make_source("HalfCheetah")) is None


def test_starts_stay_in_the_sources_ranges() -> None:
    seeds, counts = env_seeds(0, 2000), np.zeros(2000, np.int64)
    qpos, qvel = make_start(make_source("Reacher"))(seeds, counts)
    radius = np.linalg.norm(qpos[:, -2:], axis=1)
    assert radius.max() < 0.2
    # uniform in a disc: the mean squared radius is half the squared radius of the disc
    assert np.square(radius).mean() == pytest.approx(0.02, rel=0.05)
    assert np.abs(qvel[:, :2]).max() <= 0.005
    assert not qvel[:, -2:].any()
    qpos, qvel = make_start(make_source("Pusher"))(seeds, counts)
    assert np.linalg.norm(qpos[:, -4:-2], axis=1).min() > 0.17
    assert not qpos[:, -2:].any()
    source = make_source("HalfCheetah")
    qpos, qvel = make_start(source)(seeds, counts)
    assert np.abs(qpos - source.env.init_qpos).max() <= 0.1
    assert qvel.std() == pytest.approx(0.1, rel=0.05)  # normal, so some exceed 0.3
    assert np.abs(qvel).max() > 0.3
    assert abs(np.corrcoef(qpos[:, 3], qvel[:, 3])[0, 1]) < 0.1


def test_controls_are_scaled_clipped_and_put_in_actuator_order() -> None:
    ranges = np.array([[-2.0, 2.0], [0.0, 1.0], [-0.4, 0.4]])
    controls = Controls(1, ranges, [[2], [0, 1]])
    assert controls.sizes == (1, 2)
    # agent 0 drives actuator 2 at 0.5 * 0.4; agent 1 drives 0 at -1 * 2 and 1 at 0.5 + 0.5 * 0.5
    actions = np.array([[[0.5, np.nan], [-3.0, 0.5]]])
    np.testing.assert_allclose(controls.compute(actions), [[-2.0, 0.75, 0.2]])


def test_episodes_tell_ends_apart() -> None:
    episodes = TimeLimit(3, max_steps=2, finite_horizon=False)
    over = np.array([False, True, False])
    terminated, truncated = episodes.advance(over)
    np.testing.assert_array_equal(terminated, over)
    assert not truncated.any()
    over = np.array([False, False, True])
    terminated, truncated = episodes.advance(over)
    # environments 0 and 2 reach two steps, 0 by time, 2 by its task; copy 1 has just begun
    np.testing.assert_array_equal(terminated, over)
    np.testing.assert_array_equal(truncated, [True, False, False])


def test_features_end_with_a_zero_column() -> None:
    source = make_source("Reacher")
    features = FeatureMatrix("Reacher", source.model)
    # qpos 4, qvel 4, cos 4, sin 4, fingertip to target 3, padding
    assert features.width == 20
    fields = {name: np.ones((2, 15 if name == "xpos" else 4)) for name in features.fields}
    fields["xpos"][:, 9:12] = [7.0, 8.0, 9.0]  # body 3, the fingertip; the target is body 4
    out = np.zeros((2, 20))
    features.write(fields, out)
    np.testing.assert_allclose(out[0, 8:16], [np.cos(1.0)] * 4 + [np.sin(1.0)] * 4)
    np.testing.assert_allclose(out[0, 16:], [6, 7, 8, 0])


def test_names() -> None:
    assert scenario_from_name("halfcheetah_2x3") == ("HalfCheetah", "2x3")
    assert scenario_from_name("Ant_2x4d") == ("Ant", "2x4d")
    assert scenario_from_name("humanoid_9|8") == ("Humanoid", "9|8")
    assert scenario_from_name("manysegmentant_7x1") == ("ManySegmentAnt", "7x1")
    assert len({scenario_from_name(name) for name in MAMUJOCO_NAMES}) == len(MAMUJOCO_NAMES)
    with pytest.raises(EnvError, match="nearest: 'walker2d_2x3'"):
        scenario_from_name("walker_2x3")
    with pytest.raises(EnvError, match="choose one of '2x3', '6x1'"):
        scenario_from_name("halfcheetah_6")
