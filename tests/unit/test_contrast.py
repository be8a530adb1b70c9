"""Contrast and guidance: distributions by hand, their limits, and whole teams that act by them.

Axes: E environments, N agents, A actions, K candidates.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import marl
from marl.config import ConfigError, RewardConfig
from marl.contrast import (
    ContrastActor,
    GuidedActor,
    contrast_categorical,
    contrast_gaussian,
    contrasted,
    guided,
    most_strength,
)
from marl.evaluation import evaluate
from marl.learners.actors import CategoricalActor, GaussianActor
from marl.learners.distributions import Categorical, Gaussian
from marl.nn.normalisation import TeamNorm
from marl.rewards import CentralReward, FactoredReward, RewardLearner
from tests.reward_models import CPU, generator
from tests.teams import Recurrence, observations, team


def categorical(*probabilities: float) -> Categorical:
    return Categorical(torch.tensor([[list(probabilities)]]).log())


def probabilities(policy: Categorical) -> list[float]:
    values: list[float] = policy.logits.softmax(dim=-1).flatten().tolist()
    return values


def gaussian(mean: float, std: float) -> Gaussian:
    return Gaussian(torch.tensor([[[mean]]]), torch.tensor([[math.log(std)]]), None)


def test_the_contrast_of_discrete_actions_by_hand() -> None:
    # p^2 / b = .36 / .3, .09 / .3 and .01 / .4, i.e. 1.2, .3 and .025 of 1.525.
    tuned, base = categorical(0.6, 0.3, 0.1), categorical(0.3, 0.3, 0.4)
    expected = [1.2 / 1.525, 0.3 / 1.525, 0.025 / 1.525]
    assert probabilities(contrast_categorical(tuned, base, 1.0)) == pytest.approx(expected)
    # Strength -1/2 is the geometric mean, strength -1 the base, without a word on plausibility.
    roots = [math.sqrt(0.6 * 0.3), 0.3, math.sqrt(0.1 * 0.4)]
    mixed = probabilities(contrast_categorical(tuned, base, -0.5))
    assert mixed == pytest.approx([root / sum(roots) for root in roots])
    assert probabilities(contrast_categorical(tuned, base, -1.0)) == pytest.approx([0.3, 0.3, 0.4])


def test_what_is_less_than_a_tenth_as_likely_is_left_out() -> None:
    # .05 is less than a tenth of .6 however unlikely the base takes it: p^2 / b of the others.
    tuned, base = categorical(0.6, 0.35, 0.05), categorical(0.5, 0.499, 0.001)
    kept = [0.36 / 0.5, 0.1225 / 0.499]
    expected = [kept[0] / sum(kept), kept[1] / sum(kept), 0.0]
    assert probabilities(contrast_categorical(tuned, base, 1.0)) == pytest.approx(expected)


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_illegal_actions_stay_out(strength: float) -> None:
    legal = torch.tensor([True, False, True])
    lowest = torch.finfo(torch.float32).min
    tuned, base = (
        Categorical(torch.tensor([[[1.0, lowest, x]]]), legal.expand(1, 1, 3)) for x in (0.5, 2.0)
    )
    found = contrast_categorical(tuned, base, strength)
    assert probabilities(found)[1] == 0.0
    assert math.isfinite(float(found.log_prob(torch.tensor([[0]]))))
    # The normalisers drop out: log p_0 - log p_2 = (1 + a)(1 - .5) - a (1 - 2) = .5 + 1.5 a.
    gap = float(found.logits[..., 0] - found.logits[..., 2])
    assert gap == pytest.approx(0.5 + 1.5 * strength, rel=1e-5)


@pytest.mark.parametrize("strength", [-0.5, 0.5, 3.0])
def test_against_a_uniform_base_it_is_sharpening(strength: float) -> None:
    tuned = categorical(0.5, 0.3, 0.15, 0.05)
    uniform = categorical(0.25, 0.25, 0.25, 0.25)
    found = probabilities(contrast_categorical(tuned, uniform, strength))
    assert found == pytest.approx(probabilities(contrast_categorical(tuned, None, strength)))
    powers = [p ** (1 + strength) for p in (0.5, 0.3, 0.15, 0.05)]
    assert found == pytest.approx([p / sum(powers) for p in powers])  # .05 is just kept


def test_the_contrast_of_gaussians_by_hand() -> None:
    # Precision 2 / .25 - 1 = 7, mean (8 * .5 - 1 * -.3) / 7.
    found = contrast_gaussian(gaussian(0.5, 0.5), gaussian(-0.3, 1.0), 1.0)
    assert float(found.mean) == pytest.approx(4.3 / 7)
    assert float(found.log_std.exp()) == pytest.approx(7**-0.5)
    # Equal deviations: mu_t + a (mu_t - mu_b) = .5 + 2 * .8, and the same deviation.
    found = contrast_gaussian(gaussian(0.5, 0.4), gaussian(-0.3, 0.4), 2.0)
    assert float(found.mean) == pytest.approx(2.1)
    assert float(found.log_std.exp()) == pytest.approx(0.4)
    # Sharpening, pi^(1 + a): the same mean, deviation / sqrt(1 + a).
    found = contrast_gaussian(gaussian(0.5, 0.4), None, 3.0)
    assert (float(found.mean), float(found.log_std.exp())) == pytest.approx((0.5, 0.2))


def test_the_contrast_of_gaussians_is_proportional_to_their_powers() -> None:
    tuned, base, a = gaussian(0.2, 0.7), gaussian(-0.4, 0.5), 0.6
    points = torch.linspace(-2.0, 2.0, 9).view(9, 1, 1)
    found = contrast_gaussian(tuned, base, a).log_prob(points)
    expected = (1 + a) * tuned.log_prob(points) - a * base.log_prob(points)
    gaps = (found - expected).flatten()
    torch.testing.assert_close(gaps, gaps[0].expand(9), atol=1e-4, rtol=0.0)


def test_the_strength_at_which_a_gaussian_is_lost() -> None:
    # (1 + a) / 4 - a > 0 as long as a < 1/3.
    assert most_strength(gaussian(0.0, 2.0), gaussian(0.0, 1.0)) == pytest.approx(1 / 3)
    assert most_strength(gaussian(0.0, 1.0), gaussian(0.0, 2.0)) == math.inf
    absent = Gaussian(
        torch.zeros(1, 1, 2), torch.tensor([[0.0, 5.0]]), torch.tensor([[True, False]])
    )
    other = Gaussian(torch.zeros(1, 1, 2), torch.zeros(1, 2), absent.present)
    assert most_strength(absent, other) == math.inf


@pytest.mark.parametrize("name", ["particles/nav_3", "probe/continuous_match"])
@pytest.mark.parametrize("recurrence", ["none", "gru"])
@pytest.mark.parametrize("greedy", [False, True])
def test_strength_0_is_the_tuned_team_and_minus_1_the_base(
    name: str, recurrence: Recurrence, greedy: bool
) -> None:
    tuned, base = team(name, 0, recurrence), team(name, 1)
    steps = [observations(tuned, 5, seed) for seed in range(4)]

    def played(policy: marl.Policy, **contrast: Any) -> np.ndarray[Any, Any]:
        policy.reset(7)
        return np.stack([policy.act(obs, greedy=greedy, **contrast) for obs in steps])

    alone, other = played(tuned), played(base)
    np.testing.assert_array_equal(played(tuned, contrast=base, strength=0.0), alone)
    np.testing.assert_allclose(
        played(tuned, contrast=base, strength=-1.0), other, atol=1e-6, rtol=1e-5
    )
    assert (alone != other).any()
    stronger = played(tuned, contrast=base, strength=0.3)
    assert (stronger != alone).any()
    policy = contrasted(tuned, base, 0.3)
    np.testing.assert_array_equal(played(policy), stronger)


def test_hidden_states_of_both_teams_are_carried_and_reset() -> None:
    tuned, base = team("particles/nav_3", 0, "gru"), team("particles/nav_3", 1, "gru")
    actor, steps = contrasted(tuned, base, 0.5).actor, 4
    assert isinstance(actor, ContrastActor)
    obs = torch.from_numpy(np.stack([observations(tuned, 2, seed) for seed in range(steps)]))
    hidden = actor.initial_hidden(2)
    states = [tuned.actor.initial_hidden(2), base.actor.initial_hidden(2)]
    for t in range(steps):
        mixed, hidden = actor.step_distribution(obs[t], hidden)
        parts = []
        for i, policy in enumerate((tuned, base)):
            part, states[i] = policy.actor.step_distribution(obs[t], states[i])  # type: ignore[attr-defined]  # ours
            parts.append(part)
        torch.testing.assert_close(mixed.logits, contrast_categorical(*parts, 0.5).logits)
    assert hidden is not None
    assert hidden.shape == (2, 2 * 3 * 8)
    tuned.reset()
    first = tuned.act(obs[0].numpy(), greedy=True, contrast=base)
    tuned.act(obs[1].numpy(), greedy=True, contrast=base)
    tuned.reset_done([True, True])
    np.testing.assert_array_equal(tuned.act(obs[0].numpy(), greedy=True, contrast=base), first)
    with pytest.raises(ValueError, match="call reset"):
        tuned.act(obs[0].numpy(), contrast=base, strength=2.0)


def test_a_contrast_plays_whole_episodes_and_tells_its_probabilities() -> None:
    tuned, base = team("particles/nav_3", 0), team("particles/nav_3", 1)
    policy = contrasted(tuned, base, 1.0)
    result = evaluate(policy, greedy=False, episodes=4, seed=0, num_envs=2)
    assert len(result.returns) == 4
    obs = torch.from_numpy(observations(tuned, 3))
    actions, log_probs, _ = policy.actor.act(obs, None, None, policy.actor.noise((3,), generator()))
    torch.testing.assert_close(policy.actor.log_prob(obs, actions), log_probs)
    with pytest.raises(ValueError, match="not saved"):
        policy.actor.state_dict()


@pytest.mark.parametrize(
    ("base", "strength", "words"),
    [
        (team("particles/nav_6", 1), 1.0, r"contrast: the policy of team_1 .*agents: 6.*agents: 3"),
        (team("probe/continuous_match", 1), 1.0, "kind of action: continuous"),
        (team("particles/nav_3", 1), -1.5, "strength: got -1.5, expected a number of at least -1"),
        (team("particles/nav_3", 1), math.nan, "strength: got nan"),
    ],
)
def test_a_base_that_does_not_fit_is_one_line(
    base: marl.Policy, strength: float, words: str
) -> None:
    tuned = team("particles/nav_3", 0)
    for call in (
        lambda: contrasted(tuned, base, strength),
        lambda: tuned.act(observations(tuned, 1), contrast=base, strength=strength),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_lost_gaussian_is_one_line() -> None:
    tuned, base = team("probe/continuous_match", 0), team("probe/continuous_match", 1)
    assert isinstance(base.actor, GaussianActor)
    with torch.no_grad():
        base.actor.log_std.sub_(math.log(2.0))
    contrasted(tuned, base, 0.3)
    with pytest.raises(ConfigError, match=r"strength: got 0.5, .* from 0.333 on"):
        contrasted(tuned, base, 0.5)
    with pytest.raises(ConfigError, match="which no Gaussian is"):
        contrasted(tuned, None, -1.0)


def test_actors_without_a_distribution_are_refused() -> None:
    tuned = team("particles/nav_3", 0)
    own = team("particles/nav_3", 1)
    own.actor = object()  # type: ignore[assignment]  # a user's, which only acts
    with pytest.raises(ConfigError, match=r"contrast: the actor of team_1 .* step_distribution"):
        contrasted(tuned, own, 1.0)


def reward_of(policy: marl.Policy, kind: type = FactoredReward, **options: Any) -> RewardLearner:
    """Return a reward model with random weights, for the policy's environment."""
    config = RewardConfig(hidden_sizes=(8,), mixer_hidden=8, **options)
    norm = TeamNorm(policy.spec, enabled=True)
    model = kind(policy.spec, config, 0.9, norm, generator(5))
    noise = generator(6)
    with torch.no_grad():
        norm.state_norm.mean.copy_(torch.randn(norm.state_norm.mean.shape, generator=noise))
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=noise))
    return RewardLearner(model, kind.__name__, config, 25, threads=1, device=CPU)


