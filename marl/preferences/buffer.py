"""The answers that a run keeps: their buffer, their tally, and both read back from a checkpoint.

Axes: B pairs, M episodes.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from envs import EnvSpec
from marl.config import Config, PreferenceConfig
from marl.data.replay import make_replay
from marl.preferences.factory import make_labeller
from marl.preferences.labellers import EpisodePairs, checked_labels, load_labeller_state
from marl.utils.checkpoint import check_saved, copy_saved, restoring
from marl.utils.plugins import check_trusted, endpoint_settings, labeller_paths
from marl.utils.ranks import Ranks
from marl.utils.seeding import Seeds

CPU = torch.device("cpu")
TIED_TURNS = 10
"""Calls of `take` without a preferred episode after which the user is told."""
RARE_SHARE, RARE_TURNS = 0.1, 30
"""The user is told after this many calls of `take` in a row in which fewer answers were no tie."""


class PreferenceBuffer:
    """A ring of answered pairs; unanswered ones are dropped."""

    _COLUMNS = ("first", "second", "labels", "asked_at")

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.first = torch.zeros(capacity, dtype=torch.int64, device=device)
        self.second = torch.zeros(capacity, dtype=torch.int64, device=device)
        self.labels = torch.zeros(capacity, device=device)
        """NaN where an answer was withdrawn."""
        self.asked_at = torch.zeros(capacity, dtype=torch.int64, device=device)
        """Time of each answer, in steps of every environment."""
        self.num_answered = 0

    def add(
        self,
        first: Int64[Tensor, "B"],
        second: Int64[Tensor, "B"],
        labels: Float[Tensor, "B"],
        time: int = 0,
    ) -> None:
        """Keep the pairs with an answer, given at `time`, overwriting the oldest."""
        answered = ~labels.isnan()
        first, second, labels = first[answered], second[answered], labels[answered]
        count = len(labels)
        slots = torch.arange(self.num_answered, self.num_answered + count, device=labels.device)
        slots = (slots % len(self.labels))[-len(self.labels) :]
        self.first[slots] = first[-len(slots) :]
        self.second[slots] = second[-len(slots) :]
        self.labels[slots] = labels[-len(slots) :]
        self.asked_at[slots] = time
        self.num_answered += count

    def correct(
        self,
        first: Int64[Tensor, "B"],
        second: Int64[Tensor, "B"],
        labels: Float[Tensor, "B"],
        time: int = 0,
    ) -> None:
        """Put answers, given at `time`, in place of earlier ones to the same pairs; NaN: none."""
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            earlier = (self.first == one) & (self.second == other)
            self.labels.masked_fill_(earlier, torch.nan)
        self.add(first, second, labels, time)

    def __len__(self) -> int:
        return min(self.num_answered, len(self.labels))

    def standing(
        self,
    ) -> tuple[Int64[Tensor, "B"], Int64[Tensor, "B"], Float[Tensor, "B"]]:
        """Return the pairs and labels that were not withdrawn, oldest first."""
        oldest = self.num_answered - len(self)
        times = torch.arange(oldest, self.num_answered, device=self.labels.device)
        rows = times % len(self.labels)
        rows = rows[~self.labels[rows].isnan()]
        return self.first[rows], self.second[rows], self.labels[rows]

    def state_dict(self) -> dict[str, Any]:
        """Return the rows of the ring that were written, and how many answers there were."""
        rows = {name: getattr(self, name)[: len(self)] for name in self._COLUMNS}
        return {"num_answered": self.num_answered} | rows

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a buffer of the same capacity."""
        rows = self._checked_rows(state)
        for name in self._COLUMNS:
            copy_saved(getattr(self, name)[:rows], state[name])
        self.num_answered = int(state["num_answered"])

    def adopt(self, state: dict[str, Any]) -> None:
        """Read `state_dict()` of a buffer of the same capacity, whose tensors are taken as they
        are: nothing is allocated, and nothing can be added. For a buffer on the device ``meta``."""
        self._checked_rows(state)
        self.first, self.second, self.labels, self.asked_at = (state[c] for c in self._COLUMNS)
        self.num_answered = int(state["num_answered"])

    def _checked_rows(self, state: dict[str, Any]) -> int:
        """Return how many rows a state holds; raise `ValueError` if they are not what they must."""
        rows = min(int(state["num_answered"]), len(self.labels))
        for name in self._COLUMNS:
            check_saved(getattr(self, name), state[name], rows)
        return rows


