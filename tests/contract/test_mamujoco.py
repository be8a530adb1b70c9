"""The batched multi-agent MuJoCo keeps the environment contract."""

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from envs.base import EnvError, EnvStep, VecEnv
from envs.checker import check_env
from envs.mujoco.fleet import Fleet
from envs.mujoco.mamujoco import MaMuJoCo
from envs.sparse import SparseRewards

FAMILIES = [
    ("HalfCheetah", "2x3"),
    ("Hopper", "3x1"),
    ("Ant", "4x2"),
    ("Humanoid", "9|8"),
    ("HumanoidStandup", "9|8"),
    ("Reacher", "2x1"),
    ("Pusher", "3p"),
    ("CoupledHalfCheetah", "1p1"),
    ("ManySegmentAnt", "2x2"),
]


def random_actions(env: VecEnv, steps: int, seed: int = 0) -> npt.NDArray[np.float64]:
    """(steps, E, N, A) uniform actions."""
    shape = (steps, env.spec.num_envs, env.spec.num_agents, env.spec.action_size)
    return np.random.default_rng(seed).uniform(-1, 1, shape)


def snapshot(step: EnvStep) -> dict[str, Any]:
    """Return copies of a step's arrays, which the next step overwrites."""
    return {name: None if v is None else np.array(v) for name, v in vars(step).items()}


def assert_same(first: dict[str, Any], second: dict[str, Any]) -> None:
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


@pytest.mark.parametrize(("scenario", "partition"), FAMILIES)
def test_shapes_types_and_padding(scenario: str, partition: str) -> None:
    env = MaMuJoCo(3, scenario, partition)
    assert isinstance(env, VecEnv)
    spec = env.spec
    step = env.reset(seed=1)
    for actions in (None, *random_actions(env, 3)):
        if actions is not None:
            step = env.step(actions)
        assert step.obs.shape == step.final_obs.shape == (3, spec.num_agents, spec.obs_size)
        assert step.state.shape == step.final_state.shape == (3, spec.state_size)
        for array in (step.obs, step.state, step.final_obs, step.final_state):
            assert array.dtype == np.float32
        assert step.rewards.dtype == np.float64
        assert step.terminated.shape == step.truncated.shape == step.rewards.shape == (3,)
        assert step.terminated.dtype == step.truncated.dtype == np.bool_
        assert step.action_mask is None
        assert step.alive is None
        for agent, size in enumerate(spec.obs_sizes):
            assert not step.obs[:, agent, size:].any()
            assert step.obs[:, agent, :size].any()


@pytest.mark.parametrize(("scenario", "partition"), FAMILIES)
def test_saved_state_continues_exactly(scenario: str, partition: str) -> None:
    options: dict[str, Any] = {"max_steps": 17}  # ends fall before and after the save
    env = MaMuJoCo(3, scenario, partition, **options)
    env.reset(seed=5)
    actions = random_actions(env, 60)
    for index in range(25):
        env.step(actions[index])
    saved = env.state_dict()
    expected = [snapshot(env.step(a)) for a in actions[25:]]
    other = MaMuJoCo(3, scenario, partition, **options)
    for target in (env, other):
        target.load_state_dict(saved)
        for a, step in zip(actions[25:], expected, strict=True):
            assert_same(step, snapshot(target.step(a)))


@pytest.mark.parametrize(("scenario", "partition"), FAMILIES)
def test_number_of_threads_changes_nothing(scenario: str, partition: str) -> None:
    runs = []
    for num_threads in (1, 3):
        env = MaMuJoCo(5, scenario, partition, num_threads=num_threads)
        env.reset(seed=2)
        runs.append([snapshot(env.step(a)) for a in random_actions(env, 30)])
    for first, second in zip(*runs, strict=True):
        assert_same(first, second)


@pytest.mark.parametrize("reward_mode", ["episodic", "dense"])
def test_checker_finds_nothing(reward_mode: str) -> None:
    for scenario, partition in FAMILIES[:4]:
        env = SparseRewards(MaMuJoCo(3, scenario, partition, max_steps=25), reward_mode)
        assert check_env(env, steps=40) == []
    fleet = SparseRewards(Fleet(2, "Hopper", 3, max_steps=25), reward_mode)
    assert check_env(fleet, steps=40) == []


def test_seeds_start_environments_and_episodes_differently_and_reproducibly() -> None:
    env = MaMuJoCo(4, "HalfCheetah", "2x3", max_steps=3)
    first = snapshot(env.reset(seed=9))["state"]
    assert len(np.unique(first, axis=0)) == 4
    for a in random_actions(env, 3):
        step = env.step(a)
    assert step.truncated.all()
    assert not (step.state == first).any()
    np.testing.assert_array_equal(env.reset(seed=9).state, first)
    assert not (env.reset(seed=10).state == first).any()


def test_final_arrays_show_the_end_of_the_old_episode() -> None:
    short, long = (MaMuJoCo(2, "Swimmer", "2x1", max_steps=n) for n in (4, 100))
    for env in (short, long):
        env.reset(seed=0)
    for a in random_actions(short, 4):
        ended, running = short.step(a), long.step(a)
    assert ended.truncated.all()
    assert not ended.terminated.any()
    np.testing.assert_array_equal(ended.final_obs, running.obs)
    np.testing.assert_array_equal(ended.final_state, running.state)
    assert (ended.obs != ended.final_obs).any(axis=(1, 2)).all()


