"""`TeamEnv`: the same numbers in one process and in workers, replayed episodes, named faults."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from envs import EnvError, VecEnv, check_env
from envs.adapters.measures import advised_workers
from envs.adapters.team_env import TeamEnv
from envs.adapters.workers import Workers
from envs.rng import random_actions
from tests.counting_team import CountingTeam

Make = Callable[..., TeamEnv]


@pytest.fixture
def make() -> Iterator[Make]:
    """Yield a maker of environments whose workers end with the test."""
    made: list[TeamEnv] = []

    def make(num_envs: int, workers: int, timeout: float = 30.0, **options: object) -> TeamEnv:
        team = partial(CountingTeam, **options)
        made.append(TeamEnv(team, num_envs, workers=workers, timeout=timeout))
        return made[-1]

    yield make
    for env in made:
        env.close()


def processes(env: TeamEnv) -> Sequence[BaseProcess]:
    """Return the workers of an environment."""
    return cast(Workers, env._runner)._pool.processes


def is_running(pid: int) -> bool:
    """Return whether a process that need not be a child is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("finite_horizon", [False, True])
@pytest.mark.parametrize("max_steps", [3, 50])
@pytest.mark.parametrize(("num_envs", "workers"), [(1, 0), (5, 0), (1, 1), (5, 2)])
def test_contract(
    make: Make, num_envs: int, workers: int, max_steps: int, finite_horizon: bool
) -> None:
    env = make(num_envs, workers, max_steps=max_steps, finite_horizon=finite_horizon)
    assert isinstance(env, VecEnv)
    assert check_env(env, steps=40) == []


# Seven environments on three workers: three, three and one, so the last one has rows to spare.
@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_workers_do_not_change_the_numbers(make: Make, workers: int) -> None:
    here, there = make(7, 0), make(7, workers)
    rng = np.random.default_rng(0)
    ours, theirs = here.reset(3), there.reset(3)
    for _ in range(20):
        for name, array in vars(ours).items():
            np.testing.assert_array_equal(array, getattr(theirs, name))
        actions = random_actions(here.spec, rng, ours.action_mask)
        ours, theirs = here.step(actions), there.step(actions)


def test_an_end_shows_both_episodes(make: Make) -> None:
    env = make(2, 0)
    first = env.reset(0)
    for _ in range(3):
        step = env.step(np.zeros((2, 3), np.int64))
        assert not step.terminated.any()
    step = env.step(np.zeros((2, 3), np.int64))
    assert step.terminated.all()
    assert step.facts is not None
    assert step.alive is not None
    np.testing.assert_array_equal(step.final_state[:, 1], 4)
    np.testing.assert_array_equal(step.facts[:, 0], 4)
    np.testing.assert_array_equal(step.state[:, 1], 0)
    assert (step.state[:, 0] != first.state[:, 0]).all()
    assert step.alive.all()


def test_a_task_that_ends_at_the_limit_has_ended(make: Make) -> None:
    env = make(1, 0, max_steps=4, finite_horizon=False)
    env.reset(0)
    for _ in range(4):
        step = env.step(np.zeros((1, 3), np.int64))
    assert step.terminated.all()
    assert not step.truncated.any()


@pytest.mark.parametrize("saved_by", [0, 2])
@pytest.mark.parametrize("loaded_by", [0, 2])
def test_resume_by_replay(make: Make, saved_by: int, loaded_by: int) -> None:
    env, other = make(5, saved_by), make(5, loaded_by)
    rng = np.random.default_rng(0)
    mask = env.reset(1).action_mask
    for _ in range(10):
        mask = env.step(random_actions(env.spec, rng, mask)).action_mask
    other.load_state_dict(env.state_dict())
    for _ in range(10):
        actions = random_actions(env.spec, rng, mask)
        ours, theirs = env.step(actions), other.step(actions)
        for name, array in vars(ours).items():
            np.testing.assert_array_equal(array, getattr(theirs, name))
        mask = ours.action_mask


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_names_copy_seed_and_line_and_keeps_the_state(make: Make, workers: int) -> None:
    env = make(5, workers, fault="raise")
    env.reset(0)
    actions = np.zeros((5, 3), np.int64)
    before = env.step(actions)
    kept = before.obs.copy()
    actions[3, 0] = 3
    with pytest.raises(EnvError) as caught:
        env.step(actions)
    words = str(caught.value)
    for part in ("copy 3 (episode 0, reset(seed=", "after 1 steps", "KeyError", "_fail"):
        assert part in words
    np.testing.assert_array_equal(before.obs, kept)
    env.load_state_dict(env.state_dict())
    actions[3, 0] = 0
    np.testing.assert_array_equal(env.step(actions).final_state[:, 1], 2)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("hang", "within 0.3 s; if it may take that long, set `--env.options timeout 3`"),
        ("exit", "status 7"),
    ],
)
def test_a_worker_that_hangs_or_dies(make: Make, fault: str, words: str) -> None:
    env = make(4, 2, timeout=0.3, fault=fault, fault_at=0)
    env.reset(0)
    actions = np.zeros((4, 3), np.int64)
    actions[2, 0] = 3
    began = time.perf_counter()
    with pytest.raises(EnvError) as caught:
        env.step(actions)
    assert time.perf_counter() - began < 5.0
    assert "copy 2 (episode 0, reset(seed=" in str(caught.value)
    assert words in str(caught.value)
    if fault == "hang":
        assert "_fail" in str(caught.value)
    assert env.reset(0).obs.shape == (4, 3, 3)


def test_slow_is_not_hung(make: Make) -> None:
    # Four environments of 0.15 s are more than the 0.3 s that one of them may take.
    env = make(4, 1, timeout=0.3, sleep=0.15)
    env.reset(0)
    assert env.step(np.zeros((4, 3), np.int64)).obs.shape == (4, 3, 3)


