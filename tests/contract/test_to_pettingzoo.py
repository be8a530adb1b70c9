"""Our environments given back to PettingZoo pass its own tests and say what ours say."""

import warnings
from multiprocessing import active_children
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo.test import parallel_api_test, parallel_seed_test

from envs import EnvError, make_env
from envs.adapters.to_pettingzoo import ParallelTeam, to_pettingzoo
from tests.scripted import ScriptedEnv

REPLACE = {"illegal": "replace"}  # the seed test ignores masks
NAMES: list[tuple[str, dict[str, Any]]] = [
    ("probe/masked", REPLACE),
    ("probe/dying", {}),
    ("probe/continuous_match", {}),
    ("probe/time_limit", {}),
    ("particles/spread_3", {"reward_mode": "dense"}),
    ("mamujoco/hopper_3x1", {"max_steps": 30}),
    ("fleet/hopper_2", {"max_steps": 60}),
    ("tests.village:Village", {"max_steps": 10, "workers": 0, "end": "cut"}),
    ("tests.village:Village", {"max_steps": 10, "workers": 0, "masks": "dict", **REPLACE}),
    ("gym/tests.tuple_team:Pair-v0", {"workers": 0, "team_reward": "sum"}),
    ("gym/Foraging-8x8-2p-2f-coop-v3", {"workers": 0}),
    ("smax/3m", REPLACE),
    ("vmas/balance", {"max_steps": 20}),
]
NEEDS = {
    "gym/Foraging-8x8-2p-2f-coop-v3": ("lbforaging", "lbforaging"),
    "smax/3m": ("jaxmarl.registration", "smax"),
    "vmas/balance": ("vmas", "vmas"),
}
"""Packages that must be installed, and the extras that they come with."""


@pytest.fixture(autouse=True)
def _packages(request: pytest.FixtureRequest) -> None:
    """Skip what needs a package that is not installed; let SMAX compile once."""
    callspec = getattr(request.node, "callspec", None)
    name = callspec.params.get("name") if callspec else None
    if name in NEEDS:
        package, extra = NEEDS[name]
        pytest.importorskip(package, reason=f"needs the extra {extra}")
    if name == "smax/3m":
        request.getfixturevalue("compiled_once")