def test_environments_that_go_on_are_untouched_by_the_reset_of_others() -> None:
    # Hopper environments fall at different steps; a copy alone must see what it sees among others.
    env = MaMuJoCo(6, "Hopper", "3x1")
    first = snapshot(env.reset(seed=3))
    ends = set()
    for a in random_actions(env, 60):
        step = env.step(a)
        going = ~(step.terminated | step.truncated)
        np.testing.assert_array_equal(step.obs[going], step.final_obs[going])
        np.testing.assert_array_equal(step.state[going], step.final_state[going])
        ends.add(tuple(going))
        assert (step.state[~going] != step.final_state[~going]).any(axis=1).all()
    assert len(ends) > 3
    assert first["state"].shape == (6, 11)


def test_episodic_reward_is_the_sum_of_hidden_rewards_paid_at_the_end() -> None:
    env = SparseRewards(MaMuJoCo(3, "Hopper", "3x1", max_steps=40))
    env.reset(seed=0)
    returns, ends = np.zeros(3), 0
    for a in random_actions(env, 200):
        step = env.step(a)
        returns += env.hidden_rewards()
        over = step.terminated | step.truncated
        np.testing.assert_array_equal(step.rewards[~over], 0.0)
        np.testing.assert_allclose(step.rewards[over], returns[over], rtol=1e-12)
        returns[over] = 0.0
        ends += over.sum()
    assert ends >= 15


def test_finite_horizon_reports_the_time_limit_as_terminated() -> None:
    env = MaMuJoCo(2, "HalfCheetah", "2x3", max_steps=2, finite_horizon=True)
    assert env.spec.finite_horizon
    env.reset(seed=0)
    env.step(np.zeros((2, 2, 3)))
    step = env.step(np.zeros((2, 2, 3)))
    assert step.terminated.all()
    assert not step.truncated.any()


def test_actions_outside_the_range_are_clipped() -> None:
    envs = [MaMuJoCo(1, "Pusher", "3p") for _ in range(2)]
    for env in envs:
        env.reset(seed=0)
    clipped = envs[0].step(np.full((1, 3, 3), 7.0)).state
    np.testing.assert_array_equal(clipped, envs[1].step(np.ones((1, 3, 3))).state)
    # Pusher's actuators take [-2, 2]
    np.testing.assert_array_equal(envs[1].bodies.batch.bind("ctrl"), np.full((1, 7), 2.0))


def test_numbers_in_the_padding_of_actions_are_ignored() -> None:
    env = MaMuJoCo(1, "Humanoid", "9|8")
    assert env.spec.action_sizes == (9, 8)
    env.reset(seed=0)
    actions = np.zeros((1, 2, 9))
    actions[0, 1, 8] = np.nan
    assert np.isfinite(env.step(actions).obs).all()


def test_bad_actions_name_copy_and_agent() -> None:
    env = MaMuJoCo(3, "HalfCheetah", "2x3")
    with pytest.raises(EnvError, match="call reset"):
        env.step(np.zeros((3, 2, 3)))
    env.reset(seed=0)
    actions = np.zeros((3, 2, 3))
    actions[2, 1, 0] = np.nan
    with pytest.raises(EnvError, match=r"action\[0\] of agent 1 in copy 2 is nan"):
        env.step(actions)
    with pytest.raises(EnvError, match=re.escape("(3, 2, 2); expected (3, 2, 3)")):
        env.step(np.zeros((3, 2, 2)))


def test_unstable_physics_is_an_error_not_a_silent_restart(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes MUJOCO_LOG.TXT
    env = MaMuJoCo(3, "HalfCheetah", "2x3")
    env.reset(seed=0)
    env.step(np.zeros((3, 2, 3)))
    env.bodies.qvel[1, 4] = np.nan
    with pytest.raises(EnvError, match=r"BADQVEL \(index 4\) in copy 1 at step 2"):
        env.step(np.zeros((3, 2, 3)))
    env.reset(seed=0)
    env.step(np.zeros((3, 2, 3)))
    fleet = Fleet(2, "HalfCheetah", 3)
    fleet.reset(seed=0)
    fleet.bodies.qvel[4, 0] = np.inf
    with pytest.raises(EnvError, match="copy 1, body 1 at step 1"):
        fleet.step(np.zeros((2, 3, 6)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scenario": "HalfCheeta"}, "nearest: 'HalfCheetah'"),
        ({"scenario": "InvertedPendulum"}, "choose one of 'Ant', 'HalfCheetah'"),
        ({"partition": "3x2"}, "choose one of '2x3', '6x1'"),
        ({"scenario": "ManySegmentAnt", "partition": "2xx"}, "expected AxB"),
        ({"scenario": "ManySegmentSwimmer", "partition": "1x1"}, "at least 2 segments"),
        ({"agent_obsk": -1}, "agent_obsk is -1"),
        ({"dtype": "float16"}, "choose one of 'float32', 'float64'"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"num_envs": 0}, "num_envs is 0"),
        ({"num_threads": -1}, "num_threads is -1"),
    ],
)
def test_unknown_options_list_the_valid_ones(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvError, match=re.escape(message)):
        MaMuJoCo(**{"num_envs": 2, **options})


def test_state_of_another_size_is_refused() -> None:
    saved = MaMuJoCo(2, "HalfCheetah", "2x3").state_dict()
    with pytest.raises(EnvError, match="num_envs it came from"):
        MaMuJoCo(3, "HalfCheetah", "2x3").load_state_dict(saved)
