"""`marl label` says what it cannot do, and prepares what it shows."""

import os
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from envs import Frame
from marl.commands import label as command
from marl.preferences.dataset import PreferenceDataset
from marl.preferences.dataset.answers import Answer, now
from marl.preferences.dataset.footage import EpisodeFrames, filmed_episodes, write_frames
from marl.preferences.people.learned import LearnedAgreement
from marl.preferences.people.session import Labelling, first_to_decide
from marl.utils.checkpoint import list_checkpoints
from tests.command_line import QUICK, run


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Labelling, str]]:
    """What would be served; nothing is."""
    calls: list[tuple[Labelling, str]] = []

    def serve(labelling: Labelling, title: str, port: int, opens: bool) -> None:
        calls.append((labelling, title))

    monkeypatch.setattr(command, "serve_page", serve)
    monkeypatch.setattr(command, "check_extra", lambda: None)
    return calls


@pytest.fixture
def small_dataset(tmp_path: Path) -> Path:
    frame = Frame(shapes=(), view=(0.0, 0.0, 1.0, 1.0), anchors=())
    for number in range(3):
        write_frames(tmp_path / "dataset", number, EpisodeFrames(steps=(0,), frames=(frame,)))
    return tmp_path / "dataset"


def test_episodes_of_any_run_are_played_once_and_kept(
    tmp_path: Path, served: list[tuple[Labelling, str]]
) -> None:
    folder = tmp_path / "run"
    assert run("train", *QUICK, "--run-dir", str(folder)) == 0
    arguments = ["label", str(folder), "--name", "ann", "--no-open"]
    assert run(*arguments, "--episodes", "3", "--task", "Meet.") == 0
    labelling, title = served[-1]
    assert (title, labelling.task()) == ("particles/nav_3", "Meet.")
    assert not labelling.plan.asked_by_run
    made = PreferenceDataset(folder / "people")
    assert made.numbers() == filmed_episodes(made.folder) == [0, 1, 2]
    assert labelling.training() is None
    agreement = LearnedAgreement(folder, made.folder, learns_from_them=False)
    ones = [
        Answer(first=a, second=b, label=1.0, source="person:ann", at=now())
        for a, b in ((0, 1), (1, 0), (0, 2), (2, 0))
    ]
    tie = Answer(first=1, second=2, label=0.5, source="person:ann", at=now())
    assert agreement([*ones, tie]) == (2, 4)  # the reward cannot prefer both of a pair
    assert agreement([tie]) is None
    assert_judged_before_they_are_learned(folder, ones)
    before = made.episode(1).obs.tobytes()
    assert run(*arguments, "--episodes", "5") == 0
    assert made.numbers() == [0, 1, 2, 3, 4]
    assert made.episode(1).obs.tobytes() == before != made.episode(2).obs.tobytes()


def assert_judged_before_they_are_learned(run_folder: Path, answers: list[Answer]) -> None:
    """Of a run that asks people, an answer counts if it is younger than the checkpoint."""
    agreement = LearnedAgreement(run_folder, run_folder / "people", learns_from_them=True)
    newest = list_checkpoints(run_folder / "checkpoints")[0]
    given = datetime.fromisoformat(answers[0].at).timestamp()
    written_at(newest, given + 60)
    assert agreement(answers) is None  # the checkpoint may have learned from all of them
    written_at(newest, given - 60)
    first = answers[0]
    judged = agreement([first])
    assert judged is not None
    assert judged[1] == 1
    later = newest.with_name("step_999999999999.ckpt")
    later.write_bytes(newest.read_bytes())
    written_at(later, given + 60)
    # What was judged stays so; what came before the later checkpoint was not judged in time, and
    # nothing is said of a pair of which it may have learned, whoever changes the answer.
    assert agreement(answers) == judged
    changed = replace(first, label=0.0, at=datetime.fromtimestamp(given + 90, UTC).isoformat())
    assert agreement([changed]) is None
    later.unlink()


