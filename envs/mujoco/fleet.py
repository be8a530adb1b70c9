"""Fleets: teams of whole robots that share one reward, to study credit among many agents.

Axes are those of `envs.base`; an agent is one body.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.base import BoolArray, EnvError, EnvSpec, EnvStep, FloatArray
from envs.catalogue import FLEET_SCENARIOS
from envs.frames import Frame
from envs.mujoco.artist import BodyArtist, fleet_frame
from envs.mujoco.mamujoco import TimeLimit
from envs.mujoco.obs import Views, find_columns
from envs.mujoco.physics import Bodies, Controls
from envs.mujoco.scenarios import choose, make_source
from envs.registry import Maker


def maker(member: str) -> Maker | None:
    """Return the maker of several bodies with one agent each, e.g. `halfcheetah_4`."""
    bodies = {scenario.lower() for scenario in FLEET_SCENARIOS}
    if member.partition("_")[0] not in bodies:
        return None
    scenario, num_bodies = fleet_from_name(member)
    return Maker(Fleet, {"scenario": scenario, "num_bodies": num_bodies})


def fleet_from_name(name: str) -> tuple[str, int]:
    """Return scenario and number of bodies, e.g. ("HalfCheetah", 4) for ``halfcheetah_4``."""
    prefix, _, bodies = name.lower().partition("_")
    scenarios = {scenario.lower(): scenario for scenario in FLEET_SCENARIOS}
    choose("fleet scenario", prefix, tuple(scenarios))
    if not bodies.isdecimal() or int(bodies) < 1:
        raise EnvError(
            f"fleet {name!r} does not say how many bodies it has; "
            f"expected e.g. '{prefix}_4', at least 1"
        )
    return scenarios[prefix], int(bodies)


class Fleet:
    """E environments of a team of equal robots that do not meet.

    An agent drives a whole body and observes it; the state is all bodies' observations. The
    team's dense reward is the mean of the bodies' own. A body that falls (where the scenario
    terminates) is dead: it stays as it lies and earns zero. When all are dead the task is over.
    """

    def __init__(
        self,
        num_envs: int,
        scenario: str = "HalfCheetah",
        num_bodies: int = 4,
        *,
        max_steps: int = 200,
        finite_horizon: bool = False,
        num_threads: int = 0,
        dtype: str = "float32",
    ) -> None:
        """Prepare the environments; call `reset` before `step`. Options are those of `MaMuJoCo`."""
        choose("fleet scenario", scenario, FLEET_SCENARIOS)
        choose("dtype", dtype, ("float32", "float64"))
        if num_envs < 1 or num_bodies < 1:
            raise EnvError(
                f"num_envs is {num_envs} and num_bodies is {num_bodies}; expected at least 1"
            )
        source = make_source(scenario)
        num_sims = num_envs * num_bodies
        self.bodies = Bodies(source, num_sims, num_threads, sims_per_env=num_bodies)
        """The simulations; those of environment i are i * N to i * N + N - 1."""
        columns = find_columns(source, self.bodies.layout, None, num_agents=1)
        self._views = Views(columns, num_sims, self.bodies.layout.width, dtype)
        actuators = np.arange(num_bodies * source.model.nu).reshape(num_bodies, -1).tolist()
        ranges = np.tile(source.model.actuator_ctrlrange, (num_bodies, 1))
        self._controls = Controls(num_envs, ranges, actuators)
        self._artist = BodyArtist(source, [range(source.model.nu)])
        self._episodes = TimeLimit(num_envs, max_steps, finite_horizon)
        self._alive: BoolArray = np.ones((num_envs, num_bodies), np.bool_)
        self._ready = False
        self._spec = EnvSpec(
            name=f"fleet/{scenario.lower()}_{num_bodies}",
            num_envs=num_envs,
            obs_sizes=columns.obs_sizes * num_bodies,
            state_size=num_bodies * len(columns.state),
            action_kind="continuous",
            action_sizes=self._controls.sizes,
            max_steps=max_steps,
            finite_horizon=finite_horizon,
            agents_die=self.bodies.can_die,
            facts=tuple(
                replace(fact, meaning=f"{fact.meaning}, mean over robots")
                for fact in self.bodies.facts.facts
            ),
        )

    @property
    def spec(self) -> EnvSpec:
        """The constants of this environment."""
        return self._spec

    def reset(self, seed: int) -> EnvStep:
        """Start a new episode in every environment; each body derives its own seed from `seed`."""
        self.bodies.seed(seed)
        self.bodies.start()
        self._episodes.restart()
        self._alive[:] = True
        self._ready = True
        obs, state = self._observe()
        return EnvStep.first(obs=obs, state=state, alive=self._living(), facts=self._facts())

    def step(self, actions: npt.NDArray[Any]) -> EnvStep:
        """Apply (E, N, A) actions in [-1, 1] to the living; environments that end are reset."""
        if not self._ready:
            raise EnvError("step was called before reset; call reset(seed) first")
        controls = self._controls.compute(actions).reshape(len(self.bodies.qpos), -1)
        rewards, all_dead = self._move(controls)
        terminated, truncated = self._episodes.advance(all_dead)
        final_obs, final_state = obs, state = self._observe()
        final_alive, facts = self._living(), self._facts()
        over = terminated | truncated
        if over.any():
            bodies = np.repeat(over, self._spec.num_agents)
            self.bodies.start(np.flatnonzero(bodies))
            self._alive[over] = True
            obs, state = self._observe()
        return EnvStep(
            obs=obs,
            state=state,
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            final_obs=final_obs,
            final_state=final_state,
            alive=self._living(),
            final_alive=final_alive,
            facts=facts,
        )

    def frame(self, index: int) -> Frame:
        """Return an environment now: each body in a cell of its own, which moves along with it."""
        first = index * self._spec.num_agents
        qpos = self.bodies.qpos[first : first + self._spec.num_agents]
        return fleet_frame(self._artist, qpos, self._alive[index])

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly."""
        return {
            "bodies": self.bodies.state_dict(),
            "episodes": self._episodes.state_dict(),
            "alive": self._alive.copy(),
            "ready": self._ready,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of an environment made with the same options."""
        self.bodies.load_state_dict(state["bodies"])
        self._episodes.load_state_dict(state["episodes"])
        self._alive[:] = state["alive"]
        self._ready = bool(state["ready"])

    def _move(self, controls: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], BoolArray]:
        """Step the living bodies; return (E,) mean dense rewards and whether all are dead."""
        moving = self._alive.copy()
        self.bodies.step(controls, None if moving.all() else np.flatnonzero(moving))
        rewards = np.where(moving, self.bodies.rewards.reshape(moving.shape), 0.0)
        self._alive &= ~self.bodies.terminated.reshape(moving.shape)
        all_dead: BoolArray = np.all(~self._alive, axis=1)
        return rewards.mean(axis=1), all_dead

    def _observe(self) -> tuple[FloatArray, FloatArray]:
        """Return fresh (E, N, O) observations and the (E, N * O) state."""
        self._views.gather(self.bodies.features)
        obs = self._views.obs.reshape(self._spec.num_envs, self._spec.num_agents, -1).copy()
        return obs, obs.reshape(self._spec.num_envs, -1).copy()

    def _living(self) -> BoolArray | None:
        """Return fresh (E, N) flags of the bodies that move, or None where none can die."""
        return self._alive.copy() if self._spec.agents_die else None

    def _facts(self) -> FloatArray:
        """Return fresh (E, F) facts: means over the bodies."""
        values = self.bodies.facts.values
        means = values.reshape(self._spec.num_envs, self._spec.num_agents, -1).mean(axis=1)
        return means.astype(np.float32)
