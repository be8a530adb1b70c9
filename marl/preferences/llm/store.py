"""Every question and every answer, in one SQLite file that survives a kill at any moment.

An attempt is written down before it is sent and completed when its reply arrives, in one
transaction with the answer. So after a kill, what was under way is known: it may have been paid
for. One process writes at a time; others may read.
"""

import asyncio
import fcntl
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from marl.preferences.llm.asking import Score, Verdict
from marl.preferences.llm.faults import Fault
from marl.preferences.llm.layout import StoreError, digest, opened
from marl.preferences.llm.prompts import Template
from marl.preferences.llm.replies import Reply
from marl.preferences.llm.requests import Request


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What some attempts have used."""

    calls: int = 0
    tokens: int = 0
    cost: float = 0.0

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            calls=self.calls + other.calls,
            tokens=self.tokens + other.tokens,
            cost=self.cost + other.cost,
        )


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """One labelled pair, for the audit."""

    template: Template
    model: str
    first: str
    """What was told of the first episode."""
    second: str
    numbers: tuple[int, int]
    """Of the two episodes in their run."""
    returns: tuple[float, float]
    scores: tuple[Score | Fault, Score | Fault]
    """Of the pair's two questions."""
    verdict: Verdict


class AnswerStore:
    """The file, open for writing."""

    def __init__(self, path: Path, run: str = "") -> None:
        self.path = path
        self.run = run
        """Identity of the run whose attempts and pairs are written; empty for none."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(path)
        try:
            self._db = opened(path)
        except BaseException:
            self._lock.close()
            raise
        self._doubtful = self._settle_interrupted()
        self._commit: asyncio.Task[None] | None = None

    def reply(self, key: str) -> Reply | None:
        """Return the answer kept under a key."""
        row = self._db.execute("SELECT reply FROM answers WHERE key = ?", (key,)).fetchone()
        return Reply.from_json(row[0]) if row else None

    def is_in_doubt(self, key: str) -> bool:
        """Return whether the question was under way when an earlier process was killed."""
        return key in self._doubtful

    def begin(self, request: Request, estimate: Spent) -> int:
        """Write down that a question is about to be sent; return the attempt's number.

        Until it ends it counts as having used the estimate. Send after `commit` only.
        """
        self._open_transaction()
        cursor = self._db.execute(
            "INSERT INTO calls (key, started, prompt_tokens, reply_tokens, cost, run, prompt,"
            " model) VALUES (?, ?, ?, 0, ?, ?, ?, ?)",
            (
                request.key,
                time.time(),
                estimate.tokens,
                estimate.cost,
                self.run,
                request.prompt,
                request.body["model"],
            ),
        )
        return int(cursor.lastrowid or 0)

    def answered(self, call: int, request: Request, reply: Reply, spent: Spent) -> None:
        """Keep the answer to an attempt. After `commit` it is on the disk."""
        text, answer = json.dumps(request.body, sort_keys=True), reply.to_json()
        reply_tokens = min(reply.reply_tokens or 0, spent.tokens)
        self._open_transaction()
        self._db.execute(
            "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)",
            (request.key, text, answer, digest(request.key, text, answer)),
        )
        self._db.execute(
            "UPDATE calls SET ended = ?, outcome = 'answered', prompt_tokens = ?,"
            " reply_tokens = ?, cost = ? WHERE id = ?",
            (time.time(), spent.tokens - reply_tokens, reply_tokens, spent.cost, call),
        )
        self._doubtful.discard(request.key)

    async def commit(self) -> None:
        """Return when all written so far is on the disk; what is written at once goes at once."""
        if self._commit is None:
            self._commit = asyncio.get_running_loop().create_task(self._commit_soon())
        await asyncio.shield(self._commit)

    async def _commit_soon(self) -> None:
        await asyncio.sleep(0)  # what else is ready now is written first
        self._commit = None
        self._close_transaction()

    def failed(self, call: int, outcome: str, detail: str, *, paid: bool) -> None:
        """Note that an attempt has no answer; if it may be paid for, the estimate stands."""
        free = "" if paid else ", prompt_tokens = 0, cost = 0"
        self._db.execute(
            f"UPDATE calls SET ended = ?, outcome = ?, detail = ?{free} WHERE id = ?",
            (time.time(), outcome, detail, call),
        )

    def spent(self) -> Spent:
        """Return what all attempts in the file have used, unfinished ones by their estimate."""
        calls, tokens, cost = self._db.execute(
            "SELECT count(*), total(prompt_tokens + reply_tokens), total(cost) FROM calls"
        ).fetchone()
        return Spent(calls=calls, tokens=int(tokens), cost=cost)

    def add_labels(self, labels: Sequence[Labelled]) -> None:
        """Keep labelled pairs; the same pair of a run labelled again replaces itself."""
        now = time.time()
        rows = [_row(label, self.run) | {"at": now} for label in labels]
        if not rows:
            return
        columns = ", ".join(rows[0])
        places = ", ".join(f":{name}" for name in rows[0])
        self._open_transaction()
        self._db.executemany(f"INSERT OR REPLACE INTO labels ({columns}) VALUES ({places})", rows)
        self._close_transaction()

    def note(self, name: str) -> Any:
        """Return a value noted under a name, None if there is none."""
        row = self._db.execute("SELECT value FROM notes WHERE name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else None

    def set_note(self, name: str, value: Any) -> None:
        """Note a value of plain JSON."""
        self._db.execute("INSERT OR REPLACE INTO notes VALUES (?, ?)", (name, json.dumps(value)))

    def close(self) -> None:
        """Close the file and let another process write to it."""
        self._close_transaction()
        self._db.close()
        self._lock.close()

    def _settle_interrupted(self) -> set[str]:
        """Mark what an earlier process left unfinished; return all keys in doubt."""
        self._db.execute(
            "UPDATE calls SET ended = ?, outcome = 'in_doubt' WHERE ended IS NULL", (time.time(),)
        )
        rows = self._db.execute(
            "SELECT DISTINCT key FROM calls WHERE outcome = 'in_doubt'"
            " AND key NOT IN (SELECT key FROM answers)"
        )
        return {key for (key,) in rows}

    def _open_transaction(self) -> None:
        if not self._db.in_transaction:
            self._db.execute("BEGIN IMMEDIATE")

    def _close_transaction(self) -> None:
        if self._db.in_transaction:
            try:
                self._db.execute("COMMIT")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise


def _locked(path: Path) -> IO[str]:
    """Return an open lock file beside the store; the system lets go of it when a process dies."""
    lock = path.with_name(f"{path.name}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise StoreError(
            f"{path}: another run is writing to this store; give this one its own by "
            "preferences.llm.store, or wait for the other"
        ) from None
    return lock


def _row(label: Labelled, run: str) -> dict[str, Any]:
    """Return a labelled pair as a row, by column."""
    template, verdict = label.template, label.verdict
    numbers = [str(number) for number in label.numbers]
    row: dict[str, Any] = {
        "id": digest(run, template.identity, label.model, *numbers, label.first, label.second),
        "run": run,
        "prompt": template.identity,
        "form": template.form,
        "first_choice": template.choices[0],
        "model": label.model,
        "first": label.first,
        "second": label.second,
        "label": None if math.isnan(verdict.label) else verdict.label,
        "outcome": verdict.outcome,
        "flipped": verdict.flipped,
    }
    for index, side in enumerate(("first", "second")):
        score = label.scores[index]
        row |= {
            f"{side}_number": label.numbers[index],
            f"{side}_return": label.returns[index],
            f"{side}_odds": score.log_odds if isinstance(score, Score) else None,
            f"{side}_mass": score.mass if isinstance(score, Score) else None,
        }
    return row
