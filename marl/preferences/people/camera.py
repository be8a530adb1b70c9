"""Films the first copies of an environment while a team is trained in it."""

from typing import Any

import numpy as np
import numpy.typing as npt

from envs import EnvStep, VecEnv
from envs.frame_plots import frame_of
from marl.preferences.sets.frames import Footage, packed

BoolArray = npt.NDArray[np.bool_]


class Camera:
    """Keeps the films of finished episodes until it is told to forget them.

    It only looks, so that a run with it has the same numbers as one without.
    """

    def __init__(self, env: VecEnv, copies: int) -> None:
        self.copies = min(copies, env.spec.num_envs)
        """It films those numbered from 0 to below this."""
        self._env = env
        self._time = 0
        self._open = [(0, Footage()) for _ in range(self.copies)]
        """Per copy, the time at which its episode began, and what was filmed of it."""
        self._films: dict[tuple[int, int], bytes] = {}
        """By copy and time of the first step."""
        self._before = (self._time, self._open, self._films)
        """What there was when the rollout began."""

    def before_rollout(self) -> None:
        """Remember what was filmed so far."""
        running = [(start, footage.copy()) for start, footage in self._open]
        self._before = (self._time, running, self._films.copy())

    def undo_rollout(self) -> None:
        """Forget what was filmed since `before_rollout`."""
        self._time, self._open, self._films = self._before

    def before_step(self, step: EnvStep, actions: npt.NDArray[Any]) -> None:
        """Film what the agents see and are about to do."""
        for copy, (_, footage) in enumerate(self._open):
            footage.take(lambda copy=copy: frame_of(self._env, copy, step, actions))  # type: ignore[misc]  # called at once

    def after_step(self, done: BoolArray) -> None:
        """Finish the films of the copies whose episode has ended; `done` is (E,)."""
        self._time += 1
        for copy in np.flatnonzero(done[: self.copies]).tolist():
            start, footage = self._open[copy]
            self._films[copy, start] = packed(footage.episode())
            self._open[copy] = (self._time, Footage())

    def film(self, copy: int, start: int) -> bytes | None:
        """Return the film of a finished episode, packed as a set keeps it; None: not filmed."""
        return self._films.get((copy, start))

    def forget_before(self, time: int) -> None:
        """Drop the films of episodes that began before a time, in steps of every copy."""
        self._films = {at: film for at, film in self._films.items() if at[1] >= time}

    def state_dict(self) -> dict[str, Any]:
        """Return all films, those of running episodes too, so that a resumed run has them."""
        return {
            "time": self._time,
            "open": [[start, footage.state_dict()] for start, footage in self._open],
            "films": [
                [copy, start, np.frombuffer(film, np.uint8)]
                for (copy, start), film in self._films.items()
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a camera on as many copies."""
        self._time = state["time"]
        self._open = []
        for start, saved in state["open"]:
            footage = Footage()
            footage.load_state_dict(saved)
            self._open.append((start, footage))
        self._films = {(copy, start): film.tobytes() for copy, start, film in state["films"]}
