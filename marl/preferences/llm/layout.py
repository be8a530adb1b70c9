"""The store's tables, how older ones are brought up to date, and what is refused.

Version 1 kept pairs without saying whose they were. Version 2 adds the run, the model, the
episodes' numbers and what each of a pair's two questions said, and to every attempt its run, model
and prompt. What an older store does not know stays empty; nothing in it is taken away.
"""

import hashlib
import sqlite3
from contextlib import closing
from pathlib import Path

from marl.config import ConfigError

VERSION = 2
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
"""Version 1."""

_CHANGES = {
    1: """
ALTER TABLE calls ADD COLUMN run TEXT NOT NULL DEFAULT '';
ALTER TABLE calls ADD COLUMN prompt TEXT NOT NULL DEFAULT '';
ALTER TABLE calls ADD COLUMN model TEXT NOT NULL DEFAULT '';
ALTER TABLE labels ADD COLUMN run TEXT NOT NULL DEFAULT '';
ALTER TABLE labels ADD COLUMN model TEXT NOT NULL DEFAULT '';
ALTER TABLE labels ADD COLUMN form TEXT NOT NULL DEFAULT '';
ALTER TABLE labels ADD COLUMN first_choice TEXT NOT NULL DEFAULT '';
ALTER TABLE labels ADD COLUMN first_number INTEGER;
ALTER TABLE labels ADD COLUMN second_number INTEGER;
ALTER TABLE labels ADD COLUMN first_odds REAL;
ALTER TABLE labels ADD COLUMN second_odds REAL;
ALTER TABLE labels ADD COLUMN first_mass REAL;
ALTER TABLE labels ADD COLUMN second_mass REAL;
CREATE INDEX labels_by_run ON labels (run);
CREATE INDEX calls_by_run ON calls (run);
UPDATE calls SET model = coalesce(
    (SELECT json_extract(request, '$.model') FROM answers WHERE answers.key = calls.key), '');
UPDATE labels SET
    form = CASE WHEN prompt LIKE 'pairwise@%' THEN 'pairwise'
                WHEN prompt LIKE 'pointwise@%' THEN 'pointwise' ELSE '' END,
    model = CASE (SELECT count(DISTINCT model) FROM calls WHERE model != '')
            WHEN 1 THEN (SELECT max(model) FROM calls) ELSE '' END;
""",
}
"""From each version to the next."""


class StoreError(ConfigError):
    """The file cannot be used; nothing in it was changed."""


def opened(path: Path) -> sqlite3.Connection:
    """Return a connection to a checked store of the present layout; a new one if there is none."""
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        if database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            _create(database)
        _check(database, path)
        # Full: an answer is on the disk before it is used, also if the power fails.
        database.execute("PRAGMA synchronous = FULL")
        _update(database)
    except sqlite3.DatabaseError as error:
        database.close()
        raise _damaged(path, str(error)) from None
    except BaseException:
        database.close()
        raise
    return database


def snapshot(path: Path) -> sqlite3.Connection:
    """Return a copy in memory of a checked store, in the present layout.

    The file is only read, also while a run writes to it or if its layout is an older one.
    """
    if not path.is_file():
        raise StoreError(f"{path}: there is no store of answers")
    copy = sqlite3.connect(":memory:", isolation_level=None)
    try:
        address = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(address, uri=True)) as database:
            database.backup(copy)
        _check(copy, path)
        _update(copy)
    except sqlite3.OperationalError as error:
        copy.close()
        raise StoreError(f"{path}: cannot be read: {error}; try again, or read a copy") from None
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
    """Lay out an empty store, whole or not at all."""
    database.execute("PRAGMA journal_mode = WAL")
    database.executescript(
        f"BEGIN; {_TABLES} PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = 1; COMMIT;"
    )


def _update(database: sqlite3.Connection) -> None:
    """Bring the tables to the present layout, one version at a time, each whole or not at all."""
    for version in range(_version(database), VERSION):
        try:
            database.executescript(
                f"BEGIN IMMEDIATE; {_CHANGES[version]} PRAGMA user_version = {version + 1}; COMMIT;"
            )
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise


def _version(database: sqlite3.Connection) -> int:
    return int(database.execute("PRAGMA user_version").fetchone()[0])


def _check(database: sqlite3.Connection, path: Path) -> None:
    """Raise `StoreError` for a file of something else, of a newer version, or with damage."""
    version = _version(database)
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
    for key, request, reply, kept in database.execute("SELECT * FROM answers"):
        if digest(key, request, reply) != kept:
            raise _damaged(path, f"the answer {key[:12]} does not match its digest")


def _damaged(path: Path, what: str) -> StoreError:
    return StoreError(
        f"{path}: damaged: {' '.join(what.split())}. Nothing was changed. Keep a copy; what is "
        f"readable comes out with: sqlite3 {path} .recover | sqlite3 recovered.sqlite"
    )
