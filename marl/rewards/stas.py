"""STAS: attention along time, then Shapley attention among agents, splits the return among both.

Axes: M episodes, L steps, N agents.
"""

import torch
from torch import nn

from envs import EnvSpec
from marl.config import RewardConfig
from marl.data.types import Rewards
from marl.nn.attention import EncoderBlock, ShapleyAttention, along_time
from marl.nn.layers import linear
from marl.nn.normalisation import TeamNorm
from marl.rewards.sequence import AttentionReward, Sequences


class StasReward(AttentionReward):
    """R_t = sum_i r_i,t, what agent i adds in step t: Chen et al. 2024 (arXiv 2304.07520).

    Layers of causal attention of each agent's own steps come first, then one of Shapley attention
    among the agents of a step. It is fitted by the squared error of sum_i,t r_i,t to the return.
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
        self.times = nn.ModuleList(
            EncoderBlock(width, heads, width, nn.functional.gelu, generator)
            for _ in range(config.sequence.layers)
        )
        self.agents = ShapleyAttention(
            spec.num_agents, width, heads, config.sequence.coalitions, generator
        )
        self.output = linear(width, 1, 0.1, generator)

    def read(self, episodes: Sequences) -> Rewards:
        """Return the rewards of the agents and their sum."""
        acting = episodes.acting()
        x = self.embedding(self.inputs(episodes)) + self.positions_of(episodes)
        for time in self.times:
            x = along_time(time, x)
        local = self.output(self.agents(x, acting)).squeeze(-1) * acting
        return Rewards(team=local.sum(dim=-1), local=local)
