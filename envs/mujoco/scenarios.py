"""Multi-agent MuJoCo scenarios: names, models, and partitions of the joints among agents.

The models, weights and ranges are those of Gymnasium's v5 environments; the partitions of the
joints and what each agent observes are those of gymnasium-robotics' ``mamujoco_v1``.
"""

import difflib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import gymnasium
import mujoco
import numpy as np
import numpy.typing as npt
from gymnasium_robotics.envs.multiagent_mujoco import many_segment_ant, many_segment_swimmer, obsk
from gymnasium_robotics.envs.multiagent_mujoco.coupled_half_cheetah import CoupledHalfCheetahEnv
from gymnasium_robotics.envs.multiagent_mujoco.mujoco_multi import MultiAgentMujocoEnv

from envs.base import EnvError
from envs.catalogue import MAMUJOCO_NAMES, PARTITIONS, SEGMENTED

_COUPLED_MAX_STEPS = 1000  # the TimeLimit that mamujoco_v1 puts around CoupledHalfCheetahEnv


def choose(what: str, got: Any, valid: Sequence[Any]) -> Any:
    """Return `got` if it is one of `valid`; else raise an error that suggests the nearest."""
    if got in valid:
        return got
    near = difflib.get_close_matches(str(got), [str(v) for v in valid], n=1, cutoff=0.0)
    listed = ", ".join(map(repr, valid))
    raise EnvError(f"{what} {got!r} does not exist; choose one of {listed} (nearest: {near[0]!r})")


def check_partition(scenario: str, partition: str) -> None:
    """Raise `EnvError` unless the scenario exists and can be split by the partition."""
    choose("MuJoCo scenario", scenario, tuple(PARTITIONS))
    if scenario not in SEGMENTED:
        choose(f"partition of {scenario}", partition, PARTITIONS[scenario])
        return
    sizes = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", str(partition))
    if sizes is None or int(sizes[1]) * int(sizes[2]) < 2:
        raise EnvError(
            f"partition of {scenario} is {partition!r}; expected AxB, A agents of B segments "
            "with at least 2 segments together, e.g. '2x3'"
        )


def scenario_from_name(name: str) -> tuple[str, str]:
    """Return scenario and partition, e.g. ("HalfCheetah", "2x3") for ``halfcheetah_2x3``."""
    prefix, _, partition = name.lower().partition("_")
    scenarios = {scenario.lower(): scenario for scenario in PARTITIONS}
    if prefix not in scenarios or not partition:
        choose("multi-agent MuJoCo task", name, MAMUJOCO_NAMES)
    scenario = scenarios[prefix]
    check_partition(scenario, partition)
    return scenario, partition


@dataclass(frozen=True, kw_only=True)
class Source:
    """One scenario as its authors wrote it, read once to build the batched version."""

    scenario: str
    env: Any
    """Gymnasium's single-agent environment, unwrapped."""
    max_steps: int

    @property
    def model(self) -> Any:
        """The compiled `mujoco.MjModel`."""
        return self.env.model


@dataclass(frozen=True, kw_only=True)
class Partition:
    """How a scenario's joints are shared among agents, and what each agent observes."""

    parts: Sequence[Sequence[Any]]
    """Joint nodes that each agent drives, in the order of its action vector."""
    neighbours: Sequence[dict[int, list[Any]]]
    """Per agent, the nodes at each graph distance 0..k."""
    local_categories: Sequence[Sequence[str]]
    global_nodes: Sequence[Any]

    def observe(self, agent: int, data: Any) -> npt.NDArray[np.float64]:
        """Return one agent's observation by gymnasium-robotics' own `build_obs`."""
        return obsk.build_obs(
            data,
            self.neighbours[agent],
            self.local_categories,
            self.global_nodes,
            ("qpos", "qvel"),  # mamujoco_v1's default global categories
        )


@contextmanager
def without_compiler_warnings() -> Iterator[None]:
    """Keep MuJoCo from writing MUJOCO_LOG.TXT about deprecated words in Gymnasium's models."""
    previous = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(previous)


def make_source(scenario: str, partition: str | None = None) -> Source:
    """Return the single-agent original; segmented scenarios need the partition for their size."""
    with without_compiler_warnings():
        if scenario == "CoupledHalfCheetah":
            env: Any = CoupledHalfCheetahEnv()
            return Source(scenario=scenario, env=env, max_steps=_COUPLED_MAX_STEPS)
        name = f"{SEGMENTED.get(scenario, scenario)}-v5"
        if scenario in SEGMENTED:
            env = _segmented_env(scenario, name, str(partition))
        else:
            env = gymnasium.make(name).unwrapped
    max_steps = gymnasium.spec(name).max_episode_steps
    assert max_steps is not None, f"{name} has no time limit"
    return Source(scenario=scenario, env=env, max_steps=max_steps)


def make_partition(scenario: str, partition: str, agent_obsk: int) -> Partition:
    """Return the partition and each agent's neighbours up to graph distance `agent_obsk`."""
    parts, edges, global_nodes = obsk.get_parts_and_edges(scenario, partition)
    categories = MultiAgentMujocoEnv._generate_local_categories(
        SimpleNamespace(agent_obsk=agent_obsk), scenario
    )
    neighbours = [
        in_fixed_order(obsk.get_joints_at_kdist(part, edges, agent_obsk)) for part in parts
    ]
    return Partition(
        parts=parts, neighbours=neighbours, local_categories=categories, global_nodes=global_nodes
    )


def in_fixed_order(neighbours: dict[int, list[Any]]) -> dict[int, list[Any]]:
    """Return the nodes sorted by label, then actuator.

    The source sorts sets by label alone. Two of Pusher's joints share a label, so their order
    there follows memory addresses and differs from process to process.
    """
    return {
        distance: sorted(nodes, key=lambda node: (node.label, node.act_ids))
        for distance, nodes in neighbours.items()
    }


class DenseTendons:
    """An `MjData` whose ``ten_J`` is the dense (tendons, nv) matrix mamujoco_v1 indexes.

    MuJoCo 4 stores that Jacobian sparse, which makes the original CoupledHalfCheetah fail.
    """

    def __init__(self, model: Any, data: Any) -> None:
        self._model, self._data = model, data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    @property
    def ten_J(self) -> npt.NDArray[np.float64]:  # noqa: N802 (MuJoCo's name)
        """(tendons, nv) gradient of each tendon's length."""
        dense = np.zeros((self._model.ntendon, self._model.nv))
        if dense.size:
            mujoco.mju_sparse2dense(
                dense,
                self._data.ten_J,
                self._model.ten_J_rownnz,
                self._model.ten_J_rowadr,
                self._model.ten_J_colind,
            )
        return dense


def _segmented_env(scenario: str, name: str, partition: str) -> Any:
    """Return the environment of a generated model, whose file is needed only while it loads."""
    agents, segments = map(int, partition.split("x"))
    generator = many_segment_ant if scenario == "ManySegmentAnt" else many_segment_swimmer
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.xml")
        generator.gen_asset(n_segs=agents * segments, asset_path=path)
        return gymnasium.make(name, xml_file=path).unwrapped
