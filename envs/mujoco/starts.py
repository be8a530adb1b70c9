"""Initial states of the MuJoCo scenarios, for many simulations at once.

The distributions are those of Gymnasium's v5 `reset_model` methods; the numbers come from
`envs.randomness`, so an episode's start depends only on its copy's seed and episode count.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from envs.mujoco.source import Source
from envs.randomness import normal, uniform

Array = npt.NDArray[np.float64]
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
