"""Actions of several parts: their columns, their distribution, what of them is legal."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from envs import EnvError, EnvSpec, make_env
from envs.parts import part_layout
from envs.rng import random_actions
from envs.validation import Problems, check_spec, checked_actions
from marl.config import NetworkConfig
from marl.learners.actors import CompositeActor, make_actor
from marl.learners.distributions import Categorical, Gaussian
from marl.nn.normalisation import TeamNorm
from marl.rewards.ratio import UniformPolicy
from tests.reward_models import generator

PARTS = ((3, 0, 2), (0, 0))
SPEC = EnvSpec(
    name="nowhere",
    num_envs=4,
    obs_sizes=(2, 2),
    state_size=2,
    action_kind="composite",
    action_parts=PARTS,
    action_sizes=(6, 2),
    max_steps=10,
    finite_horizon=True,
    masks_actions=True,
)


def actor_of(spec: EnvSpec) -> Any:
    return make_actor(
        spec, NetworkConfig(hidden_sizes=(4,)), TeamNorm(spec, enabled=False), generator(0)
    )


def test_where_the_parts_stand() -> None:
    layout = part_layout(PARTS)
    # Agent 0: columns 0 to 2 are a choice, 3 is a number, 4 and 5 are a choice; 6 is none.
    assert layout.columns.tolist() == [[[0, 1, 2], [4, 5, 6]], [[6, 6, 6], [6, 6, 6]]]
    assert layout.is_number.tolist() == [
        [False] * 3 + [True] + [False] * 2,
        [True] * 2 + [False] * 4,
    ]
    assert layout.exists.tolist() == [[True, True], [False, False]]
    assert layout.slots[0].tolist() == [0, 1, 2, 0, 3, 4]


def test_probabilities_are_products_over_the_parts() -> None:
    actor = actor_of(SPEC)
    with torch.no_grad():
        actor.log_std.fill_(math.log(2.0))
    actor.requires_grad_(False)
    outputs = torch.zeros(1, 2, 6)
    outputs[0, 0] = torch.tensor([0.0, 0.0, math.log(2.0), 1.0, math.log(3.0), 0.0])
    mask = torch.ones(1, 2, 6, dtype=torch.bool)
    mask[0, 0, 0] = False
    action = torch.zeros(1, 2, 6)
    action[0, 0] = torch.tensor([0.0, 0.0, 1.0, 0.5, 1.0, 0.0])
    policy = actor.distribution(outputs, mask)
    # Of the legal options the third has 2 / (1 + 2), of the second choice the first 3 / (3 + 1).
    density = math.exp(-0.5 * 0.25**2) / (2.0 * math.sqrt(2.0 * math.pi))
    expected = math.log(2 / 3 * 3 / 4 * density)
    assert float(policy.log_prob(action)[0, 0]) == pytest.approx(expected, rel=1e-5)
    softmaxes = -sum(p * math.log(p) for p in (1 / 3, 2 / 3, 1 / 4, 3 / 4))
    normal = math.log(2.0) + 0.5 * math.log(2.0 * math.pi * math.e)
    assert float(policy.entropy()[0, 0]) == pytest.approx(softmaxes + normal, rel=1e-5)
    assert policy.mode()[0, 0].tolist() == [0.0, 0.0, 1.0, 1.0, 1.0, 0.0]
    # Executed, 0.5 has its density; what is drawn beyond 1 is there, with the mass beyond.
    assert torch.equal(policy.executed_log_prob(action)[0, 0], policy.log_prob(action)[0, 0])


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_a_single_part_is_the_plain_kind(kind: Any) -> None:
    size = 4
    plain = replace(
        SPEC,
        action_kind=kind,
        action_parts=(),
        action_sizes=(size, size),
        masks_actions=kind == "discrete",
    )
    parts = (size,) if kind == "discrete" else (0,) * size
    composite = replace(plain, action_kind="composite", action_parts=(parts, parts))
    ours, theirs = actor_of(composite), actor_of(plain)
    obs = torch.randn(5, 2, 2, generator=generator(1))
    mask = torch.rand(5, 2, size, generator=generator(2)) < 0.8 if kind == "discrete" else None
    noise = theirs.noise((5,), generator(3))
    found, log_probs, _ = ours.act(obs, None, mask, noise)
    expected, expected_log_probs, _ = theirs.act(obs, None, mask, noise)
    if kind == "discrete":
        expected = torch.nn.functional.one_hot(expected, size).to(torch.float32)
    assert torch.equal(found, expected)
    torch.testing.assert_close(log_probs, expected_log_probs)
    policy, other = (actor.step_distribution(obs, None, mask)[0] for actor in (ours, theirs))
    assert isinstance(other, Categorical if kind == "discrete" else Gaussian)
    torch.testing.assert_close(policy.entropy(), other.entropy())


def test_draws_have_the_probabilities() -> None:
    actor = actor_of(SPEC)
    assert isinstance(actor, CompositeActor)
    outputs = torch.zeros(20_000, 2, 6)
    outputs[:, 0, 2] = math.log(2.0)
    drawn = actor.distribution(outputs).sample(actor.noise((20_000,), generator(0)))
    assert (drawn[:, 0, :3].sum(dim=-1) == 1).all()
    assert (drawn[:, 0, 4:].sum(dim=-1) == 1).all()
    # Probabilities 1/4, 1/4, 1/2; four deviations of the mean of 20,000 are 0.014.
    torch.testing.assert_close(
        drawn[:, 0, :3].mean(dim=0), torch.tensor([0.25, 0.25, 0.5]), atol=0.015, rtol=0
    )
    numbers = drawn[:, 1, :2]
    assert abs(float(numbers.mean().detach())) < 0.05
    assert (drawn[:, 1, 2:] == 0).all()


def test_random_actions_are_legal_and_others_are_not() -> None:
    mask = np.ones((4, 2, 6), np.bool_)
    mask[:, 0, 1] = mask[:, 0, 5] = False
    drawn = random_actions(SPEC, np.random.default_rng(0), mask)
    assert checked_actions(SPEC, mask, drawn) is drawn
    assert (drawn[:, 0, 4] == 1).all()
    wrong = {
        "masked": (0, [0, 1, 0, 0, 1, 0]),
        "two options": (0, [1, 0, 1, 0, 1, 0]),
        "no option": (0, [1, 0, 0, 0, 0, 0]),
        "half an option": (0, [0.5, 0, 0.5, 0, 1, 0]),
        "too large": (1, [0, 1.5, 0, 0, 0, 0]),
        "none": (1, [0, np.nan, 0, 0, 0, 0]),
    }
    for agent, action in wrong.values():
        changed = drawn.copy()
        changed[2, agent] = action
        with pytest.raises(EnvError, match=f"copy 2, agent {agent} is illegal; its parts"):
            checked_actions(SPEC, mask, changed)


def test_the_uniform_policy() -> None:
    action = torch.zeros(1, 2, 6)
    action[0, 0, 0] = action[0, 0, 4] = 1.0
    mask = torch.ones(1, 2, 6, dtype=torch.bool)
    mask[0, 0, 2] = False
    found = UniformPolicy(SPEC).log_prob(torch.zeros(1, 2, 2), action, mask)
    # Two legal options of each choice; a number has the density of N(0, 1/3) at its mean.
    number = -0.5 * math.log(2.0 * math.pi / 3.0)
    assert found[0].tolist() == pytest.approx([-2 * math.log(2.0) + number, 2 * number])


@pytest.mark.parametrize(
    "fields",
    [
        {"action_parts": ()},
        {"action_parts": ((3, 2), (0, 0))},
        {"action_kind": "continuous"},
    ],
)
def test_parts_that_do_not_fit(fields: dict[str, Any]) -> None:
    problems = Problems("nowhere")
    check_spec(replace(SPEC, **fields), problems)
    assert len(problems) == 1
    assert "spec.action_parts is" in problems.sentences()[0]


def test_the_probe_pays_what_its_docstring_says() -> None:
    env = make_env("probe/composite", 2_000, reward_mode="dense")
    step = env.reset(0)
    rng = np.random.default_rng(0)
    random, best = [], []
    for _ in range(8):
        obs = step.obs
        right = np.zeros_like(obs)
        right[:, 0] = obs[:, 0]
        right[:, 1, :4] = obs[:, 1, :4]
        state = env.state_dict()
        best.append(float(env.step(right).rewards.mean()))
        env.load_state_dict(state)
        step = env.step(random_actions(env.spec, rng, step.action_mask))
        random.append(float(step.rewards.mean()))
    assert best == pytest.approx([1.0] * 8)
    assert np.mean(random) == pytest.approx(5 / 12, abs=0.01)