def local_worth(learner: RewardLearner, obs: Tensor, actions: Tensor, scale: float = 1.0) -> Tensor:
    """Return w_i (q_i - v_i) / scale, of which w_i is that of the mean state."""
    model: Any = learner.model
    inputs = actions
    if model.is_discrete:
        inputs = torch.nn.functional.one_hot(actions, model.action_size).to(obs.dtype)
    q = model.q(torch.cat((model.norm.obs(obs), inputs), dim=-1)).squeeze(-1)
    v = model.v(model.norm.obs(obs)).squeeze(-1)
    out = model.q_mixer.hypernetwork(torch.zeros_like(model.norm.state_norm.mean))
    weights = torch.nn.functional.softplus(out[:-1] + math.log(math.e - 1.0))
    return weights * (q - v) / scale


def test_guidance_of_discrete_actions_is_the_tilted_policy() -> None:
    tuned = team("particles/nav_3", 0)
    learner = reward_of(tuned)
    policy = guided(tuned, learner, 0.7)
    assert isinstance(policy.actor, GuidedActor)
    scale = policy.actor.scale
    obs = torch.from_numpy(observations(tuned, 4))
    with torch.no_grad():
        found = policy.actor.step_distribution(obs)[0].logits.softmax(dim=-1)  # type: ignore[union-attr]
        assert isinstance(tuned.actor, CategoricalActor)
        log_probs = tuned.actor.step_distribution(obs)[0].logits.log_softmax(dim=-1)  # type: ignore[union-attr]
        count = log_probs.shape[-1]
        worth = torch.stack(
            [local_worth(learner, obs, torch.full(obs.shape[:-1], a), scale) for a in range(count)],
            dim=-1,
        )
        implausible = log_probs < log_probs.amax(dim=-1, keepdim=True) + math.log(0.1)
        expected = (log_probs + 0.7 * worth).masked_fill(implausible, -math.inf).softmax(dim=-1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert (found - log_probs.exp()).abs().max() > 0.05


def test_guidance_of_continuous_actions_chooses_among_candidates() -> None:
    tuned = team("probe/continuous_match", 0)
    learner = reward_of(tuned)
    actor = GuidedActor(tuned.actor, learner.model, 2.0, candidates=3)  # type: ignore[arg-type]
    obs = torch.from_numpy(observations(tuned, 5))
    noise = actor.noise((5,), generator())
    assert noise.shape == (5, 3, 2, 3)  # K candidates, N agents, A dimensions and a choice
    with torch.no_grad():
        policy = tuned.actor.step_distribution(obs)[0]  # type: ignore[attr-defined]
        candidates = [policy.sample(noise[:, k, :, :-1]) for k in range(3)]
        scores = [
            2.0 * local_worth(learner, obs, candidates[k].clamp(-1, 1), actor.scale)
            + noise[:, k, :, -1]
            for k in range(3)
        ]
        actions, log_probs, _ = actor.act(obs, None, None, noise)
    best = torch.stack(scores).argmax(dim=0)
    expected = torch.stack(candidates).gather(0, best[None, ..., None].expand(1, 5, 2, 2))[0]
    torch.testing.assert_close(actions, expected)
    assert log_probs.isnan().all()
    assert len(best.unique()) > 1


def test_greedy_guidance_is_at_least_as_good_as_the_mean() -> None:
    tuned = team("probe/continuous_match", 0)
    learner = reward_of(tuned)
    obs = torch.from_numpy(observations(tuned, 50))
    with torch.no_grad():
        mean = tuned.actor.act(obs)[0]
        actor = guided(tuned, learner, 1.0).actor
        assert isinstance(actor, GuidedActor)
        actions, scale = actor.act(obs)[0], actor.scale
        density = tuned.actor.log_prob
        gain = local_worth(learner, obs, actions.clamp(-1, 1), scale) + density(obs, actions)
        least = local_worth(learner, obs, mean.clamp(-1, 1), scale) + density(obs, mean)
    assert (gain >= least - 1e-5).all()
    assert (gain > least + 0.1).any()


@pytest.mark.parametrize("name", ["particles/nav_3", "probe/continuous_match"])
def test_the_strength_of_guidance_does_not_depend_on_the_unit_of_q(name: str) -> None:
    tuned = team(name, 0)
    learner, obs = reward_of(tuned), observations(tuned, 6)
    played = []
    for factor in (1.0, 20.0):
        with torch.no_grad():
            for parameter in list(learner.model.q.parameters())[-2:]:  # type: ignore[union-attr]
                parameter.mul_(factor)
        policy = guided(tuned, learner, 1.5)
        policy.reset(4)
        played.append(policy.act(obs))
    np.testing.assert_array_equal(*played)
    tuned.reset(4)
    assert (played[0] != tuned.act(obs)).any()


def test_guidance_of_strength_0_is_the_tuned_team() -> None:
    for name in ("particles/nav_3", "probe/continuous_match"):
        tuned = team(name, 0)
        policy, obs = guided(tuned, reward_of(tuned), 0.0), observations(tuned, 9)
        for each in (tuned, policy):
            each.reset(3)
        np.testing.assert_array_equal(policy.act(obs), tuned.act(obs))


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({}, CentralReward, "guide: got CentralReward, expected a feed-forward factored reward"),
        ({"recurrence": "gru"}, FactoredReward, "guide: got a recurrent one"),
    ],
)
def test_a_reward_without_local_advantages_cannot_guide(
    options: dict[str, Any], kind: type, words: str
) -> None:
    tuned = team("particles/nav_3", 0)
    with pytest.raises(ConfigError, match=words):
        guided(tuned, reward_of(tuned, kind, **options), 1.0)
