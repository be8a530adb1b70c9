"""What several processes exchange while they fit one reward model: batches' sizes, and metrics.

A process alone goes through the same calls, which then change nothing.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from marl.data.types import BatchShares, EpisodeBatch
from marl.rewards.base import Batches
from marl.utils.ranks import Ranks, mean_metrics, together


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What the processes have drawn to learn from, or to measure with."""

    batch: EpisodeBatch | None
    """This process's; None: it has nothing."""
    exists: bool
    """Whether any process has a batch."""
    rows: int
    """Steps in the batches of all, padding included."""


@dataclass(frozen=True, kw_only=True)
class GradientStep:
    """Metrics of one gradient step."""

    loss: Tensor
    """That of the `RewardLoss`, without penalties; zero for a process without a batch."""
    metrics: dict[str, Tensor]
    """Empty for a process without a batch."""
    num_pairs: int = 0
    num_episodes: int = 0


def draw(ranks: Ranks, source: Batches, *, held_out: bool = False) -> Drawn:
    """Draw a batch in every process, and tell each which share of all rows its own has."""
    with together(ranks):
        batch = source.batch(held_out=held_out)
    rows = 0 if batch is None else batch.step_weights.numel()
    if ranks.size == 1:
        return Drawn(batch=batch, exists=batch is not None, rows=rows)
    counts = dict.fromkeys(BatchShares.__annotations__, 0) if batch is None else batch.counts()
    mine = [float(batch is not None), float(rows), *map(float, counts.values())]
    total = ranks.sum_(torch.tensor(mine, dtype=torch.float64), "batch").tolist()
    if batch is not None:
        sums = dict(zip(counts, total[2:], strict=True))
        shares = {name: ranks.size * n / max(1.0, sums[name]) for name, n in counts.items()}
        batch = replace(batch, shares=BatchShares(**shares))
    return Drawn(batch=batch, exists=bool(total[0]), rows=int(total[1]))


def metrics_of_steps(ranks: Ranks, steps: list[GradientStep]) -> dict[str, float]:
    """Return the mean metrics of some gradient steps of all processes."""
    known = [step.metrics for step in steps if step.metrics]
    metrics: dict[str, float] = {}
    if known:
        means = torch.stack([torch.stack([*one.values()]) for one in known]).mean(dim=0)
        metrics = dict(zip(known[0], means.tolist(), strict=True))
    pairs, episodes = (sum(getattr(s, n) for s in steps) for n in ("num_pairs", "num_episodes"))
    return merged_metrics(ranks, metrics, pairs, episodes)


def merged_metrics(
    ranks: Ranks, metrics: dict[str, float], pairs: int, episodes: int
) -> dict[str, float]:
    """Return the means of all processes' metrics.

    Those of preferences count as the pairs do that they are measured on, others as the episodes.
    """
    if ranks.size == 1:
        return metrics
    of_pairs = {name: x for name, x in metrics.items() if name.startswith("preference/")}
    others = {name: x for name, x in metrics.items() if name not in of_pairs}
    return mean_metrics(ranks, of_pairs, pairs) | mean_metrics(ranks, others, episodes)
