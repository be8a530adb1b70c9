"""Gymnasium environments of tuples, one entry per agent, as teams."""

import sys
from typing import Any

import numpy as np
import pytest

from envs import EnvError, check_env, make_env

PAIR = "gym/tests.tuple_team:Pair-v0"


@pytest.mark.parametrize("paid", ["each", "team"])
def test_contract(paid: str) -> None:
    assert check_env(make_env(PAIR, 3, workers=0, paid=paid, facts="eaten"), steps=30) == []


def test_numbers() -> None:
    env = make_env(PAIR, 1, workers=0, facts="eaten")
    assert env.spec.obs_sizes == (2, 1)
    assert env.spec.action_sizes == (2, 3)
    # The environment's own limit, found by its name.
    assert env.spec.max_steps == 6
    start = env.reset(0)
    draw = start.obs[0, 0, 0]
    np.testing.assert_array_equal(start.obs[0], [[draw, 0], [0, 0]])
    for _ in range(4):
        step = env.step(np.array([[1, 2]]))
    # Each agent is paid its own action, the team their sum; two are eaten in each of 4 steps.
    assert step.rewards[0] == 3
    assert step.facts is not None
    assert step.facts[0, 0] == 8
    assert step.terminated[0]
    np.testing.assert_array_equal(step.final_obs[0], [[draw, 4], [4, 0]])
    np.testing.assert_array_equal(step.final_state[0], [draw, 4, 4])


def test_a_reward_of_the_team_is_its_own() -> None:
    env = make_env(PAIR, 1, workers=0, paid="team")
    env.reset(0)
    assert env.step(np.array([[1, 2]])).rewards[0] == 2


def test_the_time_limit_interrupts_unless_it_is_the_task() -> None:
    for finite_horizon in (False, True):
        env = make_env(PAIR, 1, workers=0, length=3, max_steps=3, finite_horizon=finite_horizon)
        env.reset(0)
        for _ in range(3):
            step = env.step(np.array([[1, 2]]))
        assert step.terminated[0] == finite_horizon
        assert step.truncated[0] != finite_horizon


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("gym/Nothing-v0", {}, "give an id such as Foraging-8x8"),
        ("gym/no_module_here:Pair-v0", {}, "module:id if yours registers it"),
        ("gym/CartPole-v1", {}, "is not a team"),
        (PAIR, {"team_reward": "average"}, "choose sum, mean, error"),
        (PAIR, {"colour": 3}, "unexpected keyword argument 'colour'"),
    ],
)
def test_errors_say_what_to_do(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(EnvError) as caught:
        make_env(name, 1, **options)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("module", "name", "extra"),
    [
        ("lbforaging", "gym/Foraging-8x8-2p-2f-coop-v3", "lbforaging"),
        ("rware", "gym/rware-tiny-2ag-v2", "rware"),
        ("mpe2", "mpe2.simple_spread_v3:parallel_env", "mpe2"),
        (
            "pettingzoo.sisl.multiwalker_v9",
            "pettingzoo.sisl.multiwalker_v9:parallel_env",
            "sisl",
        ),
    ],
)
def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str, extra: str
) -> None:
    monkeypatch.delitem(sys.modules, "mpe2.simple_spread_v3", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EnvError) as caught:
        make_env(name, 1)
    assert f"pip install 'prefmarl[{extra}]'" in str(caught.value)
