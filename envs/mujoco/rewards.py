"""Rewards and healthy ranges of the MuJoCo scenarios, for many simulations at once.

Axes: n simulations, P bodies whose progress counts (two coupled cheetahs, otherwise one).

The weights and ranges are read from Gymnasium's environments; the formulas are those of its v5
`step` methods, with sums taken in the same order so that rewards agree to the last bit or so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from envs.base import BoolArray, Fact
from envs.mujoco.obs import Fields
from envs.mujoco.scenarios import Source

Array = npt.NDArray[np.float64]


class DenseReward(Protocol):
    """What a scenario pays for."""

    outcome: ClassVar[Fact]
    """What `progress` measures."""

    @property
    def fields(self) -> tuple[str, ...]:
        """MjData fields the task reads."""
        ...

    @property
    def ctrl_weight(self) -> float:
        """Price of a squared control."""
        ...

    def progress(self, fields: Fields, displacement: Array) -> Array:
        """(n,) how well it went so far; `displacement` is (n, P), since the episode began."""
        ...

    def position(self, fields: Fields) -> Array:
        """(n, P) coordinate whose change is rewarded; zeros if none is."""
        ...

    def rewards(
        self, fields: Fields, displacement: Array, ctrl: Array, healthy: BoolArray
    ) -> Array:
        """(n,) dense rewards of the step that ended at `fields`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Locomotion:
    """Speed along x plus a bonus for health, less control and contact costs."""

    fields: tuple[str, ...]
    locate: Callable[[Fields], Array]
    dt: float
    """Seconds per step."""
    forward_weight: float
    ctrl_weight: float
    healthy_reward: float = 0.0
    contact_cost: Callable[[Array], Array] | None = None
    outcome: ClassVar[Fact] = Fact(
        name="distance", meaning="distance covered along x", unit="m", higher_is_better=True
    )

    def progress(self, fields: Fields, displacement: Array) -> Array:
        """(n,) metres covered, the mean over the P bodies."""
        return displacement.sum(axis=1) / displacement.shape[1]

    def position(self, fields: Fields) -> Array:
        """(n, P) x coordinates in metres."""
        return self.locate(fields)

    def rewards(
        self, fields: Fields, displacement: Array, ctrl: Array, healthy: BoolArray
    ) -> Array:
        """(n,) mean over the P bodies of speed less control cost, bonus and contact cost."""
        bodies = displacement.shape[1]
        squares = np.square(ctrl).reshape(len(ctrl), bodies, -1)
        costs = (self.ctrl_weight * squares.sum(axis=2)).sum(axis=1) / bodies
        gains = self.forward_weight * (displacement / self.dt).sum(axis=1) / bodies
        if self.healthy_reward:
            gains += healthy * self.healthy_reward
        if self.contact_cost is not None:
            costs += self.contact_cost(fields["cfrc_ext"])
        return gains - costs


@dataclass(frozen=True, kw_only=True)
class StandUp:
    """Height of the torso per timestep, less control and impact costs, plus one."""

    timestep: float
    ctrl_weight: float
    impact_cost: Callable[[Array], Array]
    fields: tuple[str, ...] = ("qpos", "cfrc_ext")
    outcome: ClassVar[Fact] = Fact(
        name="height", meaning="height of the torso", unit="m", higher_is_better=True
    )

    def progress(self, fields: Fields, displacement: Array) -> Array:
        """(n,) metres above the ground."""
        return fields["qpos"][:, 2]

    def position(self, fields: Fields) -> Array:
        """(n, 1) zeros: progress is not rewarded."""
        return np.zeros((len(fields["qpos"]), 1))

    def rewards(
        self, fields: Fields, displacement: Array, ctrl: Array, healthy: BoolArray
    ) -> Array:
        """(n,) height over timestep less costs, plus one."""
        height = fields["qpos"][:, 2] / self.timestep
        ctrl_cost = self.ctrl_weight * np.square(ctrl).sum(axis=1)
        return height - ctrl_cost - self.impact_cost(fields["cfrc_ext"]) + 1.0


@dataclass(frozen=True, kw_only=True)
class Distances:
    """Minus weighted distances between pairs of bodies, less the control cost."""

    pairs: tuple[tuple[int, int, float], ...]
    """(body, body, weight)"""
    ctrl_weight: float
    fields: tuple[str, ...] = ("xpos",)
    outcome: ClassVar[Fact] = Fact(
        name="goal_distance", meaning="distance to the goal", unit="m", higher_is_better=False
    )

    def progress(self, fields: Fields, displacement: Array) -> Array:
        """(n,) metres between the first pair of bodies."""
        positions = fields["xpos"].reshape(len(displacement), -1, 3)
        first, second, _ = self.pairs[0]
        gaps: Array = np.linalg.norm(positions[:, first] - positions[:, second], axis=1)
        return gaps

    def position(self, fields: Fields) -> Array:
        """(n, 1) zeros: progress is not rewarded."""
        return np.zeros((len(fields["xpos"]), 1))

    def rewards(
        self, fields: Fields, displacement: Array, ctrl: Array, healthy: BoolArray
    ) -> Array:
        """(n,) the negative costs."""
        positions = fields["xpos"].reshape(len(ctrl), -1, 3)
        rewards = -np.square(ctrl).sum(axis=1) * self.ctrl_weight
        for first, second, weight in self.pairs:
            gaps = positions[:, first] - positions[:, second]
            rewards -= np.linalg.norm(gaps, axis=1) * weight
        return rewards


