"""What a language model answered, and what that cost: read from its store of answers."""

import math
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from marl.audit.pairs import Pair
from marl.preferences.describe import one_line
from marl.preferences.llm.layout import StoreError, snapshot
from marl.preferences.llm.texts import cleaned


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
    """What a store knows of one run."""

    pairs: tuple[Pair, ...]
    costs: tuple[Cost, ...]
    is_whole_store: bool
    """The store does not say whose its pairs are, so that all of them are here."""


def read_asked(path: Path, run: str) -> Asked:
    """Return what was asked for a run, or all that a store of old holds without an owner.

    The file is only read. Raises `StoreError` if it cannot be.
    """
    with closing(snapshot(path)) as database:
        database.row_factory = sqlite3.Row
        owner = run if run and _has_owner(database, run) else ""
        pairs = database.execute("SELECT * FROM labels WHERE run = ? ORDER BY at, id", (owner,))
        calls = database.execute("SELECT * FROM calls WHERE run = ? ORDER BY id", (owner,))
        try:
            return Asked(
                pairs=tuple(map(_pair, pairs)),
                costs=_costs(list(calls)),
                is_whole_store=bool(run) and not owner,
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise StoreError(
                f"{path}: holds labels or attempts that this program does not write ({error}); "
                "do not trust where it came from"
            ) from None


def _has_owner(database: sqlite3.Connection, run: str) -> bool:
    """Return whether a run has asked anything of this store."""
    found = "SELECT 1 FROM {} WHERE run = ? LIMIT 1"
    return any(
        database.execute(found.format(table), (run,)).fetchone() for table in ("labels", "calls")
    )


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
        has_flipped=bool(row["flipped"]),
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
