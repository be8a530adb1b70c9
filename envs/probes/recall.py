"""A cue that is gone when it is asked for: agents need memory.

Axes: C environment copies, N agents, K choices.
"""

from dataclasses import dataclass

import numpy as np

from envs.base import BoolArray, EnvError, EnvSpec, FloatArray
from envs.probes.common import Actions, Steps, at_least_one, one_hot
from envs.simulated import Arrays, SimulatedEnv, View


def recall(
    num_envs: int,
    *,
    num_agents: int = 2,
    num_cues: int = 2,
    max_steps: int = 6,
    lights: bool = True,
) -> SimulatedEnv:
    """Return agents that see a cue in the first step and must name it in the last but one.

    The last step shows each agent a light if it was right, and the team is paid the share of
    lights. Optimum 1; random 1 / K (.5), which is also the best that agents without memory reach:
    between the cue and the light all they see is whether the question is asked. Without `lights`
    nobody is shown who was right, so that a model of the pay needs memory, too: added up over
    the steps, cues and answers say nothing about each other. The task ends after T >= 3 steps.
    """
    if max_steps < 3:
        raise EnvError(f"probe/recall: max_steps is {max_steps}; give at least 3")
    at_least_one("recall", "num_agents", num_agents)
    size = at_least_one("recall", "num_cues", num_cues) + 2
    spec = EnvSpec(
        name="probe/recall",
        num_envs=num_envs,
        obs_sizes=(size,) * num_agents,
        state_size=size * num_agents,
        action_kind="discrete",
        action_sizes=(num_cues,) * num_agents,
        max_steps=max_steps,
        finite_horizon=True,
    )
    return SimulatedEnv(spec, _Recall(num_agents, num_cues, max_steps, lights))


@dataclass(frozen=True)
class _Recall:
    """The functions of `recall`."""

    num_agents: int
    num_cues: int
    max_steps: int
    shows_lights: bool

    @property
    def num_draws(self) -> int:
        """A cue for each agent."""
        return self.num_agents

    def begin(self, draws: FloatArray) -> Arrays:
        """Return the (C, N) cues of new episodes and the lights, all off."""
        cues = (draws * self.num_cues).astype(np.int64)
        return {"cues": cues, "lights": np.zeros(cues.shape, np.bool_)}

    def view(self, arrays: Arrays, steps: Steps) -> View:
        """Return the cue at the start, then whether the question is asked and the light is on."""
        first, asked = steps == 0, steps == self.max_steps - 2
        cues = one_hot(arrays["cues"], self.num_cues) * first[:, None, None]
        lights = arrays["lights"] & self.shows_lights
        flags = np.stack(np.broadcast_arrays(asked[:, None], lights), axis=2)
        obs = np.concatenate((cues, flags), axis=2).astype(np.float32)
        return View(obs=obs, state=obs.reshape(len(obs), -1).copy())

    def advance(
        self, arrays: Arrays, steps: Steps, actions: Actions
    ) -> tuple[Arrays, FloatArray, BoolArray]:
        """Return the lights that the answers turned on, which pay in the last step."""
        asked = (steps == self.max_steps - 2)[:, None]
        lights = np.where(asked, actions == arrays["cues"], arrays["lights"])
        paid = lights.mean(axis=1) * (steps == self.max_steps - 1)
        return arrays | {"lights": lights}, paid, np.zeros(len(steps), np.bool_)
