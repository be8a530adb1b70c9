"""`max_steps` above and below the limits of others, and what ends at such a limit mean."""

from typing import Any

import numpy as np
import pytest

from envs import EnvError, EnvStep, make_env
from envs.adapters.pettingzoo import pettingzoo
from envs.rng import random_actions
from tests.village import Village

ENDLESS = "gym/tests.tuple_team:Endless-v0"


class Limited(Village):
    """A `Village` that everybody leaves, truncated, after `max_cycles` steps."""

    def __init__(self, max_cycles: int = 3, **options: Any) -> None:
        super().__init__(end="never", **options)
        self.max_cycles = max_cycles

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, Any]:
        obs, rewards, terminated, truncated, infos = super().step(actions)
        if self.t >= self.max_cycles:
            truncated, self.agents = dict.fromkeys(truncated, True), []
        return obs, rewards, terminated, truncated, infos


class Stubborn(Limited):
    """Its limit is no option."""

    def __init__(self) -> None:
        super().__init__()


class Crumbling(Limited):
    """It calls its limit a termination; with `falls` the task ends there and leaves no state."""

    def __init__(self, falls: bool, max_cycles: int = 3) -> None:
        super().__init__(max_cycles)
        self.falls = falls

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, Any]:
        obs, rewards, terminated, truncated, infos = super().step(actions)
        if not self.agents:
            terminated = dict.fromkeys(terminated, True)
            truncated = dict.fromkeys(truncated, False)
        return obs, rewards, terminated, truncated, infos

    def state(self) -> Any:
        if self.falls and self.t == self.max_cycles:
            raise RuntimeError("nothing is left")
        return super().state()


def hiding(**options: Any) -> Limited:
    """Return the environment, as the `parallel_env` of many PettingZoo modules does."""
    return Limited(**options)


def first_end(name: str, **options: Any) -> tuple[int, EnvStep]:
    """Return when the first episode ends, and its end, if nobody ever does anything."""
    env = make_env(name, 1, workers=0, **options)
    spec, rng = env.spec, np.random.default_rng(0)
    env.reset(0)
    nothing = np.zeros_like(random_actions(spec, rng, None))
    for t in range(1, spec.max_steps + 1):
        step = env.step(nothing)
        if step.terminated[0] or step.truncated[0]:
            return t, step
    raise AssertionError(f"{name} goes on after max_steps")


@pytest.mark.parametrize("factory", [Limited, hiding])
@pytest.mark.parametrize("max_steps", [2, 7])
@pytest.mark.parametrize("finite_horizon", [False, True])
def test_it_becomes_the_limit_of_the_environment(
    factory: Any, max_steps: int, finite_horizon: bool
) -> None:
    name = f"tests.contract.test_time_limits:{factory.__name__}"
    t, step = first_end(name, max_steps=max_steps, finite_horizon=finite_horizon)
    assert t == max_steps
    assert (step.terminated[0], step.truncated[0]) == (finite_horizon, not finite_horizon)


@pytest.mark.parametrize("falls", [False, True])
def test_without_a_state_at_its_limit_the_task_has_ended(falls: bool) -> None:
    name = "tests.contract.test_time_limits:Crumbling"
    t, step = first_end(name, falls=falls, limit_terminates=True)
    assert t == 3
    assert (step.terminated[0], step.truncated[0]) == (falls, not falls)


def test_a_limit_wrapped_by_gymnasium_gives_way() -> None:
    assert make_env(ENDLESS, 1, workers=0).spec.max_steps == 5
    for max_steps in (3, 5, 8):
        t, step = first_end(ENDLESS, max_steps=max_steps)
        assert t == max_steps
        assert step.truncated[0]


@pytest.mark.parametrize(
    ("factory", "options"),
    [(Stubborn, {}), (Limited, {"max_cycles": 3}), (hiding, {"max_cycles": 3})],
)
def test_a_limit_that_stays_below_is_refused(factory: Any, options: dict[str, Any]) -> None:
    with pytest.raises(EnvError) as caught:
        pettingzoo(factory, "village", num_envs=1, max_steps=7, workers=0, **options)
    assert "max_steps is 7, but the environment ends its episodes itself after 3" in str(
        caught.value
    )
    assert "its max_cycles" in str(caught.value)
    assert pettingzoo(factory, "village", num_envs=1, workers=0, **options).spec.max_steps == 3


@pytest.mark.parametrize("finite_horizon", [False, True])
@pytest.mark.parametrize("max_steps", [20, 100])
def test_foraging(max_steps: int, finite_horizon: bool) -> None:
    pytest.importorskip("lbforaging", reason="needs the extra lbforaging")
    options = {"max_steps": max_steps, "finite_horizon": finite_horizon}
    # Its own limit is 50, and it calls that a termination. Action 0 is to do nothing.
    t, step = first_end("gym/Foraging-8x8-2p-2f-coop-v3", **options)
    assert t == max_steps
    assert (step.terminated[0], step.truncated[0]) == (finite_horizon, not finite_horizon)


def test_food_that_is_gone_ends_foraging(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lbforaging", reason="needs the extra lbforaging")
    from lbforaging.foraging import ForagingEnv

    reset, started = ForagingEnv.reset, []

    def noted(self: Any, **options: Any) -> Any:
        started.append(self)
        return reset(self, **options)

    monkeypatch.setattr(ForagingEnv, "reset", noted)
    env = make_env("gym/Foraging-8x8-2p-2f-coop-v3", 1, workers=0)
    env.reset(0)
    idle = np.zeros((1, 2), np.int64)
    assert not env.step(idle).terminated[0]
    started[-1].field[:] = 0
    assert env.step(idle).terminated[0]


@pytest.mark.parametrize("finite_horizon", [False, True])
def test_spread(finite_horizon: bool) -> None:
    pytest.importorskip("mpe2", reason="needs the extra mpe2")
    options = {"max_steps": 50, "finite_horizon": finite_horizon, "team_reward": "mean"}
    t, step = first_end("mpe2.simple_spread_v3:parallel_env", **options)
    assert t == 50
    assert (step.terminated[0], step.truncated[0]) == (finite_horizon, not finite_horizon)


def test_walkers_call_their_limit_a_termination() -> None:
    pytest.importorskip("Box2D", reason="needs the extra sisl")
    options = {"team_reward": "mean", "terminate_on_fall": False}
    t, step = first_end("pettingzoo.sisl.multiwalker_v9:parallel_env", max_steps=8, **options)
    assert t == 8
    assert step.truncated[0]
    _, trusted = first_end(
        "pettingzoo.sisl.multiwalker_v9:parallel_env",
        max_steps=8,
        limit_terminates=False,
        **options,
    )
    assert trusted.terminated[0]
