"""How good a trained team is: whole episodes, greedy and sampled, with intervals.

Axes: E environments, B episodes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from marl.data.rollout import Collector
from marl.policy import Policy
from marl.utils.seeding import Seeds


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Episodic returns under one way of acting."""

    returns: npt.NDArray[np.float64]
    """(B,) true returns, the same number from every environment."""
    low: float
    """Lower end of the 95 % bootstrap interval of the mean."""
    high: float
    facts: dict[str, float]
    """Mean of each fact that the environment tells of an episode."""

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())


def evaluate(
    policy: Policy,
    *,
    greedy: bool,
    episodes: int,
    seed: int,
    num_envs: int = 16,
    progress: Callable[[float], None] | None = None,
) -> Evaluation:
    """Return at least `episodes` whole episodes, equally many from each of `num_envs` environments.

    Stopping at the first `episodes` to finish would favour short ones. Generators are apart from
    those of training: two calls with one seed return the same. `progress` is told again and
    again which share of the episodes has ended.
    """
    num_envs = min(num_envs, episodes)
    per_env = -(-episodes // num_envs)
    seeds = Seeds(seed)
    returns: list[list[float]] = [[] for _ in range(num_envs)]
    facts: list[list[list[float]]] = [[] for _ in range(num_envs)]
    with policy.open_env(num_envs) as env:
        collector = Collector(
            env,
            min(env.spec.max_steps, 200),
            seed=seeds.integer("evaluation environment"),
            generator=seeds.torch("evaluation actions"),
            device=torch.device("cpu"),
        )
        while min(len(r) for r in returns) < per_env:
            finished = collector.collect(policy.actor, greedy=greedy)[0].episodes
            for index, env_index in enumerate(finished.env.tolist()):
                returns[env_index].append(float(finished.returns[index]))
                facts[env_index].append(
                    [] if finished.facts is None else finished.facts[index].tolist()
                )
            if progress is not None:
                ended = sum(min(len(r), per_env) for r in returns)
                progress(ended / (num_envs * per_env))
    counted = np.array([r[:per_env] for r in returns]).flatten()
    told = np.array([f[:per_env] for f in facts]).mean(axis=(0, 1))
    low, high = bootstrap_interval(counted, seeds.numpy("evaluation bootstrap"))
    return Evaluation(
        returns=counted,
        low=low,
        high=high,
        facts=dict(zip((fact.name for fact in env.spec.facts), told.tolist(), strict=True)),
    )


def bootstrap_interval(
    values: npt.NDArray[np.float64], rng: np.random.Generator, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean (2,000 resamples)."""
    means = rng.choice(values, (2000, len(values))).mean(axis=1)
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)
