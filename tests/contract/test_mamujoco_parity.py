"""Multi-agent MuJoCo equals gymnasium-robotics' mamujoco_v1 in a free run."""

import numpy as np
import pytest

from benchmarks.parity import QUANTITIES, compare
from envs.catalogue import MAMUJOCO_NAMES
from envs.mujoco.mamujoco import MaMuJoCo, scenario_from_name

FALLING = ("hopper", "walker2d", "humanoid")  # within 150 random steps
SHORT = {"reacher": 50, "pusher": 100}  # time limits within 150 steps


@pytest.mark.parametrize("name", MAMUJOCO_NAMES)
def test_free_run_equals_the_original(name: str) -> None:
    worst = compare(*scenario_from_name(name), agent_obsk=1, steps=150)
    assert all(worst[quantity] <= 1e-9 for quantity in QUANTITIES), worst
    scenario = name.split("_")[0]
    if scenario in FALLING:
        assert worst["ends"] > 0
    if scenario in SHORT:
        # two environments, 150 steps: 3 episodes of 50 each, or 1 of 100
        assert worst["ends"] == 2 * (150 // SHORT[scenario])


@pytest.mark.parametrize("name", MAMUJOCO_NAMES)
@pytest.mark.parametrize("agent_obsk", [0, 2, 3])
def test_other_observation_distances_equal_the_original(name: str, agent_obsk: int) -> None:
    worst = compare(*scenario_from_name(name), agent_obsk=agent_obsk, steps=10)
    assert all(worst[quantity] <= 1e-9 for quantity in QUANTITIES), worst


@pytest.mark.parametrize("partition", ["1x3", "3x2", "5x1"])
@pytest.mark.parametrize("scenario", ["ManySegmentAnt", "ManySegmentSwimmer"])
def test_any_number_of_segments_equals_the_original(scenario: str, partition: str) -> None:
    worst = compare(scenario, partition, agent_obsk=1, steps=10)
    assert all(worst[quantity] <= 1e-9 for quantity in QUANTITIES), worst


def test_comparison_notices_a_wrong_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    make_dense_reward = __import__(
        "envs.mujoco.rewards", fromlist=["make_dense_reward"]
    ).make_dense_reward

    def pay_more(source: object) -> object:
        task = make_dense_reward(source)
        object.__setattr__(task, "ctrl_weight", task.ctrl_weight * 1.001)
        return task

    monkeypatch.setattr("envs.mujoco.physics.make_dense_reward", pay_more)
    worst = compare("HalfCheetah", "2x3", agent_obsk=1, steps=5)
    assert worst["reward"] > 1e-9
    assert worst["obs"] == 0


def test_without_distance_every_agent_observes_the_state() -> None:
    env = MaMuJoCo(2, "Hopper", "3x1", agent_obsk=None)
    env.reset(seed=0)
    step = env.step(np.full((2, 3, 1), 0.5))
    np.testing.assert_array_equal(step.obs, np.repeat(step.state[:, None], 3, axis=1))
