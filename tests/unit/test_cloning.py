"""Policies fitted to steps of episodes: losses by hand, what is drawn, what cannot be learned.

Axes: M episodes, K steps, N agents.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from envs import EnvSpec
from marl.config import RewardConfig
from marl.learners.actors import CategoricalActor, GaussianActor, make_actor
from marl.nn.normalisation import TeamNorm
from marl.preferences.dataset import DatasetError, EpisodeRecord, PreferenceDataset
from marl.rewards.cloning import (
    MIN_LOG_STD,
    StepDraws,
    Steps,
    check_playable,
    cloning_loss,
    divergence_loss,
    fit_steps,
    hellinger,
    mean_entropy,
    mean_loss,
    steps_of,
)
from marl.rewards.demonstrations import chi_square
from marl.rewards.ratio import PolicyRatio, UniformPolicy
from tests.learners import LENGTHS, NETWORK, RECURRENT, generator
from tests.played import at_random, name_the_cue, play_episodes
from tests.scripted import ScriptedEnv
from tests.unit.test_policy_ratio import Table, transitions


def steps_and_weights(actions: list[list[int]], weights: list[float], alive: Any = None) -> Steps:
    """Return the steps of one episode, with its axis in front."""
    steps = transitions(actions, alive)
    fields = {f.name: getattr(steps, f.name) for f in dataclasses.fields(steps)}
    turned = {k: v.transpose(0, 1) for k, v in fields.items() if isinstance(v, Tensor)}
    return Steps(transitions=dataclasses.replace(steps, **turned), weights=torch.tensor([weights]))


def test_cloning_by_hand() -> None:
    policy: Any = Table([[0.5, 0.5], [0.8, 0.2]])
    # Step 0 counts twice; agent 1 is absent in step 1, whose last agent acts impossibly.
    steps = steps_and_weights([[0, 1], [1, 0]], [2.0, 1.0], [[True, True], [True, False]])
    total, count = cloning_loss(policy)(steps)
    # 2 (log 2 + log 5) + 1 log 2, of 2 + 2 + 1 actions
    assert total.item() == pytest.approx(3 * math.log(2) + 2 * math.log(5))
    assert count.item() == 5.0
    factors = torch.tensor([[[1.0, 3.0], [0.5, 7.0]]])
    total, _ = cloning_loss(policy, lambda _: factors)(steps)
    assert total.item() == pytest.approx(2 * math.log(2) + 6 * math.log(5) + 0.5 * math.log(2))


def test_divergences_by_hand() -> None:
    policy, reference = Table([[0.5, 0.5], [0.8, 0.2]]), Table([[0.25, 0.75], [0.4, 0.6]])
    steps = steps_and_weights([[0, 0], [1, 1]], [1.0, 3.0])
    ratio = PolicyRatio(policy, reference, beta=1.0)
    # u = log 2 + log 2 in step 0, log(2/3) - log 3 < -1/2 in step 1
    u = torch.tensor([2 * math.log(2), math.log(2 / 3) - math.log(3)])
    total, count = divergence_loss(ratio, "chi2")(steps)
    assert count.item() == 4.0
    gains = u - u**2 / 4
    assert total.item() == pytest.approx(-(gains[0] + 3 * gains[1]).item())
    total, _ = divergence_loss(ratio, "hellinger")(steps)
    # u / (1 + u); the tangent at -1/2 is -1 + 4 (u + 1/2)
    gains = torch.stack((u[0] / (1 + u[0]), -1 + 4 * (u[1] + 0.5)))
    assert total.item() == pytest.approx(-(gains[0] + 3 * gains[1]).item())


def test_gains_have_the_slope_one_at_the_reference_and_are_concave() -> None:
    u = torch.linspace(-5, 5, 1001, dtype=torch.float64, requires_grad=True)
    for phi in (chi_square, hellinger):
        (slope,) = torch.autograd.grad(phi(u).sum(), u)
        assert slope[500].item() == pytest.approx(1.0)  # u = 0
        assert (slope.diff() <= 1e-12).all()


def dataset(folder: Path, name: str, count: int = 24) -> PreferenceDataset:
    spec, records = play_episodes(name, count, at_random())
    made = PreferenceDataset.create(folder, spec, environment=name)
    for record in records:
        made.add_episode(record)
    return made


def draws_of(made: PreferenceDataset, **reward: Any) -> StepDraws:
    archive = made.archive(holdout_every=4)
    return StepDraws(
        archive,
        archive.available(),
        archive.available(held_out=True),
        RewardConfig(**reward),
        generator(),
    )


def test_draws_are_of_the_episodes_to_train_on(tmp_path: Path) -> None:
    made = dataset(tmp_path / "data", "probe/dying")
    draws = draws_of(made, batch_episodes=5)
    lengths = {n: made.episode(n).length for n in made.numbers()}
    train = {lengths[n] for n in made.numbers() if n % 4 != 3}
    for _ in range(10):
        steps = draws.batch()
        assert steps.weights.shape[0] == 5
        assert {int(n) for n in steps.weights.sum(dim=-1)} <= train
    held_out = sum(lengths[n] for n in made.numbers() if n % 4 == 3)
    every = list(draws.every(draws.held_out))
    assert sum(float(part.weights.sum()) for part in every) == held_out


@pytest.mark.parametrize("network", [NETWORK, RECURRENT], ids=["feed-forward", "gru"])
def test_a_demonstrated_policy_is_cloned_and_loses_its_entropy(
    network: Any, tmp_path: Path
) -> None:
    spec, records = play_episodes("probe/dying", 24, name_the_cue)
    made = PreferenceDataset.create(tmp_path / "data", spec)
    for record in records:
        made.add_episode(record)
    recurrence = network.recurrence
    draws = draws_of(made, recurrence=recurrence)
    actor = make_actor(spec, network, TeamNorm(spec, enabled=False), generator())
    before = mean_entropy(actor, draws.every(draws.train))
    result = fit_steps(
        actor, cloning_loss(actor), draws, steps=60, learning_rate=0.02, max_grad_norm=1.0
    )
    assert before == pytest.approx(math.log(2), abs=0.01)  # two actions
    assert result.first == pytest.approx(math.log(2), abs=0.01)
    assert result.lowest < 0.1
    reads = recurrence != "none"
    parts = steps_of(draws.archive, draws.held_out, reads_history=reads)
    assert mean_loss(cloning_loss(actor), parts) == pytest.approx(result.lowest, abs=1e-6)
    assert mean_entropy(actor, draws.every(draws.train)) < 0.2


def test_a_deviation_has_a_floor(tmp_path: Path) -> None:
    """Equal actions would shrink it to nothing, and the log-density of any other to -inf."""
    draws = draws_of(dataset(tmp_path / "data", "probe/continuous_match", 8))
    draws.held_out = draws.held_out[:0]
    spec = PreferenceDataset(tmp_path / "data").spec
    actor = make_actor(spec, NETWORK, TeamNorm(spec, enabled=False), generator())
    assert isinstance(actor, GaussianActor)
    with torch.no_grad():
        actor.log_std.fill_(MIN_LOG_STD - 2.0)
    fit_steps(actor, cloning_loss(actor), draws, steps=1, learning_rate=0.01, max_grad_norm=1.0)
    assert torch.equal(actor.log_std, torch.full_like(actor.log_std, MIN_LOG_STD))


def test_the_entropy_of_the_absent_does_not_count() -> None:
    env = ScriptedEnv(LENGTHS, agents_die=True, obs_sizes=(2, 2), action_sizes=(3, 2))
    actor = make_actor(env.spec, NETWORK, TeamNorm(env.spec, enabled=False), generator())
    assert isinstance(actor, CategoricalActor)
    steps = steps_and_weights([[0, 0], [1, 1]], [1.0, 1.0], [[True, True], [False, True]])
    # Agent 0 acts once among 3 actions, agent 1 twice among 2, all nearly alike.
    expected = (math.log(3) + 2 * math.log(2)) / 3
    assert mean_entropy(actor, iter([steps])) == pytest.approx(expected, abs=0.01)


def record(spec: EnvSpec, actions: Any, **more: Any) -> EpisodeRecord:
    """Return an episode of two steps."""
    return EpisodeRecord(
        obs=np.zeros((2, 2, spec.obs_size)),
        state=np.zeros((2, spec.state_size)),
        actions=np.array(actions),
        final_obs=np.zeros((2, spec.obs_size)),
        final_state=np.zeros(spec.state_size),
        episode_return=1.0,
        terminated=True,
        **more,
    )


@pytest.mark.parametrize(
    ("options", "actions", "more", "message"),
    [
        (
            {"action_sizes": (2, 3)},
            [[1, 2], [2, 1]],
            {},
            "here: in episode 1, step 1, agent 0 acts 2, and has the actions 0 to 1: correct the "
            "actions, or spec.action_sizes",
        ),
        (
            {"masks_actions": True},
            [[1, 0], [0, 2]],
            {"action_mask": np.array([[[False, True, True], [True] * 3]] * 2)},
            "here: in episode 1, step 1, agent 0 acts 0, which its action_mask forbids: correct "
            "the mask, or remove the episode's file",
        ),
        (
            {"continuous": True, "action_sizes": (1, 2)},
            [[[1.0, 9.0], [0.0, 0.5]], [[0.0, 0.0], [1.5, 0.0]]],
            {},
            "here: in episode 1, step 1, agent 1 acts [1.5, 0.0], and policies act in [-1, 1]: "
            "scale the actions to that",
        ),
        ({"agents_die": True}, [[0, 0], [2, 1]], {"alive": np.array([[1, 1], [0, 1]], bool)}, ""),
    ],
)
def test_actions_that_no_policy_can_take_are_named(
    options: Any, actions: Any, more: Any, message: str, tmp_path: Path
) -> None:
    spec = ScriptedEnv([[2]], **options).spec
    made = PreferenceDataset.create(tmp_path / "data", spec)
    legal = np.ones((2, 2), np.int64)
    if spec.action_kind == "continuous":
        legal = np.zeros((2, 2, 2))
    elif "action_sizes" in options:
        legal = np.zeros((2, 2), np.int64)
    made.add_episode(record(spec, legal, **more))
    made.add_episode(record(spec, actions, **more))
    archive = made.archive()
    if not message:
        check_playable(archive, spec, "here")
        return
    with pytest.raises(DatasetError) as caught:
        check_playable(archive, spec, "here")
    assert str(caught.value) == message


def test_a_uniform_policy_is_beaten_by_a_fitted_one_under_both_divergences(
    tmp_path: Path,
) -> None:
    spec, records = play_episodes("probe/coordination", 24, name_the_cue)
    made = PreferenceDataset.create(tmp_path / "data", spec)
    for one in records:
        made.add_episode(one)
    draws = draws_of(made)
    for objective in ("chi2", "hellinger"):
        actor = make_actor(spec, NETWORK, TeamNorm(spec, enabled=False), generator())
        loss = divergence_loss(PolicyRatio(actor, UniformPolicy(spec), 0.1), objective)  # type: ignore[arg-type]
        result = fit_steps(actor, loss, draws, steps=60, learning_rate=0.02, max_grad_norm=1.0)
        # At best u = .1 * 2 log 3, were both agents' cues certain.
        u = torch.tensor(0.2 * math.log(3))
        best = (chi_square if objective == "chi2" else hellinger)(u).item()
        assert -best <= result.lowest < -0.9 * best
