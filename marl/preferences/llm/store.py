"""Every question and every answer, in one SQLite file that survives a kill at any moment.

An attempt is written down before it is sent and completed when its reply arrives, in one
transaction with the answer. So after a kill, what was under way is known: it may have been paid
for. One process writes at a time; others may read.
"""

import asyncio
import fcntl
import hashlib
import json
import math
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from marl.config import ConfigError
from marl.preferences.llm.asking import Verdict
from marl.preferences.llm.replies import Reply
from marl.preferences.llm.requests import Request

VERSION = 1
"""Layout of the tables; a file with a larger one was written by a newer version."""
_APPLICATION = 0x6D61726C
"""Marks the file as ours ("marl")."""

_TABLES = """
CREATE TABLE answers (
    key TEXT PRIMARY KEY, request TEXT NOT NULL, reply TEXT NOT NULL, digest TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE calls (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, started REAL NOT NULL, ended REAL,
    outcome TEXT, detail TEXT, prompt_tokens INTEGER, reply_tokens INTEGER, cost REAL
);
CREATE INDEX calls_by_key ON calls (key);
CREATE TABLE labels (
    id TEXT PRIMARY KEY, at REAL NOT NULL, prompt TEXT NOT NULL, first TEXT NOT NULL,
    second TEXT NOT NULL, first_return REAL, second_return REAL, label REAL, outcome TEXT NOT NULL,
    flipped INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


class StoreError(ConfigError):
    """The file cannot be used; nothing in it was changed."""


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

    keys: Sequence[str]
    """Of the answers it was made of."""
    prompt: str
    first: str
    second: str
    first_return: float
    second_return: float
    verdict: Verdict


class AnswerStore:
    """The file, open for writing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(path)
        try:
            self._db = _opened(path)
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

    def begin(self, key: str, estimate: Spent) -> int:
        """Write down that a question is about to be sent; return the attempt's number.

        Until it ends it counts as having used the estimate. Send after `commit` only.
        """
        self._open_transaction()
        cursor = self._db.execute(
            "INSERT INTO calls (key, started, prompt_tokens, reply_tokens, cost)"
            " VALUES (?, ?, ?, 0, ?)",
            (key, time.time(), estimate.tokens, estimate.cost),
        )
        return int(cursor.lastrowid or 0)

    def answered(self, call: int, request: Request, reply: Reply, spent: Spent) -> None:
        """Keep the answer to an attempt. After `commit` it is on the disk."""
        text, answer = json.dumps(request.body, sort_keys=True), reply.to_json()
        reply_tokens = min(reply.reply_tokens or 0, spent.tokens)
        self._open_transaction()
        self._db.execute(
            "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)",
            (request.key, text, answer, _digest(request.key, text, answer)),
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
        """Keep labelled pairs; the same pair labelled again replaces itself."""
        now = time.time()
        rows = [
            (
                _digest(*label.keys, label.first, label.second),
                now,
                label.prompt,
                label.first,
                label.second,
                label.first_return,
                label.second_return,
                None if math.isnan(label.verdict.label) else label.verdict.label,
                label.verdict.outcome,
                label.verdict.flipped,
            )
            for label in labels
        ]
        self._open_transaction()
        self._db.executemany("INSERT OR REPLACE INTO labels VALUES (?,?,?,?,?,?,?,?,?,?)", rows)
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


def _opened(path: Path) -> sqlite3.Connection:
    """Return a connection to a checked store, a new one if there is no file."""
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        if database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            _create(database)
        _check(database, path)
        # Full: an answer is on the disk before it is used, also if the power fails.
        database.execute("PRAGMA synchronous = FULL")
    except sqlite3.DatabaseError as error:
        database.close()
        raise _damaged(path, str(error)) from None
    except BaseException:
        database.close()
        raise
    return database


def _create(database: sqlite3.Connection) -> None:
    """Lay out an empty store, whole or not at all."""
    database.execute("PRAGMA journal_mode = WAL")
    database.executescript(
        f"BEGIN; {_TABLES} PRAGMA application_id = {_APPLICATION};"
        f" PRAGMA user_version = {VERSION}; COMMIT;"
    )


def _check(database: sqlite3.Connection, path: Path) -> None:
    """Raise `StoreError` for a file of something else, of a newer version, or with damage."""
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if database.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
        raise StoreError(
            f"{path}: an SQLite file, but not a store of answers; name another file by "
            "preferences.llm.store"
        )
    if version > VERSION:
        raise StoreError(
            f"{path}: written by a newer version (layout {version}, this one knows {VERSION}); "
            "update prefmarl, or name another file by preferences.llm.store"
        )
    verdict = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise _damaged(path, verdict)
    for key, request, reply, digest in database.execute("SELECT * FROM answers"):
        if _digest(key, request, reply) != digest:
            raise _damaged(path, f"the answer {key[:12]} does not match its digest")


def _damaged(path: Path, what: str) -> StoreError:
    return StoreError(
        f"{path}: damaged: {' '.join(what.split())}. Nothing was changed. Keep a copy; what is "
        f"readable comes out with: sqlite3 {path} .recover | sqlite3 recovered.sqlite"
    )


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
