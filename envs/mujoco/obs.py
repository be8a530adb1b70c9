"""Observations of many simulations by one index array, learnt from the original code.

Axes: n simulations, E environments, N agents, O observation features, S state features, F features.

`FeatureMatrix` turns MuJoCo's arrays into one (n, F) matrix. Which of its columns an agent sees is
found once: the source's own functions observe a few random `MjData`, and each number they return
is looked up among the features of the same data.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium_robotics
import mujoco
import numpy as np
import numpy.typing as npt

from envs.base import EnvError, FloatArray
from envs.mujoco.scenarios import DenseTendons, Partition, Source

Fields = Mapping[str, npt.NDArray[np.float64]]
"""MjData fields of all simulations, each flattened to (n, size)."""

Write = Callable[[Any, Fields, npt.NDArray[np.float64]], object]
"""Fills an (n, size) array from the fields of a model's simulations."""

_PROBE_SCALES = (0.3, 0.3, 0.3, 3.0, 3.0, 30.0, 30.0, 30.0)  # inside and outside every clip


def _plain(name: str) -> Write:
    return lambda model, fields, out: np.copyto(out, fields[name])


def _clipped(name: str, limit: float) -> Write:
    return lambda model, fields, out: np.clip(fields[name], -limit, limit, out=out)


def _fingertip_to_target(model: Any, fields: Fields, out: npt.NDArray[np.float64]) -> None:
    """Write the vector from target to fingertip (Reacher)."""
    tip, target = model.body("fingertip").id, model.body("target").id
    positions = fields["xpos"]
    np.subtract(positions[:, 3 * tip : 3 * tip + 3], positions[:, 3 * target : 3 * target + 3], out)


_BLOCKS: dict[str, tuple[str, Write]] = {
    **{
        name: (name, _plain(name))
        for name in [
            "qpos",
            "qvel",
            "cinert",
            "cvel",
            "qfrc_actuator",
            "cfrc_ext",
            "xpos",
            "ten_J",
            "ten_length",
            "ten_velocity",
        ]
    },
    "clipped_qvel": ("qvel", _clipped("qvel", 10.0)),
    "clipped_cfrc_ext": ("cfrc_ext", _clipped("cfrc_ext", 1.0)),
    "cos_qpos": ("qpos", lambda model, fields, out: np.cos(fields["qpos"], out=out)),
    "sin_qpos": ("qpos", lambda model, fields, out: np.sin(fields["qpos"], out=out)),
    "fingertip_to_target": ("xpos", _fingertip_to_target),
}
"""Name of a feature block: the field it is computed from, and how."""

_EXTRA_BLOCKS: dict[str, tuple[str, ...]] = {
    "Ant": ("clipped_cfrc_ext",),
    "ManySegmentAnt": ("clipped_cfrc_ext",),
    "Hopper": ("clipped_qvel",),
    "Walker2d": ("clipped_qvel",),
    "Humanoid": ("cinert", "cvel", "qfrc_actuator", "cfrc_ext"),
    "HumanoidStandup": ("cinert", "cvel", "qfrc_actuator", "cfrc_ext"),
    "Reacher": ("cos_qpos", "sin_qpos", "fingertip_to_target"),
    "Pusher": ("xpos",),
    "CoupledHalfCheetah": ("ten_J", "ten_length", "ten_velocity"),
}
"""Blocks a scenario observes beside qpos and qvel."""


class FeatureMatrix:
    """The (n, F) matrix of everything a scenario observes; its last column is zero padding."""

    def __init__(self, scenario: str, model: Any) -> None:
        self._model = model
        names = ("qpos", "qvel", *_EXTRA_BLOCKS.get(scenario, ()))
        self._blocks = []
        data, start = mujoco.MjData(model), 0
        for name in names:
            field, write = _BLOCKS[name]
            size = 3 if name == "fingertip_to_target" else getattr(data, field).size
            self._blocks.append((slice(start, start + size), write))
            start += size
        self.fields = tuple(dict.fromkeys(_BLOCKS[name][0] for name in names))
        """MjData fields that `write` reads."""
        self.width = start + 1
        """F, the padding column included."""

    def write(self, fields: Fields, out: npt.NDArray[np.float64]) -> None:
        """Fill the (n, F) matrix `out`, whose padding column stays as it is."""
        for columns, write in self._blocks:
            write(self._model, fields, out[:, columns])


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which features each agent and the state consist of."""

    obs: npt.NDArray[np.intp]
    """(N, O), the padding column beyond an agent's own size."""
    state: npt.NDArray[np.intp]
    """(S,)"""
    obs_sizes: tuple[int, ...]


