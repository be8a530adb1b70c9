"""PettingZoo environments: agents that differ, come and go; masks, ends, facts, clear errors."""

import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Sequence, Space, Text, Tuple

from envs import EnvError, EnvStep, check_env, make_env
from envs.adapters.pettingzoo import pettingzoo
from envs.adapters.spaces import ObsBoundsWarning
from envs.adapters.team_env import TeamEnv
from tests.village import Village


def village(num_envs: int = 2, **options: Any) -> TeamEnv:
    options = {"max_steps": 10, "workers": 0} | options
    return pettingzoo(Village, "village", num_envs=num_envs, **options)


def village_and_its_log(**options: Any) -> tuple[TeamEnv, list[dict[str, Any]]]:
    """Return an environment, and the list that takes the actions which its source receives."""
    log: list[dict[str, Any]] = []

    def made(**given: Any) -> Village:
        source = Village(**given)
        source.received = log
        return source

    options = {"max_steps": 10, "workers": 0} | options
    return pettingzoo(made, "village", num_envs=1, **options), log


def played(env: TeamEnv, steps: int) -> list[EnvStep]:
    """Return the reset and the steps in which everybody chooses the first action."""
    shape = (env.spec.num_envs, env.spec.num_agents)
    results = [env.reset(0)]
    for _ in range(steps):
        results.append(env.step(np.zeros(shape, np.int64)))
    return results


@pytest.mark.parametrize("masks", ["", "dict", "info"])
@pytest.mark.parametrize("end", ["cut", "done", "quiet", "never"])
def test_contract(end: str, masks: str) -> None:
    env = village(3, end=end, masks=masks, facts="age", rewards=(), team_reward="sum")
    assert env.spec.masks_actions == bool(masks)
    assert env.spec.agents_die
    assert check_env(env, steps=40) == []


class Falling(Village):
    """When time is up, in step 4, the child is not cut off: its task ends in that very step."""

    def step(self, actions: Any) -> Any:
        obs, rewards, terminated, truncated, infos = super().step(actions)
        if self.t == 4:
            terminated["child"], truncated["child"] = True, False
        return obs, rewards, terminated, truncated, infos


@pytest.mark.parametrize(
    ("kind", "options", "steps", "final"),
    [
        (Falling, {"max_steps": 10}, 4, [False, False, True]),
        (Village, {"max_steps": 10}, 4, [False, True, True]),
        (Village, {"max_steps": 3}, 3, [False, True, True]),  # the elder ends where the limit cuts
        (
            partial(Village, end="done"),
            {"max_steps": 4, "limit_terminates": True},
            4,
            [False, True, True],
        ),
    ],
)
def test_who_would_have_gone_on(
    kind: Any, options: dict[str, Any], steps: int, final: list[bool]
) -> None:
    env = pettingzoo(kind, "village", num_envs=1, workers=0, **options)
    step = played(env, steps)[-1]
    assert step.truncated.all()
    assert step.alive is not None
    assert step.final_alive is not None
    assert step.final_alive[0].tolist() == final
    assert step.alive[0].tolist() == [True, True, False]  # of the next episode


def test_spaces_become_sizes() -> None:
    spec = village().spec
    assert spec.obs_sizes == (2, 4, 2)
    assert spec.action_sizes == (3, 2, 3)
    assert spec.state_size == 2


def test_agents_keep_their_names() -> None:
    env = village()
    assert env.spec.agent_names == ("elder", "child", "guest")
    assert env.spec.agent_name(1) == "child"
    env.reset(0)
    with pytest.raises(EnvError, match="action 9 of copy 0, child is illegal"):
        env.step(np.array([[0, 9, 0]] * env.spec.num_envs))


