"""A trained team acts outside the trainer: shapes, ranges, masks, seeds, names."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pettingzoo import ParallelEnv

import marl
from envs import make_env
from envs.adapters.to_pettingzoo import to_pettingzoo
from marl.config import Config, EnvConfig, NetworkConfig
from marl.learners.actors import GaussianActor, make_actor
from marl.nn.normalisation import TeamNorm

SMALL: dict[str, Any] = {
    "algorithm": "imap",
    "env.num_envs": 4,
    "total_steps": 200,
    "threads": 1,
    "learner.rollout_steps": 25,
    "learner.epochs": 1,
    "network.hidden_sizes": [8],
}


def untrained(name: str, seed: int = 0, recurrence: Literal["none", "gru"] = "none") -> marl.Policy:
    """Return a policy with random weights."""
    config = Config(env=EnvConfig(name=name), network=NetworkConfig(recurrence=recurrence))
    spec = make_env(name, 1).spec
    norm, source = TeamNorm(spec, enabled=True), torch.Generator().manual_seed(3)
    actor = make_actor(spec, config.network, norm, source)
    return marl.Policy(config=config, spec=spec, steps=0, actor=actor, seed=seed)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run on three particles."""
    folder = tmp_path_factory.mktemp("policy") / "run"
    overrides = SMALL | {"env.name": "particles/nav_3", "algorithm": "sparse"}
    list(marl.train(marl.load_config(overrides=overrides), folder))
    return folder


def test_load_acts_as_the_trainer_does(run: Path) -> None:
    policy = marl.load(run)
    assert policy.steps == 200
    trainer = marl.Trainer(policy.config)
    while trainer.iteration < trainer.config.num_iterations:
        trainer.iterate()
    obs = make_env("particles/nav_3", 6).reset(0).obs
    with torch.no_grad():
        expected = trainer.learner.actor.act(torch.from_numpy(obs))[0]
    np.testing.assert_array_equal(policy.act(obs, greedy=True), expected.numpy())


def test_one_team_or_many(run: Path) -> None:
    policy = marl.load(run)
    step = make_env("particles/nav_3", 6).reset(0)
    many = policy.act(step.obs, step.state, greedy=True)
    assert many.shape == (6, 3)
    assert many.dtype == np.int64
    for copy in range(6):
        np.testing.assert_array_equal(policy.act(step.obs[copy], greedy=True), many[copy])


def test_draws_come_from_the_policys_own_seed(run: Path) -> None:
    obs = make_env("particles/nav_3", 50).reset(0).obs
    policy, same, other = marl.load(run, seed=1), marl.load(run, seed=1), marl.load(run, seed=2)
    torch.manual_seed(0)
    first, second = policy.act(obs), policy.act(obs)
    np.testing.assert_array_equal(same.act(obs), first)
    assert (first != second).any()
    assert (other.act(obs) != first).any()
    policy.reset()
    assert (policy.act(obs) != first).any()
    policy.reset(seed=1)
    np.testing.assert_array_equal(policy.act(obs), first)


def test_a_recurrent_team_keeps_its_hidden_state_until_it_is_reset() -> None:
    policy = untrained("probe/continuous_match", recurrence="gru")
    assert isinstance(policy.actor, GaussianActor)
    with torch.no_grad():
        policy.actor.body.after[-1].weight.mul_(10.0)  # type: ignore[index, union-attr, operator]
    obs = make_env("probe/continuous_match", 4).reset(0).obs
    first, second = (policy.act(obs, greedy=True) for _ in range(2))
    assert not np.isclose(first, second).all(axis=-1).any()
    policy.reset()
    policy.act(obs, greedy=True)
    np.testing.assert_array_equal(policy.act(obs, greedy=True), second)
    policy.reset_done([True, False, False, True])
    mixed = policy.act(obs, greedy=True)
    np.testing.assert_allclose(mixed[[0, 3]], first[[0, 3]], rtol=1e-6)
    assert not np.isclose(mixed[[1, 2]], first[[1, 2]]).all(axis=-1).any()
    with pytest.raises(
        ValueError, match=r"obs holds 3 teams, the policy.s hidden state 4; call reset"
    ):
        policy.act(obs[:3])
    policy.reset()
    np.testing.assert_array_equal(policy.act(obs, greedy=True), first)


def test_continuous_actions_are_clipped_to_the_range() -> None:
    policy = untrained("probe/continuous_match")
    assert isinstance(policy.actor, GaussianActor)
    with torch.no_grad():
        policy.actor.log_std.fill_(2.0)  # deviations of 7.4: most samples lie outside [-1, 1]
    actions = policy.act(np.zeros((200, 2, 3), np.float32))
    assert actions.shape == (200, 2, 2)
    assert actions.dtype == np.float32
    assert np.abs(actions).max() == 1.0
    assert (actions[:, 0, 1] == 0.0).all()  # agent 0 has one dimension


def test_masks_are_kept_and_asked_for() -> None:
    policy = untrained("probe/masked")
    step = make_env("probe/masked", 100).reset(0)
    for greedy in (False, True):
        actions = policy.act(step.obs, mask=step.action_mask, greedy=greedy)
        assert step.action_mask is not None
        assert np.take_along_axis(step.action_mask, actions[:, :, None], axis=2).all()
    with pytest.raises(ValueError, match="has illegal actions; give mask"):
        policy.act(step.obs)
    with pytest.raises(ValueError, match=r"mask has shape \(2, 5\); expected \(100, 2, 5\)"):
        policy.act(step.obs, mask=np.ones((2, 5), bool))