def written_at(path: Path, time: float) -> None:
    os.utime(path, (time, time))


def test_a_run_with_people_asks_its_own_questions(
    tmp_path: Path, served: list[tuple[Labelling, str]]
) -> None:
    folder = tmp_path / "run"
    people = ["--preferences.labeller=people", "--preferences.queries-per-iteration=1"]
    task = "--preferences.people.task=Meet."
    assert run("train", *QUICK, *people, task, "--run-dir", str(folder)) == 0
    assert run("label", str(folder), "--name", "ann") == 0
    labelling, title = served[-1]
    assert labelling.plan.asked_by_run
    assert labelling.question() is not None
    assert labelling.training() == "ended"
    assert (title, labelling.task()) == ("particles/nav_3", "Meet.")


def test_only_the_first_answer_to_a_pair_tells_what_was_learned() -> None:
    rows = [
        (0, 1, None, "ann"),
        (1, 0, 1.0, "bob"),
        (0, 1, 0.0, "ann"),
        (2, 1, 0.5, "ann"),
        (1, 2, 1.0, "ann"),
    ]
    answers = [
        Answer(first=first, second=second, label=label, source=f"person:{who}", at=now())
        for first, second, label, who in rows
    ]
    assert first_to_decide(answers) == [answers[1], answers[3]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "DATASET", "--name", "../ann"], "--name is '../ann'"),
        (
            ["--dataset", "DATASET", "--repeats", "0.9"],
            "--repeats: got 0.9, expected a number from 0 to 0.5",
        ),
        (["--dataset", "DATASET", "--pairs", "0"], "--pairs: got 0, expected a number from 1"),
        (["--dataset", "nowhere"], "nowhere has 0 episodes with frames"),
        (["nowhere"], "nowhere is not a run folder"),
    ],
)
def test_what_cannot_be_labelled_is_an_error(
    small_dataset: Path,
    served: list[tuple[Labelling, str]],
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [str(small_dataset) if a == "DATASET" else a for a in arguments]
    assert run("label", *given) == (2 if message.startswith("--") else 1)
    assert message in capsys.readouterr().err
    assert served == []


def test_a_run_or_a_set_is_needed(small_dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("label") == 2
    assert run("label", "run", "--dataset", str(small_dataset)) == 2
    assert "either the folder of a run, or --dataset" in capsys.readouterr().err


def test_a_damaged_log_is_named_or_skipped(
    small_dataset: Path, served: list[tuple[Labelling, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    (small_dataset / "answers.jsonl").write_text(
        'damaged\n{"undo": true, "source": "person:ann"}\n'
    )
    arguments = ["label", "--dataset", str(small_dataset), "--name", "ann"]
    assert run(*arguments) == 1
    assert "line 1 of 2" in (shown := capsys.readouterr().err)
    assert "--skip-damaged" in shown
    with pytest.warns(UserWarning, match="line 1: skipped"):
        assert run(*arguments, "--skip-damaged") == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows is not guarded")
def test_one_page_for_each_person(
    small_dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inner: list[int] = []

    def serve(*_: object) -> None:
        monkeypatch.setattr(command, "serve_page", lambda *_: None)
        inner.append(run("label", "--dataset", str(small_dataset), "--name", "ann"))
        inner.append(run("label", "--dataset", str(small_dataset), "--name", "bob"))

    monkeypatch.setattr(command, "serve_page", serve)
    monkeypatch.setattr(command, "check_extra", lambda: None)
    assert run("label", "--dataset", str(small_dataset), "--name", "ann") == 0
    assert inner == [1, 0]
    assert "ann is labelling" in capsys.readouterr().err


def test_a_missing_extra_is_named(
    small_dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)  # None: importing it fails
    assert run("label", "--dataset", str(small_dataset)) == 1
    assert "needs the extra people: pip install -c constraints.txt '.[people]'" in (
        capsys.readouterr().err
    )
