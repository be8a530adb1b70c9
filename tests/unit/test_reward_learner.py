"""Fitting any reward model, its scale, and models that are plugged in.

Axes: M episodes, K steps, N agents.
"""

import copy
import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from envs import EnvSpec
from marl.config import Config, RewardConfig
from marl.data.types import EpisodeBatch, Rewards, Transitions
from marl.nn.layers import NonFiniteError
from marl.nn.normalisation import TeamNorm
from marl.rewards import CentralReward, FactoredReward, RewardLearner, make_reward_learner
from marl.rewards.base import checked_rewards
from marl.rewards.losses import split_penalty
from tests.reward_models import (
    CPU,
    GAMMA,
    OneBatch,
    batch_of,
    generator,
    make_model,
    make_spec,
    make_steps,
    outputs_of,
    uniform_policy,
)


def make_learner(kind: type, gamma: float = GAMMA, **options: Any) -> RewardLearner:
    model = make_model(kind, gamma, **options)
    return RewardLearner(model, "", model.config, 10, threads=2, device=CPU)


def test_reward_models_never_see_a_reward() -> None:
    names = {field.name for field in dataclasses.fields(Transitions)}
    assert not {name for name in names if "reward" in name or "return" in name}


def test_batches_hold_returns_of_whole_episodes_and_no_single_reward() -> None:
    names = {field.name for field in dataclasses.fields(EpisodeBatch)}
    pairs = {"first", "second", "labels"}
    steps = {"transitions", "step_weights", "lengths"}
    assert names == steps | pairs | {
        "returns",
        "return_mean",
        "return_scale",
        "shares",
        "demonstrations",
    }


@pytest.mark.parametrize(
    ("kind", "gamma"),
    [(FactoredReward, 0.0), (FactoredReward, GAMMA), (CentralReward, 0.0), (CentralReward, GAMMA)],
)
def test_fitting_learns_the_preferences(kind: type, gamma: float) -> None:
    """Six episodes of random steps in order of preference: the order is learned."""
    pairs = torch.tensor(list(itertools.combinations(range(6), 2)))
    batch = dataclasses.replace(
        batch_of([[1.0] * 5] * 6, [5] * 6),
        transitions=make_steps(0, 6, 5),
        first=pairs[:, 0],
        second=pairs[:, 1],
        labels=torch.ones(len(pairs)),
    )
    learner = make_learner(kind, gamma, gradient_steps=30, learning_rate=2e-2)
    assert not learner.is_fitted
    learner.fit(OneBatch(batch), uniform_policy)
    assert learner.is_fitted
    metrics = learner.fit(OneBatch(batch), uniform_policy)
    assert metrics["preference/accuracy"] == 1.0
    assert metrics["preference/loss"] < 0.1


class Unpacked(RewardLearner):
    """Reads the padding of a batch, too."""

    def _read(self, batch: EpisodeBatch) -> Any:
        outputs = self._outputs(batch.transitions)
        return batch.transitions, batch.step_weights, outputs.rewards, outputs


