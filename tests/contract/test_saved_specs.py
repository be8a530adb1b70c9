"""A trained team knows its environment's constants, and notices when those have changed."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import marl
from envs import EnvError, EnvSpec, Fact, make_env
from envs.sparse import unwrapped
from marl.config import ConfigError
from marl.evaluation import evaluate
from marl.policy import check_same_spec, restored
from marl.preferences.dataset.export import export_run
from marl.reports.video import load_team, play
from marl.rewards.io import load_reward
from marl.utils.checkpoint import load_checkpoint
from tests.command_line import run

CODE = """
from envs import make_env
from envs.sparse import unwrapped


def battle(num_envs, cues=2):
    return unwrapped(make_env("probe/dying", num_envs, num_cues=cues))
"""
FLAGS = [
    "--env.name=my_battles:battle",
    "--env.num-envs=4",
    "--learner.rollout-steps=10",
    "--preferences.replay-steps=1000",
    "--total-steps=240",
]


def forget_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "my_battles", raising=False)


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of an environment whose module lies in the working directory, tmp_path/here."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "my_battles.py").write_text(CODE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # the file changes within a second
    monkeypatch.chdir(here)
    forget_module(monkeypatch)
    assert run("train", *FLAGS, "--run-dir", str(tmp_path / "run")) == 0
    return tmp_path / "run"


@pytest.fixture
def elsewhere(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same run where its environment's module cannot be found."""
    other = tmp_path / "elsewhere"
    other.mkdir()
    monkeypatch.setattr(sys, "path", [p for p in sys.path if Path(p).name not in ("", "here")])
    monkeypatch.chdir(other)
    forget_module(monkeypatch)
    return trained


def test_a_policy_is_used_where_its_environment_is_not(elsewhere: Path) -> None:
    policy = marl.load(elsewhere)
    spec = unwrapped(make_env("probe/dying", 1)).spec
    assert policy.spec == spec
    obs = np.zeros((7, spec.num_agents, spec.obs_size))
    assert policy.act(obs, greedy=True).shape == (7, spec.num_agents)
    assert load_reward(elsewhere, spec, "preferences.model.run").is_fitted
    assert export_run(elsewhere, elsewhere.parent / "set", pairs=5).episodes > 0
    with pytest.raises(EnvError, match="no module 'my_battles'"):  # to play in it, it must be there
        evaluate(policy, greedy=True, episodes=2, seed=0)


def test_a_changed_environment_is_noticed_by_whoever_plays_in_it(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    policy, reward = load_team(trained)
    Path("my_battles.py").write_text(CODE.replace("cues=2", "cues=3"))
    forget_module(monkeypatch)
    changed = (
        r"has changed since the policy was trained: obs_sizes \(was \(2, 2, 2\), is \(3, 3, 3\)\)"
    )
    with pytest.raises(ConfigError, match=changed):
        evaluate(policy, greedy=True, episodes=2, seed=0)
    with pytest.raises(ConfigError, match=changed):
        play(policy, reward, greedy=True, seed=0)
    for command in ("evaluate", "watch", "resume"):
        assert run(command, str(trained)) == 1
        shown = re.sub(r"\s+", " ", capfd.readouterr().err)
        assert "obs_sizes (was (2, 2, 2), is (3, 3, 3))" in shown, command
        assert "bring the environment as it was" in shown, command


def test_words_about_facts_and_the_number_of_environments_may_change() -> None:
    before = make_env("particles/nav_3", 1).spec
    fact = before.facts[0]
    told = (Fact(name=fact.name, meaning="in other words"), *before.facts[1:])
    check_same_spec(before, _but(before, facts=told, num_envs=9), "it was saved")
    with pytest.raises(ConfigError, match=r"max_steps \(was 25, is 30\)"):
        check_same_spec(before, _but(before, max_steps=30), "it was saved")
    with pytest.raises(ConfigError, match=r"facts \(was \['.*'\], is \[\]\)"):
        check_same_spec(before, _but(before, facts=()), "it was saved")


def test_a_spec_that_no_environment_has_is_named(trained: Path) -> None:
    saved: dict[str, Any] = load_checkpoint(trained / "checkpoints")[1]
    saved["spec"]["max_steps"] = "long"
    with pytest.raises(ConfigError, match=r"there: spec\.max_steps: got 'long'"):
        restored(saved, "there")


def _but(spec: EnvSpec, **changes: Any) -> EnvSpec:
    return EnvSpec(**(vars(spec) | changes))
