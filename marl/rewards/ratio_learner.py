"""Fits a policy that is its own reward model: the loss is of its log-ratio to a reference."""

import math
from typing import Any, cast

import torch

from envs import EnvSpec
from marl.config import Config
from marl.learners.actors import make_actor
from marl.learners.base import Actor
from marl.nn.normalisation import TeamNorm
from marl.nn.optimizer import Optimizer
from marl.rewards.base import Batches, PolicySampler, check_episode_length
from marl.rewards.budget import descend
from marl.rewards.exchange import Drawn, GradientStep, draw
from marl.rewards.learner import FAILED_BLOCKS, RewardLearner
from marl.rewards.ratio import (
    PolicyRatio,
    UniformPolicy,
    frozen,
    with_deviation_of,
)

MEASUREMENTS = 5
"""Measurements within the fit of an iteration."""


class RatioLearner(RewardLearner):
    """Takes a few gradient steps on the policy in every iteration, and moves its reference.

    A fit ends where the loss of a held-out batch, drawn once, has not fallen twice in a row, and
    keeps the policy of the lowest one, which may be that of before: preferences that are fitted too
    closely lower the return of the likeliest actions.
    """

    model: PolicyRatio
    moves = 0
    """Iterations since the reference moved."""
    stops_early = True
    """Whether every fit ends where held-out pairs say so."""
    kept_steps = 0
    """Gradient steps behind the policy that the last fit has kept."""

    def fit(self, source: Batches, policy: PolicySampler) -> dict[str, float]:
        """Take gradient steps, move the reference where its time has come, and return metrics."""
        metrics = super().fit(source, policy)
        metrics["reward/kept_steps"] = float(self.kept_steps)
        ratio = self.config.ratio
        self.moves += 1
        if ratio.reference_period and self.moves >= ratio.reference_period:
            self.moves = 0
            self.model.move_reference(ratio.reference_rate)
        return metrics

    def _descend(
        self, optimizer: Optimizer, source: Batches, policy: PolicySampler
    ) -> tuple[list[GradientStep], Drawn | None]:
        """Take the budget's gradient steps, or fewer; see the class."""
        if not self.stops_early:
            taken, held_out = super()._descend(optimizer, source, policy)
            self.kept_steps = len(taken)
            return taken, held_out
        block, max_rows = self.budget.block, self.budget.max_rows
        drawn = draw(self.ranks, source, held_out=True)
        held_out = drawn if drawn.exists else None
        taken = []
        num_rows = 0

        def step() -> bool:
            nonlocal num_rows
            if max_rows and len(taken) >= block and num_rows >= max_rows:
                return False
            drawn = draw(self.ranks, source)
            if not drawn.exists:
                return False
            taken.append(self._step(optimizer, drawn.batch, policy, 0.0))
            num_rows += drawn.rows
            return True

        result = descend(
            step,
            lambda: math.nan if held_out is None else self._held_out_loss(held_out.batch),
            self.parameters,
            steps=max_rows or block,  # a step has at least one row
            block=block if max_rows else -(-block // MEASUREMENTS),
            patience=FAILED_BLOCKS,
        )
        self.kept_steps = result.kept
        return taken, held_out

    def state_dict(self) -> dict[str, Any]:
        """Return the policy, its reference, the optimizer and the scales."""
        return super().state_dict() | {"moves": self.moves}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a learner with the same settings."""
        super().load_state_dict(state)
        self.moves = state["moves"]


def make_ratio(
    spec: EnvSpec,
    config: Config,
    norm: TeamNorm,
    generator: torch.Generator,
    actor: Actor | None = None,
    *,
    uniform: bool = False,
) -> PolicyRatio:
    """Return the ratio of a policy (a new one without `actor`) and what it is now.

    Both read the same input statistics, so that these, when they move, favour no action. With
    `uniform` the reference is the uniform policy. A Gaussian policy keeps the deviation that it
    has, or that of the uniform one.
    """
    if config.network.recurrence != "none":
        check_episode_length(spec, "network.recurrence")
    policy = cast(Any, actor or make_actor(spec, config.network, norm, generator))
    reference: Any = UniformPolicy(spec) if uniform else frozen(policy)
    if not uniform:
        reference.norm = policy.norm
    with_deviation_of(policy, reference)
    return PolicyRatio(policy, reference, config.reward.ratio.beta)
