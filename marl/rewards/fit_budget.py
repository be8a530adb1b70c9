"""How much work one fit of the reward may take."""

from dataclasses import dataclass

from marl.config import Config


@dataclass(frozen=True, kw_only=True)
class FitBudget:
    """What an iteration grants a fit: counts, so that a run can be repeated exactly."""

    block: int
    """Gradient steps that are taken in any case, and in every further block."""
    max_rows: int = 0
    """Rows passed through the networks at which a fit takes no further step; 0: one block only."""


def fit_budget(config: Config) -> FitBudget:
    """Return the budget of every fit of a run.

    A constant ``reward.gradient_steps`` is one block. Otherwise the first block follows the data,
    and the fit may take `fit_share` of the rows that it and the policy's update pass through their
    networks, whose share is 1 - `fit_share`.
    """
    reward = config.reward
    if reward.gradient_steps:
        return FitBudget(block=reward.gradient_steps)
    policy_rows = config.batch_steps * config.learner.epochs
    return FitBudget(
        block=-(-config.batch_steps // reward.env_steps_per_gradient_step),
        max_rows=int(policy_rows * reward.fit_share / (1.0 - reward.fit_share)),
    )
