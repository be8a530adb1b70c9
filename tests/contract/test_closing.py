"""Whoever makes an environment closes it at the end, also after an error."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from envs import EnvError, close_env, make_env
from envs.adapters.to_pettingzoo import to_pettingzoo
from marl import evaluate, load, train
from marl.config.io import load_config
from marl.preferences.people.camera import film_episodes
from marl.reports.video import play
from tests.closable import Closable
from tests.command_line import run

NAME = "tests.closable:closable"
CONFIG = load_config(
    overrides={
        "env.name": NAME,
        "env.options": {"reward_mode": "episodic"},
        "env.num_envs": 4,
        "learner.rollout_steps": 10,
        "preferences.replay_steps": 1000,
        "total_steps": 80,
    }
)
"""Two iterations."""


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Check that what a test has made, at least one environment, is closed after it."""
    Closable.is_open.clear()
    yield
    assert Closable.is_open
    assert not any(Closable.is_open)


def test_training_closes(tmp_path: Path) -> None:
    runs = (train(CONFIG), train(CONFIG, tmp_path))
    for training in runs:
        assert len(list(training)) == 2


def test_training_that_is_left_closes(tmp_path: Path) -> None:
    for training in (train(CONFIG), train(CONFIG, tmp_path)):
        next(training)
        assert Closable.is_open[-1]
        training.close()


def test_training_that_fails_closes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise EnvError("no more")

    monkeypatch.setattr(Closable, "step", broken)
    for training in (train(CONFIG), train(CONFIG, tmp_path)):
        with pytest.raises(EnvError, match="no more"):
            next(training)


def test_a_policy_is_loaded_evaluated_and_watched(tmp_path: Path) -> None:
    for _ in train(CONFIG, tmp_path):
        pass
    policy = load(tmp_path)
    evaluate(policy, greedy=True, episodes=4, seed=0, num_envs=2)
    play(policy, None, greedy=True, seed=0)
    assert list(film_episodes(policy, tmp_path, tmp_path / "films", [0, 1])) == [0, 1]
    assert len(Closable.is_open) == 4  # of these, loading makes none


def test_the_check_closes() -> None:
    assert run("check", NAME, "--steps", "20") == 0


def test_our_environments_as_pettingzoo_close() -> None:
    env = to_pettingzoo(NAME, reward_mode="episodic")
    env.reset(seed=0)
    env.close()
    env.close()
    assert env.agents == []


def test_a_sparse_task_closes_the_one_inside() -> None:
    close_env(make_env(NAME, 2, reward_mode="every_k", reward_every=3))
    close_env(make_env(NAME, 2))
    close_env(make_env("probe/coordination", 2))  # holds no more than memory
