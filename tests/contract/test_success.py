"""The success rate is shown wherever the return is; a run without an end says why there is none."""

import json
import sys
from pathlib import Path

import pytest

from tests.command_line import QUICK, run

MINE = """
import numpy as np
from envs import EnvSpec, Fact, SimulatedEnv, View

class Half:
    num_draws = 1

    def begin(self, draws):
        return {"lucky": (draws[:, 0] < 0.5).astype(np.float32)}

    def view(self, arrays, steps):
        state = arrays["lucky"][:, None]
        return View(obs=state[:, None].repeat(2, axis=1), state=state)

    def advance(self, arrays, steps, actions):
        return arrays, arrays["lucky"], np.zeros(len(actions), bool)

    def facts(self, arrays):
        return np.stack([arrays["lucky"], arrays["lucky"] * 3], axis=1)

def half(num_envs, max_steps=5):
    spec = EnvSpec(
        name="half", num_envs=num_envs, obs_sizes=(1, 1), state_size=1, action_kind="discrete",
        action_sizes=(2, 2), max_steps=max_steps, finite_horizon=True,
        facts=(Fact(name="won", meaning="won", is_success=True), Fact(name="gold", meaning="gold")),
    )
    return SimulatedEnv(spec, Half())
"""
FLAGS = ["--env.name=my_luck:half", *QUICK[1:]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_luck.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_luck", raising=False)
    return tmp_path


def test_the_rate_is_shown_while_training_and_evaluated(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", *FLAGS, "--run-dir=run") == 0
    shown = capsys.readouterr().out
    assert " won " in shown
    assert "gold" not in shown
    assert run("evaluate", "run", "--episodes=32") == 0
    table = capsys.readouterr().out
    told = json.loads((folder / "run" / "evaluation.json").read_text())["greedy"]
    # An episode pays 5 and tells won = 1 and gold = 3 if it is lucky, else nothing.
    assert told["facts"]["won"] == pytest.approx(told["mean"] / 5)
    assert told["facts"]["gold"] == pytest.approx(told["mean"] / 5 * 3)
    assert 0.1 < told["facts"]["won"] < 0.9
    assert "won" in table
    assert f"{told['facts']['won']:.0%}" in table


def test_a_run_in_which_no_episode_ends_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*FLAGS, "--algorithm=sparse", "--total-steps=200", "--run-dir=run"]
    assert run("train", *flags, "--env.options", "max_steps", "70") == 0
    shown = capsys.readouterr().out
    why = "no episode has ended yet: it takes up to 70 steps of every environment"
    assert f"return {why}" in shown
    assert f"{why}, and this run took 50; raise --total-steps" in shown


def test_a_run_that_cannot_start_is_not_announced(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", *FLAGS, "--env.options", "max_stps", "70") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "did you mean 'max_steps'" in captured.err
    assert not (folder / "runs").exists()
