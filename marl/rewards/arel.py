"""AREL: attention along time and among agents splits the return into rewards of the team.

Axes: M episodes, L steps, N agents, W width.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from envs import EnvSpec
from marl.config import RewardConfig
from marl.data.types import EpisodeBatch, Rewards
from marl.nn.attention import EncoderBlock, along_time, with_self
from marl.nn.layers import linear, masked_mean
from marl.nn.normalisation import TeamNorm
from marl.rewards.losses import RegressionLoss
from marl.rewards.sequence import AttentionReward, Sequences

HEAD = 50
"""Units of the head, as in the authors' code."""


class ArelReward(AttentionReward):
    """R_t = f(sum_i g(x_i,t)): Xiao et al. 2022 (arXiv 2201.04612), sections 4.1 to 4.3.

    x comes from layers of causal attention of each agent's own steps and of attention among the
    agents of a step. The sum over agents makes R the same however agents are numbered; it is not
    split among them.
    """

    def __init__(
        self,
        spec: EnvSpec,
        config: RewardConfig,
        gamma: float,
        norm: TeamNorm,
        generator: torch.Generator,
    ) -> None:
        super().__init__(spec, config, norm)
        width, heads = self.width, config.sequence.heads
        self.embedding = linear(self.input_size, width, 1.0, generator)
        self.positions = self.make_positions(generator)
        block = width, heads, 4 * width, nn.functional.relu, generator
        layers = range(config.sequence.layers)
        self.times = nn.ModuleList(EncoderBlock(*block) for _ in layers)
        self.agents = nn.ModuleList(EncoderBlock(*block) for _ in layers)
        self.head = nn.Sequential(
            linear(width, HEAD, 1.0, generator), nn.ReLU(), linear(HEAD, HEAD, 1.0, generator)
        )
        self.output = linear(HEAD, 1, 0.1, generator)

    def read(self, episodes: Sequences) -> Rewards:
        """Return the team's rewards."""
        acting = episodes.acting()
        among = with_self(acting.unsqueeze(-2))
        x = self.embedding(self.inputs(episodes)) + self.positions_of(episodes)
        for time, agents in zip(self.times, self.agents, strict=True):
            x = along_time(time, x)
            x = agents(x, among)
        return Rewards(team=self.output(summed(self.head(x), acting)).squeeze(-1))


def summed(x: Float[Tensor, "M L N W"], acting: Bool[Tensor, "M L N"]) -> Float[Tensor, "M L W"]:
    """Return the sum over the agents that act."""
    return (x * acting.unsqueeze(-1)).sum(dim=-2)


class ArelLoss(RegressionLoss):
    """Squared error of the sum of rewards to the return, plus their variance within an episode.

        (sum_t r_t - G)^2 + c Var_t(r_t)

    in units of the returns' deviation, with c = ``variance_weight``: the less rewards vary along an
    episode, the less sparse they are.
    """

    def __call__(self, rewards: Rewards, batch: EpisodeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and its first part as metric."""
        loss, metrics = super().__call__(rewards, batch)
        config, lengths = self.config, batch.lengths
        steps = lengths if config.length_normalised else torch.full_like(lengths, self.max_steps)
        scaled = config.alpha * rewards.team / steps.unsqueeze(-1)
        variance = variances(scaled, batch.is_sampled)
        variance = masked_mean(variance, ~batch.returns.isnan())
        variance = variance if batch.shares is None else variance * batch.shares.returns
        return loss + config.sequence.variance_weight * variance, metrics


def variances(rewards: Float[Tensor, "M L"], present: Bool[Tensor, "M L"]) -> Float[Tensor, "M"]:
    """Return the variance of each episode's rewards over its steps, as in torch.var: of L - 1."""
    count = present.sum(dim=-1)
    mean = (rewards * present).sum(dim=-1, keepdim=True) / count.unsqueeze(-1)
    return ((rewards - mean) ** 2 * present).sum(dim=-1) / (count - 1).clamp(min=1)
