"""The language model where several processes train: process 0 asks it for all of them.

So there is one writer of the answer cache, one preflight, and one account of what was spent; what
two processes ask alike is asked once. The others wait, however long the model takes.

Axes: B pairs.
"""

import time
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from envs import EnvSpec
from marl.config import LlmConfig
from marl.preferences.labellers import EpisodePairs, Labeller
from marl.preferences.llm.labeller import Asked, LlmLabeller, asked_about, completed
from marl.preferences.llm.prompts import make_description
from marl.preferences.llm.verdicts import Verdict
from marl.utils.ranks import Ranks, together

EPISODES_APART = 10**12
"""Between the numbers that the answer cache gives to episodes of successive processes."""
_POLL = 0.05
"""Seconds between two looks at whether all answers are there."""


class SharedLlm:
    """One process's view of the model: its pairs are asked by `fetch`, and their labels known then.

    `own` is the labeller of process 0; the others have None.
    """

    def __init__(
        self,
        config: LlmConfig,
        spec: EnvSpec,
        own: LlmLabeller | None,
        fallbacks: Sequence[Labeller] = (),
    ) -> None:
        self.config = config
        self.own = own
        self.labellers = tuple(fallbacks)
        """The labeller that takes over at a cap, if there is one."""
        self._describe = make_description(config.describe, spec)
        self._known: dict[tuple[str, str], Verdict] = {}

    def fetch(self, pairs: EpisodePairs, ranks: Ranks) -> None:
        """Ask about the pairs of all processes, each of which calls this with its own."""
        mine: list[Asked] = []
        with together(ranks):
            if len(pairs):
                mine = asked_about(self._describe, self.config.describe, pairs)
        parts = ranks.gather([vars(pair) for pair in mine])
        everyone = [
            Asked(**pair | {"numbers": tuple(n + rank * EPISODES_APART for n in pair["numbers"])})
            for rank, part in enumerate(parts)
            for pair in part
        ]
        question = None
        with together(ranks):
            if self.own is not None:
                question = self.own.begin(everyone)
        while ranks.any(question is not None and not question.done()):
            time.sleep(_POLL)
        told: list[list[Any]] = []
        with together(ranks):
            if self.own is not None and question is not None:
                verdicts = self.own.end(everyone, question)
                told = [[verdict.label, verdict.outcome] for verdict in verdicts]
        first = sum(len(part) for part in parts[: ranks.rank])
        answers = ranks.gather(told)[0][first : first + len(mine)]
        self._known = {
            (pair.first, pair.second): Verdict(label=label, outcome=outcome)
            for pair, (label, outcome) in zip(mine, answers, strict=True)
        }

    def __call__(self, pairs: EpisodePairs) -> Float[Tensor, "B"]:
        """Return the labels of pairs that were fetched."""
        asked = asked_about(self._describe, self.config.describe, pairs)
        verdicts = [self._known[pair.first, pair.second] for pair in asked]
        return completed(verdicts, pairs, self.labellers)

    def metrics(self) -> dict[str, float]:
        """Return counts and costs, in process 0."""
        return {} if self.own is None else self.own.metrics()

    def state_dict(self) -> dict[str, Any]:
        """Return the counts of labels, in process 0."""
        return {} if self.own is None else self.own.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the counts of `state_dict()`."""
        if self.own is not None:
            self.own.load_state_dict(state)
