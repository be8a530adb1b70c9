"""A store of version 1 becomes one of today, and nothing that was paid for is lost.

`tests/data/llm_store_v1.sql` was written by the code of version 1, asking the stand-in server at
port 18123: three pairs pointwise, three pairwise, one pair of which a question was rejected, and
one question under way when the process ended.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from marl.preferences.llm import cache
from marl.preferences.llm.cache import VERSION, AnswerStore, StoreError, snapshot
from tests.llm_cases import make, old_store, pairs_of

ADDRESS = "http://127.0.0.1:18123/v1"
PAID = ("SELECT * FROM answers ORDER BY key", "SELECT key, cost FROM calls ORDER BY id",
        "SELECT prompt, first, second, first_return, second_return, label, outcome, flipped"
        " FROM labels ORDER BY id", "SELECT * FROM notes ORDER BY name")  # fmt: skip


def paid(path: Path) -> list[Any]:
    with closing(sqlite3.connect(path)) as database:
        return [database.execute(query).fetchall() for query in PAID]


def test_an_old_store_keeps_all_it_has_and_learns_what_it_can(tmp_path: Path) -> None:
    path = old_store(tmp_path)
    before = paid(path)
    assert [len(rows) for rows in before] == [14, 16, 7, 3]
    AnswerStore(path).close()
    assert paid(path) == before
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (VERSION,)
        forms = database.execute("SELECT form, count(*) FROM labels GROUP BY 1 ORDER BY 1")
        assert forms.fetchall() == [("pairwise", 3), ("pointwise", 4)]
        models = database.execute("SELECT model, count(*) FROM calls GROUP BY 1 ORDER BY 1")
        assert models.fetchall() == [("", 2), ("stand-in", 14)]
        assert database.execute("SELECT DISTINCT model, run FROM labels").fetchall() == [
            ("stand-in", "")
        ]
    AnswerStore(path).close()
    assert paid(path) == before


@pytest.mark.parametrize("ask", ["pointwise", "pairwise"])
def test_an_old_store_replays_offline(ask: str, tmp_path: Path) -> None:
    old_store(tmp_path)
    labeller = make(ADDRESS, tmp_path, ask=ask, offline=True)
    labels = labeller(pairs_of([1.0, 2.0, 0.01], [2.0, -1.0, 0.0]))
    assert labels[:2].tolist() == pytest.approx([0.26894142, 0.95257413])
    assert labels[2].isnan()  # within the margin
    assert labeller.metrics()["llm_calls"] == 0.0
    # 15 attempts of 101 tokens, the rejected one free, the one under way by its estimate of 500.
    assert labeller.store.spent().tokens == 14 * 101 + 500
    labeller.close()


def test_a_snapshot_leaves_the_file_alone_even_while_a_run_writes(tmp_path: Path) -> None:
    path = old_store(tmp_path)
    before = path.read_bytes()
    with closing(snapshot(path)) as copy:
        assert copy.execute("SELECT count(*) FROM labels WHERE run = ''").fetchone() == (7,)
    assert path.read_bytes() == before
    store = AnswerStore(path, "mine")
    with closing(snapshot(path)) as copy:
        assert copy.execute("SELECT count(*) FROM answers").fetchone() == (14,)
    store.close()
    with pytest.raises(StoreError, match=r"nowhere\.sqlite: there is no store of answers"):
        snapshot(tmp_path / "nowhere.sqlite")


def test_a_change_that_fails_in_the_middle_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = old_store(tmp_path)
    before = paid(path)
    broken = cache._CHANGES[1] + "ALTER TABLE missing ADD COLUMN x TEXT;"
    monkeypatch.setitem(cache._CHANGES, 1, broken)
    with pytest.raises(StoreError, match="no such table: missing"):
        AnswerStore(path)
    monkeypatch.undo()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (1,)
        columns = [row[1] for row in database.execute("PRAGMA table_info(labels)")]
    assert "run" not in columns
    AnswerStore(path).close()
    assert paid(path) == before
