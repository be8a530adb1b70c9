"""What a rollout records: whose step it was, what it led to, and which episodes ended."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import marl
from envs import EnvError, EnvStep
from marl.data.types import Rollout
from marl.learners.actors import GaussianActor
from marl.trainer import episode_metrics
from tests.learners import mappo_of
from tests.scripted import FACTS, ScriptedEnv, scripted_collector

LENGTHS = [[3, 5], [4, 2, 6]]
"""Copy 0 ends after 3, 8, 11, ... steps; copy 1 after 4, 6, 12, ..."""


def two_rollouts(**options: bool) -> list[Rollout]:
    """Return two consecutive rollouts of five steps."""
    collector, actor = scripted_collector(ScriptedEnv(LENGTHS, **options), 5)
    return [copy.deepcopy(collector.collect(actor)[0]) for _ in range(2)]


def test_finished_episodes_by_hand() -> None:
    first, second = (rollout.episodes for rollout in two_rollouts())
    # First five steps: copy 0 ends its episode 0 at step 2, copy 1 its episode 0 at step 3.
    assert first.end_time.tolist() == [2, 3]
    assert first.env.tolist() == [0, 1]
    assert first.lengths.tolist() == [3, 4]
    assert first.returns.tolist() == [3.0, 4.0]  # 1 a step, nothing on top for episode 0
    assert first.terminated.tolist() == [True, True]
    # Steps 5 to 9: copy 1 ends episode 1 at step 5, copy 0 its episode 1 at step 7. Both began
    # in the first rollout and both are odd, so truncated and paid 10 at their end.
    assert second.end_time.tolist() == [0, 2]
    assert second.env.tolist() == [1, 0]
    assert second.lengths.tolist() == [2, 5]
    assert second.returns.tolist() == [12.0, 15.0]
    assert second.terminated.tolist() == [False, False]


def test_facts_belong_to_the_episode_that_ended() -> None:
    first, second = (rollout.episodes for rollout in two_rollouts(tells_facts=True))
    assert first.facts is not None
    assert second.facts is not None
    assert first.facts.tolist() == [[0.0, 3.0], [0.0, 4.0]]  # (episode, steps), by hand as above
    assert second.facts.tolist() == [[1.0, 2.0], [1.0, 5.0]]
    assert episode_metrics(two_rollouts(tells_facts=True)[0], FACTS)["episode/time"] == 3.5


def test_several_episodes_of_one_copy_in_one_rollout() -> None:
    collector, actor = scripted_collector(ScriptedEnv([[2]]), 7)
    episodes = collector.collect(actor)[0].episodes
    assert episodes.end_time.tolist() == [1, 3, 5]
    assert episodes.lengths.tolist() == [2, 2, 2]
    assert episodes.returns.tolist() == [2.0, 12.0, 22.0]
    episodes = collector.collect(actor)[0].episodes  # the open step is counted
    assert episodes.end_time.tolist() == [0, 2, 4, 6]
    assert episodes.lengths.tolist() == [2, 2, 2, 2]
    assert episodes.returns.tolist() == [32.0, 42.0, 52.0, 62.0]


def test_an_episode_longer_than_two_rollouts() -> None:
    collector, actor = scripted_collector(ScriptedEnv([[9]]), 4)
    counts = [len(collector.collect(actor)[0].episodes.env) for _ in range(2)]
    assert counts == [0, 0]
    episodes = collector.collect(actor)[0].episodes
    assert (episodes.end_time.tolist(), episodes.lengths.tolist()) == ([0], [9])
    assert episodes.returns.tolist() == [9.0]


def test_agent_and_copy_axes_round_trip() -> None:
    """Agent i of copy c in the environment gets what was computed from agent i of copy c."""
    env = ScriptedEnv([[7], [7], [7]], obs_sizes=(4, 4), action_sizes=(12, 12))
    collector, actor = scripted_collector(env, 4)
    actor.chosen = lambda obs: (obs[..., 0] * 4 + obs[..., 3] * 2).to(torch.int64)  # type: ignore[method-assign]
    rollout = collector.collect(actor)[0]
    expected = np.array([[0, 2], [4, 6], [8, 10]])  # 4 * copy + 2 * agent
    for sent in env.received:
        np.testing.assert_array_equal(sent, expected)
    assert torch.equal(rollout.transitions.actions, torch.tensor(expected).expand(4, 3, 2))


def test_next_obs_is_the_following_row_or_the_real_final_state() -> None:
    for rollout in two_rollouts():
        steps, done = rollout.transitions, rollout.done
        assert done.any()
        # A step adds 1 to t (feature 2) and changes neither copy, episode nor agent.
        forward = torch.tensor([0.0, 0.0, 1.0, 0.0])
        assert torch.equal(steps.next_obs, steps.obs + forward)
        assert torch.equal(steps.next_state, steps.state + forward[:3])
        follows = ~done[:-1]
        assert torch.equal(steps.next_obs[:-1][follows], steps.obs[1:][follows])
        starts = steps.obs[1:][done[:-1]]
        assert torch.equal(starts[..., 2], torch.zeros_like(starts[..., 2]))


def test_rollouts_are_contiguous() -> None:
    first, second = two_rollouts()
    follows = ~first.done[-1]
    assert torch.equal(second.transitions.obs[0][follows], first.transitions.next_obs[-1][follows])


def test_terminated_and_truncated_stay_apart() -> None:
    for rollout in two_rollouts():
        odd = rollout.transitions.state[..., 1] % 2 == 1
        assert torch.equal(rollout.truncated, rollout.done & odd)
        assert torch.equal(rollout.transitions.terminated, rollout.done & ~odd)


def test_who_is_alive_before_and_after_a_step() -> None:
    # Agent i takes part while t <= i, also after an episode's last step where the environment tells
    # that. Otherwise `next_alive` repeats `alive` there.
    for rollout in two_rollouts(agents_die=True, tells_final_alive=True):
        steps = rollout.transitions
        times, agents = steps.state[..., 2:], torch.arange(2)
        assert torch.equal(steps.alive, times <= agents)  # type: ignore[arg-type]  # given
        assert torch.equal(steps.next_alive, times + 1 <= agents)  # type: ignore[arg-type]  # given
    for rollout in two_rollouts(agents_die=True):
        steps = rollout.transitions
        times, agents = steps.state[..., 2:], torch.arange(2)
        assert steps.alive is not None
        assert steps.next_alive is not None
        assert torch.equal(steps.alive, times <= agents)
        expected = torch.where(rollout.done.unsqueeze(-1), times <= agents, times + 1 <= agents)
        assert torch.equal(steps.next_alive, expected)


def test_smaller_observations_are_padded_with_zeros() -> None:
    env = ScriptedEnv([[4]], obs_sizes=(2, 4))
    collector, actor = scripted_collector(env, 3)
    obs = collector.collect(actor)[0].transitions.obs
    assert obs.shape == (3, 1, 2, 4)
    assert torch.equal(obs[:, :, 0, 2:], torch.zeros(3, 1, 2))
    assert torch.equal(obs[:, 0, 1, 2], torch.tensor([0.0, 1.0, 2.0]))


def test_a_state_continues_exactly() -> None:
    collector, actor = scripted_collector(
        ScriptedEnv(LENGTHS, agents_die=True, tells_facts=True), 5
    )
    collector.collect(actor)
    saved = copy.deepcopy(collector.state_dict())
    expected = copy.deepcopy(collector.collect(actor)[0])
    other, _ = scripted_collector(ScriptedEnv(LENGTHS, agents_die=True, tells_facts=True), 5)
    other.load_state_dict(saved)
    continued = other.collect(actor)[0]
    for name, tensor in vars(expected.transitions).items():
        if tensor is not None:
            assert torch.equal(getattr(continued.transitions, name), tensor), name
    for name, tensor in vars(expected.episodes).items():
        assert torch.equal(getattr(continued.episodes, name), tensor), name


def test_a_value_that_is_not_finite_is_located() -> None:
    env = ScriptedEnv([[4], [4]])
    collector, actor = scripted_collector(env, 3)
    collector.collect(actor)
    view = env._view

    def broken() -> tuple[np.ndarray, np.ndarray]:
        obs, state = view()
        if env.times[1] == 1:
            obs[1, 1, 0] = np.nan
        return obs, state

    env._view = broken  # type: ignore[method-assign]
    # Steps 3, 4 and 5 follow; copy 1 starts its second episode at step 4 and is at t = 1 after it.
    with pytest.raises(
        EnvError, match=r"scripted returned NaN or an .* in obs at step 5 of copy 1, agent 1"
    ):
        collector.collect(actor)


class _Careless(ScriptedEnv):
    """An environment of one's own with a mistake."""

    mistake = ""

    def step(self, actions: np.ndarray) -> EnvStep:
        if self.mistake == "raises":
            raise KeyError("boom")
        step = super().step(actions)
        if self.mistake == "shape":
            return replace(step, rewards=step.rewards[:1])
        return step.rewards if self.mistake == "type" else step  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("raises", r"step 0 raised KeyError: 'boom' \(test_rollout.py, line"),
        (
            "shape",
            r"step 0: rewards is .* of shape \(1,\); the spec promises float of",
        ),
        ("type", r"step 0 returned ndarray; return an envs.EnvStep \(_Careless.step"),
    ],
)
def test_a_mistake_in_a_step_is_told_with_its_place(mistake: str, message: str) -> None:
    env = _Careless(LENGTHS)
    env.mistake = mistake
    collector, actor = scripted_collector(env, 5)
    with pytest.raises(EnvError, match=message):
        collector.collect(actor)


