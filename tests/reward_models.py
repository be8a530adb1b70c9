"""Random transitions, and small reward models to read them.

Axes: M episodes, K steps, N agents; O, S, A features.
"""

import math
from typing import Any

import torch
from torch import Tensor

from envs import EnvSpec
from marl.config import RewardConfig
from marl.data.types import EpisodeBatch, Rewards, Transitions
from marl.nn.normalisation import TeamNorm
from marl.rewards import FactoredReward
from marl.rewards.base import TeamValue

CPU = torch.device("cpu")
N, O, S, A = 3, 4, 5, 2  # noqa: E741  # the letters of the legend
GAMMA = 0.9


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_spec(*, continuous: bool = False, dies: bool = False) -> EnvSpec:
    return EnvSpec(
        name="nowhere",
        num_envs=1,
        obs_sizes=(O,) * N,
        state_size=S,
        action_kind="continuous" if continuous else "discrete",
        action_sizes=(A,) * N,
        max_steps=10,
        finite_horizon=True,
        agents_die=dies,
    )


def make_steps(
    seed: int, *lead: int, continuous: bool = False, dies: bool = False, terminated: float = 0.3
) -> Transitions:
    """Return random transitions; living agents may die, dead ones stay dead."""
    source = generator(seed)
    alive = torch.rand((*lead, N), generator=source) < 0.6
    actions = torch.randint(A, (*lead, N), generator=source)
    return Transitions(
        obs=torch.randn((*lead, N, O), generator=source),
        state=torch.randn((*lead, S), generator=source),
        actions=torch.randn((*lead, N, A), generator=source) if continuous else actions,
        next_obs=torch.randn((*lead, N, O), generator=source),
        next_state=torch.randn((*lead, S), generator=source),
        terminated=torch.rand(lead, generator=source) < terminated,
        alive=alive if dies else None,
        next_alive=alive & (torch.rand((*lead, N), generator=source) < 0.6) if dies else None,
    )


def make_model(
    kind: type = FactoredReward, gamma: float = GAMMA, *, continuous: bool = False, **options: Any
) -> Any:
    """Return a reward model whose target networks differ from the online ones and from zero."""
    spec = make_spec(continuous=continuous)
    config = RewardConfig(hidden_sizes=(8,), mixer_hidden=8, **options)
    model = kind(spec, config, gamma, TeamNorm(spec, enabled=False), generator())
    noise = generator(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=noise))
    return model


def outputs_of(model: Any, steps: Transitions) -> tuple[Rewards, TeamValue, Tensor]:
    """Return the rewards, Q at s with its parts, and the bias part of R."""
    q = model.q_tot(steps)
    rewards, bias = model.rewards(steps, q, model.next_v_tot(steps))
    return rewards, q, bias


def uniform_policy(steps: Transitions) -> tuple[Tensor, Tensor]:
    """Return random actions and their log-probabilities."""
    actions = torch.randint(A, steps.actions.shape, generator=generator(5))
    return actions, torch.full(actions.shape, -math.log(A))


def batch_of(weights: list[list[float]], lengths: list[int], **labels: Any) -> EpisodeBatch:
    """Return a batch of episodes with these step weights."""
    steps = make_steps(0, len(lengths), len(weights[0]))
    values: dict[str, Any] = {"first": [0], "second": [1], "labels": [1.0]}
    values |= {"returns": [math.nan] * len(lengths)} | labels
    return EpisodeBatch(
        transitions=steps,
        step_weights=torch.tensor(weights),
        lengths=torch.tensor(lengths),
        **{name: torch.tensor(value) for name, value in values.items()},
    )


class OneBatch:
    """A source that always serves the same batch, to train and to measure on."""

    def __init__(self, batch: EpisodeBatch) -> None:
        self.served = batch

    def batch(self, *, held_out: bool = False) -> EpisodeBatch:
        return self.served
