"""Is this model worth asking? A few pairs whose order nobody doubts."""

from collections.abc import Sequence
from dataclasses import dataclass

from marl.preferences.llm.asking import Score, Verdict
from marl.preferences.llm.faults import Fault

_LEAST_SHARE, _LARGEST_SHARE = 0.3, 0.7
"""Outside of these the hard answers follow the position, or always give the same grade."""

_REASONS = {
    "low_mass": "other words were likelier than the two choices (preferences.llm.min_mass)",
    "margin": "the two choices were about equally likely (preferences.llm.margin)",
    "disagreement": "the two orders disagree",
}
"""In words, why a pair has no answer."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What the preflight measured."""

    pairs: int
    right: int
    unanswered: int
    first_choice: str
    first_share: float
    """Share of hard answers that are the template's first choice; NaN without any."""
    mass: float
    """Smallest probability that the two choices had together; NaN without any."""
    reason: str
    """Why the first pair without an answer has none; empty if all have one."""

    @property
    def accuracy(self) -> float:
        """Share right; a pair without an answer counts half."""
        return (self.right + 0.5 * self.unanswered) / self.pairs

    def __str__(self) -> str:
        text = (
            f"{self.right} of {self.pairs} pairs with known answers right, "
            f"{self.unanswered} without an answer (which count as half: {self.accuracy:.0%}); "
            f"the likelier choice was {self.first_choice!r} in {self.first_share:.0%}; "
            f"the two choices had at least {self.mass:.2f} of the probability together"
        )
        reason = _REASONS.get(self.reason, self.reason)
        return f"{text}; the first without an answer: {reason}" if reason else text

    @property
    def is_one_sided(self) -> bool:
        """Whether the hard answers say more about the model than about the episodes."""
        return not _LEAST_SHARE <= self.first_share <= _LARGEST_SHARE


def figures(
    verdicts: Sequence[Verdict], scores: Sequence[Score | Fault], first_choice: str
) -> Figures:
    """Return what the verdicts on known pairs, the better one first, and their scores tell."""
    given = [score for score in scores if isinstance(score, Score)]
    firsts = sum(score.takes_first for score in given)
    missing = [verdict for verdict in verdicts if verdict.label != verdict.label]
    return Figures(
        pairs=len(verdicts),
        right=sum(verdict.label > 0.5 for verdict in verdicts),
        unanswered=len(missing) + sum(verdict.label == 0.5 for verdict in verdicts),
        first_choice=first_choice,
        first_share=firsts / len(given) if given else float("nan"),
        mass=min((score.mass for score in given), default=float("nan")),
        reason=missing[0].outcome if missing else "",
    )
