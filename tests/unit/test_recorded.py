"""What `marl runs` says of runs in each state, and of folders that are damaged or hostile."""

import os
from pathlib import Path

import numpy as np
import pytest

from marl.config.io import load_config, save_config
from marl.reports.recorded import find_runs, read_run
from marl.utils.files import held
from tests.command_line import run

NAV = {"env.name": "particles/nav_3", "total_steps": 400}


def recorded(folder: Path, steps: int, saved: int = 0, **settings: object) -> Path:
    """Make the files of a run of 100 steps an iteration; return its folder.

    Returns are -1, -2 and so on, times half a second.
    """
    folder.mkdir(parents=True)
    save_config(load_config(overrides=NAV | settings), folder / "config.toml")
    rows = [f"{n * 100},-{n}.0,200.0\n" for n in range(1, steps // 100 + 1)]
    (folder / "metrics.csv").write_text(
        "".join(["step,return/mean,time/steps_per_second\n", *rows])
    )
    (folder / "checkpoints").mkdir()
    if saved:
        (folder / "checkpoints" / f"step_{saved:012d}.ckpt").touch()
    return folder


def test_states_of_runs(tmp_path: Path) -> None:
    assert read_run(recorded(tmp_path / "finished", 400)).state == "finished"
    assert read_run(recorded(tmp_path / "stopped", 200, saved=200)).state == "stopped"
    assert read_run(recorded(tmp_path / "killed", 300, saved=200)).state == "crashed"
    failed = recorded(tmp_path / "failed", 200, saved=200)
    (failed / "error.txt").touch()
    assert read_run(failed).state == "crashed"
    running = recorded(tmp_path / "running", 300, saved=200)
    with held(running / ".lock", "taken"):
        assert read_run(running).state == "running"
    assert read_run(running).state == "crashed"


def test_seconds_and_curve(tmp_path: Path) -> None:
    folder = recorded(tmp_path / "run", 300)
    with (folder / "metrics.csv").open("a") as file:
        file.write("400,,\n500,-4.0,100.0\n600,-7")  # no episode, no rate; and a line cut short
    read = read_run(folder)
    # Three times 100 steps at 200 a second, and 100 at 100 a second.
    assert read.seconds == pytest.approx(2.5)
    assert read.steps == 500
    steps, returns = read.curve()
    np.testing.assert_array_equal(steps, [100, 200, 300, 500])
    np.testing.assert_array_equal(returns, [-1.0, -2.0, -3.0, -4.0])


def test_the_table_shows_every_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(tmp_path / "deep" / "er" / "one", 400, seed=7)
    recorded(tmp_path / "two", 200, algorithm="sparse")
    assert run("runs", tmp_path) == 0
    heading, one, two = capsys.readouterr().out.splitlines()
    assert heading.split() == [
        "run",
        "environment",
        "algorithm",
        "seed",
        "steps",
        "state",
        "best",
        "last",
        "time",
    ]
    name = str(tmp_path / "deep" / "er" / "one")
    assert one.split() == [*f"{name} particles/nav_3 slf 7 400 / 400 finished -1 -4 2s".split()]
    assert " sparse " in two
    assert " 200 / 400  crashed " in two


def test_damaged_and_hostile_folders_are_one_line_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(tmp_path / "a_good", 400)
    (recorded(tmp_path / "b_binary", 400) / "metrics.csv").write_bytes(b"\xff\xfe\n")
    (recorded(tmp_path / "c_words", 400) / "metrics.csv").write_text("step,return/mean\n1,two\n")
    (recorded(tmp_path / "d_ragged", 400) / "metrics.csv").write_text("step,x\n1,2,3\n")
    (recorded(tmp_path / "e_key", 400) / "config.toml").write_text('nonsense = "\\u001b[31m"\n')
    (recorded(tmp_path / "f_long", 400) / "config.toml").write_text("# " + "x" * 1_000_001)
    (recorded(tmp_path / "g_step", 400) / "metrics.csv").write_text("step\n1e400\n")
    for name, file in (("h_pipe", "config.toml"), ("i_pipe", "metrics.csv"), ("j_pipe", ".lock")):
        folder = recorded(tmp_path / name, 400)
        (folder / file).unlink(missing_ok=True)
        os.mkfifo(folder / file)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (recorded(tmp_path / "k_link", 400) / ".lock").symlink_to(victim)
    recorded(tmp_path / "l_\x1b[31m\n", 400)
    (recorded(tmp_path / "m_names", 400) / "config.toml").write_text('env.name = "x\\u001b\\ny"\n')
    (tmp_path / "n_loop").symlink_to(tmp_path)
    assert run("runs", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [line for line in lines[1:] if "damaged: " not in line]
    assert [line.split()[0].removeprefix(f"{tmp_path}/") for line in listed] == [
        "a_good",
        "j_pipe",
        "k_link",
        "l_\\x1b[31m\\n",
        "m_names",
    ]
    damaged = [line for line in lines if line.startswith("damaged: ")]
    assert len(damaged) == 8
    assert "\x1b" not in "".join(lines)
    assert victim.read_text() == "precious"


def test_a_run_within_a_run_is_not_listed(tmp_path: Path) -> None:
    outer = recorded(tmp_path / "outer", 400)
    recorded(outer / "inner", 400)
    assert find_runs(tmp_path) == [outer]
    assert find_runs(outer) == [outer]
    (tmp_path / "link").symlink_to(outer)
    (tmp_path / "to_others").symlink_to(tmp_path)
    assert find_runs(tmp_path) == [tmp_path / "link", outer]


def test_no_run_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("runs", tmp_path / "nowhere") == 1
    assert "nowhere is no folder" in capsys.readouterr().err.replace("\n", " ")
