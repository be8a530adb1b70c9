"""What a language model answered in a run: how often, how biased, how right, at what cost.

It is read from the answer cache. All shares are over the pairs of one prompt and one model.
"""

import math
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path

from marl.preferences.llm.cache import CacheError, snapshot
from marl.preferences.llm.prompts import cleaned
from marl.reports.statistics import (
    Bin,
    Pair,
    Share,
    agreement,
    confident_agreement,
    mean,
    reliability,
)
from marl.utils.text import one_line


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the attempts at the questions of one prompt to one model used."""

    prompt: str
    model: str
    answered: int
    unanswered: Counter[str] = field(default_factory=Counter)
    """Attempts without an answer, by what was in the way."""
    prompt_tokens: int
    reply_tokens: int
    money: float
    seconds: tuple[float, ...]
    """Of each answered attempt."""

    @property
    def calls(self) -> int:
        """Attempts."""
        return self.answered + self.unanswered.total()


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What an answer cache knows of one run."""

    pairs: tuple[Pair, ...]
    costs: tuple[Cost, ...]


@dataclass(frozen=True, kw_only=True)
class JudgeReport:
    """What one prompt with one model answered, and how well."""

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
    """None where the cache has no attempt of this prompt and model."""


def read_asked(path: Path, run: str) -> Asked:
    """Return what was asked for a run.

    The file is only read. Raises `CacheError` if it cannot be.
    """
    with closing(snapshot(path)) as database:
        database.row_factory = sqlite3.Row
        pairs = database.execute("SELECT * FROM labels WHERE run = ? ORDER BY at, id", (run,))
        calls = database.execute("SELECT * FROM calls WHERE run = ? ORDER BY id", (run,))
        try:
            return Asked(
                pairs=tuple(map(_pair, pairs)),
                costs=_costs(list(calls)),
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise CacheError(
                f"{path}: holds labels or attempts that this program does not write ({error}); "
                "do not trust where it came from"
            ) from None


def _pair(row: sqlite3.Row) -> Pair:
    numbers = (row["first_number"], row["second_number"])
    return Pair(
        label=_number(row["label"]),
        outcome=one_line(row["outcome"]),
        returns=(_number(row["first_return"]), _number(row["second_return"])),
        numbers=None if None in numbers else numbers,
        texts=(cleaned(row["first"]), cleaned(row["second"])),
        prompt=one_line(row["prompt"]),
        model=one_line(row["model"]),
        form=row["form"],
        first_choice=one_line(row["first_choice"]),
        odds=(row["first_odds"], row["second_odds"]),
        masses=(row["first_mass"], row["second_mass"]),
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _costs(rows: Sequence[sqlite3.Row]) -> tuple[Cost, ...]:
    """Return the costs by prompt and model."""
    groups: dict[tuple[str, str], list[sqlite3.Row]] = {}
    for row in rows:
        groups.setdefault((row["prompt"], row["model"]), []).append(row)
    return tuple(_cost(*named, group) for named, group in sorted(groups.items()))


def _cost(prompt: str, model: str, rows: Sequence[sqlite3.Row]) -> Cost:
    answered = [row for row in rows if row["outcome"] == "answered"]
    others = (row["outcome"] or "under way" for row in rows if row["outcome"] != "answered")
    return Cost(
        prompt=one_line(prompt),
        model=one_line(model),
        answered=len(answered),
        unanswered=Counter(map(one_line, others)),
        prompt_tokens=sum(row["prompt_tokens"] or 0 for row in rows),
        reply_tokens=sum(row["reply_tokens"] or 0 for row in rows),
        money=sum(row["cost"] or 0.0 for row in rows),
        seconds=tuple(row["ended"] - row["started"] for row in answered),
    )


def judges(asked: Asked) -> list[JudgeReport]:
    """Return each prompt and model that a run has used, in order of their names."""
    groups: dict[tuple[str, str], list[Pair]] = {}
    for pair in asked.pairs:
        groups.setdefault((pair.prompt, pair.model), []).append(pair)
    costs = {(cost.prompt, cost.model): cost for cost in asked.costs}
    names = sorted(groups.keys() | costs.keys())
    return [_judge(*name, groups.get(name, []), costs.get(name)) for name in names]


def _judge(prompt: str, model: str, pairs: Sequence[Pair], cost: Cost | None) -> JudgeReport:
    labels, gaps = [pair.label for pair in pairs], [pair.gap for pair in pairs]
    questions = _questions(pairs)
    forms = {pair.form for pair in pairs if pair.form}
    return JudgeReport(
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
    """Return how many pairs got the same letter in both orders, of those asked in both."""
    flips = []
    for pair in pairs:
        one, two = pair.odds
        if pair.form == "pairwise" and one is not None and two is not None:
            flips.append(one * two > 0.0)
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
