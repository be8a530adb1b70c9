"""The answer cache: every question and every answer, what they cost, and the caps on the cost.

One SQLite file survives a kill at any moment. An attempt is written down before it is sent and
completed when its reply arrives, in one transaction with the answer. So after a kill, what was
under way is known: it may have been paid for. One process writes at a time; others may read.

`answers` holds a validated reply under the digest of its request; `calls` every attempt with its
run, model, prompt, outcome and cost; `labels` every labelled pair, for the audit; `notes` what is
known of servers, and the seconds spent waiting.
"""

import asyncio
import hashlib
import json
import math
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from marl.config import ConfigError
from marl.config.preferences import LlmConfig
from marl.preferences.llm.prompts import Template
from marl.preferences.llm.protocol import Fault, Reply, Request
from marl.preferences.llm.verdicts import Score, Verdict
from marl.utils.files import make_folder

LAYOUT = 3
"""Of the tables; a file of any other is refused."""
_APPLICATION = 0x6D61726C
"""Marks the file as ours ("marl")."""
_TEMPLATE_TOKENS = 256
"""Allowance for what a server's chat template adds to the messages."""

_TABLES = """
CREATE TABLE answers (
    key TEXT PRIMARY KEY, request TEXT NOT NULL, reply TEXT NOT NULL, digest TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE calls (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, run TEXT NOT NULL, prompt TEXT NOT NULL,
    model TEXT NOT NULL, started REAL NOT NULL, ended REAL, outcome TEXT, detail TEXT,
    prompt_tokens INTEGER NOT NULL, reply_tokens INTEGER NOT NULL, cost REAL NOT NULL
);
CREATE INDEX calls_by_key ON calls (key);
CREATE INDEX calls_by_run ON calls (run);
CREATE TABLE labels (
    id TEXT PRIMARY KEY, at REAL NOT NULL, run TEXT NOT NULL, prompt TEXT NOT NULL,
    model TEXT NOT NULL, form TEXT NOT NULL, first_choice TEXT NOT NULL,
    first TEXT NOT NULL, first_number INTEGER NOT NULL, first_return REAL,
    first_odds REAL, first_mass REAL,
    second TEXT NOT NULL, second_number INTEGER NOT NULL, second_return REAL,
    second_odds REAL, second_mass REAL,
    label REAL, outcome TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX labels_by_run ON labels (run);
CREATE TABLE notes (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


class CacheError(ConfigError):
    """The file cannot be used; nothing in it was changed."""


class BudgetError(ConfigError):
    """A cap is reached and the configuration says that the run ends then."""


def opened(path: Path) -> sqlite3.Connection:
    """Return a connection to a checked cache; a new one if there is none."""
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


def snapshot(path: Path) -> sqlite3.Connection:
    """Return a copy in memory of a checked cache; the file is only read, also while a run writes.

    Raises `CacheError`.
    """
    if not path.is_file():
        raise CacheError(f"{path}: there is no answer cache")
    copy = sqlite3.connect(":memory:", isolation_level=None)
    try:
        address = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(address, uri=True)) as database:
            database.backup(copy)
        _check(copy, path)
    except sqlite3.OperationalError as error:
        copy.close()
        raise CacheError(f"{path}: cannot be read: {error}; try again, or read a copy") from None
    except sqlite3.DatabaseError as error:
        copy.close()
        raise _damaged(path, str(error)) from None
    except BaseException:
        copy.close()
        raise
    return copy


def digest(*parts: str) -> str:
    """Return a fingerprint of some texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _create(database: sqlite3.Connection) -> None:
    """Create the tables of an empty cache in one transaction."""
    database.execute("PRAGMA journal_mode = WAL")
    database.executescript(
        f"BEGIN; {_TABLES} PRAGMA application_id = {_APPLICATION}; "
        f"PRAGMA user_version = {LAYOUT}; COMMIT;"
    )


def _check(database: sqlite3.Connection, path: Path) -> None:
    """Raise `CacheError` for a file of something else, of another layout, or with damage."""
    if database.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
        raise CacheError(
            f"{path}: an SQLite file, but not an answer cache; name another file by "
            "preferences.llm.cache"
        )
    layout = int(database.execute("PRAGMA user_version").fetchone()[0])
    if layout != LAYOUT:
        raise CacheError(
            f"{path}: written by another version (layout {layout}, this one knows {LAYOUT}); name "
            "another file by preferences.llm.cache"
        )
    verdict = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise _damaged(path, verdict)
    for key, request, reply, kept in database.execute("SELECT * FROM answers"):
        if digest(key, request, reply) != kept:
            raise _damaged(path, f"the answer {key[:12]} does not match its digest")


def _damaged(path: Path, what: str) -> CacheError:
    return CacheError(
        f"{path}: damaged: {' '.join(what.split())}. Nothing was changed. Keep a copy; what is "
        f"readable comes out with: sqlite3 {path} .recover | sqlite3 recovered.sqlite"
    )


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


