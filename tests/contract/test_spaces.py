"""Observations of every space as vectors, in PettingZoo teams and where a policy acts."""

from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Dict, Space
from gymnasium.spaces.utils import flatten
from hypothesis import given, settings
from hypothesis import strategies as st

from envs import EnvError, check_env
from envs.adapters.pettingzoo import pettingzoo
from envs.adapters.spaces import AgentSpaces, observed
from envs.base import NativeSpace
from tests.workshop import OBSERVED, Workshop

KINDS = sorted(OBSERVED)


def workshop(num_envs: int = 2, workers: int = 0, **options: Any) -> Any:
    return pettingzoo(Workshop, "workshop", num_envs=num_envs, workers=workers, **options)


def without_mask(space: Space[Any]) -> Space[Any]:
    assert isinstance(space, Dict)
    return Dict({key: held for key, held in space.spaces.items() if key != "action_mask"})


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 2**31))
def test_an_observation_becomes_what_gymnasium_flattens_it_to(kind: str, seed: int) -> None:
    space = OBSERVED[kind]
    space.seed(seed)
    seen = space.sample()
    native = NativeSpace(obs=observed("ann", space))
    plain = without_mask(space) if "masked" in kind else space
    kept = {key: seen[key] for key in plain} if isinstance(plain, Dict) else seen
    np.testing.assert_array_equal(native.features(seen), flatten(plain, kept).astype(np.float32))


@pytest.mark.parametrize("ann", KINDS)
def test_teams_show_it(ann: str) -> None:
    env = workshop(ann=ann, bob="multi_discrete")
    spec = env.spec
    assert spec.obs_sizes[1] == 2 + 3 + 4 + 2
    assert spec.masks_actions == ("masked" in ann)
    assert check_env(env, steps=12) == []
    step = env.reset(3)
    shown = env._runner._teams[0].source.shown[-1]
    for agent, name in enumerate(("ann", "bob")):
        expected = spec.native_spaces[agent].features(shown[name])
        np.testing.assert_array_equal(step.obs[0, agent, : len(expected)], expected)
    if "masked" in ann:
        np.testing.assert_array_equal(step.action_mask[0, 0], shown["ann"]["action_mask"])
        assert step.action_mask[0, 1].all()


@pytest.mark.parametrize(
    ("kind", "seen", "words"),
    [
        ("discrete", 5, "observed 5; its space promises integers from 2 to 4"),
        ("discrete", 2.5, "integers from 2 to 4"),
        ("multi_discrete", np.array([[1, 0], [3, 5]]), "observed 3; .* from -1 to 2"),
        ("multi_discrete", np.zeros(4, int), r"integers of shape \(2, 2\)"),
        ("tuple", (1,), r"observed a tuple .* without 1; its space promises something at \[1\]"),
        ("tuple", (1, "near"), r"observed a str \('near'\) at \[1\]; .* numbers of shape \(2,\)"),
        ("dict", {"flags": np.zeros(2)}, r"observed a dict .* without 'held'"),
        ("masked", {"tool": 1, "place": np.zeros(2)}, "holds 'action_mask'"),
    ],
)
def test_what_a_space_does_not_promise(kind: str, seen: Any, words: str) -> None:
    env = workshop(ann=kind)
    env.reset(0)
    team = env._runner._teams[0]
    spaces: AgentSpaces = team._spaces
    with pytest.raises(EnvError, match=words):
        spaces.write(0, seen, env._runner._views[0], over=False)
