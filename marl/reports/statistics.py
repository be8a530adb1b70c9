"""The figures of an audit, from pairs of episodes and from plain numbers.

A label is P(first preferred): 0.5 tie, NaN no answer. A gap says by how much the first episode is
really better, e.g. the difference of the returns; NaN where that is not known. A pair is decided if
it has an answer that is no tie and a gap that is not zero.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from marl.rewards import scoring

_Z = 1.959964
"""Of the normal distribution, for 95 %."""
NUM_BINS = 5


@dataclass(frozen=True, kw_only=True)
class Share:
    """A count out of a total, its share and interval."""

    part: int
    whole: int

    @property
    def value(self) -> float:
        """The share; NaN of nothing."""
        return self.part / self.whole if self.whole else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share."""
        if not self.whole:
            return math.nan, math.nan
        spread = _Z**2 / self.whole
        middle = (self.value + spread / 2) / (1 + spread)
        root = math.sqrt(self.value * (1 - self.value) / self.whole + spread / self.whole / 4)
        half = _Z * root / (1 + spread)
        return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Decided pairs whose answers were about equally sure."""

    low: float
    high: float
    confidence: float
    """Mean of max(P, 1 - P)."""
    right: Share
    """Those whose answer has the gap's sign."""


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
    """Identity of the question's template; empty where no language model was asked."""
    model: str = ""
    form: str = ""
    """``pairwise``, ``pointwise``, or empty."""
    first_choice: str = ""
    """What the template calls the first choice, e.g. ``A``."""
    odds: tuple[float | None, float | None] = (None, None)
    """Log-odds of the first choice in each of the pair's two questions."""
    masses: tuple[float | None, float | None] = (None, None)
    """Probability that the two choices had together."""
    learned: float = math.nan
    """P(first preferred) in the eyes of the learned reward; NaN: not known."""

    @property
    def gap(self) -> float:
        """By how much the first return is larger."""
        return self.returns[0] - self.returns[1]


def is_decided(label: float, gap: float) -> bool:
    """Return whether answer and truth both take a side."""
    return math.isfinite(label) and label != 0.5 and math.isfinite(gap) and gap != 0.0


def is_right(label: float, gap: float) -> bool:
    """Return whether a decided pair's answer has the gap's sign."""
    return (label > 0.5) == (gap > 0.0)


def agreement(labels: Sequence[float], gaps: Sequence[float]) -> Share:
    """Return the share of decided pairs whose answer has the gap's sign."""
    right = [is_right(*row) for row in zip(labels, gaps, strict=True) if is_decided(*row)]
    return Share(part=sum(right), whole=len(right))


def confident_agreement(labels: Sequence[float], gaps: Sequence[float]) -> Share:
    """Return the agreement on the surer half of the decided pairs.

    Those as sure as the median, or more: where many are equally sure it may be more than half.
    """
    decided = [row for row in zip(labels, gaps, strict=True) if is_decided(*row)]
    if not decided:
        return Share(part=0, whole=0)
    sure = [abs(label - 0.5) for label, _ in decided]
    least = sorted(sure)[len(sure) // 2]
    chosen = [row for row, s in zip(decided, sure, strict=True) if s >= least]
    return agreement([label for label, _ in chosen], [gap for _, gap in chosen])


def reliability(labels: Sequence[float], gaps: Sequence[float]) -> list[Bin]:
    """Return the bins of equal width from 0.5 to 1 that have any decided pair."""
    decided = [row for row in zip(labels, gaps, strict=True) if is_decided(*row)]
    answers = torch.tensor([label for label, _ in decided], dtype=torch.float64)
    truths = torch.tensor([gap > 0.0 for _, gap in decided], dtype=torch.float64)
    return [
        Bin(
            low=row["from"],
            high=row["to"],
            confidence=row["confidence"],
            right=Share(part=round(row["agreement"] * row["pairs"]), whole=row["pairs"]),
        )
        for row in scoring.reliability(answers, truths, NUM_BINS).rows()
        if row["pairs"]
    ]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error of the answers in some bins; NaN without any."""
    return scoring.expected_calibration_error(
        torch.tensor([b.right.whole for b in bins], dtype=torch.int64),
        torch.tensor([b.confidence for b in bins], dtype=torch.float64),
        torch.tensor([b.right.value for b in bins], dtype=torch.float64),
    )


def has_probabilities(labels: Sequence[float]) -> bool:
    """Return whether any answer is more than a side or a tie."""
    return any(math.isfinite(label) and label not in (0.0, 0.5, 1.0) for label in labels)


def quantile(values: Sequence[float], level: float) -> float:
    """Return a quantile, interpolated between neighbours; NaN of nothing."""
    return float(np.quantile(values, level)) if len(values) else math.nan


def mean(values: Sequence[float]) -> float:
    """Return the mean; NaN of nothing."""
    return sum(values) / len(values) if values else math.nan


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
