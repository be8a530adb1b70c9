"""A team's policy for a team of another size: agents side by side, those that fill up dropped.

Axes: E environments, N agents.
"""

import math

import numpy as np
import pytest
import torch

from envs import make_env
from marl.config import Config, ConfigError, EnvConfig
from marl.contrast import contrasted
from marl.evaluation import evaluate
from marl.learners.actors import GaussianActor
from marl.learners.distributions import Gaussian
from marl.team_size import ResizedActor, fold, resized, unfold
from tests.reward_models import generator
from tests.teams import Recurrence, observations, team


def test_folding_by_hand() -> None:
    # Five agents as teams of two: the last one is filled up by agent 0.
    x = torch.arange(10.0).view(5, 2)
    assert fold(x, 2, -2)[..., 0].tolist() == [[0.0, 2.0], [4.0, 6.0], [8.0, 0.0]]
    assert torch.equal(unfold(fold(x, 2, -2), 5, -3), x)
    # One agent as a team of three: it is there three times.
    assert fold(torch.tensor([[7.0]]), 3, -2).flatten().tolist() == [7.0, 7.0, 7.0]


@pytest.mark.parametrize("recurrence", ["none", "gru"])
@pytest.mark.parametrize("count", [2, 3, 6, 7])
def test_agents_act_as_their_likes(recurrence: Recurrence, count: int) -> None:
    """Agent i of any team acts as agent i modulo 3 does, seeing the same, step after step."""
    small = team("particles/nav_3", 0, recurrence)
    actor = ResizedActor(small.actor, 3, count)  # type: ignore[arg-type]  # ours
    hidden, generators = actor.initial_hidden(4), generator()
    own = [small.actor.initial_hidden(4) for _ in range(count)]
    for step in range(3):
        obs = torch.randn((4, count, small.spec.obs_size), generator=generators)
        policy, hidden = actor.step_distribution(obs, hidden)
        for i in range(count):
            seen = torch.zeros(4, 3, small.spec.obs_size)
            seen[:, i % 3] = obs[:, i]
            alone, own[i] = small.actor.step_distribution(seen, own[i])  # type: ignore[attr-defined]
            torch.testing.assert_close(
                policy.log_prob(torch.full((4, count), step))[:, i],
                alone.log_prob(torch.full((4, 3), step))[:, i % 3],
            )
    assert actor.noise((5, 4), generator()).shape == (5, 4, count, small.spec.action_size)


def test_deviations_of_gaussians_go_with_the_agents() -> None:
    small = team("probe/continuous_match", 0)
    assert isinstance(small.actor, GaussianActor)
    with torch.no_grad():
        small.actor.log_std.copy_(torch.tensor([[0.1, 0.0], [0.2, 0.3]]))
    obs = torch.randn((5, 3, 3), generator=generator())
    policy, _ = ResizedActor(small.actor, 2, 3).step_distribution(obs)
    assert isinstance(policy, Gaussian)
    torch.testing.assert_close(policy.log_std, torch.tensor([[0.1, 0.0], [0.2, 0.3], [0.1, 0.0]]))
    assert policy.present is not None
    assert policy.present.tolist() == [[True, False], [True, True], [True, False]]
    torch.testing.assert_close(
        policy.mean[:, :2], small.actor.step_distribution(obs[:, :2])[0].mean
    )


def test_a_small_teams_contrast_plays_in_a_large_ones_environment() -> None:
    small, base = team("particles/nav_3", 0), team("particles/nav_3", 1)
    large = make_env("particles/nav_7", 1).spec
    config = Config(env=EnvConfig(name="particles/nav_7"))
    policy = resized(contrasted(small, base, 0.5), config, large, "here")
    assert policy.act(observations(policy, 2)).shape == (2, 7)
    result = evaluate(policy, greedy=False, episodes=2, seed=0, num_envs=2)
    assert all(math.isfinite(value) for value in result.returns)


def test_the_same_size_is_the_same_actor() -> None:
    small = team("particles/nav_3", 0)
    policy = resized(small, small.config, small.spec, "here")
    assert policy.actor is small.actor
    np.testing.assert_array_equal(
        policy.act(observations(small, 2), greedy=True),
        small.act(observations(small, 2), greedy=True),
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "particles/spread_3",
            r"here: .*features of each: \[6, 6, 6\].*\[14, 14, 14\].*may differ",
        ),
        ("probe/continuous_match", "kind of action: discrete"),
    ],
)
def test_agents_that_see_something_else_are_refused(name: str, words: str) -> None:
    small, spec = team("particles/nav_3", 0), make_env(name, 1).spec
    with pytest.raises(ConfigError, match=words) as caught:
        resized(small, Config(env=EnvConfig(name=name)), spec, "here")
    assert "\n" not in str(caught.value)
