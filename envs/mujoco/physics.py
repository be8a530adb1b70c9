"""Many simulations of one scenario: started, stepped, observed and rewarded together.

The simulations are a `mujoco.batch.Batch`: rows of MuJoCo's full integration state, stepped in
C++ threads. It is used rather than `mujoco.rollout` because its rows hold the solver's warm
starts, so that a free run equals the original's loop over one `MjData` bit for bit.

The distributions of initial states are those of Gymnasium's v5 `reset_model` methods; the numbers
come from `envs.rng`, so an episode's start depends only on its environment's seed and count.

Axes: n simulations, E environments, N agents, A action dimensions, U actuators, P bodies whose
progress counts, F features or facts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt
from mujoco.batch import Batch, SimulationError

from envs.base import BoolArray, EnvError, Fact
from envs.mujoco.obs import FeatureMatrix, Fields
from envs.mujoco.rewards import Array, DenseReward, make_dense_reward, make_healthy_box
from envs.mujoco.scenarios import Source
from envs.rng import env_seeds, normal, uniform


class Bodies:
    """n simulations and, after each step, their features, dense rewards and deaths."""

    def __init__(
        self, source: Source, num_sims: int, num_threads: int = 0, sims_per_env: int = 1
    ) -> None:
        """Prepare `num_sims` simulations; `num_threads` 0 means one per processor.

        `sims_per_env` only serves error messages, which name the environment.
        """
        if num_threads < 0:
            raise EnvError(f"num_threads is {num_threads}; expected 0 (all processors) or more")
        model = source.model
        self.layout = FeatureMatrix(source.scenario, model)
        self._dense_reward = make_dense_reward(source)
        self._healthy_box = make_healthy_box(source)
        self._start = make_start(source)
        self._frame_skip = source.env.frame_skip
        self._sims_per_env = sims_per_env
        fields = {*self.layout.fields, *self._dense_reward.fields}
        self._contacts = Contacts(model, num_sims) if "cfrc_ext" in fields else None
        self.batch = Batch(model, num_sims, num_threads, persistent=self._contacts is not None)
        """MuJoCo's own simulations, e.g. for `batch.get_data(i)`, which a renderer can draw."""
        self._fields = {
            name: self.batch.bind(name).reshape(num_sims, -1) for name in fields - {"cfrc_ext"}
        }
        if self._contacts is not None:
            self._fields["cfrc_ext"] = self._contacts.forces
        self.qpos, self.qvel = self.batch.bind("qpos"), self.batch.bind("qvel")
        """(n, nq) and (n, nv): live positions and velocities."""
        self._ctrl = self.batch.bind("ctrl")
        self._seeds = env_seeds(0, num_sims)
        self._counts = np.zeros(num_sims, np.int64)
        self._ages = np.zeros(num_sims, np.int64)
        self._all_healthy = np.ones(num_sims, np.bool_)
        self._position = self._dense_reward.position(self._fields).copy()
        self.facts = EpisodeFacts(
            self._dense_reward, self._position, source.env.dt, can_fall=self.can_die
        )
        """What is known of each simulation's episode so far."""
        self.features = np.zeros((num_sims, self.layout.width))
        """(n, F)"""
        self._scratch = np.zeros_like(self.features)
        self._state_columns = self.features[:, : model.nq + model.nv]
        self.rewards = np.zeros(num_sims)
        """(n,) dense rewards of the latest step."""
        self.terminated: BoolArray = np.zeros(num_sims, np.bool_)
        """(n,) whether a simulation left its healthy ranges."""

    @property
    def can_die(self) -> bool:
        """Whether the scenario terminates at all."""
        return self._healthy_box is not None

    def seed(self, seed: int) -> None:
        """Derive every simulation's own seed; the next `start` begins its first episode."""
        self._seeds = env_seeds(seed, self.batch.nsim)
        self._counts[:] = -1

    def start(self, sims: npt.NDArray[np.intp] | None = None) -> None:
        """Begin a new episode in some simulations, by default in all, and refresh `features`."""
        chosen = np.arange(self.batch.nsim) if sims is None else sims
        self._counts[chosen] += 1
        self._ages[chosen] = 0
        qpos, qvel = self._start(self._seeds[chosen], self._counts[chosen])
        self.batch.reset(chosen, stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        self.qpos[chosen], self.qvel[chosen] = qpos, qvel
        self.batch.forward(chosen)
        if self._contacts is not None:
            self._contacts.forces[chosen] = 0.0  # as mj_resetData leaves them
        self._refresh(chosen)
        self._position[chosen] = self._dense_reward.position(self._fields)[chosen]
        self.facts.begin(chosen, self._fields, self._position)

    def step(self, ctrl: npt.NDArray[np.float64], sims: npt.NDArray[np.intp] | None = None) -> None:
        """Apply (n, U) controls in actuator units for one control step.

        With `sims` only those move; what `rewards` and `terminated` say of the others is moot.
        """
        self._ctrl[:] = ctrl
        try:
            self.batch.step(sims, nstep=self._frame_skip)
        except SimulationError as error:
            raise EnvError(f"MuJoCo stopped in {self._where(error.ids[0])}: {error}") from error
        self._ages += 1
        if self._contacts is not None:
            self._contacts.compute(self.batch, sims)
        self._refresh(sims)
        self._check()
        if self._healthy_box is None:
            healthy = self._all_healthy
        else:
            healthy = self._healthy_box.contains(self._state_columns)
            np.logical_not(healthy, out=self.terminated)
        position = self._dense_reward.position(self._fields)
        self.rewards = self._dense_reward.rewards(
            self._fields, position - self._position, self._ctrl, healthy
        )
        self._position[:] = position
        self.facts.advance(sims, self._fields, position, self._ctrl, self.terminated)

    def state_dict(self) -> dict[str, Any]:
        """Return the simulations' rows and everything that outlives a step."""
        return {
            "rows": self.batch.state.copy(),
            "position": self._position.copy(),
            "seeds": self._seeds.copy(),
            "counts": self._counts.copy(),
            "ages": self._ages.copy(),
            "features": self.features.copy(),
            "facts": self.facts.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly from `state_dict()` of bodies of the same scenario and number."""
        rows = np.asarray(state["rows"])
        if rows.shape != self.batch.state.shape:
            raise EnvError(
                f"saved MuJoCo state has shape {rows.shape}, this environment needs "
                f"{self.batch.state.shape}: use the scenario and num_envs it came from"
            )
        self.batch.reset(stage=mujoco.mjtStage.mjSTAGE_NONE.value)
        self.batch.state[:] = rows
        self._position[:] = state["position"]
        self._seeds = np.array(state["seeds"], np.uint64)
        self._counts[:] = state["counts"]
        self._ages[:] = state["ages"]
        self.features[:] = state["features"]
        self.facts.load_state_dict(state["facts"])

    def _refresh(self, sims: npt.NDArray[np.intp] | None) -> None:
        """Write the features of some simulations, by default of all.

        The other rows are left alone: right after `load_state_dict` MuJoCo has not yet computed
        positions and inertias for simulations that no longer move.
        """
        if sims is None:
            self.layout.write(self._fields, self.features)
        else:
            self.layout.write(self._fields, self._scratch)
            self.features[sims] = self._scratch[sims]

    def _check(self) -> None:
        """Raise `EnvError` if a simulation became unstable.

        MuJoCo itself would print a warning and silently restart it from the default pose.
        """
        if self.batch.warning.any():
            sim, kind = np.argwhere(self.batch.warning.any(axis=2))[0]
            name = mujoco.mjtWarning(int(kind)).name.removeprefix("mjWARN_")
            where = int(self.batch.warning[sim, kind, 0])
            raise EnvError(
                f"MuJoCo warned of {name} (index {where}) in {self._where(int(sim))}; "
                "the simulation is unstable: reset the environment"
            )
        if not np.isfinite(self._state_columns).all():
            sim, column = np.argwhere(~np.isfinite(self._state_columns))[0]
            size = self.qpos.shape[1]
            field = f"qpos[{column}]" if column < size else f"qvel[{column - size}]"
            raise EnvError(
                f"{field} is {self._state_columns[sim, column]} in {self._where(int(sim))}; "
                "the simulation is unstable: reset the environment"
            )

    def _where(self, sim: int) -> str:
        """Return copy, body and step of a simulation, for a message."""
        copy, body = divmod(sim, self._sims_per_env)
        of = f", body {body}" if self._sims_per_env > 1 else ""
        return f"copy {copy}{of} at step {self._ages[sim]}"


class Contacts:
    """External contact forces, which `mj_step` does not compute and `Batch` cannot bind.

    Gymnasium calls `mj_rnePostConstraint` after the step, on the contacts the integrator's last
    stage left in `MjData`. Only a persistent batch keeps those, and only one simulation at a
    time hands them out: about 5 microseconds each, paid where contact forces matter.
    """

    def __init__(self, model: Any, num_sims: int) -> None:
        self._model, self._data = model, mujoco.MjData(model)
        self.forces = np.zeros((num_sims, 6 * model.nbody))
        """(n, bodies * 6) torque and force on each body."""

    def compute(self, batch: Batch, sims: npt.NDArray[np.intp] | None) -> None:
        """Refresh the forces of some simulations, by default of all, after a step."""
        for sim in range(batch.nsim) if sims is None else sims:
            batch.get_data(int(sim), self._data)
            mujoco.mj_rnePostConstraint(self._model, self._data)
            self.forces[sim] = self._data.cfrc_ext.ravel()


class Controls:
    """Turns actions into controls in each actuator's own units."""

    def __init__(
        self, num_envs: int, ranges: npt.NDArray[np.float64], parts: Sequence[Sequence[int]]
    ) -> None:
        """Prepare for (U, 2) control ranges; `parts` lists the actuators of each agent's vector."""
        self.sizes = tuple(map(len, parts))
        """Dimensions of each agent's action."""
        width = max(self.sizes)
        slots = {u: i * width + j for i, part in enumerate(parts) for j, u in enumerate(part)}
        assert sorted(slots) == list(range(len(ranges))), "each actuator needs exactly one agent"
        self._shape = (num_envs, len(parts), width)
        self._slots = np.array([slots[u] for u in range(len(ranges))], np.intp)
        low, high = np.asarray(ranges, np.float64).T
        self._centre, self._half = (low + high) / 2.0, (high - low) / 2.0

    def compute(self, actions: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return (E, U) controls from (E, N, A) actions, clipped to [-1, 1]; padding is ignored."""
        if np.shape(actions) != self._shape:
            raise EnvError(
                f"actions have shape {np.shape(actions)}; expected {self._shape}: "
                "environments, agents, action dimensions"
            )
        flat = np.asarray(actions, np.float64).reshape(self._shape[0], -1)
        controls = flat.take(self._slots, axis=1)
        if not np.isfinite(controls).all():
            copy, actuator = np.argwhere(~np.isfinite(controls))[0]
            agent, part = divmod(int(self._slots[actuator]), self._shape[2])
            raise EnvError(
                f"action[{part}] of agent {agent} in copy {copy} is {controls[copy, actuator]}; "
                "actions must be finite numbers in [-1, 1]"
            )
        np.maximum(controls, -1.0, out=controls)
        np.minimum(controls, 1.0, out=controls)
        controls *= self._half
        controls += self._centre
        return controls


CONTROL_COST = Fact(
    name="control_cost",
    meaning="control cost, weighted squares of the controls in sum",
    higher_is_better=False,
)
TIME = Fact(name="time", meaning="simulated time", unit="s")
FELL = Fact(name="fell", meaning="fell (1) or not (0)", higher_is_better=False)


class EpisodeFacts:
    """Running numbers about the episodes of n simulations.

    The first is the scenario's own: the distance covered, to a goal, or the height.
    """

    def __init__(self, task: DenseReward, start: Array, seconds: float, *, can_fall: bool) -> None:
        """`start`: (n, P) positions that progress counts from; `seconds`: of one step."""
        self._dense_reward = task
        self._seconds = seconds
        self.facts = (task.outcome, CONTROL_COST, TIME, *((FELL,) if can_fall else ()))
        """What the columns of `values` are."""
        self.values = np.zeros((len(start), len(self.facts)))
        """(n, F)"""
        self._start = start.copy()

    def begin(self, sims: npt.NDArray[np.intp], fields: Fields, position: Array) -> None:
        """Forget the episodes of some simulations; new ones begin at `position`."""
        self._start[sims] = position[sims]
        self.values[sims] = 0.0
        self.values[sims, 0] = self._dense_reward.progress(fields, position - self._start)[sims]

    def advance(
        self,
        sims: npt.NDArray[np.intp] | None,
        fields: Fields,
        position: Array,
        ctrl: Array,
        fallen: BoolArray,
    ) -> None:
        """Count one step of some simulations, by default of all."""
        moved = slice(None) if sims is None else sims
        values = self.values
        values[moved, 0] = self._dense_reward.progress(fields, position - self._start)[moved]
        cost = (
            self._dense_reward.ctrl_weight / position.shape[1] * np.einsum("nu,nu->n", ctrl, ctrl)
        )
        values[moved, 1] += cost[moved]
        values[moved, 2] += self._seconds
        if len(self.facts) > 3:
            values[moved, 3] = fallen[moved]

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers and where progress counts from."""
        return {"values": self.values.copy(), "start": self._start.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.values[:] = state["values"]
        self._start[:] = state["start"]


Seeds = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]
Start = Callable[[Seeds, Counts], tuple[Array, Array]]
"""(n,) seeds and episode counts to (n, nq) positions and (n, nv) velocities."""
_CANDIDATES = 64  # points drawn at once; all are rejected with probability below 1e-26
_GAUSSIAN_VELOCITIES = ("Ant", "ManySegmentAnt", "HalfCheetah", "CoupledHalfCheetah")


def make_start(source: Source) -> Start:
    """Return the initial-state distribution of a scenario."""
    qpos, qvel = source.env.init_qpos.copy(), source.env.init_qvel.copy()
    if source.scenario == "Reacher":
        return ReacherStart(qpos, qvel)
    if source.scenario == "Pusher":
        return PusherStart(qpos, qvel)
    gaussian = source.scenario in _GAUSSIAN_VELOCITIES
    return NoisyStart(qpos, qvel, source.env._reset_noise_scale, gaussian)


@dataclass(frozen=True)
class NoisyStart:
    """The model's own pose with noise on every coordinate."""

    qpos: Array
    qvel: Array
    scale: float
    gaussian: bool
    """Whether velocities are normal, not uniform; positions are always uniform."""

    def __call__(self, seeds: Seeds, counts: Counts) -> tuple[Array, Array]:
        """Return positions and velocities; even and odd counts draw the two independently."""
        draw = normal if self.gaussian else _centred
        return (
            self.qpos + self.scale * _centred(seeds, 2 * counts, self.qpos.size),
            self.qvel + self.scale * draw(seeds, 2 * counts + 1, self.qvel.size),
        )


@dataclass(frozen=True)
class ReacherStart:
    """A slightly bent arm, and a target uniform in the disc of radius 0.2 m."""

    qpos: Array
    qvel: Array

    def __call__(self, seeds: Seeds, counts: Counts) -> tuple[Array, Array]:
        """Return positions and velocities; the target rests."""
        draws = uniform(seeds, 2 * counts, self.qpos.size + 2 * _CANDIDATES)
        qpos = self.qpos + 0.1 * (2.0 * draws[:, : self.qpos.size] - 1.0)
        targets = _points(draws[:, self.qpos.size :], (-0.2, 0.2), (-0.2, 0.2))
        qpos[:, -2:] = _first(targets, np.linalg.norm(targets, axis=2) < 0.2)
        qvel = self.qvel + 0.005 * _centred(seeds, 2 * counts + 1, self.qvel.size)
        qvel[:, -2:] = 0.0
        return qpos, qvel


@dataclass(frozen=True)
class PusherStart:
    """The arm's own pose, the goal at the origin, an object at least 0.17 m from it."""

    qpos: Array
    qvel: Array

    def __call__(self, seeds: Seeds, counts: Counts) -> tuple[Array, Array]:
        """Return positions and velocities; object and goal rest."""
        draws = uniform(seeds, 2 * counts, 2 * _CANDIDATES)
        things = _points(draws, (-0.3, 0.0), (-0.2, 0.2))
        qpos = np.tile(self.qpos, (len(seeds), 1))
        qpos[:, -4:-2] = _first(things, np.linalg.norm(things, axis=2) > 0.17)
        qpos[:, -2:] = 0.0
        qvel = self.qvel + 0.005 * _centred(seeds, 2 * counts + 1, self.qvel.size)
        qvel[:, -4:] = 0.0
        return qpos, qvel


def _centred(seeds: Seeds, counts: Counts, size: int) -> Array:
    """(n, size) numbers uniform in [-1, 1)."""
    return 2.0 * uniform(seeds, counts, size) - 1.0


def _points(draws: Array, x: tuple[float, float], y: tuple[float, float]) -> Array:
    """(n, candidates, 2) points uniform in a rectangle."""
    low, high = np.array([x, y]).T
    return low + (high - low) * draws.reshape(len(draws), -1, 2)


def _first(points: Array, accepted: npt.NDArray[np.bool_]) -> Array:
    """(n, 2) the first accepted candidate of each simulation."""
    return points[np.arange(len(points)), accepted.argmax(axis=1)]
