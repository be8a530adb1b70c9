"""Running statistics that put inputs and value targets on one scale.

Axes: B rows, N agents, O observation, S state features; ``*L`` any leading axes.
"""

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor, nn

from envs import EnvSpec
from marl.config import NetworkConfig
from marl.config.presets import ENTITIES
from marl.data.types import Transitions
from marl.utils.ranks import SINGLE, Ranks, merge_moments

_ROUNDING = 1e-6
"""Deviation, as a share of the mean, that single precision cannot tell from none."""
_CLIP = 10.0
"""Deviations from the mean beyond which a standardised input is clipped."""


class InputNorm(nn.Module):
    """Standardises features by running statistics kept in buffers; identity before the first."""

    mean: Tensor
    var: Tensor
    scale: Tensor
    count: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("var", torch.ones(shape))
        self.register_buffer("scale", torch.ones(shape))
        self.register_buffer("count", torch.zeros((*shape[:-1], 1), dtype=torch.float64))

    def forward(self, x: Float[Tensor, "*L F"]) -> Float[Tensor, "*L F"]:
        return (x - self.mean).mul_(self.scale).clamp_(-_CLIP, _CLIP)  # no further new memory

    @torch.no_grad()
    def update(
        self,
        x: Float[Tensor, "B *F"],
        present: Bool[Tensor, "B *P"] | None = None,
        ranks: Ranks = SINGLE,
    ) -> None:
        """Merge all processes' batches into the statistics (Chan et al. 1979).

        Rows that are not present do not count. Each agent has a count of its own, so one absent
        from the whole batch keeps its statistics.
        """
        if present is None:
            rows = torch.full_like(self.count, float(x.shape[0]))
            mean, var = x.mean(dim=0), x.var(dim=0, correction=0)
        else:
            weight = present.unsqueeze(-1).to(x.dtype)
            rows = weight.sum(dim=0, dtype=torch.float64)
            per_agent = rows.clamp(min=1.0).to(x.dtype)
            mean = (weight * x).sum(dim=0) / per_agent
            var = (weight * (x - mean) ** 2).sum(dim=0) / per_agent
        rows, mean, var = merge_moments(ranks, rows, mean, var, "inputs")
        total = self.count + rows
        share = (rows / total.clamp(min=1.0)).to(x.dtype)
        delta = mean - self.mean
        self.var.copy_(torch.lerp(self.var, var, share) + delta**2 * share * (1.0 - share))
        self.mean.add_(delta * share)
        self.count.copy_(total)
        self.scale.copy_(1.0 / _or_one(_deviation(self.var, self.mean)))


def _deviation(var: Tensor, mean: Tensor) -> Tensor:
    """Return the square root of a variance, or 0 where it is no more than rounding.

    Values that are all equal leave a variance that depends on rounding alone. Whether it is small
    is a question of the mean's size, never of the unit in which an environment counts.
    """
    is_constant = var <= (_ROUNDING * mean) ** 2
    return var.masked_fill(is_constant, 0.0).sqrt()


def _or_one(deviation: Tensor) -> Tensor:
    """Return what to divide by: deviations, 1 in place of 0."""
    return torch.where(deviation > 0, deviation, torch.ones_like(deviation))


class TeamNorm(nn.Module):
    """Prepares what agents see and the team's state; every network reads through it.

    The statistics change only between updates, so the policy that is improved is the policy
    that acted.
    """

    def __init__(self, spec: EnvSpec, *, enabled: bool, keeps_obs: bool = False) -> None:
        """With `keeps_obs`, observations are left as they are."""
        super().__init__()
        self.standardises_obs = enabled and not spec.obs_image and not keeps_obs
        self.standardises_state = enabled and not spec.state_images
        self.obs_norm = InputNorm(spec.num_agents, 0 if spec.obs_image else spec.obs_size)
        self.state_norm = InputNorm(0 if spec.state_images else spec.state_size)

    def obs(self, obs: Num[Tensor, "*L N O"]) -> Num[Tensor, "*L N O"]:
        """Return standardised observations; pictures as they are, which encoders read."""
        return self.obs_norm(obs) if self.standardises_obs else obs

    def state(self, state: Num[Tensor, "*L S"]) -> Num[Tensor, "*L S"]:
        """Return standardised states; those of pictures as they are."""
        return self.state_norm(state) if self.standardises_state else state

    def update(self, transitions: Transitions, ranks: Ranks = SINGLE) -> None:
        """Take all processes' rollouts into the statistics; the dead do not count."""
        alive = transitions.alive
        living = None if alive is None else alive.flatten(0, 1)
        if self.standardises_obs:
            self.obs_norm.update(transitions.obs.flatten(0, 1), living, ranks)
        if self.standardises_state:
            self.state_norm.update(transitions.state.flatten(0, 1), None, ranks)


def team_norm(spec: EnvSpec, network: NetworkConfig) -> TeamNorm:
    """Return the norm that the settings ask for.

    An encoder of entities reads observations as they are: it sees by zeros who is absent, and all
    places of a list have to be on one scale.
    """
    keeps_obs = network.encoder == ENTITIES
    return TeamNorm(spec, enabled=network.normalise_inputs, keeps_obs=keeps_obs)


class ValueNorm(nn.Module):
    """Standardises value targets by a running mean and deviation kept in buffers.

    The statistics forget with rate 0.99 per update and are corrected for their start at zero,
    so a learned reward whose scale drifts stays normalised. In single precision the square of a
    large mean would drown the variance.
    """

    first: Tensor
    second: Tensor
    weight: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        for name in ("first", "second", "weight"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    @property
    def mean(self) -> Tensor:
        """Running mean; 0 before the first update."""
        return self.first / self.weight.clamp(min=1e-8)

    @property
    def std(self) -> Tensor:
        """Running deviation, in any unit; 1 before the first update and where all are equal."""
        return _or_one(self._deviation)

    @property
    def _deviation(self) -> Tensor:
        """Running deviation; 0 before the first update and where all are equal."""
        second = self.second / self.weight.clamp(min=1e-8)
        return _deviation(second - self.mean**2, self.mean)

    @torch.no_grad()
    def update(self, targets: Tensor, present: Tensor | None = None, ranks: Ranks = SINGLE) -> None:
        """Merge all processes' batches of targets; absent (dead) rows do not count."""
        if present is not None:
            targets = targets[present]
        targets = targets.to(torch.float64)
        count = torch.full_like(self.weight, targets.numel())
        sums = ranks.sum_(torch.stack((count, targets.sum(), (targets**2).sum())), "values")
        if not bool(sums[0]):
            return
        rate = 1.0 - self.decay
        self.first.lerp_(sums[1] / sums[0], rate)
        self.second.lerp_(sums[2] / sums[0], rate)
        self.weight.lerp_(torch.ones_like(self.weight), rate)

    def normalise(self, values: Tensor) -> Tensor:
        """Return values in units of the running deviation."""
        return (values - self.mean) / self.std

    def denormalise(self, values: Tensor) -> Tensor:
        """Return values in units of the reward.

        As long as all targets were equal, or none was seen, that is the mean: what an untrained
        critic says has no unit yet, and could be 10^8 times as large as the rewards.
        """
        return values * self._deviation + self.mean