@pytest.mark.parametrize(("name", "options"), NAMES)
def test_pettingzoos_own_tests(name: str, options: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parallel_api_test(to_pettingzoo(name, **options), num_cycles=100)
        parallel_seed_test(lambda: to_pettingzoo(name, **options), num_cycles=100)


@pytest.mark.parametrize(("name", "options"), NAMES)
def test_observations_lie_in_their_spaces(name: str, options: dict[str, Any]) -> None:
    env = to_pettingzoo(name, **options)
    obs, _ = env.reset(seed=1)
    for _ in range(60):
        for agent, own in obs.items():
            assert env.observation_space(agent).contains(own), agent
        assert env.state_space.contains(env.state())
        if not env.agents:
            obs, _ = env.reset()
        actions = {a: _sample(env, a, obs[a]) for a in env.agents}
        obs, *_ = env.step(actions)


def _sample(env: ParallelTeam, agent: str, own: Any) -> Any:
    mask = own["action_mask"] if isinstance(own, dict) else None
    return env.action_space(agent).sample(mask=mask)


def test_spaces_have_each_agents_own_size() -> None:
    env = to_pettingzoo("probe/continuous_match")
    assert env.possible_agents == ["agent_0", "agent_1"]
    assert [env.observation_space(a).shape for a in env.possible_agents] == [(2,), (3,)]
    assert [env.action_space(a).shape for a in env.possible_agents] == [(1,), (2,)]
    masked = to_pettingzoo("probe/masked").observation_space("agent_1")
    assert isinstance(masked, spaces.Dict)
    assert masked["action_mask"].shape == (5,)
    assert to_pettingzoo("particles/nav_3").action_space("agent_2") == spaces.Discrete(5)


def test_the_end_shows_the_end_and_pays_everyone() -> None:
    # Episodes of 2 steps. Agent i sees (copy, episode, t, i); the first terminates, the next is
    # truncated; a step pays 1, the last one of episode 1 pays 10 more.
    env = ParallelTeam(ScriptedEnv([[2]], obs_sizes=(4, 3), tells_facts=True))
    obs, infos = env.reset(seed=0)
    assert obs["agent_0"].tolist() == [0, 0, 0, 0]
    assert obs["agent_1"].tolist() == [0, 0, 0]
    assert infos["agent_1"] == {"episode": 0, "time": 0}
    acts = {"agent_0": 1, "agent_1": 2}
    obs, rewards, terminated, truncated, infos = env.step(acts)
    assert rewards == {"agent_0": 1, "agent_1": 1}
    assert not any(terminated.values())
    assert not any(truncated.values())
    obs, rewards, terminated, truncated, infos = env.step(acts)
    assert obs["agent_1"].tolist() == [0, 0, 2]
    assert env.state().tolist() == [0, 0, 2]
    assert infos["agent_0"] == {"episode": 0, "time": 2}
    assert terminated == {"agent_0": True, "agent_1": True}
    assert not any(truncated.values())
    assert env.agents == []
    with pytest.raises(EnvError, match="call reset first"):
        env.step(acts)


def test_agents_leave_when_they_die() -> None:
    # Agent i takes part while t <= i.
    env = ParallelTeam(ScriptedEnv([[3]], agents_die=True))
    env.reset(seed=0)
    assert env.agents == ["agent_0", "agent_1"]
    obs, _, terminated, *_ = env.step({"agent_0": 1, "agent_1": 1})
    assert terminated == {"agent_0": True, "agent_1": False}
    assert set(obs) == {"agent_0", "agent_1"}
    assert env.agents == ["agent_1"]
    obs, *_ = env.step({"agent_1": 2})
    assert set(obs) == {"agent_1"}
    np.testing.assert_array_equal(env.env.received[-1], [[0, 2]])


def test_who_dies_when_the_time_is_up_is_terminated_and_the_others_are_truncated() -> None:
    # Agent i takes part while t <= i: agent 0 dies in the only step of episodes 0 and 1, of which
    # the second one is truncated.
    env = ParallelTeam(ScriptedEnv([[1]], agents_die=True, tells_final_alive=True))
    env.reset(seed=0)
    *_, terminated, truncated, _ = env.step({"agent_0": 1, "agent_1": 1})
    assert terminated == {"agent_0": True, "agent_1": True}
    inner = env.env
    inner.episodes[:] = 1
    env.agents = list(env.possible_agents)
    *_, terminated, truncated, _ = env.step({"agent_0": 1, "agent_1": 1})
    assert terminated == {"agent_0": True, "agent_1": False}
    assert truncated == {"agent_0": False, "agent_1": True}


def test_the_dead_do_something_legal() -> None:
    # Action 0 of agent 0 is illegal.
    env = ParallelTeam(ScriptedEnv([[3]], agents_die=True, masks_actions=True))
    obs, _ = env.reset(seed=0)
    assert obs["agent_0"]["action_mask"].tolist() == [0, 1, 1]
    env.step({"agent_0": 2, "agent_1": 1})
    env.step({"agent_1": 2})
    np.testing.assert_array_equal(env.env.received[-1], [[1, 2]])


def test_illegal_actions_are_an_error_or_replaced_and_told() -> None:
    strict, lenient = to_pettingzoo("probe/masked"), to_pettingzoo("probe/masked", "replace")
    obs, _ = strict.reset(seed=0)
    lenient.reset(seed=0)
    masks = {agent: own["action_mask"] for agent, own in obs.items()}
    actions = {"agent_0": int(masks["agent_0"].argmin()), "agent_1": int(masks["agent_1"].argmax())}
    with pytest.raises(EnvError, match="agent 0 is illegal"):
        strict.step(actions)
    *_, infos = lenient.step(actions)
    assert infos == {"agent_0": {"illegal_action": True}, "agent_1": {}}
    with pytest.raises(EnvError, match="choose 'error' or 'replace'"):
        to_pettingzoo("probe/masked", "ignore")  # type: ignore[arg-type]


def test_same_steps_as_the_environment_inside() -> None:
    team, inner = to_pettingzoo("mamujoco/hopper_3x1"), make_env("mamujoco/hopper_3x1", 1)
    team.reset(seed=5)
    inner.reset(int(np.random.default_rng(5).integers(2**63)))
    rng = np.random.default_rng(0)
    for _ in range(10):
        actions = rng.uniform(-1, 1, (1, 3, 1)).astype(np.float32)
        obs, *_ = team.step({f"agent_{i}": actions[0, i] for i in range(3)})
        step = inner.step(actions)
        for i in range(3):
            size = inner.spec.obs_sizes[i]
            np.testing.assert_array_equal(obs[f"agent_{i}"], step.final_obs[0, i, :size])


def test_wrong_use_says_what_to_do() -> None:
    with pytest.raises(EnvError, match="make it with num_envs=1"):
        ParallelTeam(make_env("probe/masked", 2))
    env = to_pettingzoo("probe/time_limit")
    env.reset()
    with pytest.raises(EnvError, match="no action for agent_0"):
        env.step({})


def test_closing_ends_the_workers() -> None:
    options = {"workers": 1, "fault": "none", "fails_at": 0}
    env = to_pettingzoo("tests.fragile:fragile", reward_mode="episodic", **options)
    before = len(active_children())
    env.reset(seed=0)
    assert len(active_children()) == before + 1
    env.close()
    assert len(active_children()) == before