def make_dense_reward(source: Source) -> DenseReward:
    """Return the rewards of a scenario, with the weights of Gymnasium's environment."""
    env, model = source.env, source.model
    if source.scenario == "Reacher":
        pair = (model.body("fingertip").id, model.body("target").id, env._reward_dist_weight)
        return Distances(pairs=(pair,), ctrl_weight=env._reward_control_weight)
    if source.scenario == "Pusher":
        thing, tips = model.body("object").id, model.body("tips_arm").id
        near = (thing, tips, env._reward_near_weight)
        goal = (thing, model.body("goal").id, env._reward_dist_weight)
        return Distances(pairs=(goal, near), ctrl_weight=env._reward_control_weight)
    if source.scenario == "HumanoidStandup":
        return StandUp(
            timestep=model.opt.timestep,
            ctrl_weight=env._ctrl_cost_weight,
            impact_cost=_bounded_cost(env._impact_cost_weight, env._impact_cost_range),
        )
    return _locomotion(source)


def _locomotion(source: Source) -> Locomotion:
    """Return the walkers' rewards: what moves and what contact costs differ."""
    env, scenario = source.env, source.scenario
    shared: dict[str, Any] = {
        "dt": env.dt,
        "forward_weight": env._forward_reward_weight,
        "ctrl_weight": env._ctrl_cost_weight,
        "healthy_reward": getattr(env, "_healthy_reward", 0.0),
    }
    if scenario == "Humanoid":
        cost = _bounded_cost(env._contact_cost_weight, env._contact_cost_range)
        locate = _mass_centre(np.asarray(source.model.body_mass))
        return Locomotion(
            fields=("qpos", "xipos", "cfrc_ext"), locate=locate, contact_cost=cost, **shared
        )
    if scenario in ("Ant", "ManySegmentAnt"):
        column = 3 * source.model.body(env._main_body).id
        return Locomotion(
            fields=("qpos", "xpos", "cfrc_ext"),
            locate=lambda fields: fields["xpos"][:, column : column + 1],
            contact_cost=_clipped_forces_cost(env._contact_cost_weight, env._contact_force_range),
            **shared,
        )
    if scenario == "CoupledHalfCheetah":
        second = source.model.nq // 2  # the source's index of the second cheetah's rootx
        return Locomotion(
            fields=("qpos",), locate=lambda fields: fields["qpos"][:, [0, second]], **shared
        )
    return Locomotion(fields=("qpos",), locate=lambda fields: fields["qpos"][:, :1], **shared)


def _mass_centre(masses: Array) -> Callable[[Fields], Array]:
    """Return the function that computes the (n, 1) x coordinate of the centre of mass."""
    total = masses.sum()
    return lambda fields: (fields["xipos"][:, ::3] * masses).sum(axis=1, keepdims=True) / total


def _bounded_cost(weight: float, bounds: tuple[float, float]) -> Callable[[Array], Array]:
    """Return the (n,) weighted squared contact forces, clipped as a sum (Humanoid)."""
    return lambda forces: np.clip(weight * np.square(forces).sum(axis=1), *bounds)


def _clipped_forces_cost(weight: float, bounds: tuple[float, float]) -> Callable[[Array], Array]:
    """Return the (n,) weighted squares of contact forces clipped one by one (Ant)."""
    return lambda forces: weight * np.square(np.clip(forces, *bounds)).sum(axis=1)


@dataclass(frozen=True, kw_only=True)
class HealthyBox:
    """Open intervals that columns of (qpos, qvel) must stay in; leaving them ends the episode."""

    columns: npt.NDArray[np.intp]
    lower: Array
    upper: Array

    def contains(self, qpos_qvel: Array) -> BoolArray:
        """(n,) whether each simulation is healthy."""
        values = qpos_qvel.take(self.columns, axis=1)
        inside: BoolArray = np.all((values > self.lower) & (values < self.upper), axis=1)
        return inside


def make_healthy_box(source: Source) -> HealthyBox | None:
    """Return the healthy ranges of a scenario, None if it never terminates."""
    env, model = source.env, source.model
    limits: dict[int, tuple[float, float]] = {}
    if source.scenario in ("Ant", "ManySegmentAnt"):
        low, high = env._healthy_z_range
        # the only inclusive range: the open interval between the neighbouring numbers
        limits[2] = (np.nextafter(low, -np.inf), np.nextafter(high, np.inf))
    elif source.scenario == "Humanoid":
        limits[2] = env._healthy_z_range
    elif source.scenario in ("Hopper", "Walker2d"):
        if source.scenario == "Hopper":
            limits = dict.fromkeys(range(2, model.nq + model.nv), env._healthy_state_range)
        low, high = limits.get(2, (-np.inf, np.inf))
        angle = env._healthy_angle_range
        limits |= {1: env._healthy_z_range, 2: (max(low, angle[0]), min(high, angle[1]))}
    if not limits:
        return None
    lower, upper = np.array(list(limits.values()), np.float64).T
    return HealthyBox(columns=np.array(list(limits), np.intp), lower=lower, upper=upper)