def test_ctrl_c_is_the_parents(make: Make) -> None:
    env = make(2, 2)
    env.reset(0)
    for process in processes(env):
        os.kill(process.pid, signal.SIGINT)
    assert env.step(np.zeros((2, 3), np.int64)).obs.shape == (2, 3, 3)


def test_an_interrupted_step_leaves_no_answer_for_the_next(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make(2, 2, sleep=0.3)
    env.reset(0)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Workers, "_await", interrupted)
    with pytest.raises(KeyboardInterrupt):
        env.step(np.zeros((2, 3), np.int64))
    monkeypatch.undo()
    np.testing.assert_array_equal(env.reset(0).state[:, 1], 0)
    np.testing.assert_array_equal(env.step(np.zeros((2, 3), np.int64)).state[:, 1], 1)


def test_a_request_to_end_the_group_is_the_parents(make: Make) -> None:
    env = make(2, 2)
    env.reset(0)
    for process in processes(env):
        os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.1)
    assert env.step(np.zeros((2, 3), np.int64)).obs.shape == (2, 3, 3)


def test_a_worker_that_dies_between_two_steps(make: Make) -> None:
    env = make(4, 2)
    env.reset(0)
    actions = np.zeros((4, 3), np.int64)
    env.step(actions)
    state = env.state_dict()
    killed, other = processes(env)
    killed.kill()
    killed.join()
    with pytest.raises(EnvError) as caught:
        env.step(actions)
    assert "copy 1 (episode 0, reset(seed=" in str(caught.value)
    assert "died (SIGKILL)" in str(caught.value)
    assert not other.is_alive()
    with pytest.raises(EnvError, match="after an error; call reset"):
        env.step(actions)
    env.load_state_dict(state)
    np.testing.assert_array_equal(env.step(actions).final_state[:, 1], 2)


def test_a_worker_that_dies_before_a_reset(make: Make) -> None:
    env = make(2, 2)
    env.reset(0)
    killed, _ = processes(env)
    killed.kill()
    killed.join()
    with pytest.raises(EnvError, match=r"died \(SIGKILL\)"):
        env.reset(1)
    assert env.reset(1).obs.shape == (2, 3, 3)


def test_environments_are_closed_with_their_worker(make: Make, tmp_path: Path) -> None:
    """They may have started programs of their own."""
    env = make(2, 2, farewell=tmp_path)
    env.reset(0)
    env.close()
    assert len(list(tmp_path.iterdir())) == 2


FORGETFUL = """
import sys
from tests.counting_team import CountingTeam
from envs.adapters.team_env import TeamEnv

if __name__ == "__main__":
    env = TeamEnv(CountingTeam, 2, workers=2)
    env.reset(0)
    print(*[process.pid for process in env._runner._pool.processes], flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("ending", ["exit", "SIGKILL", "group SIGTERM"])
def test_workers_end_with_their_parent(ending: str, tmp_path: Path) -> None:
    script = tmp_path / "forgetful.py"
    script.write_text(FORGETFUL)
    parent = subprocess.Popen(
        [sys.executable, script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    if ending == "SIGKILL":
        parent.kill()
    elif ending == "group SIGTERM":
        os.killpg(parent.pid, signal.SIGTERM)
    began = time.monotonic()
    parent.communicate("\n", timeout=20)
    while any(map(is_running, workers)):
        assert time.monotonic() - began < 8.0
        time.sleep(0.05)


def test_closing_leaves_nothing(make: Make) -> None:
    env = make(2, 2)
    env.reset(0)
    workers = env._runner
    env.close()
    assert not any(process.is_alive() for process in workers._pool.processes)  # type: ignore[union-attr]
    assert not workers._folder.path.exists()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_envs": 0, "workers": 0}, "num_envs is 0"),
        ({"num_envs": 2, "workers": -1}, "workers is -1; give 0 (this process) or more"),
        ({"num_envs": 2, "workers": 1, "timeout": 0.0}, "timeout is 0.0"),
    ],
)
def test_bad_options(make: Make, options: dict[str, float], words: str) -> None:
    with pytest.raises(EnvError) as caught:
        make(**options)
    assert words in str(caught.value)


def test_fewer_environments_than_workers_get_one_each(make: Make) -> None:
    """A trained team is evaluated with its run's options on fewer environments."""
    env = make(2, 4)
    assert env.workers == 2
    assert np.array_equal(env.reset(0).obs, make(2, 0).reset(0).obs)


@pytest.mark.parametrize(("copies", "asked", "used"), [(4, 3, 2), (7, 3, 3), (7, 5, 4), (3, 0, 0)])
def test_workers_in_use_are_those_with_environments(
    make: Make, copies: int, asked: int, used: int
) -> None:
    env = make(copies, asked)
    env.reset(0)
    assert env.workers == used
    if used:
        assert len(processes(env)) == used


def test_cheap_environments_stay_here_costly_ones_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    four = replace(CountingTeam().spec, num_envs=4)
    slow = partial(CountingTeam, sleep=0.002)
    assert advised_workers(CountingTeam, four, 9.0) == 0
    assert advised_workers(slow, four, 9.0) == 2
    assert advised_workers(slow, replace(four, num_envs=1), 9.0) == 0
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert advised_workers(slow, four, 9.0) == 0


def test_a_copy_that_hangs_while_it_is_measured_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    # The first agent has four actions, so a random one is 3 within the first episodes.
    hangs = partial(CountingTeam, fault="hang", fault_at=0)
    began = time.perf_counter()
    with pytest.raises(EnvError, match=r"counting, copy 0 .* within 0.3 s"):
        TeamEnv(hangs, 4, timeout=0.3)
    assert time.perf_counter() - began < 10.0
