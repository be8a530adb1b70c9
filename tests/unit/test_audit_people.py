"""What people answered, against the return, a labeller, each other and themselves, by hand."""

from pathlib import Path

import numpy as np
import pytest

from marl.preferences.dataset.answers import Answer, AnswerLog
from marl.preferences.dataset.untrusted import DatasetError
from marl.reports.audit_sources import read_people
from marl.reports.statistics import Share


def answered(folder: Path, source: str, *rows: tuple[int, int, float | None]) -> None:
    log = AnswerLog(folder / "answers.jsonl")
    for first, second, label in rows:
        log.append(
            Answer(first=first, second=second, label=label, source=source, at="2026-01-01T00:00:00")
        )


def test_people_are_compared_with_everybody_and_with_themselves(tmp_path: Path) -> None:
    (tmp_path / "episodes").mkdir()
    for number in (0, 1, 2):  # episode 3 was only filmed: its return is not known
        np.savez(tmp_path / "episodes" / f"{number:06d}.npz", **{"return": float(number)})
    answered(
        tmp_path,
        "person:ann",
        (1, 0, 1.0),  # right
        (1, 2, 1.0),  # wrong
        (0, 1, 0.0),  # the first pair again, sides swapped: the same
        (2, 1, 1.0),  # the second pair again: another
        (0, 2, None),
        (0, 2, 0.5),
        (3, 0, 1.0),
    )
    answered(tmp_path, "person:bob", (0, 1, 1.0), (2, 1, 0.0))
    answered(tmp_path, "rule:return", (0, 1, 0.0), (1, 2, 0.0), (0, 2, 0.0))
    ann, bob = read_people(tmp_path)
    assert (ann.name, ann.answers, ann.ties, ann.skipped) == ("ann", 6, 1, 1)
    # A pair counts by its first answer: 1 over 0 right, 1 over 2 wrong, a tie, one unknown.
    assert ann.with_return == Share(part=1, whole=2)
    assert ann.with_labellers == Share(part=1, whole=2)
    assert ann.with_oneself == Share(part=1, whole=2)
    # Bob: 0 over 1, and 1 over 2 as Ann.
    assert ann.with_others == bob.with_others == Share(part=1, whole=2)
    assert bob.with_return == Share(part=0, whole=2)
    assert bob.with_oneself.whole == 0


def test_nobody_and_damage(tmp_path: Path) -> None:
    assert read_people(tmp_path) == ()
    answered(tmp_path, "rule:return", (0, 1, 1.0))
    assert read_people(tmp_path) == ()
    (tmp_path / "episodes").mkdir()
    (tmp_path / "episodes" / "000000.npz").write_bytes(b"no archive")
    with pytest.raises(DatasetError, match=r"000000\.npz is damaged \(File is not a zip file\)"):
        read_people(tmp_path)
    answered(tmp_path, "person:ann", (0, 1, 1.0))
    with pytest.warns(UserWarning, match=r"skipped: .*000000\.npz is damaged"):
        (ann,) = read_people(tmp_path, skip_damaged=True)
    assert (ann.answers, ann.with_return.whole) == (1, 0)
    (tmp_path / "answers.jsonl").write_text('{"first": 1\n{"first": 2\n{"first": 3\n')
    with pytest.raises(DatasetError, match=r"answers\.jsonl, line 1 of 3"):
        read_people(tmp_path)