@pytest.mark.parametrize("dies", [False, True])
@pytest.mark.parametrize("kind", [FactoredReward, CentralReward])
def test_padding_is_spared_and_changes_nothing(kind: type, dies: bool) -> None:
    """Three gradient steps on episodes of 5, 2 and 3 steps, with what stands in the padding."""
    weights = [[1.0] * 5, [1.0] * 2 + [0.0] * 3, [1.0] * 3 + [0.0] * 2]
    batch = dataclasses.replace(
        batch_of(weights, [5, 2, 3], first=[0, 1], second=[1, 2], labels=[1.0, 0.3]),
        transitions=make_steps(0, 3, 5, dies=dies),
    )
    options = {"gradient_steps": 3, "learning_rate": 1e-2, "shared_mixer": kind is CentralReward}
    packed, whole = make_learner(kind, **options), make_learner(kind, **options)
    whole.__class__ = Unpacked
    read, own_weights, rewards, outputs = packed._read(batch)
    assert len(read.obs) == len(own_weights) == len(outputs.rewards.team) == 10
    every = whole._outputs(batch.transitions).rewards
    torch.testing.assert_close(rewards.team, every.team * batch.is_sampled)
    if rewards.local is not None and every.local is not None:
        torch.testing.assert_close(rewards.local, every.local * batch.is_sampled[..., None])
    found = [one.fit(OneBatch(batch), uniform_policy) for one in (packed, whole)]
    assert found[0]["preference/loss"] == pytest.approx(found[1]["preference/loss"], rel=1e-4)
    for mine, other in zip(packed.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_guard_sees_the_mean_loss_of_a_fit(steps: int) -> None:
    """A mean over its gradient steps, of the loss without penalties; without V there is none."""
    batch = batch_of([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], [3, 3])
    learner = make_learner(
        FactoredReward, gradient_steps=steps, learning_rate=1e-9, regularisation=5.0
    )
    metrics = learner.fit(OneBatch(batch), uniform_policy)
    assert learner.guard.average == pytest.approx(metrics["preference/loss"])
    assert metrics["reward/target_rate"] == learner.guard.rate
    assert metrics["reward/gradient_steps"] == steps == learner.num_fits
    without = make_learner(FactoredReward, 0.0, gradient_steps=steps)
    assert "reward/target_rate" not in without.fit(OneBatch(batch), uniform_policy)
    assert without.guard.fits == 0


def test_the_bias_share_by_hand() -> None:
    """Var(b(s) - gamma_R b(s')) / Var(R) before the step; no bias and no drift without V."""
    batch = batch_of([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], [3, 3])
    learner = make_learner(FactoredReward, gradient_steps=1)
    with torch.no_grad():
        rewards, _, bias = outputs_of(learner.model, batch.transitions)
    metrics = learner.fit(OneBatch(batch), uniform_policy)
    assert metrics["reward/bias_share"] == pytest.approx(float(bias.var() / rewards.team.var()))
    assert metrics["reward/value_drift"] > 0.0
    central = make_learner(CentralReward, 0.0, gradient_steps=1)
    metrics = central.fit(OneBatch(batch), uniform_policy)
    assert metrics["reward/bias_share"] == metrics["reward/value_drift"] == 0.0


def test_without_an_answer_nothing_is_fitted() -> None:
    class Silent:
        def batch(self, *, held_out: bool = False) -> None:
            return None

    learner = make_learner(FactoredReward)
    assert learner.fit(Silent(), uniform_policy) == {"reward/gradient_steps": 0.0}
    assert not learner.is_fitted
    assert learner.guard.fits == 0


def test_penalties_by_hand() -> None:
    """The gradient step descends L + lambda mean(R^2) + mu mean(sum_i (S_i - S_bar)^2)."""
    # Three agents, one step an episode, alpha / T_max = 1. R of the episodes is 3 and 1: mean
    # square 5. S_i are (1, 2, 0) around 1 and (3, -2, 0) around 1/3: squares 2 and 114 / 9, mean
    # 22 / 3. The logit is 2.
    values = torch.tensor([[[1.0, 2.0, 0.0]], [[3.0, -2.0, 0.0]]])

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, transitions: Transitions) -> Rewards:
            local = self.scale * values
            return Rewards(team=local.sum(dim=-1), local=local)

    config = RewardConfig(
        regularisation=2.0, split_regularisation=0.5, max_grad_norm=1e9, gradient_steps=1
    )
    batch = batch_of([[1.0], [1.0]], [1, 1])
    learner = RewardLearner(Fixed(), "", config, 10, threads=1, device=CPU)
    learner.fit(OneBatch(batch), uniform_policy)
    # By the scale c = 1 of all rewards: dL/dc = -2 (1 - sigmoid(2)) = -.238406, and the penalties
    # grow with its square: 2 (2 * 5 + .5 * 22 / 3) = 27.333333.
    (scale,) = learner.parameters
    assert float(scale.grad) == pytest.approx(27.333333 - 0.238406, rel=1e-5)  # type: ignore[arg-type]


