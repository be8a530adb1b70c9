"""TAR2: learned scores of agents and steps, normalised so that the rewards add up to the return.

Axes: M episodes, L steps, N agents, I inputs, W width, F features.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from envs import EnvSpec
from marl.config import RewardConfig
from marl.data.types import EpisodeBatch, Rewards
from marl.nn.attention import EncoderBlock, ShapleyAttention, along_time
from marl.nn.layers import linear, masked_mean
from marl.nn.normalisation import TeamNorm
from marl.rewards.losses import RegressionLoss
from marl.rewards.sequence import AttentionReward, Sequences


class Tar2Reward(AttentionReward):
    """r_i,t = G w_t w_i,t, w the normalised scores c_i,t: Kapoor et al. 2025 (arXiv 2502.04864).

    Layers of causal attention of each agent's own steps and of Shapley attention among agents are
    followed by the score, which also sees how the episode ended; scores are fitted like rewards,
    sum_i,t c_i,t to G. From the layers' outputs an agent's action is predicted, too, given the
    team's observations before and after (inverse dynamics; as `Rewards.auxiliary`).

    Scores are rewards to a reader who knows no return. Where the return is known, `redistributed`
    ones are paid. So G is taken above the least return, if that is negative: weights of at least
    zero would otherwise make the best steps cost most. Steps of an episode that goes on get the
    mean of the others; `learner.rollout_steps` should be a multiple of the episodes' length.
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
        width, heads, layers = self.width, config.sequence.heads, config.sequence.layers
        gelu = nn.functional.gelu
        self.obs_size = spec.obs_size
        self.obs_embedding = linear(spec.obs_size, width, 1.0, generator)
        self.action_embedding = linear(spec.action_size, width, 1.0, generator)
        self.positions = self.make_positions(generator)
        self.times = nn.ModuleList(
            EncoderBlock(width, heads, width, gelu, generator) for _ in range(layers)
        )
        shapley = spec.num_agents, width, heads, config.sequence.coalitions, generator
        self.agents = nn.ModuleList(ShapleyAttention(*shapley) for _ in range(layers))
        self.score = head(2 * layers * width, width, 1, 0.1, generator)
        self.inverse = head((2 + layers) * width, width, spec.action_size, 0.1, generator)

    def read(self, episodes: Sequences) -> Rewards:
        """Return the scores of the agents, their sums, and the loss of the predicted actions."""
        acting = episodes.acting()
        inputs = self.inputs(episodes)
        seen = self.obs_embedding(inputs[..., : self.obs_size]) + self.positions_of(episodes)
        x = seen + self.action_embedding(inputs[..., self.obs_size :])
        outputs = []
        for time, agents in zip(self.times, self.agents, strict=True):
            x = agents(along_time(time, x), acting)
            outputs.append(x)
        context = torch.cat(outputs, dim=-1)
        outcome = last_steps(context, acting).mean(dim=1).detach()
        outcome = outcome[:, None, None].expand(context.shape)
        scores = self.score(torch.cat((context, outcome), dim=-1)).squeeze(-1) * acting
        return Rewards(
            team=scores.sum(dim=-1),
            local=scores,
            auxiliary=self._inverse_dynamics(inputs, seen, context, acting),
        )

    def _inverse_dynamics(
        self,
        inputs: Float[Tensor, "M L N I"],
        seen: Float[Tensor, "M L N W"],
        context: Float[Tensor, "M L N F"],
        acting: Bool[Tensor, "M L N"],
    ) -> Float[Tensor, "M L"]:
        """Return the mean loss of the acting agents' predicted actions: nats or squared errors."""
        count = acting.sum(dim=-1).clamp(min=1)
        team = (seen * acting.unsqueeze(-1)).sum(dim=-2) / count.unsqueeze(-1)
        following = nn.functional.pad(team, (0, 0, 0, 1))[:, 1:]
        before = nn.functional.pad(context, (0, 0, 0, 0, 1, 0))[:, :-1]
        common = torch.cat((team, following), dim=-1).unsqueeze(-2)
        common = common.expand(*before.shape[:-1], -1)
        predicted = self.inverse(torch.cat((common, before), dim=-1))
        actions = inputs[..., self.obs_size :]
        if self.is_discrete:
            losses = -(predicted.log_softmax(dim=-1) * actions).sum(dim=-1)
        else:
            losses = ((predicted - actions) ** 2).sum(dim=-1)
        return (losses * acting).sum(dim=-1) / count

    def paid(
        self,
        rewards: Rewards,
        episodes: Sequences,
        returns: Float[Tensor, "M"],
        least_return: float,
    ) -> Rewards:
        """Return the redistributed returns; in episodes that go on, their mean."""
        assert rewards.local is not None
        acting = episodes.acting()
        above = returns - min(0.0, least_return)
        local = redistributed(rewards.local, acting, above.nan_to_num())
        known = acting & ~returns.isnan()[:, None, None]
        mean = masked_mean(local, known)
        local = torch.where(known, local, mean) * acting
        return Rewards(team=local.sum(dim=-1), local=local)


