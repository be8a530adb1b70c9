"""The order of a list of entities makes no difference, but for the actions that name them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import marl
from envs import EntityList, EnvSpec
from envs.validation import Problems, check_layout
from marl.config import ConfigError, NetworkConfig, RewardConfig
from marl.learners.actors import make_actor
from marl.nn.encoders import make_encoder
from marl.nn.entities import HEADS, WIDTH, EntityActions
from marl.nn.normalisation import TeamNorm, team_norm
from marl.rewards import FactoredReward
from tests.reward_models import generator, make_steps
from tests.small_runs import small

ALLIES = EntityList(name="allies", first=0, count=2, size=3)
ENEMIES = EntityList(name="enemies", first=6, count=3, size=2, first_action=2)
SPEC = EnvSpec(
    name="battle",
    num_envs=4,
    obs_sizes=(14,) * 3,
    state_size=5,
    action_kind="discrete",
    action_sizes=(6,) * 3,
    max_steps=10,
    finite_horizon=True,
    entities=(ALLIES, ENEMIES),
)
"""Two own features come last; actions 2, 3, 4 are about the enemies, 0, 1 and 5 about nobody."""


def permuted(obs: Tensor, of: EntityList, order: list[int]) -> Tensor:
    """Return observations with the entities of a list in another order."""
    out = obs.clone()
    end = of.first + of.count * of.size
    entities = obs[..., of.first : end].unflatten(-1, (of.count, of.size))
    out[..., of.first : end] = entities[..., order, :].flatten(-2)
    return out


def observations(*lead: int) -> Tensor:
    return torch.randn(*lead, 3, 14, generator=generator(1))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("recurrence", ["none", "gru"])
def test_a_policy_permutes_its_attacks_with_the_enemies(shared: bool, recurrence: Any) -> None:
    config = NetworkConfig(
        encoder="entities", share_parameters=shared, recurrence=recurrence, hidden_sizes=(16, 16)
    )
    actor = make_actor(SPEC, config, TeamNorm(SPEC, enabled=False), generator())
    with torch.no_grad():  # the last layer starts near zero
        for parameter in actor.body.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator(2)))
    obs, hidden = observations(4), actor.initial_hidden(4)
    logits = actor._step(obs, hidden)[0]
    assert logits.shape == (4, 3, 6)
    order = [2, 0, 1]
    moved = actor._step(permuted(obs, ENEMIES, order), hidden)[0]
    expected = logits.clone()
    expected[..., 2:5] = logits[..., 2:5][..., order]
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)
    assert (logits[..., 2] - logits[..., 3]).abs().max() > 1e-3
    swapped = actor._step(permuted(obs, ALLIES, [1, 0]), hidden)[0]
    torch.testing.assert_close(swapped, logits, rtol=1e-4, atol=1e-5)
    other = obs.clone()
    other[..., 0] += 1.0
    assert not torch.allclose(actor._step(other, hidden)[0], logits, atol=1e-4)


def test_who_is_absent_is_not_attended_to() -> None:
    encoder: Any = make_encoder(SPEC, "entities", "x", shared=True, generator=generator())
    obs = observations(4)
    obs[..., 6:12] = 0.0  # no enemy is there
    features, tokens = encoder.with_tokens(obs)
    assert features.shape[-1] == (1 + HEADS + 2) * WIDTH  # itself, what the heads found, means
    assert (features[..., -WIDTH:] == 0.0).all()  # the mean of no enemies
    with torch.no_grad():
        encoder.encoders[0].embeddings[1].bias.add_(1.0)
    torch.testing.assert_close(encoder(obs)[..., :-WIDTH], features[..., :-WIDTH])
    assert tokens.shape == (4, 3, 3, WIDTH)


def test_a_reward_reads_the_entity_that_an_action_names() -> None:
    model = FactoredReward(
        SPEC, RewardConfig(encoder="entities"), 0.9, TeamNorm(SPEC, enabled=False), generator()
    )
    steps = replace(
        make_steps(0, 4), obs=observations(4), next_obs=observations(4), action_mask=None
    )
    steps = replace(steps, actions=torch.randint(6, (4, 3), generator=generator(3)))
    order = [2, 0, 1]
    renamed = torch.tensor([0, 1, 3, 4, 2, 5])  # enemy 0 is now the second, 2 the first
    other = replace(
        steps,
        obs=permuted(steps.obs, ENEMIES, order),
        next_obs=permuted(steps.next_obs, ENEMIES, order),
        actions=renamed[steps.actions],
    )
    mine, theirs = model(steps), model(other)
    torch.testing.assert_close(mine.team, theirs.team, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine.local, theirs.local, rtol=1e-4, atol=1e-5)
    misnamed = replace(other, actions=steps.actions)
    assert not torch.allclose(model(misnamed).team, model(steps).team, atol=1e-4)


def test_actions_are_described_by_whom_they_are_about() -> None:
    about = EntityActions(SPEC)
    assert about.others == [0, 1, 5]
    tokens = torch.randn(3, WIDTH)
    described = about.described(torch.eye(6), tokens)
    assert described.shape == (6, about.columns)
    assert described[:, :4].tolist() == [
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 0, 1],
        [0, 0, 0, 1],
        [0, 0, 1, 0],
    ]
    torch.testing.assert_close(described[2:5, 4:], tokens)
    assert (described[[0, 1, 5], 4:] == 0.0).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"first": 12}, "does not fit into 14 observed features"),
        ({"count": 0}, "does not fit into"),
        ({"first_action": 4}, "names actions that there are not"),
    ],
)
def test_a_list_that_does_not_fit_is_told(change: dict[str, int], words: str) -> None:
    problems = Problems("battle")
    check_layout(replace(SPEC, entities=(ALLIES, replace(ENEMIES, **change))), problems)
    assert words in problems.sentences()[0]
    sound = Problems("battle")
    check_layout(SPEC, sound)
    assert not sound


def test_observations_are_read_as_they_are() -> None:
    norm = team_norm(SPEC, NetworkConfig(encoder="entities"))
    obs = observations(4)
    assert torch.equal(norm.obs(obs), obs)
    assert norm.standardises_state


def test_a_task_without_lists_says_so() -> None:
    config = small(**{"network.encoder": "entities", "algorithm": "sparse"})
    with pytest.raises(ConfigError, match="particles/nav_3 tells of none"):
        list(marl.train(config))


@pytest.mark.parametrize(
    "changes",
    [{"learner.kind": "happo", "network.share_parameters": False}, {"network.recurrence": "gru"}],
)
def test_teams_are_trained_with_it(changes: dict[str, Any]) -> None:
    changes |= {"network.encoder": "entities", "reward.encoder": "entities"}
    config = small(**changes, **{"env.name": "particles/spread_3"}, total_steps=240)
    *_, last = marl.train(config)
    assert last["reward/gradient_steps"] > 0