def find_columns(
    source: Source, features: FeatureMatrix, team: Partition | None, num_agents: int
) -> Columns:
    """Return the columns of each agent's observation and of the state.

    Without a team every agent observes the whole state.
    """
    probes = [_probe(source.model, seed, scale) for seed, scale in enumerate(_PROBE_SCALES)]
    table = np.zeros((len(probes), features.width))
    features.write(
        {name: np.stack([getattr(p, name).ravel() for p in probes]) for name in features.fields},
        table,
    )
    dense = [DenseTendons(source.model, probe) for probe in probes]
    state = _match(table, np.stack([_observe_state(source.env, d) for d in dense]), "the state")
    agents = [state] * num_agents
    if team is not None:
        agents = [
            _match(table, np.stack([team.observe(i, d) for d in dense]), f"agent {i}'s observation")
            for i in range(num_agents)
        ]
    sizes = tuple(len(columns) for columns in agents)
    obs = np.full((num_agents, max(sizes)), features.width - 1, np.intp)
    for row, columns in zip(obs, agents, strict=True):
        row[: len(columns)] = columns
    return Columns(obs=obs, state=state, obs_sizes=sizes)


class Views:
    """Observations and states of all environments, gathered into arrays that are used again."""

    def __init__(self, columns: Columns, num_sims: int, width: int, dtype: str) -> None:
        self._columns = columns
        self._obs_columns = columns.obs.ravel()
        self._features = np.empty((num_sims, width), dtype)
        self.obs: FloatArray = np.empty((num_sims, *columns.obs.shape), dtype)
        """(n, N, O)"""
        self.state: FloatArray = np.empty((num_sims, len(columns.state)), dtype)
        """(n, S)"""
        self._flat_obs = self.obs.reshape(num_sims, -1)

    def gather(self, features: npt.NDArray[np.float64]) -> None:
        """Refresh `obs` and `state` from the (n, F) feature matrix."""
        np.copyto(self._features, features, casting="same_kind")
        # mode="clip" because np.take buffers its output when it checks the indices
        np.take(self._features, self._obs_columns, axis=1, out=self._flat_obs, mode="clip")
        np.take(self._features, self._columns.state, axis=1, out=self.state, mode="clip")


def _probe(model: Any, seed: int, scale: float) -> Any:
    """Return an `MjData` whose observable fields are random."""
    data = mujoco.MjData(model)
    draw = np.random.default_rng(seed)
    for name in dict.fromkeys(field for field, _ in _BLOCKS.values()):
        array = getattr(data, name)
        array[...] = draw.normal(scale=scale, size=array.shape)
    return data


def _observe_state(env: Any, data: Any) -> npt.NDArray[np.float64]:
    """Return the single-agent environment's own observation of `data`."""
    real, env.data = env.data, data
    try:
        return np.asarray(env._get_obs())
    finally:
        env.data = real


def _match(
    table: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64], what: str
) -> npt.NDArray[np.intp]:
    """Return, for each number of `wanted` (probes, M), the column of `table` (probes, F)."""
    error = np.abs(table[:, None, :] - wanted[:, :, None])
    close = error <= 1e-12 * (1.0 + np.abs(wanted[:, :, None]))
    found: npt.NDArray[np.bool_] = np.all(close, axis=0)
    missing = np.flatnonzero(~found.any(axis=1))
    if missing.size:
        raise EnvError(
            f"element {missing[0]} of {what} is no known feature of MuJoCo's data; "
            f"gymnasium-robotics {gymnasium_robotics.__version__} observes something new: "
            "install the version named in the constraints file"
        )
    return found.argmax(axis=1).astype(np.intp)
