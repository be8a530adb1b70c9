"""An environment that holds more than memory, and counts who still holds it."""

from typing import Any

import numpy.typing as npt

from envs import EnvSpec, EnvStep, VecEnv, make_env


class Closable:
    """A probe; `is_open` tells for each one made, in order, whether it is still to be closed."""

    is_open: list[bool] = []  # noqa: RUF012 - of all of them, so that a test can see it

    def __init__(self, inner: VecEnv) -> None:
        self.inner, self.index = inner, len(Closable.is_open)
        Closable.is_open.append(True)

    @property
    def spec(self) -> EnvSpec:
        return self.inner.spec

    def reset(self, seed: int) -> EnvStep:
        return self.inner.reset(seed)

    def step(self, actions: npt.NDArray[Any]) -> EnvStep:
        assert Closable.is_open[self.index], "step after close"
        return self.inner.step(actions)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.inner.load_state_dict(state)

    def close(self) -> None:
        Closable.is_open[self.index] = False


def closable(num_envs: int) -> Closable:
    """Return a probe that can be closed; to be named `tests.closable:closable`."""
    return Closable(make_env("probe/coordination", num_envs))