def test_what_agents_see_while_they_come_and_go() -> None:
    start, one, _, three, four = played(village(1, end="cut"), 4)
    draw = start.state[0, 0]
    assert start.alive is not None
    assert one.alive is not None
    assert three.alive is not None
    # The child sees t modulo 4 as a one-hot; the guest is not there yet and sees nothing.
    np.testing.assert_array_equal(start.obs[0], [[draw, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(start.alive[0], [True, True, False])
    np.testing.assert_array_equal(one.obs[0], [[draw, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(one.alive[0], [True, True, True])
    # The elder left in step 3; its row is zero while the team goes on.
    np.testing.assert_array_equal(three.obs[0], [[0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 0, 0]])
    np.testing.assert_array_equal(three.alive[0], [False, True, True])
    # t = 4 at the end: 4 modulo 4 is 0, its bits are 0 0; the next episode starts.
    np.testing.assert_array_equal(four.final_obs[0], [[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(four.final_state[0], [draw, 4])
    assert four.state[0, 1] == 0


@pytest.mark.parametrize(
    ("end", "finite_horizon", "max_steps", "terminated", "truncated"),
    [
        ("cut", False, 10, False, True),
        ("done", False, 10, True, False),
        ("quiet", False, 10, True, False),
        # A task that ends in the very step of the limit has ended; what is only cut or stops
        # there ran out of time.
        ("done", False, 4, True, False),
        ("quiet", False, 4, False, True),
        ("cut", True, 4, True, False),
        ("never", False, 4, False, True),
        ("never", True, 4, True, False),
    ],
)
def test_how_it_ends(
    end: str, finite_horizon: bool, max_steps: int, terminated: bool, truncated: bool
) -> None:
    env = village(1, end=end, finite_horizon=finite_horizon, max_steps=max_steps)
    steps = played(env, 4)
    assert [bool(step.terminated[0]) for step in steps] == [False] * 4 + [terminated]
    assert [bool(step.truncated[0]) for step in steps] == [False] * 4 + [truncated]


@pytest.mark.parametrize("masks", ["dict", "info"])
def test_masks(masks: str) -> None:
    start, one, _, three, _ = (step.action_mask for step in played(village(1, masks=masks), 4))
    assert start is not None
    assert one is not None
    assert three is not None
    # Choices beyond an agent's own are never legal, the last one only at even t; the absent
    # guest at the start and the elder that left at t = 3 may choose anything of their own.
    np.testing.assert_array_equal(start[0], [[1, 1, 1], [1, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(one[0], [[1, 1, 0], [1, 0, 0], [1, 1, 0]])
    np.testing.assert_array_equal(three[0], [[1, 1, 1], [1, 0, 0], [1, 1, 0]])


def test_actions_arrive_in_their_own_space() -> None:
    env, received = village_and_its_log()
    env.reset(0)
    env.step(np.array([[2, 1, 0]]))
    env.step(np.array([[0, 1, 2]]))
    assert received == [{"elder": 2, "child": 11}, {"elder": 0, "child": 11, "guest": 22}]


@pytest.mark.parametrize(
    ("mode", "paid"), [("sum", [4, 7, 7, 6]), ("mean", [4 / 3, 7 / 3, 7 / 3, 2])]
)
def test_team_reward(mode: str, paid: list[float]) -> None:
    # Elder 1, child 3, guest 3: two act in step 1, three in 2 and 3, child and guest in 4.
    steps = played(village(1, rewards=(1, 3, 3), team_reward=mode), 4)
    assert [step.rewards[0] for step in steps] == [0, *paid]


def test_facts_are_averaged_over_agents() -> None:
    env = village(1, facts="age")
    facts = [step.facts[0, 0] for step in played(env, 4) if step.facts is not None]
    # t plus the mean number (0, 1, 2) of the agents that are told: 0.5, then 1 once the guest is
    # there, and 1.5 without the elder, at the end of the episode too.
    assert facts == [0.5, 2, 3, 4, 5.5]
    assert env.spec.facts[0].name == "age"


def test_without_a_state_the_observations_stand_for_it() -> None:
    for options in ({"own_state": False}, {"facts": "age", "own_state": False}):
        env = village(1, **options)
        step = played(env, 1)[-1]
        np.testing.assert_array_equal(step.state[0], np.delete(step.obs[0].ravel(), [2, 3, 10, 11]))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_steps": None}, "might never end; set `--env.options max_steps 100`"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"rewards": (1.0, -1.0, 0.0)}, "set `--env.options team_reward mean`"),
        ({"team_reward": "average"}, "choose sum, mean, error"),
        ({"facts": "won"}, "its entries were age"),
        ({"agents_die": False}, "agents_die is False; leave it True"),
        ({"fault": "shape"}, "agent elder observed float64 of shape (1,)"),
        ({"fault": "range"}, "integers from -1 to 2"),
        ({"fault": "silent"}, "observations lacks 'elder'"),
        ({"fault": "stranger"}, "'stranger' is not among possible_agents"),
        ({"rewards": (1.0, -1.0, 0.0)}, "paid differently (elder: 1, child: -1)"),
        ({"colour": 3}, "unexpected keyword argument 'colour'; it takes no num_envs"),
        ({"rewards": None}, "has no len() (village.py, line "),
    ],
)
def test_errors_say_what_to_do(options: dict[str, Any], words: str) -> None:
    with pytest.raises(EnvError) as caught:
        played(village(1, **options), 4)
    assert words in str(caught.value)
    assert "village" in str(caught.value) or "team_reward" in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_observations_outside_their_space(workers: int) -> None:
    """Training warns once and goes on; the check counts a fault."""
    words = r"^village, agent elder observed 1e\+06 at \[1\] \(copy 0\); its space promises -9 to 9"
    pay = {"rewards": (), "team_reward": "sum"}
    env = village(2, fault="outside", workers=workers, **pay)
    with pytest.warns(ObsBoundsWarning, match=words) as caught:
        played(env, 20)
    # Where an earlier test has imported JAX, a worker's fork warns, too.
    assert len([one for one in caught if one.category is ObsBoundsWarning]) == 1
    faults = check_env(env, steps=40)
    assert len(faults) == 1
    assert "village: agent elder observed 1e+06 at [1]" in faults[0]
    assert "correct the space, or scale or clip what is observed" in faults[0]
    env.close()


def test_rounding_and_absent_agents_are_not_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    # The elder sees (draw, t) with t up to 2, and a row of zeros once it has left.
    spaces: dict[str, Space[Any]] = {
        "elder": Box(1e-7, np.array([np.finfo(np.float32).max, 2 - 1e-6]), (2,), np.float64),
        "child": Discrete(4, start=-1),
    }
    spaces["guest"] = MultiBinary(2)
    monkeypatch.setattr(Village, "observation_space", lambda self, agent: spaces[agent])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        played(village(1), 20)


@pytest.mark.parametrize(
    ("method", "space", "words"),
    [
        ("observation_space", Text(5), "supported are Box, Discrete, MultiDiscrete"),
        ("observation_space", Dict({"a": Sequence(Box(0, 1))}), "arrays of one size"),
        ("observation_space", Dict({"action_mask": MultiBinary(2)}), "arrays of one size"),
        (
            "action_space",
            Text(5),
            "supported are Discrete, MultiDiscrete, MultiBinary",
        ),
        ("action_space", Tuple([Discrete(2), Box(0, 5, dtype=np.int64)]), "for each integer"),
        ("action_space", Box(-np.inf, np.inf, (1,)), "finite low and high"),
    ],
)
def test_spaces_that_are_not_spoken(
    monkeypatch: pytest.MonkeyPatch, method: str, space: Any, words: str
) -> None:
    monkeypatch.setattr(Village, method, lambda self, agent: space)
    with pytest.raises(EnvError) as caught:
        village()
    assert words in str(caught.value)


def test_steering_is_scaled_to_the_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    low, high = np.array([0.0, -2.0], np.float32), np.array([1.0, 6.0], np.float32)
    monkeypatch.setattr(Village, "action_space", lambda self, agent: Box(low, high))
    env, received = village_and_its_log()
    env.reset(0)
    env.step(np.array([[[-1, -1], [0, 0], [0, 0]]], np.float32))
    env.step(np.array([[[1, 1], [0.5, 0.5], [0, 0]]], np.float32))
    first, second = received
    np.testing.assert_array_equal(first["elder"], [0, -2])
    np.testing.assert_array_equal(first["child"], [0.5, 2])
    np.testing.assert_array_equal(second["elder"], [1, 6])
    np.testing.assert_array_equal(second["child"], [0.75, 4])


def test_by_import_path() -> None:
    env = make_env("tests.village:Village", 2, max_steps=6, masks="dict")
    assert env.spec.name == "tests.village:Village"
    assert env.spec.max_steps == 6


def test_turn_based_environments_are_refused() -> None:
    with pytest.raises(EnvError, match="agents act in turn, each seeing what those"):
        make_env("tests.contract.turn_based:in_turn", 2, max_steps=6)


def test_others_of_their_kind_are_converted() -> None:
    env = make_env("tests.contract.turn_based:at_once", 2, max_steps=4, workers=0)
    assert check_env(env, steps=12) == []
    expected = make_env("tests.workshop:Workshop", 2, workers=0)
    for one, other in zip(played(env, 10), played(expected, 10), strict=True):
        for name in ("obs", "rewards", "terminated", "truncated", "final_obs"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
