"""Memory that is split between host and device, and environments whose arrays stay on a device.

Without a GPU the device's memory is a second set of tensors on the CPU: what is not sent, or sent
too late, is zero or of a step before.
"""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from envs import EnvError, EnvStep, VecEnv, check_env, make_env
from envs.adapters.to_pettingzoo import ParallelTeam
from envs.devices import KEPT, is_elsewhere, step_on_host
from envs.rng import random_actions
from envs.sparse import unwrapped
from marl.data.staging import Staging
from marl.trainer import Trainer
from tests.small_runs import small

RUNS: list[dict[str, object]] = [
    {"algorithm": "dense", "diagnose_hidden": True},
    {"env.name": "probe/dying", "network.recurrence": "gru", "reward.recurrence": "gru"},
    {"env.name": "probe/continuous_match"},
]


class OnDevice:
    """An environment that gives its large arrays as tensors, which its next step overwrites."""

    def __init__(self, env: VecEnv) -> None:
        self.inner = env
        self._given: dict[str, torch.Tensor] = {}

    def reset(self, seed: int) -> EnvStep:
        return self._with_tensors(self.inner.reset(seed))

    def step(self, actions: npt.NDArray[Any]) -> EnvStep:
        return self._with_tensors(self.inner.step(actions))

    def _with_tensors(self, step: EnvStep) -> EnvStep:
        for name in KEPT:
            if (array := getattr(step, name)) is not None:
                tensor = self._given.setdefault(name, torch.empty(0))
                tensor.resize_(array.shape).copy_(torch.from_numpy(np.array(array)))
        return replace(step, **self._given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the networks' device have memory of its own."""
    monkeypatch.setattr("marl.data.staging.is_host", lambda device: False)


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every environment give tensors."""
    monkeypatch.setattr("marl.trainer.make_env", lambda *a, **b: OnDevice(make_env(*a, **b)))


def outcome(trainer: Trainer, iterations: int = 3) -> tuple[dict[str, float], dict[str, Any]]:
    """Return metrics and networks after some iterations, without time and memory."""
    for _ in range(iterations):
        metrics = trainer.iterate()
    told = {
        name: value for name, value in metrics.items() if not name.startswith(("time/", "memory/"))
    }
    return told, trainer.learner.actor.state_dict()


def same(first: Any, second: Any) -> bool:
    """Return whether two outcomes are equal, NaN to NaN."""
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
    return True


@pytest.mark.parametrize("changes", RUNS, ids=str)
def test_split_memory_changes_no_number(
    changes: dict[str, object], request: pytest.FixtureRequest
) -> None:
    whole = outcome(Trainer(small(**changes)))
    request.getfixturevalue("split")
    assert same(outcome(Trainer(small(**changes))), whole)
    request.getfixturevalue("on_device")
    assert same(outcome(Trainer(small(**changes))), whole)


def test_tensors_of_an_environment_change_no_number(request: pytest.FixtureRequest) -> None:
    whole = outcome(Trainer(small()))
    request.getfixturevalue("on_device")
    assert same(outcome(Trainer(small())), whole)


@pytest.mark.usefixtures("split")
def test_fetched_actions_may_be_kept() -> None:
    staging = Staging({"actions": torch.zeros(2, 3)}, torch.device("cpu"), local=["actions"])
    first = staging.fetch(torch.zeros(3))
    staging.fetch(torch.ones(3))
    assert first.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.usefixtures("split", "on_device")
def test_a_run_with_tensors_continues() -> None:
    trainer = Trainer(small(**RUNS[1]))
    trainer.iterate()
    state = copy.deepcopy(trainer.state_dict())
    assert all(isinstance(x, np.ndarray) for x in state["collector"]["current"].values())
    expected = outcome(trainer)
    other = Trainer(small(**RUNS[1]))
    other.load_state_dict(state)
    assert same(outcome(other), expected)


@pytest.mark.usefixtures("split", "on_device")
@pytest.mark.parametrize("name", ["obs", "state"])
def test_what_is_not_finite_on_a_device_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(small())
    trainer.iterate()
    step = OnDevice.step

    def broken(self: OnDevice, actions: npt.NDArray[Any]) -> EnvStep:
        after = step(self, actions)
        getattr(after, name)[2] = torch.nan
        return after

    monkeypatch.setattr(OnDevice, "step", broken)
    with pytest.raises(EnvError, match=rf"infinite number in {name} at step 21 of copy 2"):
        trainer.iterate()


def test_what_else_reads_an_environment_takes_tensors() -> None:
    assert check_env(OnDevice(make_env("probe/dying", 3)), steps=20) == []
    team = ParallelTeam(OnDevice(make_env("probe/dying", 1)))
    plain = ParallelTeam(make_env("probe/dying", 1))
    seen, expected = team.reset(0)[0], plain.reset(0)[0]
    np.testing.assert_equal(seen, expected)
    actions = {agent: team.action_space(agent).sample() for agent in team.agents}
    np.testing.assert_equal(team.step(actions)[0], plain.step(actions)[0])


@pytest.mark.parametrize("name", ["vmas/balance", "smax/3m"])
def test_environments_keep_their_arrays_on_a_device(name: str) -> None:
    pytest.importorskip("vmas" if "vmas" in name else "jaxmarl.registration")
    env = make_env(name, 3, max_steps=4)
    rng = np.random.default_rng(0)
    expected, actions = [step_of(env.reset(1))], []
    for _ in range(9):
        actions.append(random_actions(env.spec, rng, expected[-1]["action_mask"]))
        expected.append(step_of(env.step(actions[-1])))
    unwrapped(env)._keeps_arrays = True  # type: ignore[attr-defined]  # compiled once for both
    steps = [env.reset(1)]
    for t in range(9):
        if t == 5:  # within the second episode
            state = env.state_dict()
            env.reset(7)
            env.load_state_dict(state)
        steps.append(env.step(actions[t]))
    for step, before in zip(steps, expected, strict=True):
        given = {field for field, value in vars(step).items() if value is not None}
        assert {field for field in given if is_elsewhere(getattr(step, field))} == given & {*KEPT}
        torch.testing.assert_close(step_of(step), before, rtol=0, atol=0)
    if env.spec.masks_actions:
        illegal = np.argmin(expected[-1]["action_mask"], axis=-1)
        with pytest.raises(EnvError, match="is illegal"):
            env.step(illegal)
        env.step(random_actions(env.spec, rng, expected[-1]["action_mask"]))  # goes on after it


def step_of(step: EnvStep) -> dict[str, Any]:
    """Return copies of a step's arrays, None where it has none."""
    return {
        field: None if value is None else np.array(value)
        for field, value in vars(step_on_host(step)).items()
    }


@pytest.mark.parametrize("device", ["cuda:64", "gpus"])
@pytest.mark.parametrize("name", ["vmas/balance", "smax/3m"])
def test_a_device_that_is_not_there_is_told(name: str, device: str) -> None:
    pytest.importorskip("vmas" if "vmas" in name else "jaxmarl.registration")
    with pytest.raises(EnvError, match=f"{name}: the option device is '{device}'"):
        make_env(name, 2, device=device)
