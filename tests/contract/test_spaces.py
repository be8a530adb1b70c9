"""Every space of PettingZoo teams: observations as vectors, actions in the agents' own spaces."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.spaces import Dict, Space
from gymnasium.spaces.utils import flatten
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import marl
from envs import EnvError, check_env
from envs.adapters.pettingzoo import pettingzoo
from envs.adapters.spaces import AgentSpaces, acted, gym_space, observed
from envs.adapters.to_pettingzoo import ParallelTeam
from envs.native import NativeSpace
from envs.rng import random_actions
from tests.command_line import run
from tests.workshop import ACTED, OBSERVED, Workshop

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
    native = NativeSpace(obs=observed("ann", space), act=())
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


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(ACTED)), st.integers(0, 2**31))
def test_actions_there_and_back(kind: str, seed: int) -> None:
    space = gym_space(acted("ann", ACTED[kind], 2.0))  # with bounds
    space.seed(seed)
    native = NativeSpace(obs=(), act=acted("ann", ACTED[kind], 2.0))
    action = space.sample()
    columns = native.columns(action)
    assert len(columns) == sum(max(part, 1) for part in native.parts)
    back = native.action(columns)
    assert ACTED[kind].contains(back)
    np.testing.assert_allclose(flatten(space, back), flatten(space, action), atol=1e-5)


def test_numbers_without_bounds_have_a_limit() -> None:
    with pytest.raises(EnvError, match="action_limit 1"):
        workshop(ann_acts="unbounded")
    env = workshop(ann_acts="unbounded", bob_acts="box", action_limit=2.0)
    assert env.spec.action_kind == "continuous"
    leaf = env.spec.native_spaces[0].act[0]
    assert leaf.low == (-2.0, 0.0, -1.0)
    assert leaf.high == (2.0, 4.0, 3.0)
    with pytest.raises(EnvError, match="action_limit is -1; give a number above 0"):
        workshop(ann_acts="unbounded", action_limit=-1)


@pytest.mark.parametrize(
    ("ann", "bob", "kind"),
    [
        ("discrete", "discrete", "discrete"),
        ("discrete", "box", "composite"),
        ("multi_discrete", "multi_binary", "composite"),
        ("dict", "tuple", "composite"),
    ],
)
@pytest.mark.parametrize("masks", [False, True])
def test_teams_act_in_it(ann: str, bob: str, kind: str, masks: bool) -> None:
    env = workshop(ann_acts=ann, bob_acts=bob, masks=masks)
    assert env.spec.action_kind == kind
    assert env.spec.masks_actions == masks
    assert check_env(env, steps=12) == []
    step, rng = env.reset(0), np.random.default_rng(0)
    for _ in range(8):
        step = env.step(random_actions(env.spec, rng, step.action_mask))
    if masks and ann == "multi_discrete":
        received = [one["ann"] for one in env._runner._teams[0].source.received]
        # Masks allow 0 of the first; 1 and 2, which are called 2 and 3, of the second; 0 of the
        # last, which begins at -1, its second option.
        assert all(one[0, 0] == 0 and one[0, 1] in (2, 3) and one[1, 1] == 0 for one in received)


def test_masks_that_fit_no_action() -> None:
    env = workshop(ann_acts="multi_discrete")
    space = env.spec.native_spaces[0]
    flat = [1, 1, 0, 1, 1, 1, 0, 0, 1]
    assert space.legal(flat).tolist() == [bool(entry) for entry in flat]
    for wrong in ([1, 0], [1, 1, 0, 0, 0, 1, 1, 1, 1]):
        with pytest.raises(EnvError, match=r"give 2 \+ 3 \+ 2 \+ 2 entries.* in each part"):
            space.legal(wrong)


def test_presented_as_a_pettingzoo_environment() -> None:
    env = ParallelTeam(workshop(1, ann_acts="dict", bob_acts="multi_discrete", masks=True))
    env.reset(seed=0)
    for agent in env.possible_agents:
        env.action_space(agent).seed(0)
    while env.agents:
        actions = {agent: env.action_space(agent).sample() for agent in env.agents}
        actions["agent_0"]["grip"] = (0, np.array([1, 0]))
        actions["agent_1"] = np.array([[0, 2], [1, 0]])
        *_, infos = env.step(actions)
        assert not any("illegal_action" in info for info in infos.values())
    received = env.env._runner._teams[0].source.received  # type: ignore[attr-defined]
    assert received[-1]["ann"]["grip"][0] == 0
    np.testing.assert_array_equal(received[-1]["bob"], [[0, 2], [1, 0]])


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both kinds of parts, and masks of them, from training to a dataset and to PettingZoo."""
    run_dir, data = tmp_path / "run", tmp_path / "data"
    flags = [
        "--env.name=tests.workshop:Workshop",
        *["--env.options", "ann_acts", "dict", "bob_acts", "multi_discrete", "masks", "True"],
        *["--env.num-envs=4", "--learner.rollout-steps=8", "--preferences.replay-steps=1000"],
    ]
    assert run("train", *flags, "--total-steps=96", f"--run-dir={run_dir}") == 0
    assert run("resume", str(run_dir), "--total-steps=160") == 0
    assert run("evaluate", str(run_dir), "--episodes=4") == 0
    assert run("watch", str(run_dir), "--width=400") == 0
    with Image.open(run_dir / "episode.gif") as movie:
        movie.seek(3)  # the environment's own picture, after three steps
        red, green, blue = movie.convert("RGB").getpixel((100, 110))
    assert abs(green - 180) <= 8
    assert max(red, blue) <= 8
    assert run("export", str(run_dir), str(data), "--pairs=4") == 0
    capsys.readouterr()
    early = run_dir / "checkpoints" / "step_000000000096.ckpt"
    assert run("evaluate", str(run_dir), "--contrast", str(early)) == 1
    assert "act in several parts" in capsys.readouterr().err

    policy = marl.load(run_dir)
    env = Workshop(ann_acts="dict", bob_acts="multi_discrete", masks=True)
    obs, infos = env.reset(seed=0)
    while env.agents:  # which asserts that actions are in its spaces
        obs, *_, infos = env.step(policy.act_named(obs, env.possible_agents, infos=infos))
    assert all(one["bob"][0, 0] == 0 for one in env.received)