class Tally:
    """Counts asked pairs, abstentions and ties, and warns where there is nothing to learn from."""

    def __init__(self, name: str, *, stratified: bool = False, tells: bool = True) -> None:
        """`stratified`: rare returns are drawn as often as common ones already.

        Of several processes one `tells` what there is to warn of.
        """
        self.name = name
        self._tells = tells
        self._may_warn_of_rarity = tells and not stratified
        self.asked = self.answered = 0
        """Pairs of the whole run, up to the latest `take`."""
        self.is_informative = False
        """Whether any answer so far was no tie."""
        self._asked = self._answered = self._decided = 0
        self._has_warned = False
        self._tied_turns = self._rare_turns = 0

    def add(self, labels: Float[Tensor, "B"]) -> None:
        """Count the answers to some pairs."""
        answered = ~labels.isnan()
        counts = torch.stack((answered, answered & (labels != 0.5))).sum(dim=1).tolist()
        self._asked += len(labels)
        self._answered += counts[0]
        self._decided += counts[1]
        self.is_informative |= counts[1] > 0

    def pool(self, ranks: Ranks) -> None:
        """Take the counts of all processes since their last `take` for this one's."""
        if ranks.size == 1:
            return
        counts = torch.tensor([self._asked, self._answered, self._decided])
        self._asked, self._answered, self._decided = ranks.sum_(counts, "answers").tolist()
        self.is_informative |= self._decided > 0

    def take(self) -> dict[str, float]:
        """Return counts since the last call; shares are NaN where nothing was asked.

        ``informative_share`` is the share of answers that are no tie. At 0 there is nothing to
        learn from: no answer prefers an episode yet.
        """
        asked, answered, decided = self._asked, self._answered, self._decided
        self._asked = self._answered = self._decided = 0
        self.asked, self.answered = self.asked + asked, self.answered + answered
        if self.asked and not self.answered and not self._has_warned:
            self._warn(
                f"labeller {self.name} has answered none of {self.asked} pairs; the policy does "
                "not learn before the first answer"
            )
        self._tied_turns += answered > 0 and not self.is_informative
        if self._tied_turns == TIED_TURNS and not self._has_warned:
            self._warn(
                f"all {self.answered:,} pairs that labeller {self.name} has judged so far are ties;"
                " the policy does not learn before one episode is preferred. "
                "preferences.tie_break names facts that decide ties"
            )
        if answered and self.is_informative:
            self._warn_of_rarity(decided / answered)
        return {
            "preference/asked": float(asked),
            "preference/answered": float(answered),
            "preference/abstained_share": 1.0 - answered / asked if asked else float("nan"),
            "preference/informative_share": decided / answered if answered else float("nan"),
        }

    def _warn(self, message: str) -> None:
        """Warn, once in a run."""
        self._has_warned = True
        if self._tells:
            warnings.warn(message, stacklevel=3)

    def _warn_of_rarity(self, informative_share: float) -> None:
        """Warn once where few answers prefer an episode in many calls in a row."""
        self._rare_turns = self._rare_turns + 1 if informative_share < RARE_SHARE else 0
        if self._rare_turns == RARE_TURNS and self._may_warn_of_rarity:
            self._may_warn_of_rarity = False
            warnings.warn(
                f"labeller {self.name} calls over {1.0 - RARE_SHARE:.0%} of the pairs ties; "
                'preferences.query = "stratified" draws episodes of rare returns as often as those '
                "of common ones",
                stacklevel=3,
            )

    def totals(self) -> tuple[int, int]:
        """Return how many pairs were asked in the whole run, and how many answered."""
        return self.asked + self._asked, self.answered + self._answered

    def state_dict(self) -> dict[str, Any]:
        """Return all counts."""
        counts = [self.asked, self.answered, self._asked, self._answered, self._decided]
        return {"counts": counts, "is_informative": self.is_informative}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.asked, self.answered, self._asked, self._answered, self._decided = state["counts"]
        self.is_informative = state["is_informative"]


class SavedFeedback:
    """The replay buffer and the answers of a `FeedbackPipeline`, from its state and on the CPU.

    The labeller is made only when it is asked something: its code may not be trusted.
    """

    def __init__(self, state: dict[str, Any], config: Config, spec: EnvSpec, folder: Path) -> None:
        """`state` is what the pipeline's `state_dict` returned; `folder` is the run's."""
        self._folder = folder
        self._config = config
        self._spec = replace(spec, num_envs=config.env.num_envs)
        preferences = config.preferences
        with restoring(folder):
            self._labeller_state = state["labeller"]
            meta = torch.device("meta")  # sizes in a file are not allocated
            self.replay = make_replay(self._spec, config.learner.rollout_steps, preferences, meta)
            self.replay.adopt(state["replay"], CPU)
            self.answers = PreferenceBuffer(preferences.buffer_pairs, meta)
            self.answers.adopt(state["buffer"])
            self.tally = Tally(preferences.labeller)
            self.tally.load_state_dict(state["tally"])

    def whole_episodes(self) -> Int64[Tensor, "M"]:
        """Return the numbers of all whole episodes, oldest first."""
        replay = self.replay
        return torch.cat((replay.available(), replay.available(held_out=True))).sort().values

    def is_known(self, numbers: Int64[Tensor, "B"]) -> Bool[Tensor, "B"]:
        """Return of which episodes return, length and facts are kept, if not every step."""
        return numbers >= self.replay.num_finished - self.replay.max_episodes

    def ask(
        self,
        first: Int64[Tensor, "B"],
        second: Int64[Tensor, "B"],
        other: PreferenceConfig | None = None,
    ) -> Float[Tensor, "B"]:
        """Return what the run's labeller says of some pairs now, or that of `other` settings.

        The run's goes on from what it remembered. The run must be trusted with what its settings
        name, but for the labeller that `other` has in place of the run's.
        """
        preferences = other or self._config.preferences
        paths = labeller_paths(preferences)
        if preferences.labeller != self._config.preferences.labeller:
            paths.pop("preferences.labeller", None)
        endpoint = endpoint_settings(preferences)
        check_trusted(paths, self._folder, self._config, endpoint)
        labeller = make_labeller(preferences, self._spec, Seeds(self._config.seed))
        if other is None:
            load_labeller_state(labeller, self._labeller_state)
        if len(first) == 0:
            return torch.zeros(0)
        pairs = EpisodePairs(first=self.replay.episodes(first), second=self.replay.episodes(second))
        return checked_labels(labeller, preferences.labeller, pairs).cpu()