class AnswerCache:
    """The file, open for writing."""

    def __init__(self, path: Path, run: str = "") -> None:
        self.path = path
        self.run = run
        """Identity of the run whose attempts and pairs are written; empty for none."""
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
        if row is None:
            return None
        try:
            return Reply.model_validate_json(row[0])
        except ValidationError:
            return None  # not by this program: asked anew

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
        text, answer = json.dumps(request.body, sort_keys=True), reply.model_dump_json()
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


def _locked(path: Path) -> sqlite3.Connection:
    """Return what keeps other writers out; the system lets go of it when a process dies.

    A transaction in an empty database beside the cache is a lock on every system, and leaves the
    cache itself to readers.
    """
    try:
        make_folder(path.parent)
        lock = sqlite3.connect(
            path.with_name(f"{path.name}.lock"),
            timeout=0,
            isolation_level=None,
            check_same_thread=False,
        )
        lock.execute("BEGIN EXCLUSIVE")
    except (OSError, sqlite3.Error) as error:
        if "locked" in str(error):
            raise CacheError(
                f"{path}: another run is writing to this cache; give this one its own by "
                "preferences.llm.cache, or wait for the other"
            ) from None
        raise CacheError(
            f"{path}: cannot be written: {error}; name another file by preferences.llm.cache"
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


class Spending:
    """Caps on calls, tokens, money and time that hold whatever is under way.

    Before an attempt its largest possible use is set aside, and given back in part when the true
    use is known. So a cap is never passed; it may be missed by less than one attempt.
    """

    def __init__(self, config: LlmConfig, spent: Spent, seconds: float) -> None:
        self._config = config
        self.spent = spent
        self._reserved = Spent()
        self._changed: asyncio.Condition | None = None
        self.time_is_up = False
        """Set when a wait was broken off."""
        self.seconds = seconds
        """Spent waiting for the model, over the life of the cache."""

    @property
    def seconds_left(self) -> float | None:
        """Seconds that training may still wait; None where there is no cap."""
        cap = self._config.max_seconds
        return max(0.0, cap - self.seconds) if cap else None

    @property
    def is_out_of_time(self) -> bool:
        """Whether training may not wait any more."""
        return self.time_is_up or self.seconds_left == 0.0

    def __str__(self) -> str:
        spent, caps = self.spent, self._config
        rows = (
            (f"{spent.calls} of {caps.max_calls} calls", caps.max_calls),
            (f"{spent.tokens} of {caps.max_total_tokens} tokens", caps.max_total_tokens),
            (f"{spent.cost:.4g} of {caps.max_cost:g} in money", caps.max_cost),
            (f"{self.seconds:.0f} of {caps.max_seconds:g} s", caps.max_seconds),
        )
        return ", ".join(text for text, cap in rows if cap)

    def estimate(self, body: dict[str, Any]) -> Spent:
        """Return the most that an attempt can use. A token is at least one byte of text."""
        text = len(json.dumps(body["messages"], ensure_ascii=False).encode())
        prompt = text + _TEMPLATE_TOKENS
        limits = ("max_tokens", "max_completion_tokens")
        reply = next((body[name] for name in limits if name in body), self._config.max_tokens)
        return Spent(calls=1, tokens=prompt + reply, cost=self.cost(prompt, reply))

    def used(self, reply: Reply, estimate: Spent) -> Spent:
        """Return what an answered attempt used; the estimate where the server does not say."""
        if reply.prompt_tokens is None or reply.reply_tokens is None:
            return estimate
        prompt, said = reply.prompt_tokens, reply.reply_tokens
        return Spent(calls=1, tokens=prompt + said, cost=self.cost(prompt, said))

    def cost(self, prompt_tokens: int, reply_tokens: int) -> float:
        """Return the price of some tokens."""
        config = self._config
        price = prompt_tokens * config.prompt_price + reply_tokens * config.reply_price
        return price / 1e6

    async def reserve(self, estimate: Spent) -> None:
        """Set an estimate aside, waiting for attempts under way if it may fit afterwards.

        Raises a `Fault` of kind ``budget`` where it does not fit.
        """
        self._changed = self._changed or asyncio.Condition()
        async with self._changed:
            await self._changed.wait_for(self._settled(estimate))
            if not self._fits(self.spent + estimate):
                raise Fault("budget", "the next question would pass a cap")
            self._reserved += estimate

    async def settle(self, estimate: Spent, used: Spent) -> None:
        """Replace an estimate set aside by what was used."""
        if self._changed is None:
            raise RuntimeError("settled before anything was reserved")
        async with self._changed:
            self.spent += used
            self._reserved += Spent(
                calls=-estimate.calls, tokens=-estimate.tokens, cost=-estimate.cost
            )
            self._changed.notify_all()

    def _settled(self, estimate: Spent) -> Callable[[], bool]:
        """Return a test whether the attempts under way leave no doubt if the estimate fits."""
        return lambda: (
            self._reserved.calls == 0
            or self._fits(self.spent + self._reserved + estimate)
            or not self._fits(self.spent + estimate)
        )

    def _fits(self, total: Spent) -> bool:
        caps = self._config
        return (
            (caps.max_calls == 0 or total.calls <= caps.max_calls)
            and (caps.max_total_tokens == 0 or total.tokens <= caps.max_total_tokens)
            and (caps.max_cost == 0.0 or total.cost <= caps.max_cost)
        )
