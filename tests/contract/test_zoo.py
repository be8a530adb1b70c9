"""`marl zoo` makes teams that play well, and datasets of what they did."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import marl
from envs.registry import FAMILIES
from marl import zoo
from marl.utils.checkpoint import list_checkpoints
from tests.command_line import run


def test_every_team_has_settings_that_are_accepted() -> None:
    assert len(zoo.TEAMS) == 6
    assert {pairs.team for pairs in zoo.DATASETS.values()} <= set(zoo.TEAMS)
    for team in zoo.TEAMS.values():
        config = team.config()
        assert config.learns_reward
        family = FAMILIES[config.env.name.partition("/")[0]]
        assert family.needs == team.needs


def test_a_team_and_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    short = zoo.TEAMS["local_credit"].changes | {"total_steps": 8_000}
    team = replace(zoo.TEAMS["local_credit"], changes=short)
    monkeypatch.setitem(zoo.TEAMS, "local_credit", team)
    monkeypatch.setitem(zoo.DATASETS, "few", zoo.Pairs(team="local_credit", pairs=20))
    with pytest.raises(marl.UserError, match="zoo/local_credit is not made yet: marl zoo local"):
        marl.load("zoo/local_credit")
    assert run("zoo", "few", "local_credit") == 0
    said = capsys.readouterr().out
    assert "zoo/few: 20 pairs of episodes of local_credit in training" in said
    policy = marl.load("zoo/local_credit")
    returns = marl.evaluate(policy, greedy=True, episodes=16, seed=3).returns
    assert returns.mean() > 7  # of 8; random play has 4
    assert (tmp_path / "zoo" / "local_credit" / "episode.gif").is_file()
    written = (tmp_path / "zoo" / "local_credit" / "metrics.csv").read_bytes()
    assert run("zoo", "local_credit") == 0  # which is there: it is only evaluated
    assert (tmp_path / "zoo" / "local_credit" / "metrics.csv").read_bytes() == written
    assert run("zoo") == 0
    assert "in training, compared by return, made" in capsys.readouterr().out


def test_a_team_that_is_stopped_is_saved(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from marl.cli import main; main()", "zoo", "nav_6"]
    process = subprocess.Popen(
        [*command, "--folder", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "nav_6" / "metrics.csv"
    while not metrics.exists() or b"\n1" not in metrics.read_bytes():
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "steps/s" in output or "steps 800 / 150,000" in output  # progress is shown
    assert "stopped and saved; continue with: marl resume" in output
    assert len(list_checkpoints(tmp_path / "nav_6" / "checkpoints")) == 1


def test_unknown_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("zoo", "nav_7", "--folder", str(tmp_path)) == 1
    assert (
        "no 'nav_7'; did you mean 'nav_6'? there are local_credit, nav_6" in capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []
