"""A recurrent reward: which steps it reads as one episode, and what it still promises.

Axes: T time, E environments, M episodes, K steps, N agents.
"""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from envs import EnvSpec
from marl.config import Config, ConfigError, RewardConfig
from marl.data.types import EpisodeBatch, History, Rewards, Transitions
from marl.nn.normalisation import TeamNorm
from marl.rewards import FactoredReward, RewardLearner
from marl.rewards.base import MAX_RECURRENT_STEPS
from tests.reward_models import (
    CPU,
    GAMMA,
    OneBatch,
    generator,
    make_model,
    make_spec,
    make_steps,
    outputs_of,
    uniform_policy,
)

T, E = 7, 2
DONE = torch.zeros(2 * T, E, dtype=torch.bool)
for _time, _copy in ((2, 0), (9, 0), (4, 1), (5, 1)):
    DONE[_time, _copy] = True
"""Two rollouts; the episodes of both environments span them."""

GAMMAS = pytest.mark.parametrize("gamma", [0.0, GAMMA])
SEPARATE = pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])


def cut(steps: Transitions, *index: Any) -> Transitions:
    """Return some of the steps."""
    parts = {k: None if v is None else v[index] for k, v in vars(steps).items()}
    return Transitions(**parts)


def followed(steps: Transitions, starts: Tensor, axis: int = 0) -> Transitions:
    """Return steps that follow each other along an axis."""
    return dataclasses.replace(steps, history=History(starts=starts, time_axis=axis))


def from_nothing(*lead: int, axis: int = 0) -> Tensor:
    """Return the flags of episodes that start with their first step."""
    starts = torch.zeros(lead, dtype=torch.bool)
    starts.select(axis, 0).fill_(True)
    return starts


def make_learner(gamma: float = GAMMA, **options: Any) -> RewardLearner:
    model = make_model(gamma=gamma, recurrence="gru", **options)
    return RewardLearner(model, "", model.config, 10, threads=1, device=CPU)


def same(found: Rewards, expected: Rewards) -> None:
    assert torch.allclose(found.team, expected.team, atol=1e-5)
    assert found.local is not None
    assert expected.local is not None
    assert torch.allclose(found.local, expected.local, atol=1e-5)


@SEPARATE
@GAMMAS
def test_an_episode_is_read_as_if_nothing_had_been_before(gamma: float, shared: bool) -> None:
    """Also one that the rollouts cut in two, and what its last step led to."""
    learner = make_learner(gamma, share_parameters=shared)
    steps = make_steps(0, 2 * T, E, dies=True)
    spans = slice(0, T), slice(T, 2 * T)
    parts = []
    for span in spans:
        steps_of = cut(steps, span), DONE[span]
        parts.append(learner.rewards(*steps_of, hidden=learner.hidden))
        learner.rollout_rewards(*steps_of, informed=False)
    whole = Rewards(
        team=torch.cat([part.team for part in parts]),
        local=torch.cat([part.local for part in parts if part.local is not None]),
    )
    for copy_ in range(E):
        first = 0
        for last in [*DONE[:, copy_].nonzero().flatten().tolist(), 2 * T - 1]:
            span = slice(first, last + 1)
            alone = followed(cut(steps, span, [copy_]), from_nothing(last + 1 - first, 1))
            expected = learner.model(alone)
            assert whole.local is not None
            found = Rewards(team=whole.team[span, [copy_]], local=whole.local[span, [copy_]])
            same(found, expected)
            first = last + 1
    anew = learner.rewards(cut(steps, spans[1]), DONE[spans[1]])
    assert not torch.allclose(anew.team, parts[1].team, atol=1e-3)


@GAMMAS
def test_batches_have_time_second(gamma: float) -> None:
    model, steps = make_model(gamma=gamma, recurrence="gru"), make_steps(0, 6, 4)
    turned = Transitions(
        **{k: None if v is None else v.transpose(0, 1) for k, v in vars(steps).items()}
    )
    found = model(followed(turned, from_nothing(4, 6, axis=1), axis=1))
    expected = model(followed(steps, from_nothing(6, 4)))
    assert torch.allclose(found.team, expected.team.T, atol=1e-6)
    assert torch.allclose(found.local, expected.local.transpose(0, 1), atol=1e-6)


def test_a_reward_depends_on_the_past_of_its_own_episode_only() -> None:
    model, steps = make_model(recurrence="gru"), make_steps(0, 8, 1)
    starts = from_nothing(8, 1)
    starts[5] = True
    before = model(followed(steps, starts)).team
    obs = steps.obs.clone()
    obs[2] += 1.0
    after = model(followed(dataclasses.replace(steps, obs=obs), starts)).team
    moved = (before != after).flatten().tolist()
    assert moved == [False, False, True, True, True, False, False, False]


@SEPARATE
@GAMMAS
def test_local_rewards_still_add_up(gamma: float, shared: bool) -> None:
    # The identity R = sum_i r_i of the complete form, and of the additive one up to the bias part.
    steps = followed(make_steps(0, 5, 4, dies=True), from_nothing(5, 4))
    rewards, _, bias = outputs_of(make_model(gamma=gamma, recurrence="gru"), steps)
    additive = make_model(
        gamma=gamma, recurrence="gru", share_parameters=shared, local_form="additive"
    )
    others, _, other_bias = outputs_of(additive, steps)
    assert steps.alive is not None
    someone = steps.alive.any(dim=-1)
    assert rewards.local is not None
    assert others.local is not None
    assert torch.allclose(rewards.local.sum(dim=-1)[someone], rewards.team[someone], atol=1e-5)
    assert torch.allclose(others.local.sum(dim=-1) + other_bias, others.team, atol=1e-5)
    assert bias.shape == rewards.team.shape


def test_gradients_of_the_two_losses_reach_disjoint_parameters() -> None:
    model = make_model(recurrence="gru")
    steps = followed(make_steps(0, 4, 6), from_nothing(4, 6, axis=1), axis=1)
    rewards, q_tot, _ = outputs_of(model, steps)
    rewards.team.sum().backward(retain_graph=True)
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {name.partition(".")[0] for name in reached} == {"q", "q_mixer"}
    assert "q.gru.weight_hidden" in reached
    model.zero_grad()
    model.value_loss(steps, q_tot, torch.ones(4, 6), uniform_policy).backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {name.partition(".")[0] for name in reached} == {"v"}
    assert "v.gru.weight_hidden" in reached


def test_what_stands_behind_an_episode_changes_nothing() -> None:
    """A batch repeats the last step of short episodes, with weight 0."""
    learner = make_learner()
    steps = make_steps(0, 2, 6)
    weights = torch.tensor([[1.0, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    other = steps.obs.clone()
    other[0, 3:] += 9.0
    fitted = []
    for obs in (steps.obs, other):
        mine = copy.deepcopy(learner)
        history = History(starts=from_nothing(2, 6, axis=1), time_axis=1)
        batch = EpisodeBatch(
            transitions=dataclasses.replace(steps, obs=obs, history=history),
            step_weights=weights,
            lengths=torch.tensor([3, 6]),
            returns=torch.tensor([torch.nan, torch.nan]),
            first=torch.tensor([0]),
            second=torch.tensor([1]),
            labels=torch.tensor([1.0]),
        )
        mine.fit(OneBatch(batch), uniform_policy)
        fitted.append(mine.model.state_dict())
    for name, tensor in fitted[0].items():
        assert torch.equal(tensor, fitted[1][name]), name
    assert not torch.equal(
        fitted[0]["q.gru.bias_input"], learner.model.state_dict()["q.gru.bias_input"]
    )


def test_the_hidden_state_is_saved_and_only_where_there_is_one() -> None:
    learner, steps = make_learner(), make_steps(0, T, E)
    assert "hidden" not in learner.state_dict()
    learner.rollout_rewards(steps, DONE[:T], informed=False)
    other = make_learner()
    other.load_state_dict(learner.state_dict())
    found = other.rewards(steps, DONE[T:], hidden=other.hidden)
    same(found, learner.rewards(steps, DONE[T:], hidden=learner.hidden))
    anew = learner.rewards(steps, DONE[T:])
    assert not torch.allclose(found.team, anew.team, atol=1e-3)


def test_looking_at_rewards_changes_nothing_of_the_next_rollout() -> None:
    """A look in between, at that rollout or another, leaves what training reads and stores."""
    steps, others = make_steps(0, 2 * T, E), make_steps(1, T, E)
    learners = make_learner(), make_learner()
    for learner in learners:
        learner.num_fits = 1
        learner.rollout_rewards(cut(steps, slice(0, T)), DONE[:T], informed=True)
    before = copy.deepcopy(learners[0].state_dict())
    learners[0].rewards(others, DONE[:T])
    learners[0].rewards(cut(steps, slice(T, 2 * T)), DONE[T:], hidden=learners[0].hidden)
    after = learners[0].state_dict()
    for name, hidden in before["hidden"].items():
        assert torch.equal(after["hidden"][name], hidden), name
    follows = cut(steps, slice(T, 2 * T)), DONE[T:]
    looked, untouched = (one.rollout_rewards(*follows, informed=True)[0] for one in learners)
    assert looked is not None
    assert untouched is not None
    assert torch.equal(looked.team, untouched.team)


def test_steps_without_history_are_refused() -> None:
    with pytest.raises(ValueError, match=r"recurrent reward model got Transitions without history"):
        make_model(recurrence="gru")(make_steps(0, 3, 2))


def test_long_episodes_are_refused() -> None:
    spec: EnvSpec = dataclasses.replace(make_spec(), max_steps=MAX_RECURRENT_STEPS + 1)
    config, norm = RewardConfig(recurrence="gru"), TeamNorm(spec, enabled=False)
    with pytest.raises(
        ConfigError, match=r"at most 500 steps, and those of nowhere have up to 501"
    ):
        FactoredReward(spec, config, GAMMA, norm, generator())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"algorithm": "ipl"},
            r"recurrence: got 'gru', but .* this run has 'central' \(algorithm = 'ipl'\); set",
        ),
        ({"algorithm": "sl"}, r"\(algorithm = 'sl'\); set reward\.recurrence = \"none\""),
        ({"model": "mine:Model"}, r"this run has 'mine:Model' \(algorithm = 'imap'\)"),
        ({"value_loss": "soft"}, r"values actions that were not taken; set reward\.value_loss"),
    ],
)
def test_what_cannot_be_recurrent_is_refused(settings: dict[str, Any], message: str) -> None:
    algorithm = settings.pop("algorithm", "imap")
    with pytest.raises(ConfigError, match=message):
        Config(algorithm=algorithm, reward=RewardConfig(recurrence="gru", **settings))