def test_wrong_shapes_name_both_sides(run: Path) -> None:
    with pytest.raises(ValueError, match=r"obs has shape \(3, 7\); .* trained with \(3, 6\)"):
        marl.load(run).act(np.zeros((3, 7)))


@pytest.mark.parametrize("name", ["probe/masked", "probe/dying", "probe/continuous_match"])
def test_named_actions_play_a_parallel_env(name: str) -> None:
    env, policy = to_pettingzoo(name), untrained(name)
    ends = 0
    obs, _ = env.reset(seed=0)
    for _ in range(40):
        actions = policy.act_named({a: obs[a] for a in env.agents}, env.possible_agents)
        assert set(actions) == set(env.agents)
        assert all(env.action_space(a).contains(action) for a, action in actions.items())
        obs, *_ = env.step(actions)
        if not env.agents:
            ends += 1
            obs, _ = env.reset()
    assert ends >= 4


class Valves(ParallelEnv):  # type: ignore[type-arg]
    """Agents whose spaces are no vectors and whose actions are neither from 0 nor in [-1, 1]."""

    metadata = {"name": "valves"}  # noqa: RUF012  # PettingZoo's own spelling
    possible_agents = ["left", "right"]  # noqa: RUF012  # as above

    def __init__(self, acts: str = "box") -> None:
        self.acts = acts

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return (
            spaces.Box(-1, 1, (2, 2), np.float64)
            if agent == "left"
            else spaces.Discrete(3, start=7)
        )

    def action_space(self, agent: str) -> spaces.Space[Any]:
        if self.acts == "discrete":
            return spaces.Discrete(3, start=5 if agent == "left" else -1)
        low = np.array([[10.0], [-4.0]], np.float32)
        return (
            spaces.Box(low, low + 10.0) if agent == "left" else spaces.Box(0, 1, (1,), np.float64)
        )

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[Any, Any]:
        self.agents, self.t = list(self.possible_agents), 0
        return self._seen(), {agent: {} for agent in self.agents}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, Any]:
        for agent, action in actions.items():
            assert self.action_space(agent).contains(action), (agent, action)
        self.t += 1
        over = dict.fromkeys(self.agents, self.t == 4)
        infos: dict[str, Any] = {agent: {} for agent in self.agents}
        answer = self._seen(), dict.fromkeys(over, 1.0), dict.fromkeys(over, False), over, infos
        if self.t == 4:
            self.agents = []
        return answer

    def _seen(self) -> dict[str, Any]:
        return {"left": np.full((2, 2), 0.1 * self.t), "right": 7 + self.t % 3}

    def close(self) -> None: ...


@pytest.mark.parametrize("acts", ["box", "discrete"])
def test_a_policy_acts_in_the_spaces_it_was_trained_in(acts: str, tmp_path: Path) -> None:
    """The raw PettingZoo environment gets what its spaces contain, and what training gave it."""
    name = "tests.contract.test_policy:Valves"
    options = {"acts": acts, "max_steps": 4, "workers": 0}
    overrides = SMALL | {"env.name": name, "env.options": options, "algorithm": "sparse"}
    list(marl.train(marl.load_config(overrides=overrides), tmp_path / "run"))
    policy, raw = marl.load(tmp_path / "run"), Valves(acts)
    obs, _ = raw.reset()
    step = make_env(name, 1, **options).reset(0)
    expected = policy.act(step.obs[0], greedy=True)
    named = policy.act_named(obs, raw.possible_agents, greedy=True)
    if acts == "discrete":
        assert named == {"left": expected[0] + 5, "right": expected[1] - 1}
    else:
        low = np.array([[10.0], [-4.0]])
        np.testing.assert_allclose(named["left"], low + 5.0 + 5.0 * expected[0][:, None], rtol=1e-6)
        np.testing.assert_allclose(named["right"], 0.5 + 0.5 * expected[1][:1], rtol=1e-6)
    ours = to_pettingzoo(name, **options)
    same, _ = ours.reset(seed=0)
    while raw.agents:
        actions = policy.act_named(obs, raw.possible_agents)
        obs, *_ = raw.step(actions)
        ours.step(policy.act_named(same, ours.possible_agents))
    with pytest.raises(ValueError, match=r"right observed 3; its space promises integers from 7"):
        policy.act_named({"right": 3}, raw.possible_agents)


def test_masks_of_infos_count_for_named_actions() -> None:
    policy = untrained("probe/masked")
    obs = {"a": np.zeros(5, np.float32), "b": np.zeros(5, np.float32)}
    only = {name: {"action_mask": np.eye(5, dtype=np.int8)[3]} for name in obs}
    assert policy.act_named(obs, ["a", "b"], infos=only) == {"a": 3, "b": 3}


def test_named_actions_are_those_of_the_team() -> None:
    policy = untrained("probe/continuous_match")
    team = np.zeros((2, 3), np.float32)
    team[0, :2], team[1] = [0.3, -0.2], [0.1, 0.9, -0.4]
    named = policy.act_named({"b": team[1], "a": team[0, :2]}, ["a", "b"], greedy=True)
    expected = policy.act(team, greedy=True)
    np.testing.assert_array_equal(named["a"], expected[0, :1])
    np.testing.assert_array_equal(named["b"], expected[1])
    with pytest.raises(ValueError, match=r"the observation of a has shape \(3,\)"):
        policy.act_named({"a": team[0]}, ["a", "b"])
    with pytest.raises(ValueError, match=r"lacks \['c'\]"):
        policy.act_named({"c": team[1]}, ["a", "b"])
