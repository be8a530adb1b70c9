"""Third-party tasks that do not repeat under their seed are trained, told of, and resumed."""

import random
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from envs import EnvError, check_env, make_env
from envs.adapters.team import TeamView
from envs.adapters.team_env import TeamEnv
from marl.config import Config
from marl.config.io import load_config
from marl.runs import train
from tests.command_line import run
from tests.counting_team import CountingTeam

WARNING = "counting does not repeat under its seed: a resumed run cuts its open episodes off"
CUT = "cannot repeat its open episodes: the first step counts them as truncated"


class LateTeam(CountingTeam):
    """Repeats at first; when `after` steps were taken in the process, numbers are drawn anew."""

    steps, after = 0, 1_000

    def step(self, actions: npt.NDArray[Any], view: TeamView) -> tuple[float, bool, bool]:
        LateTeam.steps += 1
        if LateTeam.steps > LateTeam.after:
            self.draw = np.random.default_rng().random()
        return super().step(actions, view)


class SpawningTeam(CountingTeam):
    """Pays more in every so many-th step of its life, as knights_archers_zombies spawns zombies."""

    def __init__(self, every: int, sleep: float) -> None:
        super().__init__(sleep=sleep)
        self.every, self.lived = every, 0

    def step(self, actions: npt.NDArray[Any], view: TeamView) -> tuple[float, bool, bool]:
        self.lived += 1
        reward, *ends = super().step(actions, view)
        return reward + (self.lived % self.every == 0), *ends


class GlobalTeam(CountingTeam):
    """Draws from the process's own generators, which its reset seeds."""

    def reset(self, seed: int, view: TeamView) -> None:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - as games do
        super().reset(seed, view)


def unseeded(num_envs: int, workers: int = 0) -> TeamEnv:
    """Named `tests.contract.test_repeats:unseeded`."""
    return TeamEnv(partial(CountingTeam, unseeded=True), num_envs, workers=workers)


def late(num_envs: int) -> TeamEnv:
    """Named `tests.contract.test_repeats:late`."""
    return TeamEnv(LateTeam, num_envs, workers=0)


def settings(name: str, **changes: Any) -> Config:
    overrides = {
        "env.name": f"tests.contract.test_repeats:{name}",
        "env.num_envs": 4,
        "env.options": {"reward_mode": "episodic"},
        "algorithm": "sparse",
        "learner.rollout_steps": 6,
        "learner.epochs": 1,
        "total_steps": 24 * 8,
    }
    return load_config(overrides=overrides | changes)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_does_not_repeat_is_found_out_and_said_once(workers: int) -> None:
    env = unseeded(2, workers)
    env.reset(0)
    env.step(np.zeros((2, 3), np.int64))
    with pytest.warns(UserWarning, match=WARNING):
        state = env.state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.state_dict()
    env.close()
    other = unseeded(2, workers)
    with pytest.warns(UserWarning, match=CUT):
        other.load_state_dict(state)
    with warnings.catch_warnings():  # it is known: nothing is played again
        warnings.simplefilter("error")
        other.state_dict()
    step = other.step(np.zeros((2, 3), np.int64))
    assert step.truncated.all()
    np.testing.assert_array_equal(step.final_obs, state["seen"]["obs"])
    other.close()


def test_what_repeats_is_found_out_without_a_trace() -> None:
    env = TeamEnv(GlobalTeam, 2, workers=0)
    env.reset(0)
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert env.repeats()
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


@pytest.mark.parametrize(("every", "sleep"), [(10, 0.0), (25, 0.0), (70, 0.01)])
def test_what_reset_does_not_begin_anew_is_found_out(every: int, sleep: float) -> None:
    """Also if the task is slow, as it is on a busy machine."""
    env = TeamEnv(partial(SpawningTeam, every, sleep), 2, workers=0)
    env.reset(0)
    with pytest.warns(UserWarning, match=WARNING):
        assert not env.repeats()


def test_who_says_so_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    def play(*_: object) -> bool:
        raise AssertionError("it was played")

    monkeypatch.setattr("envs.adapters.team_env.repeats_itself", play)
    options = {"workers": 0, "max_steps": 4}
    for repeats in (True, False):
        env = make_env("tests.village:Village", 2, repeats=repeats, **options)
        env.reset(0)
        assert ("actions" in env.state_dict()) == repeats


def test_a_run_of_it_warns_once_and_is_resumed(tmp_path: Path) -> None:
    iterations = train(settings("unseeded"), tmp_path)
    with pytest.warns(UserWarning, match=WARNING) as caught:
        list(zip(range(3), iterations, strict=False))
    assert len([w for w in caught if "does not repeat" in str(w.message)]) == 1
    iterations.close()
    with pytest.warns(UserWarning, match=CUT) as caught:
        rows = list(train(settings("unseeded"), tmp_path, resume=True))
    assert [row["steps"] for row in rows] == [24.0 * i for i in range(4, 9)]
    assert not [w for w in caught if WARNING in str(w.message)]


def test_what_turns_out_late_is_resumed_on_demand(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """No run is unresumable: the error names the flag that goes on without the open episodes."""
    LateTeam.steps, LateTeam.after = 0, 1_000
    iterations = train(settings("late"), tmp_path)
    for _ in range(3):
        next(iterations)
    iterations.close()
    LateTeam.after = 0
    assert run("resume", str(tmp_path)) == 1
    assert "`marl resume RUN --cut-open-episodes` goes on without" in capfd.readouterr().err
    with pytest.warns(UserWarning, match=CUT):
        assert run("resume", str(tmp_path), "--cut-open-episodes") == 0
    assert "192 / 192" in capfd.readouterr().out


@pytest.mark.parametrize("workers", [0, 1])
def test_the_check_knows(workers: int) -> None:
    env = unseeded(2, workers)
    try:
        problems = check_env(env, steps=30)
    finally:
        env.close()
    assert problems == [problem for problem in problems if problem.startswith("warning: ")]
    assert any("does not repeat under its seed" in problem for problem in problems)


def test_the_check_notices_what_turns_out_late() -> None:
    LateTeam.steps, LateTeam.after = 0, 60
    problems = check_env(late(2), steps=80)
    assert any("does not repeat under its seed" in problem for problem in problems)
    assert not [problem for problem in problems if not problem.startswith("warning: ")]


def test_replaying_what_has_changed_says_how_to_go_on() -> None:
    env = TeamEnv(partial(CountingTeam, unseeded=True), 2, workers=0, repeats=True)
    env.reset(0)
    env.step(np.zeros((2, 3), np.int64))
    state = env.state_dict()
    words = "replaying the 1 actions of its open episode led to another .*--cut-open-episodes"
    with pytest.raises(EnvError, match=words):
        env.load_state_dict(state)
    env.cut_open_episodes()
    with pytest.warns(UserWarning, match=CUT):
        env.load_state_dict(state)
    saved = env.state_dict()  # before the step in which they end
    assert "actions" not in saved
    assert env.step(np.zeros((2, 3), np.int64)).truncated.all()
