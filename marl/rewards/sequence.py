"""Reward models that read whole episodes: what they see of a batch and of a rollout.

Axes: T time, E environments, P steps before the rollout, M episodes (or pieces of episodes), L
steps of the longest, N agents, O, I, A features.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from envs import EnvSpec
from marl.config import ConfigError, RewardConfig
from marl.data.types import ANY_RETURN, FinishedEpisodes, KnownReturns, Rewards, Transitions
from marl.nn.normalisation import TeamNorm
from marl.rewards.base import RewardModel
from marl.utils.memory_check import available_bytes, size_text

MAX_ROWS = 65_536
"""Steps of a rollout's episodes that are read in one pass."""

BYTES_OF_A_UNIT = 340
"""Memory of attention for one unit of one layer at one step of one agent, while it is fitted: TAR2
took 250 to 340 bytes, AREL and STAS 150 to 220 (500 steps, 2 and 8 agents, width 64)."""

OpenEpisodes = dict[str, Tensor]
"""Of the running episodes: their ``length`` so far (E), and the last P steps of ``obs``,
``actions`` and, where agents die, ``alive`` (P, E, N, ...), P the longest of them."""


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Successive steps of M episodes, from their first one on."""

    obs: Float[Tensor, "M L N O"]
    actions: Int64[Tensor, "M L N"] | Float[Tensor, "M L N A"]
    alive: Bool[Tensor, "M L N"] | None
    """Agents that acted. None: all."""
    present: Bool[Tensor, "M L"]
    """Steps that are there; the others, behind an episode's last, fill up."""

    def rows(self, start: int, end: int) -> "Sequences":
        """Return some of the episodes."""
        return Sequences(
            obs=self.obs[start:end],
            actions=self.actions[start:end],
            alive=None if self.alive is None else self.alive[start:end],
            present=self.present[start:end],
        )

    def acting(self) -> Bool[Tensor, "M L N"]:
        """Return which agents act in which steps."""
        present = self.present.unsqueeze(-1)
        return present.expand(self.obs.shape[:-1]) if self.alive is None else present & self.alive


