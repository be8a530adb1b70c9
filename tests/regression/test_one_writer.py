"""One process writes into a run's folder, and what a checkpoint counts is on the disk before it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import marl
from envs import EnvError
from marl import UserError
from marl.commands.train import new_run_folder
from marl.config import Config, ConfigError
from marl.config.io import load_config
from marl.utils.metrics import read_metrics
from tests.command_line import QUICK, run

SMALL = {
    "algorithm": "imap",
    "env.name": "particles/nav_3",
    "env.num_envs": 4,
    "learner.rollout_steps": 25,
    "preferences.replay_steps": 1000,
    "total_steps": 500,
}


def content(folder: Path) -> dict[str, bytes]:
    """Return every file under a folder, byte for byte."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in paths}


def test_a_second_resume_refuses_and_touches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, config = tmp_path / "run", load_config(overrides=SMALL)
    first = marl.train(config, folder)
    next(first)
    first.close()
    resumed = marl.train(config, folder, resume=True)
    next(resumed)
    before = content(folder)
    assert run("resume", str(folder)) == 1
    shown = capsys.readouterr().err
    assert re.sub(r"\s+", " ", shown).strip() == (
        f"error: {folder} is being trained in by another process, which alone may write there; "
        "nothing was changed"
    )
    assert content(folder) == before
    steps = [int(metrics["steps"]) for metrics in resumed]
    assert steps == [300, 400, 500]
    assert read_metrics(folder)["step"].tolist() == [100, 200, 300, 400, 500]
    assert run("resume", str(folder)) == 0  # the first one has let go


def test_two_resumes_at_once_leave_one_whole_run(tmp_path: Path) -> None:
    flags = [*QUICK, "--total-steps=2000"]
    start = [sys.executable, "-m", "marl"]
    begun = subprocess.Popen([*start, "train", *flags, f"--run-dir={tmp_path}/run"])
    metrics = tmp_path / "run" / "metrics.csv"
    while not metrics.exists() or b"\n2" not in metrics.read_bytes():
        assert begun.poll() is None
        time.sleep(0.02)
    begun.send_signal(signal.SIGTERM)
    assert begun.wait(60) == 143
    both = [
        subprocess.Popen([*start, "resume", f"{tmp_path}/run"], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1]
    assert "".join(errors).count("is being trained in by another process") == 1
    assert "Traceback" not in "".join(errors)
    assert read_metrics(tmp_path / "run")["step"].tolist() == list(range(100, 2001, 100))


def test_a_refused_run_leaves_no_folder(tmp_path: Path) -> None:
    wrong = load_config(overrides=SMALL | {"env.name": "particles/nowhere_3"})
    with pytest.raises(EnvError, match="there is no environment"):
        list(marl.train(wrong, tmp_path / "some" / "run"))
    assert list(tmp_path.iterdir()) == []


def test_whoever_is_slower_does_not_take_a_begun_folder(tmp_path: Path) -> None:
    config = load_config(overrides=SMALL)
    first = marl.train(config, tmp_path / "run")
    next(first)
    with pytest.raises(ConfigError, match="already holds a run"):
        next(marl.train(config, tmp_path / "run"))
    (tmp_path / "run" / "config.toml").rename(tmp_path / "aside")  # as before it is written
    with pytest.raises(UserError, match="is being trained in by another process"):
        next(marl.train(config, tmp_path / "run"))
    assert (tmp_path / "run" / ".lock").exists()
    (tmp_path / "aside").rename(tmp_path / "run" / "config.toml")
    first.close()


def test_runs_that_start_in_one_second_get_folders_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        new_run_folder(Config()) as one,
        new_run_folder(Config()) as two,
        new_run_folder(Config()) as three,
    ):
        assert len({one, two, three}) == 3


def test_rows_are_on_the_disk_before_the_checkpoint_that_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    synced: dict[int, int] = {}
    checkpoints: list[int] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        fsync(descriptor)
        status = os.fstat(descriptor)
        synced[status.st_ino] = status.st_size

    def recorded_replace(source: str, target: Path) -> None:
        if Path(target).suffix == ".ckpt":
            for name in ("metrics.csv", "config.toml", "run_id"):
                status = (folder / name).stat()
                assert synced[status.st_ino] == status.st_size, name
            checkpoints.append(len(read_metrics(folder)["step"]))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    config = load_config(overrides=SMALL | {"checkpoint_every": 200})
    assert len(list(marl.train(config, folder))) == 5
    assert checkpoints == [2, 4, 5]


def test_a_curve_that_cannot_be_drawn_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "run" / "curve.png").mkdir(parents=True)
    with pytest.warns(UserWarning, match="the run is recorded, but its curve is not drawn"):
        assert len(list(marl.train(load_config(overrides=SMALL), tmp_path / "run"))) == 5
    assert read_metrics(tmp_path / "run")["step"].tolist() == [100, 200, 300, 400, 500]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("taken", "taken cannot be written: File exists; choose another --run-dir"),
        ("taken/run", "cannot be written: Not a directory; choose another --run-dir"),
        ("x" * 300, "cannot be written: File name too long; choose another --run-dir"),
        ("run\udcff", "run\\udcff has characters that cannot be written; choose another --run-dir"),
        ("half", "half/checkpoints cannot be written: File exists; choose another --run-dir"),
    ],
)
def test_a_folder_that_cannot_be_is_told_before_training(
    tmp_path: Path, name: str, message: str
) -> None:
    (tmp_path / "taken").touch()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "checkpoints").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as caught:
        next(marl.train(load_config(overrides=SMALL), tmp_path / name))
    assert message in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
