"""A pair of episodes that a labeller was asked about, as an audit sees it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from marl.audit.statistics import is_decided, is_right


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One pair, its answer, and what speaks for or against it."""

    label: float
    """P(first preferred): 0.5 tie, NaN no answer."""
    outcome: str = "answered"
    """``answered``, ``tie``, or why there is no answer."""
    returns: tuple[float, float] = (math.nan, math.nan)
    numbers: tuple[int, int] | None = None
    """Of the two episodes in their run, where that is known."""
    texts: tuple[str, str] = ("", "")
    """What was told of the two, or could be."""
    prompt: str = ""
    """Identity of the question's template; empty where nobody was asked in words."""
    model: str = ""
    form: str = ""
    """``pairwise``, ``pointwise``, or empty."""
    first_choice: str = ""
    """What the template calls the first choice, e.g. ``A``."""
    odds: tuple[float | None, float | None] = (None, None)
    """Log-odds of the first choice in each of the pair's two questions."""
    masses: tuple[float | None, float | None] = (None, None)
    """Probability that the two choices had together."""
    has_flipped: bool = False
    """The two orders preferred different episodes."""
    learned: float = math.nan
    """P(first preferred) in the eyes of the learned reward; NaN: not known."""

    @property
    def gap(self) -> float:
        """By how much the first return is larger."""
        return self.returns[0] - self.returns[1]


def against_returns(pairs: Sequence[Pair], most: int) -> list[Pair]:
    """Return the pairs whose answer prefers the smaller return, the surest first."""
    wrong = [p for p in pairs if is_decided(p.label, p.gap) and not is_right(p.label, p.gap)]
    return sorted(wrong, key=lambda p: -abs(p.label - 0.5))[:most]


def against_learned(pairs: Sequence[Pair], most: int) -> list[Pair]:
    """Return the pairs that answer and learned reward see differently, by at least 0.5, the
    farthest apart first."""
    far = [p for p in pairs if abs(p.label - p.learned) >= 0.5]
    return sorted(far, key=lambda p: -abs(p.label - p.learned))[:most]


def learned_probability(pair: Pair, scores: Mapping[int, float]) -> float:
    """Return sigmoid(S_1 - S_2) from the episodes' learned scores; NaN if one is not known."""
    if pair.numbers is None or any(number not in scores for number in pair.numbers):
        return math.nan
    gap = scores[pair.numbers[0]] - scores[pair.numbers[1]]
    return 1.0 / (1.0 + math.exp(-min(max(gap, -500.0), 500.0)))
