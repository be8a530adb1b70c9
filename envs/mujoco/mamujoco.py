"""Multi-agent MuJoCo, natively batched: E environments advance in one call, physics in C++ threads.

Every scenario and partition of gymnasium-robotics' ``mamujoco_v1`` that has more than one agent,
with the same observations, rewards and terminations (``benchmarks/parity.py`` compares them).
Oddities of the original are kept: both agents of CoupledHalfCheetah observe the joints of the
second cheetah; all but the last segment of ManySegmentAnt observe coordinates not their own.

Axes are those of `envs.base`.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from envs.base import BoolArray, EnvError, EnvSpec, EnvStep, split_ends
from envs.catalogue import MAMUJOCO_NAMES
from envs.frames import Frame
from envs.mujoco.artist import BodyArtist
from envs.mujoco.obs import Views, find_columns
from envs.mujoco.physics import Bodies, Controls
from envs.mujoco.scenarios import (
    check_partition,
    choose,
    make_partition,
    make_source,
    scenario_from_name,
)
from envs.registry import Maker

__all__ = ["MaMuJoCo", "maker", "scenario_from_name"]


def maker(member: str) -> Maker | None:
    """Return the maker of one body cut into agents, e.g. `halfcheetah_2x3`."""
    bodies = {name.partition("_")[0] for name in MAMUJOCO_NAMES}
    if member.partition("_")[0] not in bodies:
        return None
    scenario, partition = scenario_from_name(member)
    return Maker(MaMuJoCo, {"scenario": scenario, "partition": partition})


class MaMuJoCo:
    """E environments of one robot whose joints are shared among N agents."""

    def __init__(
        self,
        num_envs: int,
        scenario: str = "HalfCheetah",
        partition: str = "2x3",
        *,
        agent_obsk: int | None = 1,
        finite_horizon: bool = False,
        max_steps: int | None = None,
        num_threads: int = 0,
        dtype: str = "float32",
    ) -> None:
        """Prepare the environments; call `reset` before `step`.

        `agent_obsk`: agents observe joints up to that many edges away from their own; None:
        every agent observes the whole state. `finite_horizon`: report the time limit as terminated.
        `max_steps`: the time limit, by default Gymnasium's. `num_threads`: 0 means one per
        processor. `dtype`: of observations and states; physics and rewards are float64.
        """
        check_partition(scenario, partition)
        _check_counts(num_envs, agent_obsk)
        choose("dtype", dtype, ("float32", "float64"))
        source = make_source(scenario, partition)
        team = make_partition(scenario, partition, agent_obsk or 0)
        self.bodies = Bodies(source, num_envs, num_threads)
        """The simulations, one per environment."""
        observers = None if agent_obsk is None else team
        columns = find_columns(source, self.bodies.layout, observers, len(team.parts))
        self._views = Views(columns, num_envs, self.bodies.layout.width, dtype)
        parts = [[node.act_ids for node in part] for part in team.parts]
        self._controls = Controls(num_envs, source.model.actuator_ctrlrange, parts)
        self._artist = BodyArtist(source, parts)
        limit = source.max_steps if max_steps is None else max_steps
        self._episodes = TimeLimit(num_envs, limit, finite_horizon)
        self._ready = False
        self._spec = EnvSpec(
            name=f"mamujoco/{scenario.lower()}_{partition}",
            num_envs=num_envs,
            obs_sizes=columns.obs_sizes,
            state_size=len(columns.state),
            action_kind="continuous",
            action_sizes=self._controls.sizes,
            max_steps=limit,
            finite_horizon=finite_horizon,
            facts=self.bodies.facts.facts,
        )

    @property
    def spec(self) -> EnvSpec:
        """The constants of this environment."""
        return self._spec

    def reset(self, seed: int) -> EnvStep:
        """Start a new episode in every environment; each derives its own seed from `seed`."""
        self.bodies.seed(seed)
        self.bodies.start()
        self._episodes.restart()
        self._views.gather(self.bodies.features)
        self._ready = True
        obs, state = self._views.obs, self._views.state
        facts = self.bodies.facts.values.astype(np.float32)
        return EnvStep.first(obs=obs, state=state, facts=facts)

    def step(self, actions: npt.NDArray[Any]) -> EnvStep:
        """Apply (E, N, A) actions in [-1, 1]; environments that end are reset."""
        if not self._ready:
            raise EnvError("step was called before reset; call reset(seed) first")
        self.bodies.step(self._controls.compute(actions))
        terminated, truncated = self._episodes.advance(self.bodies.terminated)
        self._views.gather(self.bodies.features)
        final_obs, final_state = self._views.obs, self._views.state
        facts = self.bodies.facts.values.astype(np.float32)
        over = terminated | truncated
        if over.any():
            final_obs, final_state = final_obs.copy(), final_state.copy()
            self.bodies.start(np.flatnonzero(over))
            self._views.gather(self.bodies.features)
        return EnvStep(
            obs=self._views.obs,
            state=self._views.state,
            rewards=self.bodies.rewards.copy(),
            terminated=terminated,
            truncated=truncated,
            final_obs=final_obs,
            final_state=final_state,
            facts=facts,
        )

    def frame(self, index: int) -> Frame:
        """Return an environment now; the bodies an agent drives have the agent's colour."""
        return self._artist.frame(self.bodies.qpos[index])

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly."""
        return {
            "bodies": self.bodies.state_dict(),
            "episodes": self._episodes.state_dict(),
            "ready": self._ready,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of an environment made with the same options."""
        self.bodies.load_state_dict(state["bodies"])
        self._episodes.load_state_dict(state["episodes"])
        self._ready = bool(state["ready"])


def _check_counts(num_envs: int, agent_obsk: int | None) -> None:
    """Raise `EnvError` unless there is an environment and `agent_obsk` is a distance or None."""
    if num_envs < 1:
        raise EnvError(f"num_envs is {num_envs}; expected at least 1")
    if agent_obsk is not None and agent_obsk < 0:
        raise EnvError(
            f"agent_obsk is {agent_obsk}; expected None or a distance in joints, at least 0"
        )


class TimeLimit:
    """Steps of E running episodes."""

    def __init__(self, num_envs: int, max_steps: int, finite_horizon: bool) -> None:
        if max_steps < 1:
            raise EnvError(f"max_steps is {max_steps}; expected at least 1")
        self._max_steps, self._finite_horizon = max_steps, finite_horizon
        self._steps = np.zeros(num_envs, np.int64)

    def restart(self) -> None:
        """Forget all running episodes."""
        self._steps[:] = 0

    def advance(self, task_over: BoolArray) -> tuple[BoolArray, BoolArray]:
        """Count one step; return terminated and truncated, each (E,)."""
        self._steps += 1
        out_of_time = self._steps >= self._max_steps
        self._steps[task_over | out_of_time] = 0
        return split_ends(self._finite_horizon, task_over.copy(), out_of_time)

    def state_dict(self) -> dict[str, Any]:
        """Return the steps."""
        return {"steps": self._steps.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self._steps[:] = state["steps"]
