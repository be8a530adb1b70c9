"""Whatever a third-party environment gets wrong is told in one line, with its own file and line."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, Tuple
from pettingzoo import ParallelEnv

import marl
from envs import EnvError, EnvSpec, EnvStep, make_env
from envs.plugins import explained
from envs.rng import random_actions
from tests.command_line import run

HERE = Path(__file__).name


class Faulty(ParallelEnv):  # type: ignore[type-arg]
    """Two agents in episodes of four steps; `fault` says what is wrong with it."""

    metadata = {"name": "faulty"}  # noqa: RUF012  # PettingZoo's own spelling
    possible_agents = ["a", "b"]  # noqa: RUF012  # as above

    def __init__(self, fault: str = "") -> None:
        self.fault = fault

    def observation_space(self, agent: str) -> Box:
        return Box(-9.0, 9.0, (2,), np.float64)

    def action_space(self, agent: str) -> Discrete:
        return Discrete(3)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents, self.t = list(self.possible_agents), 0
        return self._seen() if self.fault == "no infos" else (self._seen(), {"a": {}, "b": {}})

    def step(self, actions: Any) -> Any:
        self.t += 1
        if self.fault == "exits":
            sys.exit(3)
        if self.fault == "long":
            raise ValueError("x" * 5_000_000)
        if self.fault == "silent":
            raise UnspeakableError
        rewards: dict[str, Any] = {"a": 1.0, "b": 1.0}
        if self.fault == "array":
            rewards = {agent: np.array([3.0]) for agent in rewards}
        if self.fault == "vector":
            rewards = {agent: np.array([1.0, 2.0]) for agent in rewards}
        if self.fault == "text":
            rewards = dict.fromkeys(rewards, "much")
        if self.fault == "nan reward":
            rewards = dict.fromkeys(rewards, np.nan)
        over = self.t == 4
        flags = dict.fromkeys(self.agents, False), dict.fromkeys(self.agents, over)
        infos: dict[str, Any] = {agent: {} for agent in self.agents}
        seen = self._seen()
        if self.fault == "four":
            return seen, rewards, *flags
        if over:
            self.agents = []
        return seen, rewards, *flags, infos

    def _seen(self) -> dict[str, Any]:
        value = np.nan if self.fault == "nan" and self.t == 2 else 0.1 * self.t
        return {agent: np.full(2, value) for agent in self.possible_agents}

    def close(self) -> None: ...


class Seedless(Faulty):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise KeyError("no words")


class Duo(gymnasium.Env[Any, Any]):
    """The same as a gymnasium team."""

    observation_space = Tuple([Box(-9.0, 9.0, (2,))] * 2)
    action_space = Tuple([Discrete(3)] * 2)

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        if fault == "exits":
            sys.exit(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return (np.zeros(2), np.zeros(2)), {}

    def step(self, actions: Any) -> Any:
        rewards = [np.array([1.0, 2.0])] * 2 if self.fault == "vector" else [np.array([1.0])] * 2
        return (np.zeros(2), np.zeros(2)), rewards, False, False, {}


class SeedlessDuo(Duo):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


gymnasium.register("FaultyDuo-v0", Duo, max_episode_steps=4)
gymnasium.register("SeedlessDuo-v0", SeedlessDuo, max_episode_steps=4)


def play(name: str, workers: int = 0, **options: Any) -> EnvStep:
    """Return the sixth step of two environments."""
    env = make_env(name, 2, workers=workers, max_steps=4, **options)
    try:
        env.reset(0)
        rng = np.random.default_rng(0)
        for _ in range(6):
            step = env.step(random_actions(env.spec, rng, None))
        return step
    finally:
        env.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("exits", rf"raised SystemExit: 3 \({HERE}, line \d+, in step\)"),
        ("vector", rf"a was paid float64 of shape \(2,\); .* \(Faulty.step \({HERE}, line \d+\)\)"),
        ("text", rf"a was paid a str \('much'\); .* \(Faulty.step \({HERE}, line \d+\)\)"),
        ("nan", rf"number 0 of the observation of a is nan; .* \(Faulty.step \({HERE}, "),
        ("nan reward", rf"the reward is nan; pay finite numbers \(Faulty.step \({HERE}, "),
        ("four", rf"ValueError: not enough values .* \(Faulty.step \({HERE}, line \d+\)\)"),
        (
            "silent",
            rf"raised UnspeakableError: a text that cannot be read .* \({HERE}, line \d+, in st",
        ),
    ],
)
def test_a_fault_is_told_with_its_own_file(fault: str, words: str, workers: int) -> None:
    with pytest.raises(EnvError, match=r"Faulty, copy 0 \(episode 0, reset\(seed=") as caught:
        play("tests.contract.test_faults:Faulty", workers, fault=fault)
    assert caught.match(words)
    assert "pettingzoo.py" not in str(caught.value)
    assert "quirks.py" not in str(caught.value)


def test_a_reward_in_an_array_of_one_is_a_number(recwarn: pytest.WarningsRecorder) -> None:
    step = play("tests.contract.test_faults:Faulty", fault="array")
    np.testing.assert_array_equal(step.rewards, [3.0, 3.0])
    assert not [warning for warning in recwarn if "NumPy" in str(warning.message)]


class Camera(Faulty):
    """Sees images, which would fill any replay buffer."""

    def observation_space(self, agent: str) -> Box:
        return Box(-9.0, 9.0, (400, 400), np.float32)

    def _seen(self) -> dict[str, Any]:
        return {agent: np.full((400, 400), self.t, np.float32) for agent in self.possible_agents}


def test_the_check_says_that_training_would_not_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--env.options", "max_steps", "4", "workers", "0"]
    name = "tests.contract.test_faults:Camera"
    monkeypatch.setattr("marl.utils.memory_check.available_bytes", lambda: 10**9)
    assert run("check", name, "--num-envs", "1", "--steps", "4", *options) == 1
    shown = capsys.readouterr().out
    assert "it keeps the contract, but environment tests.contract.test_faults:Camera" in shown
    assert "for preferences.replay_steps = " in shown
    assert "train with" not in shown
    monkeypatch.setattr("marl.utils.memory_check.available_bytes", lambda: 10**11)
    assert run("check", name, "--num-envs", "1", "--steps", "4", *options) == 0
    shown = capsys.readouterr().out
    assert "it keeps the contract, in less memory; train with: marl train" in shown
    assert "--env.num-envs 16 --learner.rollout-steps 125" in shown


@pytest.mark.parametrize("name", ["tests.contract.test_faults:Seedless", "gym/SeedlessDuo-v0"])
def test_a_reset_without_a_seed_is_told_with_its_place(name: str) -> None:
    with pytest.raises(EnvError) as caught:
        play(name)
    assert caught.match(r"reset takes no seed; write reset\(self, seed=None, options=None\)")
    assert caught.match(rf"\(Seedless(Duo)?.reset \({HERE}, line \d+\)\)")


def test_vectors_paid_by_a_gymnasium_team() -> None:
    with pytest.raises(EnvError, match=rf"4 rewards for 2 agents; .* \(Duo.step \({HERE}, line"):
        play("gym/FaultyDuo-v0", fault="vector")


def test_an_exit_while_it_is_made() -> None:
    with pytest.raises(EnvError, match=rf"making it raised SystemExit: 3 \({HERE}, line \d+"):
        play("gym/FaultyDuo-v0", fault="exits")


def test_a_first_reset_without_infos_is_told_with_its_place() -> None:
    with pytest.raises(EnvError, match=rf"reset returned a dict; .* \(Faulty.reset \({HERE}, "):
        make_env("tests.contract.test_faults:Faulty", 2, fault="no infos", max_steps=4, workers=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_text_of_megabytes_is_shortened(workers: int) -> None:
    with pytest.raises(EnvError) as caught:
        play("tests.contract.test_faults:Faulty", workers, fault="long")
    assert "[5,000,000 characters]" in str(caught.value)
    assert len(str(caught.value)) < 5_000


class Batch:
    """A batched class of one's own."""

    def __init__(self, num_envs: int, fault: str = "") -> None:
        self.fault = fault
        self.spec = EnvSpec(
            name="batch",
            num_envs=num_envs,
            obs_sizes=(1, 1),
            state_size=1,
            action_kind="discrete",
            action_sizes=(2, 2),
            max_steps=3,
            finite_horizon=True,
        )

    def reset(self, seed: int) -> EnvStep:
        self.t = 0
        return self._step(np.zeros(self.spec.num_envs))

    def step(self, actions: np.ndarray) -> EnvStep:
        self.t += 1
        if self.fault == "exits":
            sys.exit(3)
        step = self._step(np.ones(self.spec.num_envs))
        if self.fault == "column":
            return EnvStep(**vars(step) | {"rewards": step.rewards[:, None]})
        if self.fault == "nan" and self.t == 2:
            step.obs[0, 1, 0] = np.nan
        return step

    def _step(self, rewards: np.ndarray) -> EnvStep:
        count = self.spec.num_envs
        first = EnvStep.first(
            obs=np.zeros((count, 2, 1), np.float32), state=np.zeros((count, 1), np.float32)
        )
        over = np.full(count, self.t == 3)
        self.t %= 3
        return EnvStep(**vars(first) | {"rewards": rewards, "terminated": over})

    def state_dict(self) -> dict[str, Any]:
        return {"t": self.t}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.t = state["t"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("exits", rf"batch: step 0 raised SystemExit: 3 \({HERE}, line \d+, in step\)"),
        (
            "column",
            r"step returned float64 of shape \(4, 1\) as rewards; return numbers of shape \(4,\) "
            rf"\(Batch.step \({HERE}, ",
        ),
        ("nan", rf"infinite number in obs at step 2 of copy 0, agent 1 \(Batch.step \({HERE}, "),
    ],
)
def test_a_batched_class_is_told_where_it_is_wrong(fault: str, words: str) -> None:
    overrides = {
        "env.name": "tests.contract.test_faults:Batch",
        "env.num_envs": 4,
        "env.options": {"fault": fault, "reward_mode": "episodic"},
        "algorithm": "sparse",
        "learner.rollout_steps": 10,
    }
    with pytest.raises(EnvError, match=words):
        marl.Trainer(marl.load_config(overrides=overrides)).iterate()


def test_being_out_of_files_says_so() -> None:
    def opens() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    words = r"no more files can be opened: .* `ulimit -n 4096`"
    with pytest.raises(EnvError, match=words), explained("making it"):
        opens()


@pytest.mark.parametrize("left", [10, 30])
def test_workers_that_need_more_files_than_there_are(left: int, tmp_path: Path) -> None:
    """One line, no stray process, no folder left behind."""
    script = f"""
import os, resource
from multiprocessing import active_children
from envs import EnvError, make_env

env = make_env("tests.contract.test_faults:Faulty", 8, workers=8, max_steps=4)
used = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (used + {left}, used + {left}))
try:
    env.reset(0)
except EnvError as error:
    print(error, active_children())
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=60,
        check=False,
    )
    assert "8 workers need about" in result.stdout
    assert "`ulimit -n 4096`" in result.stdout
    assert result.stdout.rstrip().endswith("[]")
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