def redistributed(
    scores: Float[Tensor, "M L N"], acting: Bool[Tensor, "M L N"], returns: Float[Tensor, "M"]
) -> Float[Tensor, "M L N"]:
    """Return r_i,t = G w_t w_i,t, which add up to G:

        w_t = (C_t - min C) / sum_t (C_t - min C),    C_t = sum_i c_i,t
        w_i,t = (c_i,t - min_i c_t) / sum_i (c_i,t - min_i c_t)

    (the authors' code). Where all scores are equal, so are the weights.
    """
    someone = acting.any(dim=-1)
    of_steps = shares((scores * acting).sum(dim=-1), someone)
    of_agents = shares(scores, acting)
    return returns[:, None, None] * of_steps.unsqueeze(-1) * of_agents


def shares(scores: Float[Tensor, "*B L"], present: Bool[Tensor, "*B L"]) -> Float[Tensor, "*B L"]:
    """Return what each score exceeds the least one by, as a share in the sum; 0 if not present."""
    least = scores.masked_fill(~present, torch.inf).amin(dim=-1, keepdim=True)
    above = torch.where(present, scores - least, 0.0)
    total = above.sum(dim=-1, keepdim=True)
    equal = present.to(scores.dtype) / present.sum(dim=-1, keepdim=True).clamp(min=1)
    return torch.where(total > 0, above / total, equal)


def last_steps(
    x: Float[Tensor, "M L N F"], acting: Bool[Tensor, "M L N"]
) -> Float[Tensor, "M N F"]:
    """Return each agent's features at the last step in which it acts; of the first, if in none."""
    steps = torch.arange(x.shape[1], device=x.device).view(-1, 1)
    last = (steps * acting).amax(dim=1)
    return x.gather(1, last[:, None, :, None].expand(-1, 1, -1, x.shape[-1])).squeeze(1)


def head(
    inputs: int, width: int, outputs: int, gain: float, generator: torch.Generator
) -> nn.Sequential:
    """Return a network of two hidden layers of GELU units."""
    return nn.Sequential(
        linear(inputs, width, 1.0, generator),
        nn.GELU(),
        linear(width, width, 1.0, generator),
        nn.GELU(),
        linear(width, outputs, gain, generator),
    )


class Tar2Loss(RegressionLoss):
    """Squared error of the sum of scores to the return, plus that of inverse dynamics.

        (sum_i,t c_i,t - G)^2 - c mean_i,t log p(a_i,t | o_t, o_t+1, history)

    in units of the returns' deviation, with c = ``dynamics_weight``. The authors' code has Huber's
    loss, of returns that are not scaled, in the place of the square. Continuous actions, which it
    does not know, have a squared error in the place of - log p.
    """

    def __call__(self, rewards: Rewards, batch: EpisodeBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, and its parts as metrics."""
        loss, metrics = super().__call__(rewards, batch)
        if rewards.auxiliary is None:
            return loss, metrics
        dynamics = masked_mean(rewards.auxiliary, batch.is_sampled)
        metrics |= {"regression/inverse_dynamics": dynamics.detach()}
        dynamics = dynamics if batch.shares is None else dynamics * batch.shares.steps
        return loss + self.config.sequence.dynamics_weight * dynamics, metrics