def test_transitions_hold_the_actions_that_the_environment_received(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PPO keeps what the policy drew; the reward model and the store see what was executed."""
    config = marl.load_config(
        overrides={"env.name": "probe/continuous_match", "env.num_envs": 4, "algorithm": "ipl"}
    )
    trainer = marl.Trainer(config)
    actor, env = mappo_of(trainer).actor, trainer.collector.env
    assert isinstance(actor, GaussianActor)
    received: list[np.ndarray] = []
    step = env.step
    monkeypatch.setattr(
        env, "step", lambda actions: received.append(actions.copy()) or step(actions)
    )
    with torch.no_grad():
        actor.log_std.fill_(1.0)  # deviations of 2.7: most draws lie outside [-1, 1]
    rollout = trainer.collector.collect(actor)[0]
    transitions, drawn = rollout.transitions, rollout.sampled_actions
    np.testing.assert_array_equal(transitions.actions.numpy(), np.stack(received))
    assert (drawn.abs() > 1.0).float().mean() > 0.3
    assert torch.equal(transitions.actions, drawn.clamp(-1.0, 1.0))
    assert torch.allclose(rollout.log_probs, actor.log_prob(transitions.obs, drawn), atol=1e-5)
    actions, log_probs = trainer.policy(transitions)  # as the reward's soft values ask it
    assert actions.abs().max() == 1.0
    assert not torch.allclose(log_probs, actor.log_prob(transitions.obs, actions))