def test_regularisation_keeps_rewards_small() -> None:
    """lambda mean(R^2) at least halves the mean square of R, the larger lambda the more."""
    batch = batch_of([[1.0] * 5] * 2, [5, 5])
    squares = []
    for weight in (0.0, 1.0, 100.0):
        learner = make_learner(
            FactoredReward, 0.0, gradient_steps=100, learning_rate=2e-2, regularisation=weight
        )
        learner.fit(OneBatch(batch), uniform_policy)
        with torch.no_grad():
            squares.append(float((learner.model(batch.transitions).team ** 2).mean()))
    assert squares[2] < 0.5 * squares[1] < 0.25 * squares[0]


def test_split_regularisation_pays_agents_alike_and_still_learns_the_order() -> None:
    """Preferences tell nothing about the split, so nothing is lost by evening it out."""
    pairs = torch.tensor(list(itertools.combinations(range(6), 2)))
    batch = dataclasses.replace(
        batch_of([[1.0] * 5] * 6, [5] * 6),
        transitions=make_steps(0, 6, 5),
        first=pairs[:, 0],
        second=pairs[:, 1],
        labels=torch.ones(len(pairs)),
    )
    unequal = []
    for weight in (0.0, 10.0):
        learner = make_learner(
            FactoredReward, gradient_steps=60, learning_rate=2e-2, split_regularisation=weight
        )
        metrics = learner.fit(OneBatch(batch), uniform_policy)
        assert metrics["preference/accuracy"] == 1.0
        with torch.no_grad():
            sums = learner.model(batch.transitions).local.sum(dim=1)
        unequal.append(float(split_penalty(sums.T) / sums.sum(dim=-1).var()))
    assert unequal[1] < 0.2 * unequal[0]


def test_a_huge_gradient_of_v_does_not_shrink_that_of_q() -> None:
    """L_q and L_v are clipped apart."""
    batch = batch_of([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], [3, 3])
    gradients = []
    for wrong_by in (0.0, -1e4):
        learner = make_learner(FactoredReward, max_grad_norm=1e-3, gradient_steps=1)
        assert isinstance(learner.model, FactoredReward)
        with torch.no_grad():
            list(learner.model.v.parameters())[-1].add_(wrong_by)
        learner.fit(OneBatch(batch), uniform_policy)
        gradients.append([p.grad for p in learner.model.q.parameters()])
        assert learner.v_optimizer is not None
        norm = torch.stack([p.grad.norm() for p in learner.v_optimizer.parameters]).norm()
        assert norm == pytest.approx(1e-3, rel=1e-2)
    for small, large in zip(*gradients, strict=True):
        assert torch.equal(small, large)


@pytest.mark.parametrize("kind", [FactoredReward, CentralReward])
def test_threads_do_not_change_the_numbers(kind: type) -> None:
    batch = batch_of([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], [3, 3])
    fitted = []
    for threads in (1, 2):
        model = make_model(kind)
        learner = RewardLearner(model, "", model.config, 10, threads=threads, device=CPU)
        learner.fit(OneBatch(batch), uniform_policy)
        fitted.append(model.state_dict())
    for name, tensor in fitted[0].items():
        assert torch.equal(tensor, fitted[1][name]), name


def test_padded_steps_change_no_parameter() -> None:
    """Whatever stands in rows of weight zero."""
    learners = [make_learner(FactoredReward) for _ in range(2)]
    batch = batch_of([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]], [2, 1])
    noise = make_steps(8, 2, 3)
    padding = batch.step_weights == 0
    other = {
        name: torch.where(
            padding.view(2, 3, *([1] * (value.ndim - 2))), getattr(noise, name), value
        )
        for name, value in vars(batch.transitions).items()
        if value is not None
    }
    changed = dataclasses.replace(batch, transitions=Transitions(**other))
    for learner, served in zip(learners, (batch, changed), strict=True):
        learner.fit(OneBatch(served), uniform_policy)
    for mine, theirs in zip(*(learner.parameters for learner in learners), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)


