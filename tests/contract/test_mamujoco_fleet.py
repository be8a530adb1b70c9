"""Fleets keep the environment contract and share one reward."""

from typing import Any

import numpy as np
import pytest

from envs.base import EnvError, EnvStep, VecEnv
from envs.catalogue import FLEET_SCENARIOS
from envs.mujoco.fleet import Fleet, fleet_from_name
from envs.mujoco.mamujoco import MaMuJoCo


def snapshot(step: EnvStep) -> dict[str, Any]:
    return {name: None if v is None else np.array(v) for name, v in vars(step).items()}


@pytest.mark.parametrize("scenario", FLEET_SCENARIOS)
def test_state_is_all_observations_side_by_side(scenario: str) -> None:
    env = Fleet(2, scenario, 3)
    assert isinstance(env, VecEnv)
    env.reset(seed=0)
    step = env.step(np.full((2, 3, env.spec.action_size), 0.3))
    assert step.obs.shape == (2, 3, env.spec.obs_size)
    np.testing.assert_array_equal(step.state, step.obs.reshape(2, -1))
    assert len(np.unique(step.obs.reshape(6, -1), axis=0)) == 6
    assert env.spec.max_steps == 200
    assert env.spec.agents_die == (step.alive is not None)


def test_a_body_moves_as_it_would_alone() -> None:
    # One fleet of two bodies is two environments of MaMuJoCo: same simulations, seeds and actions.
    fleet = Fleet(1, "HalfCheetah", 2, dtype="float64")
    alone = MaMuJoCo(2, "HalfCheetah", "2x3", dtype="float64")
    fleet.reset(seed=4)
    alone.reset(seed=4)
    for a in np.random.default_rng(0).uniform(-1, 1, (20, 2, 6)):
        team, single = fleet.step(a[None]), alone.step(a.reshape(2, 2, 3))
        np.testing.assert_array_equal(team.obs[0], single.state)
        np.testing.assert_allclose(team.rewards, [single.rewards.mean()], rtol=1e-12)


def test_the_dead_stay_dead_earn_nothing_and_end_the_task_together() -> None:
    env = Fleet(2, "Hopper", 3, dtype="float64")
    previous = env.reset(seed=0)
    assert previous.alive is not None
    assert previous.alive.all()
    alive, before = previous.alive.copy(), previous.obs.copy()
    deaths = ends = 0
    for a in np.random.default_rng(0).uniform(-1, 1, (120, 2, 3, 3)):
        step = env.step(a)
        assert step.alive is not None
        over = step.terminated
        assert not step.truncated.any()
        frozen = ~alive & ~over[:, None]
        np.testing.assert_array_equal(step.obs[frozen], before[frozen])
        assert not (step.alive & ~alive)[~over].any()
        assert step.alive[over].all()
        assert step.alive.any(axis=1).all()
        # a hopper's dense reward is at most about 1 + speed; a lone survivor earns a third
        lonely = alive.sum(axis=1) == 1
        assert (step.rewards[lonely] < 0.8).all()
        deaths += (~step.alive & alive).sum()
        ends += over.sum()
        alive, before = step.alive.copy(), step.obs.copy()
    assert deaths > 5
    assert ends > 2


@pytest.mark.parametrize("scenario", ["Hopper", "Ant", "Humanoid", "HalfCheetah"])
def test_saved_state_with_dead_bodies_continues_exactly(scenario: str) -> None:
    def make() -> Fleet:
        return Fleet(2, scenario, 3, max_steps=60)

    env = make()
    env.reset(seed=1)
    shape = (150, 2, 3, env.spec.action_size)
    actions = np.random.default_rng(0).uniform(-1, 1, shape)
    uninterrupted, saves = [], []
    for a in actions:
        uninterrupted.append(snapshot(env.step(a)))
        alive = uninterrupted[-1]["alive"]
        if alive is None or not alive.all():
            saves.append((len(uninterrupted), env.state_dict()))
    start, saved = saves[0]
    for target in (env, make()):
        target.load_state_dict(saved)
        for a, expected in zip(actions[start:], uninterrupted[start:], strict=True):
            step = snapshot(target.step(a))
            for name, value in expected.items():
                np.testing.assert_array_equal(value, step[name], err_msg=name)


def test_names_and_bad_input() -> None:
    assert fleet_from_name("halfcheetah_4") == ("HalfCheetah", 4)
    with pytest.raises(EnvError, match="nearest: 'halfcheetah'"):
        fleet_from_name("halfcheeta_4")
    with pytest.raises(EnvError, match="how many bodies"):
        fleet_from_name("hopper_x")
    with pytest.raises(EnvError, match="num_bodies is 0"):
        Fleet(1, "Hopper", 0)
    with pytest.raises(EnvError, match="nearest: 'Hopper'"):
        Fleet(1, "Hoper", 2)
    env = Fleet(2, "Hopper", 3)
    with pytest.raises(EnvError, match="call reset"):
        env.step(np.zeros((2, 3, 3)))
    env.reset(seed=0)
    actions = np.zeros((2, 3, 3))
    actions[1, 2, 0] = np.inf
    with pytest.raises(EnvError, match="agent 2 in copy 1 is inf"):
        env.step(actions)
