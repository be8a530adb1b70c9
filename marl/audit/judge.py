"""One way of asking a language model, judged: how often it answered, how biased, how right.

All shares are over the pairs of one prompt and one model.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isnan

from marl.audit.from_store import Asked, Cost
from marl.audit.pairs import Pair
from marl.audit.statistics import Bin, Share, agreement, confident_agreement, mean, reliability

_JUDGED = ("answered", "tie", "margin", "disagreement")
"""Outcomes of pairs both of whose questions were answered and carried enough mass."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A prompt and a model."""

    prompt: str
    model: str
    form: str
    first_choice: str
    pairs: int
    answered: int
    ties: int
    unanswered: Counter[str]
    """Pairs without an answer, by reason."""
    agreement: Share
    """With the return."""
    confident: Share
    """The same on the surer half."""
    flips: Share
    """Pairs of which the two orders preferred different episodes, of those asked in both."""
    firsts: Share
    """Hard answers that are the first choice, over different questions."""
    mass: float
    """Mean probability of the two choices together."""
    bins: tuple[Bin, ...]
    cost: Cost | None
    """None where the store has no attempt of this prompt and model."""


def judges(asked: Asked) -> list[Judge]:
    """Return each prompt and model that a run has used, in order of their names."""
    groups: dict[tuple[str, str], list[Pair]] = {}
    for pair in asked.pairs:
        groups.setdefault((pair.prompt, pair.model), []).append(pair)
    costs = {(cost.prompt, cost.model): cost for cost in asked.costs}
    names = sorted(groups.keys() | costs.keys())
    return [_judge(*name, groups.get(name, []), costs.get(name)) for name in names]


def _judge(prompt: str, model: str, pairs: Sequence[Pair], cost: Cost | None) -> Judge:
    labels, gaps = [pair.label for pair in pairs], [pair.gap for pair in pairs]
    questions = _questions(pairs)
    forms = {pair.form for pair in pairs if pair.form}
    return Judge(
        prompt=prompt,
        model=model,
        form=max(forms, default=""),
        first_choice=max((pair.first_choice for pair in pairs), default=""),
        pairs=len(pairs),
        answered=sum(not isnan(label) for label in labels),
        ties=labels.count(0.5),
        unanswered=Counter(pair.outcome for pair in pairs if isnan(pair.label)),
        agreement=agreement(labels, gaps),
        confident=confident_agreement(labels, gaps),
        flips=_flips(pairs),
        firsts=Share(part=sum(odds > 0.0 for odds, _ in questions), whole=len(questions)),
        mass=mean([mass for _, mass in questions]),
        bins=tuple(reliability(labels, gaps)),
        cost=cost,
    )


def _flips(pairs: Iterable[Pair]) -> Share:
    """Return how many pairs got the same letter in both orders.

    A store of old tells the odds of no question, but whether the order mattered.
    """
    flips = []
    for pair in pairs:
        one, two = pair.odds
        if pair.form != "pairwise":
            continue
        if one is not None and two is not None:
            flips.append(one * two > 0.0)
        elif pair.outcome in _JUDGED:
            flips.append(pair.has_flipped)
    return Share(part=sum(flips), whole=len(flips))


def _questions(pairs: Iterable[Pair]) -> list[tuple[float, float]]:
    """Return log-odds and mass of each different question that was answered."""
    found: dict[tuple[str, ...], tuple[float, float]] = {}
    for pair in pairs:
        both = pair.form == "pairwise"
        asked = (pair.texts, pair.texts[::-1]) if both else ((pair.texts[0],), (pair.texts[1],))
        for question, odds, mass in zip(asked, pair.odds, pair.masses, strict=True):
            if odds is not None and mass is not None:
                found[question] = (odds, mass)
    return list(found.values())
