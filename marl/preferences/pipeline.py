"""From finished episodes to batches for the reward model: returns, and labels of pairs.

Axes: T time, E environments, M episodes, K sampled steps, B pairs, V reward models.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from envs import EnvSpec
from marl.config import PreferenceConfig, RewardConfig
from marl.data.replay import make_replay, sampled
from marl.data.types import ANY_RETURN, EpisodeBatch, KnownReturns, Rollout, Transitions
from marl.preferences.buffer import PreferenceBuffer, Tally
from marl.preferences.factory import make_labeller
from marl.preferences.labellers import (
    AnswersLate,
    EpisodePairs,
    IsSelective,
    Labeller,
    called,
    checked_labels,
    iter_labellers,
    labeller_metrics,
    labeller_state,
    load_labeller_state,
    name_of,
    time_limit,
)
from marl.preferences.queries import (
    Budget,
    all_pairs,
    allotted,
    disagreement,
    disjoint_pairs,
    draw_episodes,
    draw_pairs,
    draw_stratified,
    entropy,
    in_bootstrap,
)
from marl.preferences.teachers import MyopicReturns
from marl.utils.ranks import SINGLE, Ranks, mean_metrics, together
from marl.utils.seeding import Seeds

Scorer = Callable[
    [Transitions, Float[Tensor, "M K"], Int64[Tensor, "M"]],
    Float[Tensor, "V M"],
]
"""From sampled steps, their weights and the episodes' lengths to each model's scores S."""


@runtime_checkable
class AnswersTogether(Protocol):
    """A labeller that is asked about the pairs of all processes at once."""

    def fetch(self, pairs: EpisodePairs, ranks: Ranks) -> None:
        """Get the answers to the pairs of all processes, each of which calls this with its own.

        The labels are then known when the labeller is called.
        """
        ...


class FeedbackPipeline:
    """Fills the replay buffer, asks the labeller, and serves batches to train and to measure on.

    A labeller that costs nothing (``queries_per_iteration = 0``) is asked for every pair of a
    batch. One that costs something is asked for a few pairs an iteration; the answers are kept
    and training uses the answered pairs only. A reward that is learned from returns alone needs no
    labeller: batches then hold episodes and no pairs.
    """

    def __init__(
        self,
        spec: EnvSpec,
        rollout_steps: int,
        preferences: PreferenceConfig,
        reward: RewardConfig,
        seeds: Seeds,
        device: torch.device,
        *,
        num_iterations: int,
        uses_labels: bool = True,
        uses_returns: bool = False,
        reads_history: bool = False,
        people: Labeller | None = None,
        given: Callable[..., Any] | None = None,
        run: str = "",
        ranks: Ranks = SINGLE,
    ) -> None:
        """`people` and `given` are the labellers ``people`` and ``python``, where there are any.

        `reads_history` says that the reward model reads episodes whole and in order. Of several
        processes, each keeps and asks about episodes of its own; people are asked about those of
        process 0. `preferences` then say how much this process keeps, and how many questions all of
        them ask.
        """
        self.ranks = ranks
        self.uses_labels, self.uses_returns = uses_labels, uses_returns
        self.reads_history = reads_history
        self.config = preferences
        self.reward_config = reward
        self.num_iterations = num_iterations
        self.generator = seeds.torch("preferences", device)
        self.labeller: Labeller | None = None
        if uses_labels and (ranks.rank == 0 or preferences.labeller != "people"):
            self.labeller = make_labeller(
                preferences, spec, seeds, people, given=given, run=run, ranks=ranks
            )
        labellers = [] if self.labeller is None else list(iter_labellers(self.labeller))
        self.late = [child for child in labellers if isinstance(child, AnswersLate)]
        self.selective = [child for child in labellers if isinstance(child, IsSelective)]
        self.shared = [child for child in labellers if isinstance(child, AnswersTogether)]
        self.replay = make_replay(spec, rollout_steps, preferences, device)
        self.buffer = PreferenceBuffer(preferences.buffer_pairs, device)
        self.budget = Budget(preferences)
        self.labeller_name = preferences.labeller if given is None else name_of(given)
        self.tally = Tally(
            self.labeller_name, stratified=preferences.query == "stratified", tells=ranks.rank == 0
        )
        self.least_return, self.largest_return = math.inf, -math.inf
        self.myopic: MyopicReturns | None = None
        if uses_labels and preferences.teacher.myopia < 1.0:
            self.myopic = MyopicReturns(preferences.teacher.myopia, spec.num_envs, device)
        self.num_rollouts = 0
        self.device = device

    def observe(
        self,
        rollout: Rollout,
        hidden: Float[Tensor, "T E"] | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        """Keep a rollout for replay and ask a labeller that costs something about new episodes.

        `hidden` is for a myopic teacher only, which judges by it. `scorer` is for queries by
        ``disagreement`` and ``entropy`` only.
        """
        with together(self.ranks):
            if self.myopic is not None:
                assert hidden is not None, "a myopic teacher sees the hidden rewards"
                returns = self.myopic.observe(rollout, hidden)
                rollout = replace(rollout, episodes=replace(rollout.episodes, returns=returns))
            self.replay.append(rollout)
            if self.uses_returns and len(rollout.episodes.returns):
                low, high = rollout.episodes.returns.aminmax()
                self.least_return = min(self.least_return, float(low))
                self.largest_return = max(self.largest_return, float(high))
            self._take_late_answers()
        num_ended = self._agree_on_episodes(len(rollout.episodes.env))
        progress = self.num_rollouts / self.num_iterations
        self.num_rollouts += 1
        is_free = self.config.queries_per_iteration == 0
        if not self.uses_labels or is_free or num_ended == 0:
            return
        train, held_out = self.budget.grant(progress)
        for count, side in ((train, False), (held_out, True)):
            if count:
                self._query(count, scorer, held_out=side)

    def _agree_on_episodes(self, num_ended: int) -> int:
        """Return how many episodes have ended in all processes, whose returns each then knows."""
        if self.ranks.size == 1:
            return num_ended
        returns = self.replay.returns()
        mine = [num_ended, self.least_return, self.largest_return, len(returns)]
        parts = self.ranks.gather([*mine, float(returns.sum()), float((returns**2).sum())])
        ended, least, largest, counts, sums, squares = zip(*parts, strict=True)
        self.least_return, self.largest_return = min(least), max(largest)
        mean = sum(sums) / max(1, sum(counts))
        var = max(0.0, sum(squares) / max(1, sum(counts)) - mean**2)
        self.replay.moments_of_all = (mean, math.sqrt(var) or 1.0)
        return sum(ended)

    def _query(self, count: int, scorer: Scorer | None, *, held_out: bool) -> None:
        """Ask about this process's part of `count` pairs of one side."""
        with together(self.ranks):
            available = self._askable(held_out=held_out)
        if self.ranks.size > 1:
            room = self.ranks.gather(len(available) // 2)
            count = allotted(count, room, self.budget.asked)[self.ranks.rank]
        first = second = available[:0]
        with together(self.ranks):
            if count and len(available) > 1:
                first, second = self._choose(available, count, scorer, held_out=held_out)
        for child in self.shared:
            pairs = self._pairs(first, second)
            called(
                name_of(child), f"asked about {len(pairs)} pairs", child.fetch, pairs, self.ranks
            )
        with together(self.ranks):
            if len(first):
                labels = self._ask(first, second)
                given = ~labels.isnan() if self.late else torch.ones_like(labels).bool()
                self.buffer.add(first[given], second[given], labels[given], self.replay.time)
        self.budget.asked += sum(self.ranks.gather(len(first)))

    def _askable(self, *, held_out: bool) -> Int64[Tensor, "E"]:
        """Return the whole episodes of one side that the labeller can judge."""
        available = self.replay.available(held_out=held_out)
        if self.labeller is None:
            return available[:0]
        for child in self.selective:
            episodes = self.replay.episodes(available)
            mask = called(name_of(child), "asked what it can judge", child.can_judge, episodes)
            available = available[mask]
        return available

    def _take_late_answers(self) -> None:
        """Keep what was answered to earlier questions; each counts once it is closed."""
        for child in self.late:
            doing = "asked for late answers"
            late = called(name_of(child), doing, child.late_answers, self.replay)
            self.buffer.correct(late.first, late.second, late.labels, self.replay.time)
            self.tally.add(late.labels)

    def _choose(
        self,
        available: Int64[Tensor, "E"],
        count: int,
        scorer: Scorer | None,
        *,
        held_out: bool,
    ) -> tuple[Int64[Tensor, "B"], Int64[Tensor, "B"]]:
        """Return up to `count` disjoint pairs, as ``preferences.query`` says."""
        query, latest = self.config.query, self.replay.latest
        share = self.config.newest_share
        if query in ("stratified", "disagreement", "entropy") and held_out:
            query = "uniform"  # to measure on pairs chosen for their difficulty would mislead
        if query == "stratified":
            returns = self.replay.episodes(available).returns
            drawn = draw_stratified(available, returns, 2 * count, self.generator)
            return disjoint_pairs(drawn, self.generator)
        if query not in ("disagreement", "entropy"):
            return draw_pairs(query, available, latest, count, share, self.generator)
        assert scorer is not None, "queries by disagreement and entropy need reward models"
        pool = count * self.config.candidates
        first, second = draw_pairs("newest_share", available, latest, pool, share, self.generator)
        numbers, places = torch.stack((first, second)).unique(return_inverse=True)
        scores = scorer(*self._sampled(numbers))
        logits = scores[:, places[0]] - scores[:, places[1]]
        worth = disagreement(logits) if query == "disagreement" else entropy(logits)
        best = worth.topk(min(count, len(worth))).indices
        return first[best], second[best]

    def batch(self, *, held_out: bool = False, member: int | None = None) -> EpisodeBatch | None:
        """Return M episodes with every answered pair among them; None if there is nothing to learn.

        `member` leaves out the answers that this member of an ensemble does not learn from.
        """
        if not self.uses_labels:
            numbers = self._drawn_episodes(held_out)
            first = second = torch.zeros(0, dtype=torch.int64, device=self.device)
            labels = torch.zeros(0, device=self.device)
        elif self.config.queries_per_iteration == 0:
            numbers, first, second, labels = self._free_pairs(held_out)
        else:
            numbers, first, second, labels = self._answered_pairs(held_out, member)
            if self.uses_returns:  # returns are free: the batch is filled up
                drawn = self._drawn_episodes(held_out)
                others = drawn[~torch.isin(drawn, numbers)]
                size = self.reward_config.batch_episodes
                numbers = torch.cat((numbers, others[: size - len(numbers)]))
        if len(labels) == 0 and not (self.uses_returns and len(numbers)):
            return None
        transitions, weights, lengths = self._sampled(numbers)
        mean, deviation = self.return_moments()
        return EpisodeBatch(
            transitions=transitions,
            step_weights=weights,
            lengths=lengths,
            returns=self.replay.episodes(numbers).returns,
            first=first,
            second=second,
            labels=labels,
            return_mean=mean,
            return_scale=deviation,
        )

    @property
    def known_returns(self) -> KnownReturns:
        """What is known of returns where something is learned from them."""
        if not self.uses_returns or self.least_return > self.largest_return:
            return ANY_RETURN
        return KnownReturns(least=self.least_return, deviation=self.return_moments()[1])

    def return_moments(self) -> tuple[float, float]:
        """Return mean and deviation of the kept returns; 0 and 1 where nothing learns from them."""
        return self.replay.return_moments() if self.uses_returns else (0.0, 1.0)

    def _sampled(
        self, numbers: Int64[Tensor, "M"]
    ) -> tuple[Transitions, Float[Tensor, "M K"], Int64[Tensor, "M"]]:
        """Return sampled steps of some episodes, the steps' weights, and the lengths."""
        episodes = self.replay.episodes(numbers)
        return sampled(
            episodes,
            self.reward_config,
            self.generator,
            reads_history=self.reads_history,
        )

    def _free_pairs(self, held_out: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return a batch of episodes and every answered pair among them, asked now."""
        numbers = self._drawn_episodes(held_out)
        first, second = all_pairs(len(numbers), self.device)
        if self.config.query == "recent_with_older" and not held_out:
            is_new = numbers >= self.replay.latest
            across = is_new[first] != is_new[second]
            first, second = first[across], second[across]
        if len(first) == 0:
            return numbers, first, second, torch.zeros(0, device=self.device)
        labels = self._ask(numbers[first], numbers[second])
        answered = ~labels.isnan()
        return numbers, first[answered], second[answered], labels[answered]

    def _drawn_episodes(self, held_out: bool) -> Int64[Tensor, "M"]:
        """Return the episodes of a batch, as the query says; held-out ones are always uniform."""
        available = self.replay.available(held_out=held_out)
        count = self.reward_config.batch_episodes
        if self.config.query == "stratified" and not held_out and len(available):
            returns = self.replay.episodes(available).returns
            return draw_stratified(available, returns, count, self.generator)
        uniformly = held_out or self.config.query == "uniform"
        return draw_episodes(
            available,
            self.replay.num_finished if uniformly else self.replay.latest,
            count,
            0.0 if uniformly else self.config.newest_share,
            self.generator,
        )

    def _answered_pairs(
        self, held_out: bool, member: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return at most M/2 kept answers about episodes that the replay buffer still holds."""
        size = len(self.buffer)
        first, second = self.buffer.first[:size], self.buffer.second[:size]
        every = self.config.holdout_every
        usable = self.replay.holds(first) & self.replay.holds(second)
        usable &= (first % every == every - 1) == held_out
        usable &= ~self.buffer.labels[:size].isnan()
        if self.config.retire_after:
            age = (self.replay.time - self.buffer.asked_at[:size]) * self.replay.num_envs
            usable &= age <= self.config.retire_after
        if member is not None:
            usable &= in_bootstrap(first, second, member)
        rows = usable.nonzero().squeeze(-1)
        order = torch.randperm(len(rows), generator=self.generator, device=self.device)
        rows = rows[order[: self.reward_config.batch_episodes // 2]]
        numbers, inverse = torch.stack((first[rows], second[rows])).unique(return_inverse=True)
        return numbers, inverse[0], inverse[1], self.buffer.labels[rows]

    def _ask(self, first: Int64[Tensor, "B"], second: Int64[Tensor, "B"]) -> Float[Tensor, "B"]:
        assert self.labeller is not None, "a reward learned from returns has no labeller"
        pairs = self._pairs(first, second)
        name = self.labeller_name
        is_own = ":" in self.config.labeller or self.config.labeller == "python"
        with time_limit(self.config.deadline if is_own else 0.0, name):
            labels = checked_labels(self.labeller, name, pairs).to(self.device)
        self.tally.add(labels[~labels.isnan()] if self.late else labels)
        return labels

    def _pairs(self, first: Int64[Tensor, "B"], second: Int64[Tensor, "B"]) -> EpisodePairs:
        return EpisodePairs(first=self.replay.episodes(first), second=self.replay.episodes(second))

    @property
    def is_informative(self) -> bool:
        """Whether anything so far tells a better episode from a worse one.

        That is an answer which prefers one, or two returns that differ; ties alone teach nothing.
        """
        return self.tally.is_informative or self.least_return < self.largest_return

    def metrics(self) -> dict[str, float]:
        """Return sizes, counts, and what became of the questions since the last call."""
        metrics = {
            "preference/episodes": float(self.replay.num_finished),
            "memory/replay_mib": self.replay.num_bytes / 2**20,
        }
        if not self.uses_labels:
            return self._summed(metrics)
        if self.config.queries_per_iteration:
            metrics["preference/kept_answers"] = float(self.buffer.num_answered)
        with together(self.ranks):
            told = {} if self.labeller is None else labeller_metrics(self.labeller)
        self.tally.pool(self.ranks)
        return self._summed(metrics) | self.tally.take() | mean_metrics(self.ranks, told)

    def _summed(self, metrics: dict[str, float]) -> dict[str, float]:
        """Return the sums of all processes' metrics, each of which has the same."""
        if self.ranks.size == 1:
            return metrics
        parts = self.ranks.gather(metrics)
        return {name: sum(part[name] for part in parts) for name in metrics}

    def snapshot(self) -> dict[str, Any]:
        """Return a copy of all but the replay buffer, for `restore`."""
        return copy.deepcopy(self._small_state()) | {"time": self.replay.time}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go back to a snapshot taken at most one `observe` ago."""
        if self.replay.time != snapshot["time"]:
            self.replay.undo()
        self._load_small_state(snapshot)

    def state_dict(self) -> dict[str, Any]:
        """Return the episodes, the answers, and what the labeller remembers."""
        return {"replay": self.replay.state_dict()} | self._small_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a pipeline with the same settings."""
        self.replay.load_state_dict(state["replay"])
        self._load_small_state(state)

    def inherit(self, state: dict[str, Any]) -> None:
        """Start with what `resharding.inherited` returned; none of it counts as asked."""
        self.replay.load_state_dict(state["replay"])
        self.buffer.load_state_dict(state["buffer"])
        self.tally.is_informative |= bool((self.buffer.standing()[2] != 0.5).any())
        if self.uses_returns and len(returns := self.replay.returns()):
            self.least_return, self.largest_return = float(returns.min()), float(returns.max())

    def _small_state(self) -> dict[str, Any]:
        """Return the state of all but the replay buffer."""
        return {
            "buffer": self.buffer.state_dict(),
            "budget": self.budget.state_dict(),
            "tally": self.tally.state_dict(),
            "labeller": [] if self.labeller is None else labeller_state(self.labeller),
            "num_rollouts": self.num_rollouts,
            "myopic": None if self.myopic is None else self.myopic.state_dict(),
            "return_range": [self.least_return, self.largest_return],
            "is_informative": self.is_informative,
        }

    def _load_small_state(self, state: dict[str, Any]) -> None:
        self.buffer.load_state_dict(state["buffer"])
        self.budget.load_state_dict(state["budget"])
        self.tally.load_state_dict(state["tally"])
        if self.labeller is not None:
            load_labeller_state(self.labeller, state["labeller"])
        self.num_rollouts = state["num_rollouts"]
        if self.myopic is not None:
            self.myopic.load_state_dict(state["myopic"])
        self.least_return, self.largest_return = state["return_range"]
