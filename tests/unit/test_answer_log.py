"""`AnswerLog`: appended, withdrawn, damaged."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from marl.preferences.dataset.answers import Answer, AnswerLog
from marl.preferences.dataset.untrusted import DatasetError
from tests.full_disk import files_end_at

ANN = Answer(first=3, second=17, label=1.0, source="person:ann", at="2026-01-02T03:04:05Z")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


def test_a_line_is_one_json_object_with_the_documented_keys(path: Path) -> None:
    AnswerLog(path).append(replace(ANN, seconds=2.4))
    assert json.loads(path.read_text()) == {
        "first": 3,
        "second": 17,
        "label": 1.0,
        "source": "person:ann",
        "at": "2026-01-02T03:04:05Z",
        "seconds": 2.4,
    }
    assert path.read_text().endswith("}\n")


def test_answers_come_back_in_order_also_in_another_process(path: Path) -> None:
    given = [replace(ANN, first=n, label=label) for n, label in enumerate((1.0, 0.5, 0.0, None))]
    log = AnswerLog(path)
    for answer in given:
        log.append(answer)
    assert log.answers() == given == AnswerLog(path).answers()
    program = (
        "import sys, pathlib\n"
        "from marl.preferences.dataset.answers import AnswerLog\n"
        "print(len(AnswerLog(pathlib.Path(sys.argv[1])).answers()))"
    )
    command = [sys.executable, "-c", program, str(path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "4\n"


def test_what_another_log_appends_is_seen(path: Path) -> None:
    mine, other = AnswerLog(path), AnswerLog(path)
    mine.append(ANN)
    assert other.answers() == [ANN]
    other.append(replace(ANN, source="person:bob"))
    assert [answer.source for answer in mine.answers()] == ["person:ann", "person:bob"]


def test_undo_withdraws_the_latest_standing_answer_of_its_source_only(path: Path) -> None:
    log = AnswerLog(path)
    one, two = replace(ANN, first=1), replace(ANN, first=2)
    bob = replace(ANN, source="person:bob")
    for answer in (one, two, bob):
        log.append(answer)
    assert log.undo("person:ann") == two
    assert log.undo("person:ann") == one
    assert log.undo("person:ann") is None
    assert log.answers() == [bob]
    assert len(path.read_text().splitlines()) == 5  # three answers, two undos: nothing rewritten
    assert log.num_lines("person:ann") == 4
    log.append(one)
    assert log.answers() == [bob, one]


@pytest.mark.filterwarnings("ignore:.*is damaged")
@pytest.mark.parametrize("tail", ['{"first": 3, "sec', '{"first": 3}\n', "\0\0\0\0", "\n"])
def test_a_damaged_last_line_is_ignored_and_the_next_answer_is_whole(path: Path, tail: str) -> None:
    AnswerLog(path).append(ANN)
    path.write_text(path.read_text() + tail)
    log = AnswerLog(path)
    with pytest.warns(UserWarning, match="line 2, the last, is damaged"):
        assert log.answers() == [ANN]
    log.append(replace(ANN, first=5))
    assert AnswerLog(path).answers() == [ANN, replace(ANN, first=5)]
    aside = path.with_name("answers.jsonl.damaged").read_text()
    assert aside == tail.removesuffix("\n") + "\n"


def test_a_last_line_that_lacks_only_its_end_counts(path: Path) -> None:
    AnswerLog(path).append(ANN)
    path.write_text(path.read_text().rstrip("\n"))
    assert AnswerLog(path).answers() == [ANN]
    AnswerLog(path).append(replace(ANN, first=5))
    assert [answer.first for answer in AnswerLog(path).answers()] == [3, 5]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("not json", "Invalid JSON: expected ident at line 1 column 2 in b'not json'"),
        ("[]", "it is []: Input should be an object"),
        ('{"first": 3, "second": 4, "label": 1, "at": "now"}', "it has no source"),
        ('{"first": 3, "second": 3, "label": 1, "source": "a", "at": "b"}', "are 3 and 3"),
        ('{"first": 3, "second": 4, "label": 2, "source": "a", "at": "b"}', "label is 2"),
        ('{"first": 3, "second": 4, "label": NaN, "source": "a", "at": "b"}', "label is nan"),
        (f'{{"first": 3, "second": 4, "label": 1{"0" * 400}, "source": "a", "at": "b"}}', "is inf"),
        (
            '{"first": 3, "second": 4, "label": 1, "source": "a", "at": "b", "seconds": 1e999}',
            "seconds is inf, expected null or a number from 0",
        ),
        (
            f'{{"first": 1{"0" * 25}, "second": 4, "label": 1, "source": "a", "at": "b"}}',
            "first and",
        ),
        (f'{{"first": 1{"0" * 9999}, "second": 4}}', "number out of range"),
        ("[" * 5000, "recursion limit exceeded"),
        ('{"first": ' * 5000, "recursion limit exceeded"),
        (
            '{"first": 3, "second": 4, "label": 1, "source": "\\ud800", "at": "b"}',
            "Invalid JSON: unexpected end of hex escape",
        ),
        (
            '{"first": 3, "second": 4, "label": 1, "source": "\\u001b[2J", "at": "b"}',
            "expected printable texts",
        ),
        ('"' + "a" * 70_000 + '"', "it has 70,002 bytes, more than 65,536"),
        ('{"first": "3", "second": 4, "label": 1, "source": "a", "at": "b"}', "first is '3'"),
    ],
)
def test_a_damaged_line_in_the_middle_is_named_or_skipped_on_request(
    path: Path, line: str, reason: str
) -> None:
    log = AnswerLog(path)
    log.append(ANN)
    path.write_text(f"{path.read_text()}{line}\n")
    with path.open("a") as file:
        file.write(json.dumps(vars(replace(ANN, first=9))) + "\n")
    with pytest.raises(DatasetError, match=r"answers\.jsonl, line 2 of 3.*--skip-damaged") as error:
        AnswerLog(path).answers()
    assert reason in str(error.value)
    with pytest.warns(UserWarning, match="line 2: skipped"):
        assert [a.first for a in AnswerLog(path, skip_damaged=True).answers()] == [3, 9]


@pytest.mark.parametrize("name", ["answers.jsonl", "answers.jsonl.damaged"])
def test_nothing_is_appended_to_what_a_link_leads_to(path: Path, name: str) -> None:
    theirs = path.with_name("theirs")
    theirs.write_text('{"first": 1')
    path.write_text("half of an answer")
    path.with_name(name).unlink(missing_ok=True)
    path.with_name(name).symlink_to(theirs)
    with pytest.raises(DatasetError, match=f"{name} is a link"):
        AnswerLog(path).append(ANN)
    assert theirs.read_text() == '{"first": 1'


def test_an_answer_outside_its_range_is_never_written(path: Path) -> None:
    with pytest.raises(ValueError, match="label is nan"):
        replace(ANN, label=float("nan"))
    with pytest.raises(ValueError, match="seconds is -1"):
        replace(ANN, seconds=-1.0)
    assert AnswerLog(path).answers() == []
    assert not path.exists()


@pytest.mark.parametrize("room", [0, 1, 50, -1])
def test_a_disk_that_fills_up_within_an_answer_says_so(path: Path, room: int) -> None:
    """It takes as much of the line as it has room for, which is no error of its own."""
    log = AnswerLog(path)
    log.append(ANN)
    line = path.stat().st_size
    lost = replace(ANN, second=18)
    with files_end_at(line + room % line), pytest.raises(OSError, match="File too large"):
        log.append(lost)
    log.append(replace(ANN, second=19))
    kept = [answer.second for answer in log.answers()]
    # Only the end of the line was missing: then it is an answer.
    assert kept == ([17, 18, 19] if room == -1 else [17, 19])
