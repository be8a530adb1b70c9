"""From finished episodes to labelled batches for the reward model.

Axes: M episodes, K sampled steps, B pairs.
"""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from envs import EnvSpec
from marl.config import PreferenceConfig, RewardConfig
from marl.preferences.buffer import PreferenceBuffer
from marl.preferences.labellers import EpisodePairs, checked_labels, make_labeller
from marl.preferences.queries import all_pairs, draw_episodes, draw_pairs
from marl.trajectories import TrajectoryStore, sample_steps
from marl.types import LabelledSegments, Rollout


class PreferenceSource:
    """Stores trajectories, asks the labeller, and serves batches to train and to measure on.

    A labeller that costs nothing (``queries_per_iteration = 0``) is asked for every pair of a
    batch. One that costs something is asked for a few pairs an iteration; the answers are kept
    and training uses the answered pairs only.
    """

    def __init__(
        self,
        spec: EnvSpec,
        rollout_steps: int,
        preferences: PreferenceConfig,
        reward: RewardConfig,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.config = preferences
        self.reward_config = reward
        self.max_steps = spec.max_steps
        self.generator = generator
        self.labeller = make_labeller(preferences)
        self.store = TrajectoryStore(
            spec,
            rollout_steps,
            max_steps=preferences.store_steps,
            max_episodes=preferences.store_episodes,
            holdout_every=preferences.holdout_every,
            device=device,
        )
        self.buffer = PreferenceBuffer(preferences.buffer_pairs, device)
        self.device = device

    def observe(self, rollout: Rollout) -> None:
        """Store a rollout and, for a labeller that costs something, ask about new episodes."""
        self.store.append(rollout)
        if self.config.queries_per_iteration == 0 or len(rollout.episodes.env) == 0:
            return
        for held_out in (False, True):
            share = 1.0 / self.config.holdout_every
            count = round(self.config.queries_per_iteration * (share if held_out else 1.0 - share))
            available = self.store.available(held_out=held_out)
            if count and len(available) > 1:
                first, second = draw_pairs(
                    self.config.query,
                    available,
                    self.store.latest,
                    count,
                    self.config.newest_share,
                    self.generator,
                )
                if len(first):
                    self.buffer.add(first, second, self._ask(first, second))

    def batch(self, *, held_out: bool = False) -> LabelledSegments | None:
        """Return M episodes with every answered pair among them; None if there is no pair."""
        if self.config.queries_per_iteration == 0:
            numbers, first, second, labels = self._free_pairs(held_out)
        else:
            numbers, first, second, labels = self._answered_pairs(held_out)
        if len(labels) == 0:
            return None
        lengths = self.store.episodes(numbers).lengths
        offsets, weights = sample_steps(
            lengths, self.max_steps, self.reward_config.sample_steps, self.generator
        )
        return LabelledSegments(
            transitions=self.store.steps(numbers, offsets),
            step_weights=weights,
            lengths=lengths,
            first=first,
            second=second,
            labels=labels,
        )

    def _free_pairs(self, held_out: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return a batch of episodes and every answered pair among them, asked now."""
        uniform = held_out or self.config.query == "uniform"
        numbers = draw_episodes(
            self.store.available(held_out=held_out),
            self.store.num_finished if uniform else self.store.latest,
            self.reward_config.batch_episodes,
            0.0 if uniform else self.config.newest_share,
            self.generator,
        )
        first, second = all_pairs(len(numbers), self.device)
        if self.config.query == "recent_with_older" and not held_out:
            is_new = numbers >= self.store.latest
            across = is_new[first] != is_new[second]
            first, second = first[across], second[across]
        if len(first) == 0:
            return numbers, first, second, torch.zeros(0, device=self.device)
        labels = self._ask(numbers[first], numbers[second])
        answered = ~labels.isnan()
        self.buffer.num_unanswered += int((~answered).sum())
        return numbers, first[answered], second[answered], labels[answered]

    def _answered_pairs(self, held_out: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return kept answers about episodes that are still whole, M/2 of them at most."""
        size = len(self.buffer)
        first, second = self.buffer.first[:size], self.buffer.second[:size]
        every = self.config.holdout_every
        usable = self.store.holds(first) & self.store.holds(second)
        usable &= (first % every == every - 1) == held_out
        rows = usable.nonzero().squeeze(-1)
        order = torch.randperm(len(rows), generator=self.generator, device=self.device)
        rows = rows[order[: self.reward_config.batch_episodes // 2]]
        numbers, inverse = torch.stack((first[rows], second[rows])).unique(return_inverse=True)
        return numbers, inverse[0], inverse[1], self.buffer.labels[rows]

    def _ask(self, first: Int64[Tensor, "B"], second: Int64[Tensor, "B"]) -> Float[Tensor, "B"]:
        pairs = EpisodePairs(first=self.store.episodes(first), second=self.store.episodes(second))
        return checked_labels(self.labeller, self.config.labeller, pairs).to(self.device)

    def metrics(self) -> dict[str, float]:
        """Return sizes and counts."""
        return {
            "preference/episodes": float(self.store.num_finished),
            "preference/answered": float(self.buffer.num_answered),
            "preference/unanswered": float(self.buffer.num_unanswered),
            "memory/store_mib": self.store.num_bytes / 2**20,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the trajectories and the answers."""
        return {"store": self.store.state_dict(), "buffer": self.buffer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a source with the same settings."""
        self.store.load_state_dict(state["store"])
        self.buffer.load_state_dict(state["buffer"])
