"""Counts of labels: how many, why not, and how biased."""

import math
from collections import Counter
from collections.abc import Sequence

from marl.config.llm import AskForm
from marl.preferences.llm.asking import Score
from marl.preferences.llm.judge import Judgement


class Outcomes:
    """What became of the pairs so far."""

    def __init__(self, form: AskForm) -> None:
        self._form = form
        self._counts: Counter[str] = Counter()

    def add(self, judgements: Sequence[Judgement]) -> None:
        """Count judged pairs."""
        for judgement in judgements:
            verdict = judgement.verdict
            if math.isnan(verdict.label):
                self._counts["abstained"] += 1
                self._counts[f"abstained_{verdict.outcome}"] += 1
            else:
                self._counts["answered"] += 1
                self._counts["ties"] += verdict.label == 0.5
            scores = [score for score in judgement.scores if isinstance(score, Score)]
            self._counts["scores"] += len(scores)
            self._counts["firsts"] += sum(score.takes_first for score in scores)
            if len(scores) == 2:
                self._counts["whole"] += 1
                self._counts["flips"] += verdict.flipped

    def add_fallbacks(self, count: int) -> None:
        """Count pairs that another labeller was asked about, since a cap was reached."""
        self._counts["fallbacks"] += count

    def metrics(self) -> dict[str, float]:
        """Return the counts and rates; rates are NaN before there is anything to count.

        The share of the first choice ("A", or the good grade) is over hard answers; far from one
        half the model follows the position, or does not tell the episodes apart. The flip rate is
        the share of pairs in which the two orders preferred different episodes.
        """
        counts = self._counts
        shown = {"answered": 0.0, "abstained": 0.0, "ties": 0.0} | {
            name: float(count)
            for name, count in counts.items()
            if name not in ("scores", "firsts", "whole", "flips")
        }
        shown["first_choice_share"] = _share(counts["firsts"], counts["scores"])
        if self._form == "pairwise":
            shown["flip_rate"] = _share(counts["flips"], counts["whole"])
        return {f"llm_{name}": value for name, value in shown.items()}

    def state_dict(self) -> dict[str, int]:
        """Return the counts."""
        return dict(self._counts)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from `state_dict()`."""
        self._counts = Counter(state)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
