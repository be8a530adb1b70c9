"""Agents that must name the cue they see: together, each alone, or until they die.

Axes: C environment copies, T steps of an episode, N agents, K choices.
"""

from dataclasses import dataclass

import numpy as np

from envs.base import BoolArray, FloatArray
from envs.probes.common import Actions, Steps, discrete_spec, now, one_hot
from envs.simulated import Arrays, SimulatedEnv, View


def coordination(
    num_envs: int,
    *,
    num_cues: int = 3,
    max_steps: int = 8,
) -> SimulatedEnv:
    """Return two agents that see one cue and are paid 1 only if both name it in the same step.

    Optimum T (8); random T / K^2 (8/9). The task ends after T steps.
    """
    spec = discrete_spec("coordination", num_envs, max_steps, num_agents=2, size=num_cues)
    return SimulatedEnv(spec, _Cues(2, num_cues, max_steps, shared=True))


def local_credit(
    num_envs: int,
    *,
    num_agents: int = 4,
    num_cues: int = 2,
    max_steps: int = 8,
) -> SimulatedEnv:
    """Return agents that each see and name a cue of their own; the team is paid the mean.

    Optimum T (8); random T / K (4). The state is all cues. The task ends after T steps.
    """
    spec = discrete_spec("local_credit", num_envs, max_steps, num_agents=num_agents, size=num_cues)
    return SimulatedEnv(spec, _Cues(num_agents, num_cues, max_steps, shared=False))


def dying(
    num_envs: int,
    *,
    num_agents: int = 3,
    num_cues: int = 2,
    max_steps: int = 8,
) -> SimulatedEnv:
    """Return agents that each name their own cue until they die, each at a time of its own.

    Lifetimes are uniform over 1..T. A step pays the number of living agents that are right,
    divided by N; a dead agent sees zeros and its action does nothing. The task ends when all
    are dead. Optimum (T + 1) / 2 (4.5) in the mean and the mean lifetime in each episode;
    random (T + 1) / 2K (2.25).
    """
    spec = discrete_spec(
        "dying", num_envs, max_steps, num_agents=num_agents, size=num_cues, agents_die=True
    )
    return SimulatedEnv(spec, _Dying(num_agents, num_cues, max_steps))


@dataclass(frozen=True)
class _Cues:
    """The functions of `coordination` (one shared cue) and `local_credit` (one cue each)."""

    num_agents: int
    num_cues: int
    max_steps: int
    shared: bool

    @property
    def num_draws(self) -> int:
        """One cue per step, and one more to show at the end; for each agent unless shared."""
        return (self.max_steps + 1) * (1 if self.shared else self.num_agents)

    def begin(self, draws: FloatArray) -> Arrays:
        """Return the (C, T + 1, N) cues of new episodes."""
        cues = (draws * self.num_cues).astype(np.int64).reshape(len(draws), self.max_steps + 1, -1)
        return {"cues": np.repeat(cues, self.num_agents, axis=2) if self.shared else cues}

    def view(self, arrays: Arrays, steps: Steps) -> View:
        """Return each agent's cue; the state is the cues of all agents."""
        obs = one_hot(now(arrays["cues"], steps), self.num_cues)
        return View(obs=obs, state=obs.reshape(len(obs), -1).copy())

    def advance(
        self, arrays: Arrays, steps: Steps, actions: Actions
    ) -> tuple[Arrays, FloatArray, BoolArray]:
        """Return the pay for naming the cues: all or nothing if shared, else the mean."""
        right = actions == now(arrays["cues"], steps)
        rewards = right.all(axis=1) if self.shared else right.mean(axis=1)
        return arrays, rewards.astype(np.float64), np.zeros(len(right), np.bool_)


@dataclass(frozen=True)
class _Dying:
    """The functions of `dying`."""

    num_agents: int
    num_cues: int
    max_steps: int

    @property
    def num_draws(self) -> int:
        """A cue per step and agent, one more step to show at the end, and the lifetimes."""
        return (self.max_steps + 2) * self.num_agents

    def begin(self, draws: FloatArray) -> Arrays:
        """Return the (C, T + 1, N) cues and the (C, N) lifetimes of new episodes."""
        lifetimes = 1 + (draws[:, : self.num_agents] * self.max_steps).astype(np.int64)
        cues = (draws[:, self.num_agents :] * self.num_cues).astype(np.int64)
        shape = (len(draws), self.max_steps + 1, self.num_agents)
        return {"cues": cues.reshape(shape), "lifetimes": lifetimes}

    def view(self, arrays: Arrays, steps: Steps) -> View:
        """Return the cues of the living; zeros for the dead."""
        alive = steps[:, None] < arrays["lifetimes"]
        obs = one_hot(now(arrays["cues"], steps), self.num_cues) * alive[:, :, None]
        obs = obs.astype(np.float32)
        return View(obs=obs, state=obs.reshape(len(obs), -1).copy(), alive=alive)

    def advance(
        self, arrays: Arrays, steps: Steps, actions: Actions
    ) -> tuple[Arrays, FloatArray, BoolArray]:
        """Return the share of agents that live and are right; the end comes when all are dead."""
        alive = steps[:, None] < arrays["lifetimes"]
        right = (actions == now(arrays["cues"], steps)) & alive
        all_dead = steps + 1 >= arrays["lifetimes"].max(axis=1)
        return arrays, right.mean(axis=1), all_dead
