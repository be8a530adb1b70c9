"""What is asked of a Ray cluster, as far as that needs no Ray: mistakes, and what is told."""

import sys
from pathlib import Path

import pytest

from marl.utils.cluster import Mailbox, reason_of
from marl.utils.launch import command_to_go_on
from tests.command_line import QUICK, run

SWEEP = """
[settings]
env.name = "particles/nav_3"
[search]
algorithm = ["sparse", "dense"]
"""
MISSING = "needs the extra cluster: pip install -c constraints.txt '.[cluster]'"


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails
    monkeypatch.chdir(tmp_path)


def test_the_extra_that_is_missing_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", *QUICK, "--ray-workers", "2") == 1
    assert capsys.readouterr().err == f"error: --ray-workers {MISSING}\n"
    (tmp_path / "mine.toml").write_text(SWEEP)
    assert run("sweep", "mine.toml", "--ray") == 1
    assert capsys.readouterr().err == f"error: --ray {MISSING}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


@pytest.mark.parametrize(
    ("workers", "said", "status"),
    [
        ("0", "--ray-workers: got 0, expected a number from 1 to 10000", 2),
        ("3", "env.num_envs: got 4, which 3 processes cannot share equally", 1),
    ],
)
def test_wrong_numbers_are_told_before_anything_starts(
    workers: str, said: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", *QUICK, "--ray-workers", workers) == status
    assert said in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_processes_of_torchrun_start_no_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "MASTER_ADDR": "h",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert run("train", *QUICK, "--ray-workers", "2") == 1
    assert "--ray-workers: torchrun has started processes already" in capsys.readouterr().err


def test_what_is_told_is_taken_once() -> None:
    mailbox = Mailbox()
    mailbox.tell("a")
    mailbox.tell("b")
    assert mailbox.take() == ["a", "b"]
    assert mailbox.take() == []
    assert not mailbox.is_stopping()
    mailbox.stop()
    assert mailbox.is_stopping()


def test_the_reason_of_an_error_is_a_line() -> None:
    assert reason_of(RuntimeError("no memory\nsee the manual")) == "no memory"
    assert reason_of(RuntimeError("Traceback (most recent call last):\n  a\nOSError: full")) == (
        "OSError: full"
    )
    assert reason_of(RuntimeError()) == "RuntimeError"
    wrapped = RuntimeError("ray::work() (pid=1)")
    wrapped.cause = ValueError("the folder is taken")  # type: ignore[attr-defined]
    assert reason_of(wrapped) == "the folder is taken"


def test_how_a_run_goes_on() -> None:
    assert command_to_go_on("runs/a", 1, {}) == "`marl resume runs/a`"
    assert command_to_go_on("runs/a", 2, {}) == (
        "the same torchrun command with `-m marl resume runs/a`"
    )
    assert command_to_go_on("runs/a", 2, {"MARL_RAY_WORKERS": "2"}) == (
        "`marl resume runs/a --ray-workers 2`"
    )