def test_rewards_are_divided_by_their_deviation_and_not_shifted() -> None:
    learner, steps = make_learner(FactoredReward), make_steps(0, 6, 5, dies=True)
    assert steps.alive is not None
    raw = learner.model(steps)
    assert learner.rollout_rewards(steps, steps.terminated, informed=True) == (None, {})
    learner.num_fits = 1
    assert learner.rollout_rewards(steps, steps.terminated, informed=False) == (None, {})
    scaled, metrics = learner.rollout_rewards(steps, steps.terminated, informed=True)
    assert scaled is not None
    assert scaled.local is not None
    # The first batch sets the running deviations: the team's, and that of living agents.
    assert torch.allclose(scaled.team * raw.team.std(correction=0), raw.team, atol=1e-5)
    own = raw.local[steps.alive].std(correction=0)
    assert torch.allclose(scaled.local * own, raw.local, atol=1e-5)
    assert metrics["reward/mean"] == pytest.approx(raw.team.mean().item())
    learner.rewards(make_steps(1, 6, 5))  # to look at others changes no scale
    assert torch.equal(learner.rewards(steps).team, scaled.team)


def test_a_loss_that_is_not_finite_stops_the_fit() -> None:
    batch = batch_of([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], [3, 3])
    batch.transitions.state[0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"^reward_loss holds NaN"):
        make_learner(FactoredReward, gradient_steps=1).fit(OneBatch(batch), uniform_policy)


@pytest.mark.parametrize("part", ["team", "local"])
def test_rewards_that_are_not_finite_stop_the_run(part: str) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, transitions: Transitions) -> Rewards:
            team = torch.zeros(transitions.terminated.shape)
            rewards = Rewards(team=team, local=torch.zeros(transitions.obs.shape[:-1]))
            getattr(rewards, part)[0, 0] = torch.nan
            return rewards

    learner = RewardLearner(Broken(), "", RewardConfig(), 10, threads=1, device=CPU)
    learner.num_fits = 1
    steps, name = make_steps(0, 6, 5), "learned_reward" if part == "team" else "learned_local"
    with pytest.raises(NonFiniteError, match=f"^{name}.* holds NaN"):
        learner.rollout_rewards(steps, steps.terminated, informed=True)


def test_the_learner_state_round_trips() -> None:
    batch = batch_of([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], [3, 3])
    source, steps = OneBatch(batch), make_steps(0, 6, 5)
    learner, other = make_learner(FactoredReward), make_learner(FactoredReward)
    learner.fit(source, uniform_policy)
    learner.rollout_rewards(steps, steps.terminated, informed=True)
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    for each in (learner, other):
        each.fit(source, uniform_policy)
    mine, theirs = learner.rewards(steps), other.rewards(steps)
    assert torch.equal(mine.team, theirs.team)
    assert torch.equal(mine.local, theirs.local)  # type: ignore[arg-type]


class PluggedReward(nn.Module):
    """A user's model: one number from the next observation."""

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        self.layer = nn.Linear(spec.obs_size, 1)

    def forward(self, transitions: Transitions) -> Tensor:
        return self.layer(transitions.next_obs.mean(dim=-2)).squeeze(-1)


def test_a_plugged_in_model_is_seeded_by_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from marl import rewards

    monkeypatch.setattr(rewards, "PluggedReward", PluggedReward, raising=False)
    spec, config = make_spec(), Config(reward=RewardConfig(model="marl.rewards:PluggedReward"))
    norm = TeamNorm(spec, enabled=False)
    before = torch.get_rng_state()
    weights = [
        make_reward_learner(spec, config, norm, generator(seed), CPU).parameters[0].clone()
        for seed in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "reward model mine:f returned list"),
        (torch.zeros(4), r"returned team rewards of shape \(4,\), expected \(4, 5\)"),
        (
            Rewards(team=torch.zeros(4, 5), local=torch.zeros(4, 5, 2)),
            r"returned local rewards of shape \(4, 5, 2\), expected \(4, 5, 3\)",
        ),
    ],
)
def test_a_plugged_in_model_that_breaks_its_promise_is_named(returned: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_rewards(returned, "mine:f", make_steps(0, 4, 5))
