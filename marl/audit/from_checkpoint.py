"""The answers that training uses, and what the learned reward makes of the episodes: read from a
run's newest checkpoint.

Axes: B pairs, M episodes, L steps.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from envs import EnvSpec
from marl.audit.pairs import Pair, learned_probability
from marl.config import Config
from marl.policy import restored
from marl.preferences.describe import describe
from marl.preferences.labellers import EpisodePairs, checked_labels, load_labeller_state
from marl.preferences.making import make_labeller
from marl.preferences.queries import disjoint_pairs
from marl.rewards import RewardLearner
from marl.rewards.saved import restored_reward
from marl.seeding import Seeds
from marl.trajectories import TrajectoryStore

RULES = ("return", "outcome", "facts")
"""Labellers that come with the package and cost nothing to ask again."""
_BATCH = 32
"""Episodes scored at once, so that long ones fit into memory."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a checkpoint knows of the answers."""

    steps: int
    """Environment steps of the run at the checkpoint."""
    asked: int
    answered: int
    unanswered: int
    pairs: tuple[Pair, ...]
    """The kept answers or, of a rule that is free, answers to pairs of kept episodes given now."""
    is_asked_now: bool
    forgotten: int
    """Kept answers about episodes that the checkpoint does not hold any more."""


class Saved:
    """A checkpoint's episodes, answers and learned reward, without its labeller."""

    def __init__(self, saved: dict[str, Any], run: Path) -> None:
        policy = restored(saved, run)
        self.reward = restored_reward(saved, policy.config, policy.spec, policy.norm)
        self.config: Config = policy.config
        self.spec: EnvSpec = replace(policy.spec, num_envs=self.config.env.num_envs)
        self.steps = policy.steps
        self._source: dict[str, Any] = saved["trainer"]["source"]
        preferences = self.config.preferences
        self.store = TrajectoryStore(
            self.spec,
            self.config.learner.rollout_steps,
            max_steps=preferences.store_steps,
            max_episodes=preferences.store_episodes,
            holdout_every=preferences.holdout_every,
            device=torch.device("cpu"),
        )
        self.store.load_state_dict(self._source["store"])
        self.scores: dict[int, float] = {}
        """Learned score S of each episode whose steps are kept; empty before anything is
        learned."""
        if self.reward is not None:
            self.scores = _scores(self.reward, self.store)

    def kept(self, *, ask_again: bool) -> Kept:
        """Return the answers training uses.

        A labeller that is asked anew for every batch leaves none. A rule of the package is asked
        here about pairs of kept episodes instead, one of the user's own if `ask_again`.
        """
        counts, buffer = self._source["tally"]["counts"], self._source["buffer"]
        preferences = self.config.preferences
        asked, answered = counts[0] + counts[2], counts[1] + counts[3]
        is_free = preferences.queries_per_iteration == 0
        asks = is_free and (ask_again or preferences.labeller in RULES)
        size = min(buffer["num_answered"], len(buffer["labels"]))
        stands = ~buffer["labels"][:size].isnan()  # an answer may have been withdrawn
        first, second = buffer["first"][:size][stands], buffer["second"][:size][stands]
        labels = buffer["labels"][:size][stands]
        if asks:
            draw = torch.Generator().manual_seed(0)
            numbers = self.store.available()
            order = numbers[torch.randperm(len(numbers), generator=draw)]
            first, second = disjoint_pairs(order, draw)
            labels = self._asked(first, second)
        known = self._remembers(first) & self._remembers(second)
        first, second, labels = first[known], second[known], labels[known]
        return Kept(
            steps=self.steps,
            asked=asked,
            answered=answered,
            unanswered=asked - answered,
            pairs=tuple(self._pairs(first, second, labels)),
            is_asked_now=asks,
            forgotten=int((~known).sum()),
        )

    def _remembers(self, numbers: Int64[Tensor, "B"]) -> Tensor:
        """Return of which episodes the end, at least, is known."""
        return numbers >= self.store.num_finished - self.store.max_episodes

    def _asked(self, first: Int64[Tensor, "B"], second: Int64[Tensor, "B"]) -> Tensor:
        """Return what the run's labeller says now."""
        preferences = self.config.preferences
        labeller = make_labeller(preferences, self.spec, Seeds(self.config.seed))
        load_labeller_state(labeller, self._source["labeller"])
        if len(first) == 0:
            return torch.zeros(0)
        pairs = EpisodePairs(first=self.store.episodes(first), second=self.store.episodes(second))
        return checked_labels(labeller, preferences.labeller, pairs)

    def _pairs(self, first: Tensor, second: Tensor, labels: Tensor) -> list[Pair]:
        one, two = self.store.episodes(first), self.store.episodes(second)
        texts = (describe(one, self.spec.facts), describe(two, self.spec.facts))
        rows = zip(
            labels.tolist(),
            zip(one.returns.tolist(), two.returns.tolist(), strict=True),
            zip(first.tolist(), second.tolist(), strict=True),
            zip(*texts, strict=True),
            strict=True,
        )
        pairs = [
            Pair(label=label, outcome=_outcome(label), returns=returns, numbers=numbers, texts=told)
            for label, returns, numbers, told in rows
        ]
        return [replace(pair, learned=learned_probability(pair, self.scores)) for pair in pairs]


def _outcome(label: float) -> str:
    if math.isnan(label):
        return "unanswered"
    return "tie" if label == 0.5 else "answered"


def _scores(reward: RewardLearner, store: TrajectoryStore) -> dict[int, float]:
    """Return the learned score S of each episode whose steps are kept, from all its steps."""
    every = torch.cat((store.available(), store.available(held_out=True)))
    scores: dict[int, float] = {}
    for numbers in every.split(_BATCH):
        lengths = store.episodes(numbers).lengths
        offsets = torch.arange(int(lengths.max())).expand(len(numbers), -1)
        weights = (offsets < lengths.unsqueeze(-1)).to(torch.float32)
        found = reward.scores(store.steps(numbers, offsets), weights, lengths)
        scores |= dict(zip(numbers.tolist(), found.tolist(), strict=True))
    return scores
