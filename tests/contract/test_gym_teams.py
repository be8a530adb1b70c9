"""Gymnasium environments of tuples, one entry per agent, as teams."""

import sys
from typing import Any

import numpy as np
import pytest

from envs import EnvError, check_env, make_env

PAIR = "gym/tests.tuple_team:Pair-v0"


@pytest.mark.parametrize("paid", ["each", "team"])
def test_contract(paid: str) -> None:
    env = make_env(PAIR, 3, workers=0, paid=paid, team_reward="sum", facts="eaten")
    assert check_env(env, steps=30) == []


def test_numbers() -> None:
    env = make_env(PAIR, 1, workers=0, team_reward="sum", facts="eaten")
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


@pytest.mark.parametrize(
    ("options", "steps", "terminated"),
    [
        ({"length": 4, "max_steps": 3}, 3, False),
        ({"length": 4, "max_steps": 3, "finite_horizon": True}, 3, True),
        # A task that ends in the very step of the limit has ended, unless it only says so.
        ({"length": 3, "max_steps": 3}, 3, True),
        ({"length": 3, "max_steps": 3, "limit_terminates": True}, 3, False),
        ({"length": 3, "max_steps": 4, "limit_terminates": True}, 3, True),
        # Agent 0 is terminated and agent 1 truncated: the episode is over, and was cut.
        ({"end": "mixed"}, 4, False),
    ],
)
def test_how_it_ends(options: dict[str, Any], steps: int, terminated: bool) -> None:
    env = make_env(PAIR, 1, workers=0, team_reward="sum", **options)
    env.reset(0)
    for t in range(1, steps + 1):
        step = env.step(np.array([[1, 2]]))
        assert (step.terminated[0] or step.truncated[0]) == (t == steps)
    assert step.terminated[0] == terminated
    assert step.truncated[0] != terminated


def test_nobody_leaves_before_the_end() -> None:
    env = make_env(PAIR, 1, workers=0, team_reward="sum", end="partial")
    env.reset(0)
    for _ in range(3):
        env.step(np.array([[1, 2]]))
    with pytest.raises(EnvError) as caught:
        env.step(np.array([[1, 2]]))
    assert "agent 0 came to an end (terminated [True, False], truncated False)" in str(caught.value)
    assert "Make it a PettingZoo ParallelEnv" in str(caught.value)


def test_different_rewards_are_a_choice() -> None:
    env = make_env(PAIR, 1, workers=0)
    env.reset(0)
    assert env.step(np.array([[1, 1]])).rewards[0] == 1
    with pytest.raises(EnvError) as caught:
        env.step(np.array([[1, 2]]))
    assert "paid differently (agent 0: 1, agent 1: 2)" in str(caught.value)
    assert "set `--env.options team_reward mean`" in str(caught.value)


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
    assert f"pip install -c constraints.txt '.[{extra}]'" in str(caught.value)
    assert str(caught.value).count(f"{name}'") == 1