class SequenceReward(RewardModel):
    """A reward of what happened in an episode up to a step, from observations and actions.

    In training it reads whole episodes of the replay buffer. Of a rollout it reads every episode
    that has a step there, from its first step on: those taken in earlier rollouts are kept until it
    ends. So a step is rewarded as in training, wherever rollouts cut an episode.
    """

    longest: ClassVar[int]
    """Longest episodes, in steps, that it reads; more would take too much memory or time."""

    def __init__(self, spec: EnvSpec, config: RewardConfig, norm: TeamNorm) -> None:
        super().__init__()
        if spec.max_steps > self.longest:
            raise ConfigError(
                f"reward.model: {type(self).__name__} reads whole episodes, of at most "
                f"{self.longest} steps, and those of {spec.name} have up to {spec.max_steps}; give "
                "the environment a smaller max_steps or choose a model of single steps, such as "
                '"factored" or "central"'
            )
        if spec.obs_image:
            raise ConfigError(
                f"reward.model: {type(self).__name__} does not read pictures, which the agents of "
                f'{spec.name} see; choose "factored" or "central"'
            )
        if config.encoder:
            raise ConfigError(
                f"reward.encoder: {type(self).__name__} reads no encoded observations, got "
                f'{config.encoder!r}; leave it out, or choose reward.model = "factored"'
            )
        self.config = config
        self.norm = norm
        self.num_agents = spec.num_agents
        self.is_discrete = spec.action_kind == "discrete"
        self.action_size = spec.action_size
        self.input_size = spec.obs_size + spec.action_size

    @abstractmethod
    def read(self, episodes: Sequences) -> Rewards:
        """Return the rewards (M, L) of episodes; what stands in steps not present is not read."""

    def forward(self, transitions: Transitions) -> Rewards:
        """Return the rewards of whole episodes, of which `Transitions.history` tells the order."""
        history = transitions.history
        if history is None or history.time_axis != 1 or history.present is None:
            raise ValueError(
                f"{type(self).__name__} got Transitions without the history of whole episodes, "
                "whose steps it reads in their order"
            )
        return self.read(
            Sequences(
                obs=transitions.obs,
                actions=transitions.actions,
                alive=transitions.alive,
                present=history.present,
            )
        )

    def inputs(self, episodes: Sequences) -> Float[Tensor, "M L N I"]:
        """Return standardised observations with the actions behind them; zeros of the absent."""
        actions = episodes.actions
        if self.is_discrete:
            actions = nn.functional.one_hot(actions, self.action_size).to(episodes.obs.dtype)
        x = torch.cat((self.norm.obs(episodes.obs), actions), dim=-1)
        return x if episodes.alive is None else x * episodes.alive.unsqueeze(-1)

    def paid(
        self,
        rewards: Rewards,
        episodes: Sequences,
        returns: Float[Tensor, "M"],
        least_return: float,
    ) -> Rewards:
        """Return what the policy is paid, where a model is not paid what it is fitted by.

        `returns`, in units of their deviation as in the loss, are NaN of episodes that go on;
        `least_return`, in the same units, is the least of all so far.
        """
        return rewards

    @torch.no_grad()
    def read_rollout(
        self,
        steps: Transitions,
        done: Bool[Tensor, "T E"],
        past: OpenEpisodes | None = None,
        finished: FinishedEpisodes | None = None,
        known: KnownReturns = ANY_RETURN,
    ) -> tuple[Rewards, OpenEpisodes]:
        """Return the rewards (T, E) of a rollout, and the steps so far of the episodes that go on.

        Without a `past` the first steps begin new episodes. With the episodes `finished` in
        the rollout, rewards are those of `paid`, by what is `known` of returns.
        """
        length = torch.zeros_like(done[0], dtype=torch.int64) if past is None else past["length"]
        fields = {"obs": steps.obs, "actions": steps.actions}
        fields |= {} if steps.alive is None else {"alive": steps.alive}
        before = 0
        if past is not None:
            before = len(past["obs"])
            fields = {name: torch.cat((past[name], now)) for name, now in fields.items()}
        begin, end, envs = pieces(done, length)
        offsets = torch.arange(int((end - begin).max()), device=done.device)
        times = begin.unsqueeze(-1) + offsets
        present = times < end.unsqueeze(-1)
        times = torch.minimum(times, end.unsqueeze(-1) - 1)
        rows = ((times + before) * done.shape[1] + envs.unsqueeze(-1)).flatten()
        found = {
            name: now.flatten(0, 1).index_select(0, rows).unflatten(0, times.shape)
            for name, now in fields.items()
        }
        episodes = Sequences(**{"alive": None, "present": present} | found)
        size = max(1, MAX_ROWS // times.shape[1])
        parts = [self.read(episodes.rows(i, i + size)) for i in range(0, len(begin), size)]
        rewards = joined(parts)
        if finished is not None:
            ends = torch.full(done.shape, torch.nan, device=done.device)
            ends[finished.end_time, finished.env] = finished.returns / known.deviation
            least = known.least / known.deviation
            rewards = self.paid(rewards, episodes, ends[end - 1, envs], least)
        inside = present & (times >= 0)
        place = times[inside], envs.unsqueeze(-1).expand_as(times)[inside]
        team = torch.zeros(done.shape, device=done.device)
        team[place] = rewards.team[inside]
        local = None
        if rewards.local is not None:
            local = torch.zeros((*done.shape, self.num_agents), device=done.device)
            local[place] = rewards.local[inside]
        goes_on = (end == len(done)) & ~done[end - 1, envs]
        length = torch.zeros_like(length)
        length[envs[goes_on]] = (end - begin)[goes_on]
        kept = int(length.max())
        after = {name: now[len(now) - kept :].clone() for name, now in fields.items()}
        return Rewards(team=team, local=local), {"length": length} | after


class AttentionReward(SequenceReward):
    """A sequence model of attention: what those of AREL, STAS and TAR2 have in common."""

    longest = 500
    positions: nn.Parameter
    """A learned embedding of every step's place in its episode."""

    def __init__(self, spec: EnvSpec, config: RewardConfig, norm: TeamNorm) -> None:
        super().__init__(spec, config, norm)
        self.width = config.hidden_sizes[0]
        if self.width % config.sequence.heads:
            raise ConfigError(
                f"reward.hidden_sizes: the first, {self.width}, is the width of attention and must "
                f"be a multiple of reward.sequence.heads = {config.sequence.heads}"
            )
        self.num_positions = spec.max_steps
        rows = config.batch_episodes * spec.max_steps * spec.num_agents
        needed = BYTES_OF_A_UNIT * rows * self.width * config.sequence.layers
        there = available_bytes()
        if there is not None and needed > there:
            raise ConfigError(
                f"reward.batch_episodes: got {config.batch_episodes}; a gradient step of "
                f"{type(self).__name__} on so many episodes of {spec.name} (up to {spec.max_steps} "
                f"steps of {spec.num_agents} agents) needs about {size_text(needed)}, but this "
                f"machine has {size_text(there)} available; lower it, or reward.hidden_sizes"
            )

    def make_positions(self, generator: torch.Generator) -> nn.Parameter:
        """Return new `positions`."""
        return nn.Parameter(0.1 * torch.randn(self.num_positions, self.width, generator=generator))

    def positions_of(self, episodes: Sequences) -> Float[Tensor, "L 1 W"]:
        """Return the embedding of the episodes' steps."""
        return self.positions[: episodes.present.shape[1]].unsqueeze(1)


def pieces(
    done: Bool[Tensor, "T E"], length: Int64[Tensor, "E"]
) -> tuple[Int64[Tensor, "M"], Int64[Tensor, "M"], Int64[Tensor, "M"]]:
    """Return begin, end (the step behind the last) and environment of every episode in a rollout.

    Times are those of the rollout; an episode that runs since `length` steps begins at -length. The
    last one of an environment may end with the rollout only.
    """
    starts, last = torch.ones_like(done), done.clone()
    starts[1:] = done[:-1]
    last[-1] = True
    envs, begin = starts.T.nonzero(as_tuple=True)
    end = last.T.nonzero(as_tuple=True)[1] + 1
    return torch.where(begin == 0, -length[envs], begin), end, envs


def joined(parts: list[Rewards]) -> Rewards:
    """Return the rewards of several passes as one."""
    local = [part.local for part in parts if part.local is not None]
    return Rewards(
        team=torch.cat([part.team for part in parts]), local=torch.cat(local) if local else None
    )
